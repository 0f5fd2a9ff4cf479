"""Tables with a row a label and its parent, by id or by name -> paths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from studio.errors import TreeFileError
from studio.headings import (
    ACCEPTED_ID,
    AUTHOR,
    COMMON,
    DESCRIPTION,
    EMPTY,
    NO_PARENT,
    PLAIN,
    SCIENTIFIC,
    Columns,
    Path,
    Row,
    Table,
    check_names,
    choice_of_names,
    left_out,
    repeated_rows,
    shorten,
)
from studio.ranktables import accepted_rows, rank_table, without_author


def parent_table(
    columns: Columns, rows: Sequence[Row], parents: Sequence[int], own: int | None
) -> Table:
    """A row a label, with its parent by id or by name."""
    parent = next((c for c in parents if not columns.words[c].endswith("name")), parents[0])
    child = columns.first(("child", "childname", "childlabel"))
    named = own if own is not None else columns.first((*SCIENTIFIC, *PLAIN, *COMMON))
    if named is None and child is not None:
        return _edge_table(rows, parent, child, left_out(columns, [parent, child]))
    if named is None:
        named = columns.first(("species", "category", "class", "type", *DESCRIPTION))
    if named is None:
        raise TreeFileError(
            f"line {columns.line}: expected a column with the names of the labels beside "
            f"{shorten(columns.head[parent])}: head it name, or say --name COLUMN"
        )
    kept, notes = accepted_rows(columns, rows)
    key = _key_column(columns, rows, parent, named)
    nodes = _nodes(columns, rows, kept, (parent, key, named), notes)
    missing = [(line, up) for line, _, up in nodes.values() if up and up not in nodes]
    if missing:
        line, up = missing[0]
        there = any(row[key] == up for _, row in rows)
        what = "is no accepted name" if there else "is on no line"
        why = f"line {line}: its parent {shorten(up)} {what}"
        if len(ranks := columns.ranks()) > 1:
            table = rank_table(columns, rows, ranks, own)
            table.notes.insert(0, f"{why}, so the columns of ranks are read instead")
            return table
        more = f" (nor are {len(missing) - 1} others)" if len(missing) > 1 else ""
        raise TreeFileError(
            f"{why}{more}: expected it in the column {shorten(columns.head[key])}. Add a row for "
            "it, or empty the cell if the label is at the top"
        )
    check_names([(line, [name]) for line, name, _ in nodes.values()], [0])
    notes += choice_of_names(columns, named)
    used = {parent, named, key, *columns.there(SCIENTIFIC), *columns.there(AUTHOR)}
    return Table(list(climb(nodes)), notes + left_out(columns, used))


#: A label of a table of parents: its line, its name, and the key of its parent.
Node = tuple[int, str, str]


def _nodes(
    columns: Columns,
    rows: Sequence[Row],
    kept: Sequence[Row],
    places: tuple[int, int, int],
    notes: list[str],
) -> dict[str, Node]:
    """The labels by key; a row that is given again is noted."""
    parent, key, named = places
    names = [named, *columns.there(SCIENTIFIC)]
    known = {row[key] for _, row in rows}
    moved = _synonyms(columns, rows, kept, key)
    nodes: dict[str, Node] = {}
    repeated = []
    for line, row in kept:
        name = next((row[c] for c in names if row[c] not in EMPTY), "")
        name = without_author(name, columns.cell(row, AUTHOR))
        up = row[parent] if row[parent] in known or row[parent] not in NO_PARENT else ""
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
    notes += repeated_rows(repeated)
    return nodes


def _check_node(line: int, key: str, name: str) -> None:
    if key in EMPTY:
        raise TreeFileError(f"line {line}: expected an id or a name, the row has none")
    if not name:
        raise TreeFileError(
            f"line {line}: expected a name, the cell is empty: fill it in, or remove the row"
        )


def _key_column(columns: Columns, rows: Sequence[Row], parent: int, named: int) -> int:
    """The column to which the parents refer: an id, or else the name."""
    wanted = {row[parent] for _, row in rows} - NO_PARENT
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
    columns: Columns, rows: Sequence[Row], kept: Sequence[Row], key: int
) -> dict[str, str]:
    """Of each row that was left out, the id of the accepted name."""
    accepted = columns.first(ACCEPTED_ID)
    if accepted is None or len(kept) == len(rows):
        return {}
    there = {row[key] for _, row in kept}
    return {row[key]: row[accepted] for _, row in rows if row[key] not in there}


def _edge_table(rows: Sequence[Row], parent: int, child: int, notes: list[str]) -> Table:
    """A row an edge; what is nobody's child is at the top."""
    nodes: dict[str, Node] = {}
    for line, row in rows:
        name = row[child] if row[child] not in EMPTY else ""
        up = row[parent] if row[parent] not in NO_PARENT else ""
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
    return Table(list(climb(nodes)), notes)


def climb(nodes: Mapping[str, Node]) -> Iterator[tuple[str, Path]]:
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
