"""Label trees from text that people have: CSV, JSON, or paths. Text in, tree out, no files.

All of it comes from outside: whatever is not as expected is refused with its line or place.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from hierarchy import LabelTree
from hierarchy.errors import TreeError
from studio.configwriter import MAX_LEVELS
from studio.controls import MAX_NODES
from studio.errors import TreeFileError

#: Longest text read, in characters; 50 000 paths of 100 levels would be larger, and nobody's.
MAX_CHARACTERS: Final = 20_000_000

#: Longest name; a whole line that slipped into a cell through a lost quote is longer.
MAX_NAME: Final = 300

#: Most paths; more than there may be labels, since rows may repeat.
MAX_ROWS: Final = 1_000_000

#: What may stand between the names of a path, the likeliest first.
SEPARATORS: Final = (" > ", " / ", "/", ">", "|", "\\")

#: First lines that head columns rather than name labels.
_HEADING: Final = re.compile(
    r"(?:(?:level|lvl|l|tier|rank|depth|column|col)[ _-]?\d*"
    r"|(?:sub|super|fine|coarse|top|main|leaf|parent|child)?[ _-]*"
    r"(?:path|label|class|category|group|type|name|species|genus|family|order|phylum|kingdom"
    r"|department|section)(?:[ _-]?(?:name|\d+))?"
    r"|coarse|fine|top|leaf|taxonomy)",
    re.IGNORECASE,
)

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]")

Path = tuple[str, ...]


@dataclass(frozen=True)
class TreeFile:
    """A tree that was read, and what a person should know of the reading."""

    tree: LabelTree
    notes: tuple[str, ...] = ()


def from_paths(paths: Iterable[tuple[str, Path]]) -> TreeFile:
    """The tree of some paths, those above implied and repetitions ignored.

    Args:
        paths: of each label where it stands (such as ``line 3``) and its names from the top down.

    Raises:
        TreeFileError: there is none, or a name or the number of labels or levels cannot be.
    """
    first: dict[Path, str] = {}
    repeated: list[str] = []
    known: dict[Path, None] = {}
    for where, path in paths:
        _check_path(path, where)
        if path in first:
            repeated.append(f"{where} repeats {first[path]}")
            continue
        first[path] = where
        known.update(dict.fromkeys(path[:end] for end in range(1, len(path) + 1)))
        if len(known) > MAX_NODES:
            raise TreeFileError(f"{where}: more than {MAX_NODES} labels, which is the limit")
    if not known:
        raise TreeFileError("expected labels, found none")
    try:
        tree = LabelTree.from_paths(list(known))
    except TreeError as error:
        raise TreeFileError(str(error)) from error
    notes = [f"{len(repeated)} path(s) given again, and ignored: {_some(repeated)}"] * bool(
        repeated
    )
    return TreeFile(tree, (*notes, *_alike(tree)))


def _check_path(path: Path, where: str) -> None:
    if len(path) > MAX_LEVELS:
        raise TreeFileError(f"{where}: {len(path)} levels, at most {MAX_LEVELS} can be used")
    for level, name in enumerate(path, 1):
        if not name.strip():
            raise TreeFileError(f"{where}: level {level} is empty, expected a name")
        if (bad := _CONTROL.search(name)) is not None:
            raise TreeFileError(
                f"{where}: the name {shorten(name)} holds {bad[0]!a}, which no label can: expected "
                "one line of plain text (is a quotation mark missing?)"
            )
        if len(name) > MAX_NAME:
            raise TreeFileError(
                f"{where}: a name of {len(name)} characters ({shorten(name)}), at most {MAX_NAME} "
                "are expected (is a quotation mark missing?)"
            )


def _alike(tree: LabelTree) -> Iterator[str]:
    """Siblings that people would take for one."""
    seen: dict[tuple[int, str], int] = {}
    found = []
    for node, name in enumerate(tree.names):
        twin = seen.setdefault((tree.parents[node], " ".join(name.casefold().split())), node)
        if twin != node:
            found.append(f"{shorten(tree.names[twin])} and {shorten(name)}")
    if found:
        yield f"siblings that differ in case or blanks only: {_some(found)}"


# CSV


def read_csv(text: str, *, separator: str | None = None, header: bool | None = None) -> TreeFile:
    """The tree of a CSV file.

    Columns are levels from coarse to fine, and a row may end early; or there is one column, whose
    cells are paths if it is headed ``path`` or a separator is given, else labels without levels.
    Commas, semicolons or tabs part the cells, whichever gives the first line the most.

    Args:
        text: the file's text.
        separator: what stands between the names of a path; the likeliest of
            :data:`SEPARATORS` that occurs if not given.
        header: whether the first line heads the columns; told from its words if not given.

    Raises:
        TreeFileError: with the line, what was expected and what came.
    """
    rows = _rows(text)
    notes: list[str] = []
    if header is None:
        header = all(_HEADING.fullmatch(cell) for cell in rows[0][1] if cell)
        told = "heads the columns" if header else "is a label"
        other = "--no-header" if header else "--header"
        notes.append(f"the first line ({_some(rows[0][1])}) {told}; {other} says otherwise")
    head = rows.pop(0)[1] if header else None
    if not rows:
        raise TreeFileError("expected a line a label below the first, found none")
    if (head is not None and [cell.casefold() for cell in head] == ["path"]) or separator:
        found = from_paths(_split_rows(rows, separator))
    else:
        found = from_paths(_level_rows(rows, head))
    return TreeFile(found.tree, (*notes, *found.notes))


def _rows(text: str) -> list[tuple[int, list[str]]]:
    """Rows that are not blank, each with the line where it begins, cells stripped."""
    if len(text) > MAX_CHARACTERS:
        raise TreeFileError(f"{len(text)} characters, at most {MAX_CHARACTERS} are read")
    if (zero := text.find("\0")) >= 0:
        line = text.count("\n", 0, zero) + 1
        raise TreeFileError(f"line {line}: expected text, found a zero byte: is this a CSV file?")
    first = next((line for line in text.splitlines() if line.strip()), "")
    delimiter, rows, began = ",", [], 1
    try:
        delimiter = max(",;\t", key=lambda mark: len(next(csv.reader([first], delimiter=mark))))
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        for row in reader:
            cells = [cell.strip() for cell in row]
            if any(cells):
                rows.append((began, cells))
            if len(rows) > MAX_ROWS:
                raise TreeFileError(f"line {began}: more than {MAX_ROWS} rows, which is the limit")
            began = reader.line_num + 1
    except csv.Error as error:
        raise TreeFileError(
            f"line {began}: expected cells parted by {delimiter!r}, a cell with quotation marks or "
            f"line ends in it quoted, each mark in it doubled: {error}"
        ) from error
    if not rows:
        raise TreeFileError("line 1: expected a line a label, the file is empty")
    return rows


def _level_rows(
    rows: Sequence[tuple[int, list[str]]], head: Sequence[str] | None
) -> Iterator[tuple[str, Path]]:
    """Paths of rows whose columns are levels."""
    for line, row in rows:
        path = _without_end(row)
        if head is not None and len(path) > len(head):
            raise TreeFileError(
                f"line {line}: expected at most {len(head)} cells as the first line has, got "
                f"{len(path)} ({_some(path)}): quote a name that holds the mark between cells"
            )
        if "" in path:
            raise TreeFileError(
                f"line {line}: level {path.index('') + 1} is empty and a deeper one is not "
                f"({shorten(path[-1])}): expected the levels from coarse to fine without a gap"
            )
        yield f"line {line}", path


def _split_rows(
    rows: Sequence[tuple[int, list[str]]], separator: str | None
) -> Iterator[tuple[str, Path]]:
    """Paths of rows with one cell, which holds the path."""
    for line, row in rows:
        if len(_without_end(row)) != 1:
            raise TreeFileError(
                f"line {line}: expected one cell, the path, got {len(row)} ({_some(row)}): quote a "
                "path that holds the mark between cells"
            )
    cells = [row[0] for _, row in rows]
    mark = separator or likely_separator(cells)
    for line, row in rows:
        yield f"line {line}", split_path(row[0], mark)


def _without_end(row: Sequence[str]) -> Path:
    """A row without the empty cells at its end."""
    filled = max(place for place, cell in enumerate(row, 1) if cell)
    return tuple(row[:filled])


def likely_separator(paths: Sequence[str]) -> str | None:
    """The likeliest mark between names that occurs; None if none does."""
    return next((mark for mark in SEPARATORS if any(mark in path for path in paths)), None)


def split_path(text: str, separator: str | None) -> Path:
    """Names of a path; one mark at either end means nothing."""
    if separator is None:
        return (text.strip(),)
    text = text.strip().removeprefix(separator.strip()).removesuffix(separator.strip())
    return tuple(name.strip() for name in text.split(separator))


# JSON


def read_json(text: str, *, separator: str | None = None) -> TreeFile:
    """The tree of a JSON file.

    It may be objects and lists in each other (``{"Fruit": ["Apple", {"Pear": {}}]}``), objects with
    ``name`` and ``children``, a list of paths (lists of names, or texts with a separator),
    an object with such a list as ``paths``, or what :meth:`LabelTree.to_json` wrote.

    Args:
        text: the file's text.
        separator: for a list of texts: what stands between the names of a path; without it, each
            text is one label.

    Raises:
        TreeFileError: with the line or the place, what was expected and what came.
    """
    data = _parsed(text)
    if isinstance(data, _Object) and _is_tree(data):
        try:
            tree = LabelTree.from_json(dict(data.items))
        except TreeError as error:
            raise TreeFileError(str(error)) from error
        return from_paths((f"node {node}", path) for node, path in enumerate(tree.paths))
    listed = dict(data.items).get("paths") if isinstance(data, _Object) else data
    if isinstance(listed, list) and listed and all(isinstance(one, list) for one in listed):
        return from_paths(_listed_paths(listed))
    if separator and isinstance(data, list):
        return from_paths(
            (f"[{at}]", split_path(one, separator) if isinstance(one, str) else _no_text(one, at))
            for at, one in enumerate(data)
        )
    return from_paths(_walk(data, ()))


class _Object:
    """A JSON object with all its pairs, also those of a key given twice."""

    def __init__(self, items: list[tuple[str, object]]) -> None:
        self.items = items


def _parsed(text: str) -> object:
    if len(text) > MAX_CHARACTERS:
        raise TreeFileError(f"{len(text)} characters, at most {MAX_CHARACTERS} are read")
    try:
        return json.loads(text, object_pairs_hook=_Object)
    except json.JSONDecodeError as error:
        raise TreeFileError(
            f"line {error.lineno}, column {error.colno}: expected JSON: {error.msg}"
        ) from error
    except RecursionError as error:
        raise TreeFileError(
            f"lists or objects lie deeper in each other than the {MAX_LEVELS} levels that can be "
            "used"
        ) from error
    except ValueError as error:  # a whole number of thousands of digits
        raise TreeFileError(f"expected names, found a number: {error}") from error


def _is_tree(data: _Object) -> bool:
    """Whether it is LabelTree's own form: parents by number, which no nested form has."""
    found = dict(data.items)
    parents = found.get("parents")
    return (
        "names" in found and isinstance(parents, list) and all(type(one) is int for one in parents)
    )


