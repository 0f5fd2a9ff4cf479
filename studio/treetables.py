"""Tables with a heading -> paths: columns of levels or ranks, id/name/parent, ICD codes, paths.

A column counts by its heading, whatever the heading's case, blanks, marks and prefix. What the
headings do not say is refused with the line and a cure, never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from studio.errors import TreeFileError

Path = tuple[str, ...]

#: A row: the number of its line, and its cells.
Row = tuple[int, list[str]]

#: Ranks of a taxonomy, coarse to fine.
RANKS: Final = (
    "domain",
    "superkingdom",
    "kingdom",
    "subkingdom",
    "infrakingdom",
    "superphylum",
    "phylum",
    "division",
    "subphylum",
    "subdivision",
    "infraphylum",
    "superclass",
    "class",
    "subclass",
    "infraclass",
    "cohort",
    "superorder",
    "order",
    "suborder",
    "infraorder",
    "parvorder",
    "superfamily",
    "family",
    "subfamily",
    "supertribe",
    "tribe",
    "subtribe",
    "genus",
    "subgenus",
    "species",
    "subspecies",
    "variety",
    "form",
)

_SCIENTIFIC: Final = ("canonicalname", "scientificname", "latinname", "sciname", "binomial")
_PLAIN: Final = (
    "completename",
    "taxonname",
    "name",
    "label",
    "preflabel",
    "title",
    "categoryname",
    "classname",
    "labelname",
    "displayname",
    "speciesname",
    "taxon",
    "term",
)
_COMMON: Final = (
    "vernacularname",
    "vernacular",
    "commonname",
    "commonnames",
    "englishname",
    "englishcommonname",
    "preferredcommonname",
)
_DESCRIPTION: Final = (
    "longdescription",
    "description",
    "descriptionlong",
    "fulldescription",
    "codedescription",
    "icddescription",
    "diagnosis",
    "longtitle",
    "shortdescription",
)
_PATH: Final = (
    "path",
    "fullpath",
    "labelpath",
    "categorypath",
    "taxonomypath",
    "treepath",
    "hierarchy",
    "lineage",
    "breadcrumb",
)
_CODE: Final = (
    "code",
    "icdcode",
    "icd10",
    "icd10code",
    "icd10cm",
    "icd10cmcode",
    "icd9code",
    "diagnosiscode",
)
_KEYS: Final = frozenset(
    {
        "id",
        "key",
        "tsn",
        "uid",
        "uuid",
        "guid",
        "identifier",
        "usagekey",
        "taxonkey",
        "index",
        *_CODE,
    }
)
_AUTHOR: Final = ("scientificnameauthorship", "authorship", "authority")
_STATUS: Final = ("taxonomicstatus", "taxonstatus", "status")
_ACCEPTED_ID: Final = (
    "acceptednameusageid",
    "acceptedtaxonkey",
    "acceptedusagekey",
    "acceptedtaxonid",
    "aphiaidaccepted",
    "validaphiaid",
    "acceptedid",
)
_OTHER_IDS: Final = ("parent", "accepted", "valid", "original", "dataset", "source", "alternative")

_RANK: Final = ("taxonrank", "rank")
_SPECIESNET: Final = ["class", "order", "family", "genus", "species"]

#: Headings of levels whose order is that of their columns.
_LEVEL: Final = re.compile(
    r"(?:level|lvl|l|tier|depth|column|col)\d+(?:name)?"
    r"|(?:sub|super|fine|coarse|top|main|leaf|child)*"
    r"(?:label|class|category|group|type|name|section|department|taxonomy)(?:name|\d+)?"
    r"|coarse|fine|top|leaf"
)

#: Last words of headings that nobody gives to a label.
_HEADING_ENDS: Final = re.compile(
    r"(?:^|[\s_.-]|(?<=[a-z]))(?:id|ids|code|codes|name|names|key|label|uuid|description)$",
    re.IGNORECASE,
)

#: What stands in an empty cell of exports of databases and of R or Python.
_EMPTY: Final = frozenset({"", "NA", "N/A", "#N/A", "NaN", "nan", "NULL", "null", r"\N"})
_NO_RANK: Final = _EMPTY | {"None", "none", "-", "--"}

#: What a top's parent may be, if no row has it as its id.
_NO_PARENT: Final = _NO_RANK | {"0", "-1"}

NUMBER: Final = re.compile(r"[-+]?[\d.,\s]*\d[\d.,\s]*%?")
UUID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)

_ICD: Final = re.compile(r"(?:[A-Z]\d[0-9A-Z]|\d{3})(?:\.?[0-9A-Z]{1,4})?", re.IGNORECASE)
_ICD_BLOCK: Final = re.compile(
    r"([A-Z]\d[0-9A-Z]|\d{3})\s*[-\u2013]\s*([A-Z]\d[0-9A-Z]|\d{3})", re.IGNORECASE
)

CHOOSE: Final = (
    "Say --levels COLUMN,COLUMN,... with the columns that are levels from coarse to fine"
)


@dataclass
class Table:
    """Paths that were read, each with where it stands, and notes on the reading.

    With ``split``, each path is one text that is still to be cut at its separators.
    """

    paths: list[tuple[str, Path]]
    notes: list[str] = field(default_factory=list)
    split: bool = False


def shorten(text: str) -> str:
    """A name in quotation marks, safe to print, cut if it is long."""
    shown = text if len(text) <= 60 else f"{text[:60]}..."
    return '"' + "".join(c if c.isprintable() else repr(c)[1:-1] for c in shown) + '"'


def some(words: Iterable[str]) -> str:
    """The first three of some names, and how many more there are."""
    listed = list(words)
    shown = ", ".join(word if " repeats " in word else shorten(word) for word in listed[:3])
    return f"{shown}, and {len(listed) - 3} more" if len(listed) > 3 else shown


def heading_word(cell: str) -> str:
    """A heading without case, blanks, marks and prefix (``dwc:taxonID`` is ``taxonid``)."""
    name = re.split(r"[/#:]", cell.strip().rstrip("/:"))[-1] if cell.strip("# ") else ""
    return re.sub(r"[\W_]+", "", name.casefold())


def is_heading(cell: str) -> bool:
    """Whether a cell reads like the head of a column rather than like a label."""
    word = heading_word(cell)
    return (
        _LEVEL.fullmatch(word) is not None
        or word in _KEYS
        or word in {*RANKS, *_SCIENTIFIC, *_PLAIN, *_COMMON, *_DESCRIPTION, *_PATH, *_STATUS}
        or word in _ACCEPTED_ID
        or _is_parent(word)
        or _HEADING_ENDS.search(cell.strip()) is not None
    )


def _is_parent(word: str) -> bool:
    return word in {"broader", "subclassof"} or (
        (word.startswith("parent") or word.endswith("parent")) and not word.endswith("rank")
    )


class _Columns:
    """Columns of a table by heading."""

    def __init__(self, head: Sequence[str], line: int) -> None:
        self.head = head
        self.line = line
        self.words = [heading_word(cell) for cell in head]
        for word, cell in zip(self.words, head, strict=True):
            if word and self.words.count(word) > 1:
                raise TreeFileError(
                    f"line {line}: two columns are headed {shorten(cell)}: rename or remove one"
                )

    def first(self, words: Iterable[str]) -> int | None:
        """The first of these headings that is there."""
        return next((self.words.index(word) for word in words if word in self.words), None)

    def asked(self, heading: str) -> int:
        """The column that a person names."""
        if (word := heading_word(heading)) and word in self.words:
            return self.words.index(word)
        raise TreeFileError(
            f"line {self.line}: expected a column headed {shorten(heading)}, the headings are "
            f"{', '.join(map(shorten, self.head))}"
        )

    def there(self, words: Iterable[str]) -> list[int]:
        """All of these headings that are there, in this order."""
        return [self.words.index(word) for word in words if word in self.words]

    def cell(self, row: Sequence[str], words: Iterable[str]) -> str:
        """A row's text below the first of these headings, empty if there is none."""
        column = self.first(words)
        return "" if column is None else row[column]

    def ranks(self) -> list[int]:
        """The columns that are ranks, coarse to fine."""
        return self.there(RANKS)

    def ids(self) -> list[int]:
        """Columns that may hold the row's own id."""
        return [
            column
            for column, word in enumerate(self.words)
            if (word in _KEYS or word.endswith(("id", "key")))
            and not word.startswith(_OTHER_IDS)
            and not _is_parent(word)
        ]


