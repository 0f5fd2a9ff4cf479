"""Label trees from text that people have: CSV, JSON, or paths. Text in, tree out, no files.

All of it comes from outside: whatever is not as expected is refused with its line or place.
"""

from __future__ import annotations

import csv
import io
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from hierarchy import LabelTree
from hierarchy.errors import TreeError
from studio.configwriter import MAX_LEVELS
from studio.controls import MAX_NODES
from studio.errors import TreeFileError
from studio.headings import CHOOSE, Path, Row, is_heading, shorten, some
from studio.icdcodes import icd_codes
from studio.treetables import headless, read_table

#: Longest text read, in characters; 50 000 paths of 100 levels would be larger, and nobody's.
MAX_CHARACTERS: Final = 20_000_000

#: Longest name; a whole line that slipped into a cell through a lost quote is longer.
MAX_NAME: Final = 300

#: Most paths; more than there may be labels, since rows may repeat.
MAX_ROWS: Final = 1_000_000

#: What may stand between the names of a path, the likeliest first.
SEPARATORS: Final = (" > ", " / ", "/", ">", "|", "\\")

#: How published lists of categories write an id before each path.
_PATH_IDS: Final = (re.compile(r"\d+ - "), re.compile(r"\d+[,;\t]"), re.compile(r"gid://\S+\s+: "))

#: How the name of a node may be called in JSON.
_NAMES: Final = ("name", "label", "title", "text", "value")

#: A line of ICD-10-CM's order file (number, code, flag, short and long text), or of its list.
_ICD_LINES: Final = (
    re.compile(r"\d{5} (\S{3,7}) +[01] .{60} (.+)"),
    re.compile(r"([A-Z]\d[0-9A-Z]{1,5}) {1,5}(\S.+)"),
)

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True)
class TreeFile:
    """A tree that was read, and what a person should know of the reading."""

    tree: LabelTree
    notes: tuple[str, ...] = ()


def from_paths(paths: Iterable[tuple[str, Path]]) -> TreeFile:
    """The tree of some paths, those above implied and repetitions ignored.

    Names are brought to one Unicode form (NFC): the two ways to write "É" are one name.

    Args:
        paths: of each label where it stands (such as ``line 3``) and its names from the top down.

    Raises:
        TreeFileError: there is none, or a name or the number of labels or levels cannot be.
    """
    first: dict[Path, str] = {}
    repeated: list[str] = []
    known: dict[Path, None] = {}
    for where, given in paths:
        path = tuple(unicodedata.normalize("NFC", name) for name in given)
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
    notes = [f"{len(repeated)} path(s) given again, and ignored: {some(repeated)}"] * bool(repeated)
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
        yield f"siblings that differ in case or blanks only: {some(found)}"


# CSV


def read_csv(
    text: str,
    *,
    separator: str | None = None,
    header: bool | None = None,
    levels: Sequence[str] | None = None,
    name: str | None = None,
) -> TreeFile:
    """The tree of a CSV file, or of a list of paths, one a line.

    Columns count by their headings, see :mod:`studio.treetables`; without headings they are levels
    from coarse to fine, and a row may end early. Commas, semicolons or tabs part the cells,
    whichever gives the first line the most. Names are brought to one Unicode form (NFC).

    Args:
        text: the file's text.
        separator: what stands between the names of a path; the likeliest of
            :data:`SEPARATORS` that occurs if not given.
        header: whether the first line heads the columns; seen from its words if not given.
        levels: headings of the columns that are the levels, coarse to fine.
        name: heading of the column that names the label of a row.

    Raises:
        TreeFileError: with the line, what was expected and what came.
    """
    if len(text) > MAX_CHARACTERS:
        raise TreeFileError(f"{len(text)} characters, at most {MAX_CHARACTERS} are read")
    text, notes = _without_comments(unicodedata.normalize("NFC", text))
    if not (levels or name or header) and (listed := _listed(text, separator)) is not None:
        return _with_notes(listed, notes)
    rows = _rows(text)
    first, head = rows[0]
    if header is None and (levels or name):
        header = True
    if header is None:
        header = _is_head(rows)
        read = "heads the columns" if header else "is a label"
        other = "--no-header" if header else "--header"
        notes.append(f"the first line ({some(head)}) {read}; {other} says otherwise")
    if header and not (rows := rows[1:]):
        raise TreeFileError("expected a line a label below the first, found none")
    if separator and len(head) == 1:
        return _with_notes(from_paths(_split_rows(rows, separator)), notes)
    table = read_table(head, first, rows, levels=levels, name=name) if header else headless(rows)
    paths = table.paths
    if table.split:
        mark = separator or likely_separator([path[0] for _, path in paths])
        paths = [(where, split_path(path[0], mark)) for where, path in paths]
    return _with_notes(from_paths(paths), [*notes, *table.notes])


def _with_notes(found: TreeFile, notes: Sequence[str]) -> TreeFile:
    return TreeFile(found.tree, (*notes, *found.notes))