def _listed_paths(data: Sequence[Sequence[object]]) -> Iterator[tuple[str, Path]]:
    for at, path in enumerate(data):
        if not path or not all(isinstance(name, str) for name in path):
            raise TreeFileError(f"[{at}]: expected a path, a list of names, got {_kind(path)}")
        yield f"[{at}]", tuple(str(name).strip() for name in path)


def _no_text(one: object, at: int) -> Path:
    raise TreeFileError(f"[{at}]: expected a path as text, got {_kind(one)}")


def _walk(data: object, above: Path) -> Iterator[tuple[str, Path]]:
    """Paths of nested objects and lists, a node before those below it."""
    where = f"below {shorten(' > '.join(above))}" if above else "at the top"
    if len(above) > MAX_LEVELS:
        raise TreeFileError(f"{where}: more than {MAX_LEVELS} levels, which is the limit")
    for name, below in _members(data, above, where):
        path = (*above, name.strip())
        yield where, path
        yield from _walk(below, path)


def _members(data: object, above: Path, where: str) -> Iterator[tuple[str, object]]:
    """Names with what lies below each."""
    if isinstance(data, str) and data and above:
        yield data, None
    elif isinstance(data, list):
        for one in data:
            if isinstance(one, str):
                yield one, None
            elif isinstance(one, _Object):
                yield from _members(one, above, where)
            else:
                raise TreeFileError(f"{where}: expected a name or an object, got {_kind(one)}")
    elif isinstance(data, _Object):
        pairs = dict(data.items)
        if isinstance(pairs.get("name"), str) and set(pairs) <= {"name", "children"}:
            yield str(pairs["name"]), pairs.get("children")
            return
        if len(pairs) < len(data.items):
            ((twice, _),) = Counter(key for key, _ in data.items).most_common(1)
            raise TreeFileError(f"{where}: {shorten(twice)} stands there twice: keep one")
        yield from data.items
    elif not above or data not in (None, ""):
        raise TreeFileError(f"{where}: expected an object, a list or a name, got {_kind(data)}")


# Words


def outline(tree: LabelTree) -> str:
    """The tree for people, one label a line, two blanks a level."""
    return "\n".join(f"{'  ' * tree.levels[node]}{tree.names[node]}" for node in tree.preorder)


def summary(tree: LabelTree) -> str:
    """How many labels on how many levels."""
    return f"{len(tree)} labels on {tree.depth} level(s), {len(tree.leaves)} without any below"


def shorten(text: str) -> str:
    """A name in quotation marks, safe to print, cut if it is long."""
    shown = text if len(text) <= 60 else f"{text[:60]}..."
    return '"' + "".join(c if c.isprintable() else repr(c)[1:-1] for c in shown) + '"'


def _some(words: Iterable[str]) -> str:
    listed = list(words)
    shown = ", ".join(word if " repeats " in word else shorten(word) for word in listed[:3])
    return f"{shown}, and {len(listed) - 3} more" if len(listed) > 3 else shown


def _kind(value: object) -> str:
    words: Mapping[type, str] = {
        _Object: "an object",
        list: "a list",
        str: "a text",
        bool: "true or false",
        int: "a number",
        float: "a number",
        type(None): "null",
    }
    return words.get(type(value), "something else")