def read_table(
    head: Sequence[str],
    line: int,
    rows: Sequence[Row],
    *,
    levels: Sequence[str] | None = None,
    name: str | None = None,
) -> Table:
    """Paths of a table, by what its headings say of its columns.

    Headings that say nothing at all head levels, coarse to fine.

    Args:
        head: the headings.
        line: where they stand.
        rows: the other rows, cells stripped.
        levels: headings of the columns that are the levels, coarse to fine.
        name: heading of the column that names the label of a row.

    Raises:
        TreeFileError: with the line, what was expected and what came.
    """
    columns = _Columns(head, line)
    for number, cells in rows:
        if any(cells[len(head) :]):
            raise TreeFileError(
                f"line {number}: expected at most {len(head)} cells as the first line has, got "
                f"{len(cells)} ({some(cells)}): quote a name that holds the mark between cells"
            )
    rows = [(number, cells + [""] * (len(head) - len(cells))) for number, cells in rows]
    if levels:
        chosen = [columns.asked(one) for one in levels]
        return Table(list(_levels(rows, chosen, gaps=_all_ranks(columns, chosen))))
    own = None if name is None else columns.asked(name)
    if parents := _parent_columns(columns, rows):
        return _parent_table(columns, rows, parents, own)
    named = columns.first((*_SCIENTIFIC, *_PLAIN, *_COMMON))
    ranks = columns.ranks()
    if len(ranks) > 1 or (ranks and named is not None):
        return _rank_table(columns, rows, ranks, own)
    return _code_table(columns, rows, own) or _level_table(columns, rows, own)