def _without_comments(text: str) -> tuple[str, list[str]]:
    """The text with the comments before its first row blanked, and a note on them."""
    comment = re.match(r"(?:[ \t]*(?:# [^\r\n]*|sep=.)?(?:\r\n|\r|\n))+", text)
    if comment is None or not comment[0].strip():
        return text, []
    lines = [line for line in comment[0].splitlines() if line.strip()]
    kept = "".join(mark for mark in comment[0] if mark in "\r\n")
    return kept + text[comment.end() :], [f"a comment is left out: {some(lines)}"]


def _is_head(rows: Sequence[Row]) -> bool:
    """Whether the first row heads the columns.

    Raises:
        TreeFileError: it cannot be seen.
    """
    line, first = rows[0]
    cells = [cell for cell in first if cell]
    below: list[set[str]] = [set() for _ in first]
    for _, row in rows[1:]:
        for column, cell in zip(below, row, strict=False):
            column.add(cell)
    again = any(cell in column for cell, column in zip(first, below, strict=True) if cell)
    if any(map(is_heading, cells)) and (not again or all(map(is_heading, cells))):
        return True
    if again or len(rows) == 1 or max(len(row) for _, row in rows) == 1 or _is_numbered(rows):
        return False
    headless(rows)  # what is wrong either way is said first
    raise TreeFileError(
        f"line {line}: cannot tell whether {some(cells)} head the columns or are labels: say "
        f"--header (then the columns are levels from coarse to fine) or --no-header. {CHOOSE}"
    )


def _is_numbered(rows: Sequence[Row]) -> bool:
    """Whether the first row is numbered like all others."""
    firsts = [row[0] for _, row in rows]
    return all(cell.isdecimal() or re.fullmatch(r"[0-9a-f-]{36}", cell) for cell in firsts)


# Lists of paths or codes, one a line


def _listed(text: str, separator: str | None) -> TreeFile | None:
    """The tree of a list whose lines are paths or ICD codes; None if it is no such list."""
    lines = [
        (number, line.strip())
        for number, line in enumerate(re.split(r"\r\n|\r|\n", text), 1)
        if line.strip()
    ]
    if not lines:
        return None
    for form in _ICD_LINES:
        if form.fullmatch(lines[0][1]) is None:
            continue
        found = [(number, form.fullmatch(line)) for number, line in lines]
        if (bad := next((number for number, match in found if match is None), None)) is not None:
            raise TreeFileError(f"line {bad}: expected a code and its text as on the first line")
        table = icd_codes((number, match[1], match[2]) for number, match in found if match)
        return _with_notes(from_paths(table.paths), table.notes)
    mark = " > "
    plain = [line for _, line in lines if mark not in line]
    if separator not in {None, mark} or len(plain) == len(lines) or _heads_path(lines[0][1]):
        return None
    if 2 * len(plain) >= len(lines) and any(re.search("[,;\t]", line) for line in plain):
        return None
    form = next((one for one in _PATH_IDS if one.match(lines[0][1])), re.compile(""))
    notes = ["each line is an id and a path" if form.pattern else "each line is a path"]
    paths = []
    for number, line in lines:
        if form.match(line) is None:
            raise TreeFileError(f"line {number}: expected an id before the path, as on the first")
        path = _unquoted(form.sub("", line, count=1))
        paths.append((f"line {number}", split_path(path, mark)))
    return _with_notes(from_paths(paths), notes)


def _heads_path(line: str) -> bool:
    return " > " not in line and any(is_heading(cell) for cell in re.split(r"[,;\t]", line))


def _unquoted(line: str) -> str:
    """A line that is one quoted cell, without its quotation marks."""
    if not line.startswith('"'):
        return line
    try:
        cells = next(csv.reader([line], strict=True))
    except csv.Error:
        return line
    return cells[0] if len(cells) == 1 else line


def _rows(text: str) -> list[Row]:
    """Rows that are not blank, each with the line where it begins, cells stripped."""
    if (zero := text.find("\0")) >= 0:
        line = text.count("\n", 0, zero) + 1
        raise TreeFileError(
            f"line {line}: expected text, found a zero byte: is this a CSV file? If it is UTF-16, "
            "save it as UTF-8, or say --encoding utf-16-le"
        )
    first = next((line for line in re.split(r"\r\n|\r|\n", text) if line.strip()), "")
    try:
        delimiter = max(",;\t", key=lambda mark: len(next(csv.reader([first], delimiter=mark))))
    except csv.Error:
        delimiter = ","
    if delimiter == "\t":  # databases write tabs without quoting anything
        try:
            rows = _parsed_rows(text, delimiter, csv.QUOTE_MINIMAL)
        except TreeFileError:
            rows = _parsed_rows(text, delimiter, csv.QUOTE_NONE)
        if any("\n" in cell or "\r" in cell for _, cells in rows for cell in cells):
            rows = _parsed_rows(text, delimiter, csv.QUOTE_NONE)
    else:
        rows = _parsed_rows(text, delimiter, csv.QUOTE_MINIMAL)
    if not rows:
        raise TreeFileError("line 1: expected a line a label, the file is empty")
    return rows


