"""ICD codes with their texts -> paths: each below the longest code that begins it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from studio.errors import TreeFileError
from studio.headings import (
    CHOOSE,
    CODE,
    DESCRIPTION,
    PLAIN,
    Columns,
    Row,
    Table,
    left_out,
    repeated_rows,
    shorten,
)
from studio.parenttables import Node, climb

_ICD: Final = re.compile(r"(?:[A-Z]\d[0-9A-Z]|\d{3})(?:\.?[0-9A-Z]{1,4})?", re.IGNORECASE)
_ICD_BLOCK: Final = re.compile(
    r"([A-Z]\d[0-9A-Z]|\d{3})\s*[-\u2013]\s*([A-Z]\d[0-9A-Z]|\d{3})", re.IGNORECASE
)


def code_table(columns: Columns, rows: Sequence[Row], own: int | None) -> Table | None:
    """ICD codes with their texts; None where there is no column of codes."""
    code = columns.first(CODE)
    text = own if own is not None else columns.first((*PLAIN, *DESCRIPTION))
    if code is None or text is None:
        return None
    if columns.words[text] in PLAIN and not any(_ICD.fullmatch(row[code]) for _, row in rows):
        return None  # ids of another kind, beside names
    table = icd_codes(((line, row[code], row[text]) for line, row in rows), columns.head[code])
    table.notes += left_out(columns, [code, text])
    return table


def icd_codes(rows: Iterable[tuple[int, str, str]], heading: str = "code") -> Table:
    """Labels by ICD-9 or ICD-10 code.

    Args:
        rows: line, code and description of each.
        heading: what the codes are called.
    """
    nodes: dict[str, Node] = {}
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
    return Table(list(climb(found)), notes + repeated_rows(repeated))


def _example(nodes: Mapping[str, Node]) -> str:
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