def _parent_columns(columns: _Columns, rows: Sequence[Row]) -> list[int]:
    """Columns that hold each row's parent."""
    found = [column for column, word in enumerate(columns.words) if _is_parent(word)]
    over, name = columns.first(("supercategory",)), columns.first(_PLAIN)
    if found or over is None or name is None:
        return found
    # In Roboflow's exports these are categories as well, in COCO's they are not.
    known = {row[name] for _, row in rows} | _NO_PARENT
    return [over] if all(row[over] in known for _, row in rows) else []


def _all_ranks(columns: _Columns, chosen: Sequence[int]) -> bool:
    return all(columns.words[column] in RANKS for column in chosen)


def _left_out(columns: _Columns, used: Iterable[int]) -> list[str]:
    """A note on the columns that are not read."""
    there = set(used)
    left = [cell for column, cell in enumerate(columns.head) if column not in there and cell]
    return [f"column(s) left out: {some(left)}"] if left else []


# Levels


def _levels(
    rows: Sequence[Row], columns: Sequence[int], *, gaps: bool = False
) -> Iterator[tuple[str, Path]]:
    """Paths of rows whose columns are levels, coarse to fine."""
    empty = _NO_RANK if gaps else _EMPTY
    for line, row in rows:
        cells = ["" if row[column] in empty else row[column] for column in columns]
        if not any(cells):
            raise TreeFileError(f"line {line}: expected a label, all its levels are empty")
        path = cells[: max(place for place, cell in enumerate(cells, 1) if cell)]
        if gaps:
            path = [cell for cell in path if cell]
        if "" in path:
            raise TreeFileError(
                f"line {line}: level {path.index('') + 1} is empty and a deeper one is not "
                f"({shorten(path[-1])}): expected the levels from coarse to fine without a gap"
            )
        yield f"line {line}", tuple(path)


def headless(rows: Sequence[Row]) -> Table:
    """Paths of a table without headings: SpeciesNet's labels, or a column a level."""
    width = max(len(cells) for _, cells in rows)
    rows = [(line, cells + [""] * (width - len(cells))) for line, cells in rows]
    if width == 7 and all(UUID.fullmatch(cells[0]) for _, cells in rows):
        return _speciesnet(rows)
    columns, notes = list(range(width)), []
    first = [cells[0] for _, cells in rows]
    numbered = all(cell.isdecimal() or UUID.fullmatch(cell) for cell in first)
    if width > 1 and numbered and len(set(first)) == len(first):
        columns = columns[1:]
        notes.append("the first column holds a number of each row, no label: left out")
    check_names(rows, columns)
    return Table(list(_levels(rows, columns)), notes)


