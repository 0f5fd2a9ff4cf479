"""Tables of labels -> paths: which layout a table has, by its headings, and columns of levels.

A column counts by its heading, whatever the heading's case, blanks, marks and prefix. What the
headings do not say is refused with the line and a cure, never guessed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from studio.errors import TreeFileError
from studio.headings import (
    CHOOSE,
    COMMON,
    EMPTY,
    LEVEL,
    NO_PARENT,
    NO_RANK,
    PATH,
    PLAIN,
    RANKS,
    SCIENTIFIC,
    UUID,
    Columns,
    Path,
    Row,
    Table,
    check_names,
    is_heading,
    is_parent,
    left_out,
    shorten,
    some,
)
from studio.icdcodes import code_table
from studio.parenttables import parent_table
from studio.ranktables import rank_table, speciesnet


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
    columns = Columns(head, line)
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
        return parent_table(columns, rows, parents, own)
    named = columns.first((*SCIENTIFIC, *PLAIN, *COMMON))
    ranks = columns.ranks()
    if len(ranks) > 1 or (ranks and named is not None):
        return rank_table(columns, rows, ranks, own)
    return code_table(columns, rows, own) or _level_table(columns, rows, own)


def _parent_columns(columns: Columns, rows: Sequence[Row]) -> list[int]:
    """Columns that hold each row's parent."""
    found = [column for column, word in enumerate(columns.words) if is_parent(word)]
    over, name = columns.first(("supercategory",)), columns.first(PLAIN)
    if found or over is None or name is None:
        return found
    # In Roboflow's exports these are categories as well, in COCO's they are not.
    known = {row[name] for _, row in rows} | NO_PARENT
    return [over] if all(row[over] in known for _, row in rows) else []


def _all_ranks(columns: Columns, chosen: Sequence[int]) -> bool:
    return all(columns.words[column] in RANKS for column in chosen)


def _levels(
    rows: Sequence[Row], columns: Sequence[int], *, gaps: bool = False
) -> Iterator[tuple[str, Path]]:
    """Paths of rows whose columns are levels, coarse to fine."""
    empty = NO_RANK if gaps else EMPTY
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
        return speciesnet(rows)
    columns, notes = list(range(width)), []
    first = [cells[0] for _, cells in rows]
    numbered = all(cell.isdecimal() or UUID.fullmatch(cell) for cell in first)
    if width > 1 and numbered and len(set(first)) == len(first):
        columns = columns[1:]
        notes.append("the first column holds a number of each row, no label: left out")
    check_names(rows, columns)
    return Table(list(_levels(rows, columns)), notes)


def _level_table(columns: Columns, rows: Sequence[Row], own: int | None) -> Table:
    """A path in one column, or a column a level in their order; ids beside them are left out."""
    if (path := columns.first(PATH)) is not None:
        texts: list[tuple[str, Path]] = [(f"line {line}", (row[path],)) for line, row in rows]
        return Table(texts, left_out(columns, [path]), split=True)
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
        if LEVEL.fullmatch(columns.words[column])
        or columns.words[column] in {*RANKS, *SCIENTIFIC, *PLAIN, *COMMON}
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
    finest = {*SCIENTIFIC, *PLAIN, *COMMON}
    early = [column for column in rest[:-1] if columns.words[column] in finest]
    if early:
        raise TreeFileError(
            f"line {columns.line}: the column {shorten(columns.head[early[0]])} stands before "
            f"{shorten(columns.head[early[0] + 1])}; expected the levels from coarse to fine. "
            f"{CHOOSE}"
        )
    check_names(rows, rest)
    notes = left_out(columns, [*rest, *index])
    return Table(list(_levels(rows, rest)), notes)
