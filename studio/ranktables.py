"""Tables with a column a rank (kingdom ... species), and SpeciesNet's labels -> paths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from studio.errors import TreeFileError
from studio.headings import (
    ACCEPTED_ID,
    AUTHOR,
    COMMON,
    NO_PARENT,
    NO_RANK,
    NUMBER,
    PLAIN,
    RANK,
    RANKS,
    SCIENTIFIC,
    STATUS,
    UUID,
    Columns,
    Path,
    Row,
    Table,
    choice_of_names,
    left_out,
    shorten,
    some,
)

_SPECIESNET: Final = ["class", "order", "family", "genus", "species"]


def rank_table(
    columns: Columns, rows: Sequence[Row], ranks: Sequence[int], own: int | None
) -> Table:
    """A column a rank, cells may be empty; further columns may name the row's own taxon."""
    ids = all(UUID.fullmatch(row[0]) for _, row in rows)
    if ids and len(columns.head) == 7 and columns.words[1:6] == _SPECIESNET:
        return speciesnet(rows, common=own == 6)
    names = columns.there(SCIENTIFIC)
    loose = bool(names)
    names = names or columns.there(PLAIN)[:1]
    if not names and "species" not in columns.words:
        names = columns.there(COMMON)[:1]
    rows, notes = accepted_rows(columns, rows)
    keys: list[tuple[int, Path]] = []
    shown: dict[Path, str] = {}
    lineages = [(line, [_rank_cell(row[c]) for c in ranks]) for line, row in rows]
    for (line, row), (_, cells) in zip(rows, lineages, strict=True):
        path = [(columns.words[c], cell) for c, cell in zip(ranks, cells, strict=True) if cell]
        name = _own_name(columns, row, names, path)
        if not path and not name:
            raise TreeFileError(
                f"line {line}: expected a name in one of the columns "
                f"{some(columns.head[c] for c in ranks)}, all are empty"
            )
        if number := next((c for c in (name, *cells) if NUMBER.fullmatch(c)), ""):
            raise TreeFileError(f"line {line}: expected a name, got the number {shorten(number)}")
        key = tuple(f"{word}\0{cell}" for word, cell in path)
        if name and not _same_taxon(name, path, columns.cell(row, RANK).casefold(), loose=loose):
            key = (*key, f"\0{name}")
        elif name and not name.startswith(path[-1][1]):
            shown.setdefault(key, name)  # "Mytilus edulis" where the column says "edulis"
        if own is not None and row[own] not in NO_RANK:
            shown[key] = row[own]
        keys.append((line, key))
    notes += choice_of_names(columns, own if own is not None else (names or ranks)[-1])
    used = {*ranks, *names, *columns.there(RANK), *([] if own is None else [own])}
    notes += [*_gap_notes(lineages), *left_out(columns, used)]
    return Table([(f"line {line}", _shown_path(key, shown)) for line, key in keys], notes)


def _own_name(
    columns: Columns, row: Sequence[str], names: Sequence[int], path: Sequence[tuple[str, str]]
) -> str:
    """The row's own taxon by a column beside the ranks, or by genus and epithet."""
    name = next((row[c] for c in names if row[c] not in NO_RANK), "")
    name = without_author(name, columns.cell(row, AUTHOR))
    epithet = columns.cell(row, ("specificepithet",))
    if name or epithet in NO_RANK:
        return name
    return f"{next((cell for word, cell in path if word == 'genus'), '')} {epithet}".strip()


def _rank_cell(cell: str) -> str:
    return "" if cell in NO_RANK else cell


def _shown_path(key: Path, shown: Mapping[Path, str]) -> Path:
    return tuple(
        shown.get(key[:end], key[end - 1].partition("\0")[2]) for end in range(1, len(key) + 1)
    )


def without_author(name: str, author: str) -> str:
    """A name without the authorship at its end, where the table gives that too."""
    return name.removesuffix(author).strip() if author not in NO_RANK else name