def check_names(rows: Sequence[Row], columns: Sequence[int]) -> None:
    """Refuse a column in which all cells are numbers or ids."""
    for column in columns:
        filled = [(line, row[column]) for line, row in rows if row[column] not in _EMPTY]
        if filled and all(_is_number(cell) for _, cell in filled):
            raise TreeFileError(
                f"line {filled[0][0]}: expected names, column {column + 1} holds nothing but "
                f"numbers ({some(cell for _, cell in filled)}), which read like ids. Remove it, or "
                "head the columns (such as id, name, parent_id). Labels that are numbers can be "
                'given as JSON: ["1", "2"]'
            )


def _is_number(cell: str) -> bool:
    return NUMBER.fullmatch(cell) is not None or UUID.fullmatch(cell) is not None


def _level_table(columns: _Columns, rows: Sequence[Row], own: int | None) -> Table:
    """A path in one column, or a column a level in their order; ids beside them are left out."""
    if (path := columns.first(_PATH)) is not None:
        texts: list[tuple[str, Path]] = [(f"line {line}", (row[path],)) for line, row in rows]
        return Table(texts, _left_out(columns, [path]), split=True)
    if not any(is_heading(cell) for cell in columns.head):
        return headless(rows)
    ids = columns.ids()
    index = [
        column
        for column, word in enumerate(columns.words)
        if not word and all(row[column].isdecimal() for _, row in rows)
    ]
    rest = [column for column in range(len(columns.head)) if column not in {*ids, *index}]
    rest.sort(key=lambda column: not columns.words[column].startswith("super"))
    known = [
        column
        for column in rest
        if _LEVEL.fullmatch(columns.words[column])
        or columns.words[column] in {*RANKS, *_SCIENTIFIC, *_PLAIN, *_COMMON}
    ]
    if rest == [own]:
        known = rest
    if known != rest or not rest:
        strange = [columns.head[column] for column in rest if column not in known]
        what = f"do not understand the heading(s) {some(strange)}" if strange else "see no names"
        raise TreeFileError(
            f"line {columns.line}: expected headings of levels or ranks from coarse to fine (such "
            f"as order, family, species), or id, name and parent_id, or path; {what}. {CHOOSE}, "
            "remove the other columns, or say --no-header if the line is a label"
        )
    finest = {*_SCIENTIFIC, *_PLAIN, *_COMMON}
    early = [column for column in rest[:-1] if columns.words[column] in finest]
    if early:
        raise TreeFileError(
            f"line {columns.line}: the column {shorten(columns.head[early[0]])} stands before "
            f"{shorten(columns.head[early[0] + 1])}; expected the levels from coarse to fine. "
            f"{CHOOSE}"
        )
    check_names(rows, rest)
    notes = _left_out(columns, [*rest, *index])
    return Table(list(_levels(rows, rest)), notes)


# Ranks


def _rank_table(
    columns: _Columns, rows: Sequence[Row], ranks: Sequence[int], own: int | None
) -> Table:
    """A column a rank, cells may be empty; further columns may name the row's own taxon."""
    if columns.words[1:6] == _SPECIESNET and all(UUID.fullmatch(row[0]) for _, row in rows):
        return _speciesnet(rows, common=own == 6)
    names = columns.there(_SCIENTIFIC)
    loose = bool(names)
    names = names or columns.there(_PLAIN)[:1]
    if not names and "species" not in columns.words:
        names = columns.there(_COMMON)[:1]
    rows, notes = _accepted(columns, rows)
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
        if name and not _same_taxon(name, path, columns.cell(row, _RANK).casefold(), loose=loose):
            key = (*key, f"\0{name}")
        elif name and not name.startswith(path[-1][1]):
            shown.setdefault(key, name)  # "Mytilus edulis" where the column says "edulis"
        if own is not None and row[own] not in _NO_RANK:
            shown[key] = row[own]
        keys.append((line, key))
    notes += _choice_of_names(columns, own if own is not None else (names or ranks)[-1])
    used = {*ranks, *names, *columns.there(_RANK), *([] if own is None else [own])}
    notes += [*_gap_notes(lineages), *_left_out(columns, used)]
    return Table([(f"line {line}", _shown_path(key, shown)) for line, key in keys], notes)