def _parsed_rows(text: str, delimiter: str, quoting: Literal[0, 3]) -> list[Row]:
    rows: list[Row] = []
    began = 1
    source = io.StringIO(text, newline="")
    try:
        reader = csv.reader(source, delimiter=delimiter, strict=True, quoting=quoting)
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
    return rows


def _split_rows(rows: Sequence[Row], separator: str) -> Iterator[tuple[str, Path]]:
    """Paths of rows with one cell, which holds the path."""
    for line, row in rows:
        if len(_without_end(row)) != 1:
            raise TreeFileError(
                f"line {line}: expected one cell, the path, got {len(row)} ({some(row)}): quote a "
                "path that holds the mark between cells"
            )
    for line, row in rows:
        yield f"line {line}", split_path(row[0], separator)


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


def read_json(
    text: str,
    *,
    separator: str | None = None,
    levels: Sequence[str] | None = None,
    name: str | None = None,
) -> TreeFile:
    """The tree of a JSON file.

    It may be objects and lists in each other (``{"Fruit": ["Apple", {"Pear": {}}]}``), objects with
    ``name`` and ``children``, a list of paths (lists of names, or texts with a separator),
    an object with such a list as ``paths``, what :meth:`LabelTree.to_json` wrote, a list of records
    (also as ``categories``, as COCO has it), which is read as a table, or labels by their number.

    Args:
        text: the file's text.
        separator: for a list of texts: what stands between the names of a path; without it, each
            text is one label.
        levels: for records: the fields that are the levels, coarse to fine.
        name: for records: the field that names the label.

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
    if (records := _records(data)) is not None:
        head = list(dict.fromkeys(key for record in records for key, _ in record.items))
        rows = [
            (at, [_scalar(dict(record.items).get(key)) for key in head])
            for at, record in enumerate(records, 1)
        ]
        table = read_table(head, 1, rows, levels=levels, name=name)
        if not table.split:
            notes = ["records are read as rows: line 1 is the first of them", *table.notes]
            return _with_notes(from_paths(table.paths), notes)
    if isinstance(data, _Object) and len(data.items) > 1 and _is_numbered_labels(data):
        notes = ["labels by number: the numbers are left out"]
        return _with_notes(from_paths((f"[{key}]", (str(one),)) for key, one in data.items), notes)
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


def _records(data: object) -> list[_Object] | None:
    """The records of a list of flat objects that have headings as keys; None if it is no such."""
    if isinstance(data, _Object):
        listed = dict(data.items).get("categories")
        by_id = [
            _Object([("id", key), *(pair for pair in one.items if pair[0] != "id")])
            for key, one in data.items
            if isinstance(one, _Object) and is_heading(next(iter(dict(one.items)), ""))
        ]
        data = by_id if by_id and len(by_id) == len(data.items) else listed
    if not isinstance(data, list) or not data:
        return None
    for one in data:
        if not isinstance(one, _Object) or len(one.items) < 2:
            return None
        if any(isinstance(value, list | _Object) for _, value in one.items):
            return None
    return data if any(is_heading(key) for key, _ in data[0].items) else None


def _scalar(value: object) -> str:
    return "" if value is None else str(value).strip()


def _is_numbered_labels(data: _Object) -> bool:
    return all(key.isdecimal() and isinstance(value, str) for key, value in data.items)


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
        if (node := _node_name(pairs, where)) is not None:
            yield node, pairs.get("children")
            return
        if len(pairs) < len(data.items):
            ((twice, _),) = Counter(key for key, _ in data.items).most_common(1)
            raise TreeFileError(f"{where}: {shorten(twice)} stands there twice: keep one")
        yield from data.items
    elif not above or data not in (None, ""):
        raise TreeFileError(f"{where}: expected an object, a list or a name, got {_kind(data)}")


def _node_name(pairs: Mapping[str, object], where: str) -> str | None:
    """The name of an object that is one node, with ``name`` and perhaps ``children``."""
    words = _NAMES if "children" in pairs or len(pairs) == 1 else _NAMES[:1]
    found = next((str(pairs[key]) for key in words if isinstance(pairs.get(key), str)), None)
    if found is None and isinstance(pairs.get("children"), list):
        raise TreeFileError(f"{where}: an object has children and no name: call its name name")
    if found is not None:
        for key, value in pairs.items():
            if key != "children" and isinstance(value, list | _Object):
                raise TreeFileError(
                    f"{where}: expected what lies below {shorten(found)} as children, got it as "
                    f"{shorten(key)}: rename that"
                )
    return found


# Words


def outline(tree: LabelTree) -> str:
    """The tree for people, one label a line, two blanks a level."""
    return "\n".join(f"{'  ' * tree.levels[node]}{tree.names[node]}" for node in tree.preorder)


def summary(tree: LabelTree) -> str:
    """How many labels on how many levels."""
    return f"{len(tree)} labels on {tree.depth} level(s), {len(tree.leaves)} without any below"


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