def _same_taxon(name: str, path: Sequence[tuple[str, str]], rank: str, *, loose: bool) -> bool:
    """Whether a row's own name names the deepest taxon of its ranks, and not one below it."""
    if not path:
        return False
    word, cell = path[-1]
    if rank in RANKS:
        return RANKS.index(rank) <= RANKS.index(word)
    if name == cell or rank:
        return name == cell
    if not loose or not name.startswith(f"{cell} "):
        return False
    return not name[len(cell) + 1 :][:1].islower()  # "Panthera Oken", not "Panthera leo"


def _gap_notes(lineages: Sequence[tuple[int, list[str]]]) -> list[str]:
    """A note on taxa that stand both with a rank above them and without it: two labels."""
    ways: dict[tuple[int, str], dict[Path, int]] = {}
    for line, cells in lineages:
        for place, cell in enumerate(cells):
            if cell:
                ways.setdefault((place, cell), {}).setdefault(tuple(cells[:place]), line)
    found = [
        f"{shorten(cell)} (line {line})"
        for (_, cell), above in ways.items()
        if len(above) > 1
        for way, line in above.items()
        if any(_fills(other, way) for other in above)
    ]
    if not found:
        return []
    listed = ", ".join(found[:3]) + (f", and {len(found) - 3} more" if len(found) > 3 else "")
    words = f"{len(found)} taxa stand with a rank above them and without it, as two labels"
    return [f"{words}: {listed}. Fill the gap where they are one"]


def _fills(other: Path, way: Path) -> bool:
    """Whether one lineage is another with some of its gaps filled."""
    return other != way and all(
        mine in {"", theirs} for mine, theirs in zip(way, other, strict=True)
    )


def speciesnet(rows: Sequence[Row], *, common: bool = False) -> Table:
    """SpeciesNet's label file: id;class;order;family;genus;species;common name.

    Its species are epithets; what has no rank (blank, vehicle) is a label of its own, and "animal"
    is above all that has one.
    """
    root = any(not any(row[1:6]) and row[6].casefold() == "animal" for _, row in rows)
    keys: list[tuple[int, Path]] = []
    shown: dict[Path, str] = {}
    for line, row in rows:
        ranks = [f"{place}\0{cell}" for place, cell in enumerate(row[1:6]) if cell]
        if not ranks and not row[6]:
            raise TreeFileError(f"line {line}: expected a rank or a common name, got neither")
        if not ranks:
            name = "animal" if row[6].casefold() == "animal" else row[6]
            keys.append((line, (f"\0{name}",)))
            continue
        key = (*(["\0animal"] if root else []), *ranks)
        if row[4] and row[5]:
            shown.setdefault(key, f"{row[4]} {row[5]}")
        if common and row[6]:
            shown[key] = row[6]
        keys.append((line, key))
    notes = ["read as SpeciesNet's labels: ids are left out, and common names beside ranks"]
    if root:
        notes.append('"animal" stands above all classes, as in SpeciesNet')
    return Table([(f"line {line}", _shown_path(key, shown)) for line, key in keys], notes)


def accepted_rows(columns: Columns, rows: Sequence[Row]) -> tuple[list[Row], list[str]]:
    """Rows of accepted names, and a note on the others."""
    status = columns.first(STATUS)
    accepted = columns.first(ACCEPTED_ID)
    words = {row[status].casefold() for _, row in rows} if status is not None else set()
    if columns.first(STATUS[:2]) is None and not words & _ACCEPTED:
        status = None  # some other status
    ids = columns.ids()
    kept: list[Row] = []
    left: list[Row] = []
    for line, row in rows:
        word = "" if status is None else row[status].casefold()
        fits = not word or word in _ACCEPTED
        if not word and accepted is not None and row[accepted] not in NO_PARENT and ids:
            fits = any(row[column] == row[accepted] for column in ids)
        (kept if fits else left).append((line, row))
    if rows and not kept:
        raise TreeFileError(
            f"line {rows[0][0]}: no row is an accepted name: expected some whose "
            f"{shorten(columns.head[status if status is not None else accepted or 0])} says so"
        )
    lines = f"{len(left)} synonym(s) left out, such as on line {left[0][0]}" if left else ""
    return kept, [lines] if left else []


#: What stands in the status of names that are in use.
_ACCEPTED: Final = frozenset(
    {"accepted", "valid", "provisionally accepted", "accepted name", "doubtful"}
)