def _own_name(
    columns: _Columns, row: Sequence[str], names: Sequence[int], path: Sequence[tuple[str, str]]
) -> str:
    """The row's own taxon by a column beside the ranks, or by genus and epithet."""
    name = next((row[c] for c in names if row[c] not in _NO_RANK), "")
    name = _without_author(name, columns.cell(row, _AUTHOR))
    epithet = columns.cell(row, ("specificepithet",))
    if name or epithet in _NO_RANK:
        return name
    return f"{next((cell for word, cell in path if word == 'genus'), '')} {epithet}".strip()


def _rank_cell(cell: str) -> str:
    return "" if cell in _NO_RANK else cell


def _shown_path(key: Path, shown: Mapping[Path, str]) -> Path:
    return tuple(
        shown.get(key[:end], key[end - 1].partition("\0")[2]) for end in range(1, len(key) + 1)
    )


def _without_author(name: str, author: str) -> str:
    """A name without the authorship at its end, where the table gives that too."""
    return name.removesuffix(author).strip() if author not in _NO_RANK else name


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
    return [f"stand with and without a rank above them, so as two labels: {listed}. Fill the gaps"]


def _fills(other: Path, way: Path) -> bool:
    """Whether one lineage is another with some of its gaps filled."""
    return other != way and all(
        mine in {"", theirs} for mine, theirs in zip(way, other, strict=True)
    )


def _speciesnet(rows: Sequence[Row], *, common: bool = False) -> Table:
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


def _accepted(columns: _Columns, rows: Sequence[Row]) -> tuple[list[Row], list[str]]:
    """Rows of accepted names, and a note on the others."""
    status = columns.first(_STATUS)
    accepted = columns.first(_ACCEPTED_ID)
    words = {row[status].casefold() for _, row in rows} if status is not None else set()
    if columns.first(_STATUS[:2]) is None and not words & _ACCEPTED:
        status = None  # some other status
    ids = columns.ids()
    kept: list[Row] = []
    left: list[Row] = []
    for line, row in rows:
        word = "" if status is None else row[status].casefold()
        fits = not word or word in _ACCEPTED
        if not word and accepted is not None and row[accepted] not in _NO_PARENT and ids:
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


# Ids and parents


def _parent_table(
    columns: _Columns, rows: Sequence[Row], parents: Sequence[int], own: int | None
) -> Table:
    """A row a label, with its parent by id or by name."""
    parent = next((c for c in parents if not columns.words[c].endswith("name")), parents[0])
    child = columns.first(("child", "childname", "childlabel"))
    named = own if own is not None else columns.first((*_SCIENTIFIC, *_PLAIN, *_COMMON))
    if named is None and child is not None:
        return _edge_table(rows, parent, child, _left_out(columns, [parent, child]))
    if named is None:
        named = columns.first(("species", "category", "class", "type", *_DESCRIPTION))
    if named is None:
        raise TreeFileError(
            f"line {columns.line}: expected a column with the names of the labels beside "
            f"{shorten(columns.head[parent])}: head it name, or say --name COLUMN"
        )
    kept, notes = _accepted(columns, rows)
    key = _key_column(columns, rows, parent, named)
    nodes = _nodes(columns, rows, kept, (parent, key, named), notes)
    missing = [(line, up) for line, _, up in nodes.values() if up and up not in nodes]
    if missing:
        line, up = missing[0]
        there = any(row[key] == up for _, row in rows)
        what = "is no accepted name" if there else "is on no line"
        why = f"line {line}: its parent {shorten(up)} {what}"
        if len(ranks := columns.ranks()) > 1:
            table = _rank_table(columns, rows, ranks, own)
            table.notes.insert(0, f"{why}, so the columns of ranks are read instead")
            return table
        more = f" (nor are {len(missing) - 1} others)" if len(missing) > 1 else ""
        raise TreeFileError(
            f"{why}{more}: expected it in the column {shorten(columns.head[key])}. Add a row for "
            "it, or empty the cell if the label is at the top"
        )
    check_names([(line, [name]) for line, name, _ in nodes.values()], [0])
    notes += _choice_of_names(columns, named)
    used = {parent, named, key, *columns.there(_SCIENTIFIC), *columns.there(_AUTHOR)}
    return Table(list(_climb(nodes)), notes + _left_out(columns, used))


#: A label of a table of parents: its line, its name, and the key of its parent.
_Node = tuple[int, str, str]


def _nodes(
    columns: _Columns,
    rows: Sequence[Row],
    kept: Sequence[Row],
    places: tuple[int, int, int],
    notes: list[str],
) -> dict[str, _Node]:
    """The labels by key; a row that is given again is noted."""
    parent, key, named = places
    names = [named, *columns.there(_SCIENTIFIC)]
    known = {row[key] for _, row in rows}
    moved = _synonyms(columns, rows, kept, key)
    nodes: dict[str, _Node] = {}
    repeated = []
    for line, row in kept:
        name = next((row[c] for c in names if row[c] not in _EMPTY), "")
        name = _without_author(name, columns.cell(row, _AUTHOR))
        up = row[parent] if row[parent] in known or row[parent] not in _NO_PARENT else ""
        _check_node(line, row[key], name)
        node = (line, name, moved.get(up, up))
        first = nodes.setdefault(row[key], node)
        if first[1:] != node[1:]:
            raise TreeFileError(
                f"line {line}: {shorten(row[key])} stands on line {first[0]} already, with another "
                f"name or parent ({shorten(first[1])}): expected each once in the column "
                f"{shorten(columns.head[key])}"
            )
        if first is not node:
            repeated.append(f"line {line} repeats line {first[0]}")
    notes += _repeated(repeated)
    return nodes


def _repeated(found: Sequence[str]) -> list[str]:
    return [f"{len(found)} row(s) given again, and ignored: {some(found)}"] if found else []


def _choice_of_names(columns: _Columns, named: int) -> list[str]:
    """A note that common names could be taken."""
    common = columns.first(_COMMON)
    if common in {None, named}:
        return []
    heading = shorten(columns.head[common or 0])
    return [f"labels are named by {shorten(columns.head[named])}; --name {heading} takes those"]


def _check_node(line: int, key: str, name: str) -> None:
    if key in _EMPTY:
        raise TreeFileError(f"line {line}: expected an id or a name, the row has none")
    if not name:
        raise TreeFileError(
            f"line {line}: expected a name, the cell is empty: fill it in, or remove the row"
        )


def _key_column(columns: _Columns, rows: Sequence[Row], parent: int, named: int) -> int:
    """The column to which the parents refer: an id, or else the name."""
    wanted = {row[parent] for _, row in rows} - _NO_PARENT
    ids = columns.ids()
    candidates = [*ids, *([named] if named not in ids else [])]
    if columns.words[parent].endswith(("id", "key", "tsn")) and ids:
        candidates = ids
    found = {c: len(wanted & {row[c] for _, row in rows}) for c in candidates}
    best = max(candidates, key=lambda c: found[c])
    if wanted and not found[best] and len(candidates) > 1:
        best = ids[0] if ids else named
    return best


def _synonyms(
    columns: _Columns, rows: Sequence[Row], kept: Sequence[Row], key: int
) -> dict[str, str]:
    """Of each row that was left out, the id of the accepted name."""
    accepted = columns.first(_ACCEPTED_ID)
    if accepted is None or len(kept) == len(rows):
        return {}
    there = {row[key] for _, row in kept}
    return {row[key]: row[accepted] for _, row in rows if row[key] not in there}


def _edge_table(rows: Sequence[Row], parent: int, child: int, notes: list[str]) -> Table:
    """A row an edge; what is nobody's child is at the top."""
    nodes: dict[str, _Node] = {}
    for line, row in rows:
        name = row[child] if row[child] not in _EMPTY else ""
        up = row[parent] if row[parent] not in _NO_PARENT else ""
        if not name and not up:
            raise TreeFileError(f"line {line}: expected a parent and a child, got neither")
        if not name:
            name, up = up, ""
        old = nodes.get(name)
        if old is not None and up and old[2] and old[2] != up:
            raise TreeFileError(
                f"line {line}: {shorten(name)} has the parent {shorten(old[2])} on line {old[0]}: "
                "expected one parent. If they are two labels, give each an id"
            )
        if old is None or (up and not old[2]):
            nodes[name] = (line, name, up)
    for line, _, up in list(nodes.values()):
        if up:
            nodes.setdefault(up, (line, up, ""))
    check_names([(line, [name]) for line, name, _ in nodes.values()], [0])
    return Table(list(_climb(nodes)), notes)


def _climb(nodes: Mapping[str, _Node]) -> Iterator[tuple[str, Path]]:
    """The path of each node, found by going up."""
    paths: dict[str, Path] = {"": ()}
    for key in nodes:
        way: dict[str, None] = {}
        at = key
        while at not in paths:
            if at in way:
                ring = [nodes[one][1] for one in [*way, at][list(way).index(at) :]]
                raise TreeFileError(
                    f"line {nodes[at][0]}: the parents go round in a circle "
                    f"({' > '.join(map(shorten, ring[:5]))}): empty the parent of the label at the "
                    "top"
                )
            way[at] = None
            at = nodes[at][2]
        for one in reversed(way):
            paths[one] = (*paths[nodes[one][2]], nodes[one][1])
        yield f"line {nodes[key][0]}", paths[key]


# Codes


def _code_table(columns: _Columns, rows: Sequence[Row], own: int | None) -> Table | None:
    """ICD codes with their texts; None where there is no column of codes."""
    code = columns.first(_CODE)
    text = own if own is not None else columns.first((*_PLAIN, *_DESCRIPTION))
    if code is None or text is None:
        return None
    if columns.words[text] in _PLAIN and not any(_ICD.fullmatch(row[code]) for _, row in rows):
        return None  # ids of another kind, beside names
    table = icd_codes(((line, row[code], row[text]) for line, row in rows), columns.head[code])
    table.notes += _left_out(columns, [code, text])
    return table


def icd_codes(rows: Iterable[tuple[int, str, str]], heading: str = "code") -> Table:
    """Labels by ICD-9 or ICD-10 code.

    Args:
        rows: line, code and description of each.
        heading: what the codes are called.
    """
    nodes: dict[str, _Node] = {}
    blocks: list[tuple[str, str, str]] = []
    repeated = []
    for line, text, name in rows:
        code = text.replace(".", "").upper().strip()
        block = _ICD_BLOCK.fullmatch(code)
        if not name:
            raise TreeFileError(f"line {line}: expected a description of {shorten(text)}, got none")
        if block is None and not _ICD.fullmatch(text):
            raise TreeFileError(
                f"line {line}: the column {shorten(heading)} holds {shorten(text)}, expected an "
                "ICD-9 or ICD-10 code such as A00.1: what lies below what cannot be seen from "
                f"other codes. Add a column parent_id. For a flat list: {CHOOSE}"
            )
        if code in nodes and nodes[code][1] != name:
            raise TreeFileError(
                f"line {line}: the code {shorten(text)} stands on line {nodes[code][0]} already, "
                f"for {shorten(nodes[code][1])}: expected each once"
            )
        if code in nodes:
            repeated.append(f"line {line} repeats line {nodes[code][0]}")
            continue
        nodes[code] = (line, name, "")
        if block is not None:
            blocks.append((block[1], block[2], code))
    found = {
        code: (line, name, _icd_parent(code, nodes, blocks))
        for code, (line, name, _) in nodes.items()
    }
    notes = [f"each code lies below the longest code that begins it, such as {_example(found)}"]
    return Table(list(_climb(found)), notes + _repeated(repeated))


def _example(nodes: Mapping[str, _Node]) -> str:
    below = next(((code, node[2]) for code, node in nodes.items() if node[2]), None)
    return "A00.1 below A00" if below is None else f"{below[0]} below {below[1]}"


def _icd_parent(
    code: str, nodes: Mapping[str, object], blocks: Sequence[tuple[str, str, str]]
) -> str:
    start, end = code[:3], code[:3]
    if (block := _ICD_BLOCK.fullmatch(code)) is not None:
        start, end = block[1], block[2]
    else:
        for length in range(len(code) - 1, 2, -1):
            if code[:length] in nodes:
                return code[:length]
    around = [
        (first, last, name)
        for first, last, name in blocks
        if first <= start and end <= last and name != code and (first, last) != (start, end)
    ]
    # The smallest: the last to begin, and of those the first to end.
    around.sort(key=lambda one: (one[0], [-ord(mark) for mark in one[1]]))
    return around[-1][2] if around else ""
