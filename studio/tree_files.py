"""Label trees from the text of files that people have: CSV, JSON, or paths.

All of it comes from outside: whatever is not as expected is refused with its line or position.
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
from studio.errors import TreeFileError
from studio.json_fields import kind_of
from studio.label_config_writer import MAX_LEVELS
from studio.label_controls import MAX_NODES
from studio.tree_tables import (
    CHOOSE,
    Path,
    Row,
    headless,
    icd_codes,
    is_heading,
    is_row_id,
    read_table,
    shorten,
    some,
)

#: Longest text read, in characters; larger than any real tree of 50 000 labels.
MAX_CHARACTERS: Final = 20_000_000
#: Longest name; a whole line that slipped into a cell through a lost quote is longer.
MAX_NAME: Final = 300
#: Most paths; more than there may be labels, since rows may repeat.
MAX_ROWS: Final = 1_000_000
#: Separators between the names of a path, the likeliest first.
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
_LINE_END: Final = re.compile(r"\r\n|\r|\n")


@dataclass(frozen=True)
class TreeFile:
    """A tree that was read, and notes for people on the reading."""

    tree: LabelTree
    notes: tuple[str, ...] = ()


def from_paths(paths: Iterable[tuple[str, Path]], notes: Sequence[str] = ()) -> TreeFile:
    """Return the tree of some paths; paths above them are implied, repetitions ignored.

    Names are brought to one Unicode form (NFC): the two ways to write "É" are one name.

    Args:
        paths: of each label its position (such as ``line 3``) and its names from the top down.
        notes: on how the paths were read.

    Raises:
        TreeFileError: there is none, or a name or the number of labels or levels is not allowed.
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
    if repeated:
        again = f"{len(repeated)} path(s) given again, and ignored: {some(repeated)}"
        notes = [*notes, again]
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
    """Yield a note on siblings that people would take for one."""
    seen: dict[tuple[int, str], int] = {}
    found = []
    for node, name in enumerate(tree.names):
        twin = seen.setdefault((tree.parents[node], " ".join(name.casefold().split())), node)
        if twin != node:
            found.append(f"{shorten(tree.names[twin])} and {shorten(name)}")
    if found:
        yield f"siblings that differ in case or blanks only: {some(found)}"


def _check_length(text: str) -> None:
    if len(text) > MAX_CHARACTERS:
        raise TreeFileError(f"{len(text)} characters, at most {MAX_CHARACTERS} are read")


# CSV


def read_csv(
    text: str,
    *,
    separator: str | None = None,
    header: bool | None = None,
    levels: Sequence[str] | None = None,
    name: str | None = None,
) -> TreeFile:
    """Return the tree of a CSV file, or of a list of paths, one per line.

    Columns count by their headings, see :mod:`studio.tree_tables`; without headings they are levels
    from coarse to fine, and a row may end early. Commas, semicolons or tabs separate the cells,
    whichever gives the first line the most. Names are brought to one Unicode form (NFC).

    Args:
        text: the file's text.
        separator: the mark between the names of a path; the likeliest of :data:`SEPARATORS` that
            occurs if not given.
        header: whether the first line holds headings; seen from its words if not given.
        levels: headings of the columns that are the levels, coarse to fine.
        name: heading of the column that names the label of a row.

    Raises:
        TreeFileError: with the line, what was expected and what came.
    """
    _check_length(text)
    text, notes = _without_comments(unicodedata.normalize("NFC", text))
    if not (levels or name or header) and (listed := _read_list(text, separator)) is not None:
        return TreeFile(listed.tree, (*notes, *listed.notes))
    rows = _rows(text)
    line, head = rows[0]
    if header is None and (levels or name):
        header = True
    if header is None:
        header = _has_headings(rows)
        read = "heads the columns" if header else "is a label"
        other = "--no-header" if header else "--header"
        notes.append(f"the first line ({some(head)}) {read}; {other} says otherwise")
    if header and not (rows := rows[1:]):
        raise TreeFileError("expected a line per label below the first, found none")
    if separator and len(head) == 1:
        return from_paths(_split_rows(rows, separator), notes)
    table = read_table(head, line, rows, levels=levels, name=name) if header else headless(rows)
    paths = table.paths
    if table.split:
        texts = [path[0] for _, path in paths]
        found = (mark for mark in SEPARATORS if any(mark in one for one in texts))
        mark = separator or next(found, None)
        paths = [(where, _split(path[0], mark)) for where, path in paths]
    return from_paths(paths, [*notes, *table.notes])


def _without_comments(text: str) -> tuple[str, list[str]]:
    """Return the text with the comments before its first row blanked, and a note on them."""
    comment = re.match(r"(?:[ \t]*(?:# [^\r\n]*|sep=.)?(?:\r\n|\r|\n))+", text)
    if comment is None or not comment[0].strip():
        return text, []
    lines = [line for line in comment[0].splitlines() if line.strip()]
    blank = "".join(character for character in comment[0] if character in "\r\n")
    return blank + text[comment.end() :], [f"a comment is left out: {some(lines)}"]


def _rows(text: str) -> list[Row]:
    """Return the rows that are not blank, each with the line where it begins, cells stripped."""
    if (zero := text.find("\0")) >= 0:
        raise TreeFileError(
            f"line {text.count(chr(10), 0, zero) + 1}: expected text, found a zero byte: is this a "
            "CSV file? If it is UTF-16, save it as UTF-8, or say --encoding utf-16-le"
        )
    first = next((line for line in _LINE_END.split(text) if line.strip()), "")
    try:
        delimiter = max(",;\t", key=lambda mark: len(next(csv.reader([first], delimiter=mark))))
    except csv.Error:
        delimiter = ","
    try:
        rows = _parse_rows(text, delimiter, csv.QUOTE_MINIMAL)
        unquoted = any("\n" in cell or "\r" in cell for _, cells in rows for cell in cells)
    except TreeFileError:
        if delimiter != "\t":
            raise
        unquoted = True
    if delimiter == "\t" and unquoted:  # databases write tabs without quoting anything
        rows = _parse_rows(text, delimiter, csv.QUOTE_NONE)
    if not rows:
        raise TreeFileError("line 1: expected a line per label, the file is empty")
    return rows


def _parse_rows(text: str, delimiter: str, quoting: Literal[0, 3]) -> list[Row]:
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


def _has_headings(rows: Sequence[Row]) -> bool:
    """Return whether the first row holds the headings.

    Raises:
        TreeFileError: it cannot be told.
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
    one_column = max(len(row) for _, row in rows) == 1
    numbered = all(is_row_id(row[0]) for _, row in rows)
    if again or len(rows) == 1 or one_column or numbered:
        return False
    headless(rows)  # what is wrong either way is said first
    raise TreeFileError(
        f"line {line}: cannot tell whether {some(cells)} head the columns or are labels: say "
        f"--header (then the columns are levels from coarse to fine) or --no-header. {CHOOSE}"
    )


def _split_rows(rows: Sequence[Row], separator: str) -> Iterator[tuple[str, Path]]:
    """Yield the paths of rows with one cell, which holds the path."""
    for line, row in rows:
        if not row[0] or any(row[1:]):
            raise TreeFileError(
                f"line {line}: expected one cell, the path, got {len(row)} ({some(row)}): quote a "
                "path that holds the mark between cells"
            )
    for line, row in rows:
        yield f"line {line}", _split(row[0], separator)


def _split(text: str, separator: str | None) -> Path:
    """Return the names of a path; one separator at either end means nothing."""
    if separator is None:
        return (text.strip(),)
    text = text.strip().removeprefix(separator.strip()).removesuffix(separator.strip())
    return tuple(name.strip() for name in text.split(separator))


# Lists of paths or codes, one per line


def _read_list(text: str, separator: str | None) -> TreeFile | None:
    """Return the tree of a list whose lines are paths or ICD codes; None if it is no such list."""
    lines = [
        (number, line.strip())
        for number, line in enumerate(_LINE_END.split(text), 1)
        if line.strip()
    ]
    if not lines:
        return None
    first = lines[0][1]
    for form in _ICD_LINES:
        if form.fullmatch(first) is None:
            continue
        found = [(number, form.fullmatch(line)) for number, line in lines]
        if (bad := next((number for number, match in found if match is None), None)) is not None:
            raise TreeFileError(f"line {bad}: expected a code and its text as on the first line")
        table = icd_codes((number, match[1], match[2]) for number, match in found if match)
        return from_paths(table.paths, table.notes)
    mark = " > "
    plain = [line for _, line in lines if mark not in line]
    headed = mark not in first and any(is_heading(cell) for cell in re.split(r"[,;\t]", first))
    if separator not in {None, mark} or len(plain) == len(lines) or headed:
        return None
    if 2 * len(plain) >= len(lines) and any(re.search("[,;\t]", line) for line in plain):
        return None
    form = next((one for one in _PATH_IDS if one.match(first)), re.compile(""))
    paths = []
    for number, line in lines:
        if form.match(line) is None:
            raise TreeFileError(f"line {number}: expected an id before the path, as on the first")
        path = _unquoted(form.sub("", line, count=1))
        paths.append((f"line {number}", _split(path, mark)))
    return from_paths(paths, [f"each line is {'an id and ' if form.pattern else ''}a path"])


def _unquoted(line: str) -> str:
    """Return a line that is one quoted cell without its quotation marks."""
    if not line.startswith('"'):
        return line
    try:
        cells = next(csv.reader([line], strict=True))
    except csv.Error:
        return line
    return cells[0] if len(cells) == 1 else line


# JSON


def read_json(
    text: str,
    *,
    separator: str | None = None,
    levels: Sequence[str] | None = None,
    name: str | None = None,
) -> TreeFile:
    """Return the tree of a JSON file.

    It may be objects and lists in each other (``{"Fruit": ["Apple", {"Pear": {}}]}``), objects with
    ``name`` and ``children``, a list of paths (lists of names, or texts with a separator),
    an object with such a list as ``paths``, what :meth:`LabelTree.to_json` wrote, a list of records
    (also as ``categories``, as COCO has it), which is read as a table, or labels by their number.

    Args:
        text: the file's text.
        separator: for a list of texts: the mark between the names of a path; without it, each text
            is one label.
        levels: for records: the fields that are the levels, coarse to fine.
        name: for records: the field that names the label.

    Raises:
        TreeFileError: with the line or position, what was expected and what came.
    """
    data = _parse_json(text)
    fields = data if isinstance(data, dict) else {}
    parents = fields.get("parents")
    # LabelTree's own form has parents by number, which no other form has.
    if "names" in fields and isinstance(parents, list) and all(type(up) is int for up in parents):
        try:
            tree = LabelTree.from_json(fields)
        except TreeError as error:
            raise TreeFileError(str(error)) from error
        return from_paths((f"node {node}", path) for node, path in enumerate(tree.paths))
    if records := _records(data):
        head = list(dict.fromkeys(key for record in records for key in record))
        rows = [
            (at, ["" if one.get(key) is None else str(one[key]).strip() for key in head])
            for at, one in enumerate(records, 1)
        ]
        table = read_table(head, 1, rows, levels=levels, name=name)
        if not table.split:
            notes = ["records are read as rows: line 1 is the first of them", *table.notes]
            return from_paths(table.paths, notes)
    if len(fields) > 1 and all(key.isdecimal() and isinstance(fields[key], str) for key in fields):
        notes = ["labels by number: the numbers are left out"]
        return from_paths(((f"[{key}]", (one,)) for key, one in fields.items()), notes)
    listed = fields.get("paths") if fields else data
    if isinstance(listed, list) and listed and all(isinstance(one, list) for one in listed):
        return from_paths(_listed_paths(listed))
    if separator and isinstance(data, list):
        return from_paths(_split_texts(data, separator))
    return from_paths(_nested_paths(data, ()))


def _parse_json(text: str) -> object:
    _check_length(text)
    try:
        return json.loads(text, object_pairs_hook=_object)
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


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        ((twice, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise TreeFileError(f"{shorten(twice)} stands twice in one object: keep one")
    return fields


def _records(data: object) -> list[dict[str, object]]:
    """Return the records of a list of flat objects whose keys are headings, none otherwise."""
    if isinstance(data, dict):
        by_id = [
            {"id": key, **{name: value for name, value in one.items() if name != "id"}}
            for key, one in data.items()
            if isinstance(one, dict) and is_heading(next(iter(one), ""))
        ]
        data = by_id if by_id and len(by_id) == len(data) else data.get("categories")
    if not isinstance(data, list) or not all(
        isinstance(one, dict)
        and len(one) > 1
        and not any(isinstance(value, list | dict) for value in one.values())
        for one in data
    ):
        return []
    return data if data and any(map(is_heading, data[0])) else []


def _listed_paths(data: Sequence[Sequence[object]]) -> Iterator[tuple[str, Path]]:
    for at, path in enumerate(data):
        if not path or not all(isinstance(name, str) for name in path):
            raise TreeFileError(f"[{at}]: expected a path, a list of names, got {kind_of(path)}")
        yield f"[{at}]", tuple(str(name).strip() for name in path)


def _split_texts(data: Sequence[object], separator: str) -> Iterator[tuple[str, Path]]:
    for at, text in enumerate(data):
        if not isinstance(text, str):
            raise TreeFileError(f"[{at}]: expected a path as text, got {kind_of(text)}")
        yield f"[{at}]", _split(text, separator)


def _nested_paths(data: object, above: Path) -> Iterator[tuple[str, Path]]:
    """Yield the paths of nested objects and lists, a node before those below it."""
    where = f"below {shorten(' > '.join(above))}" if above else "at the top"
    if len(above) > MAX_LEVELS:
        raise TreeFileError(f"{where}: more than {MAX_LEVELS} levels, which is the limit")
    for name, below in _members(data, above, where):
        path = (*above, name.strip())
        yield where, path
        yield from _nested_paths(below, path)


def _members(data: object, above: Path, where: str) -> Iterator[tuple[str, object]]:
    """Yield names with the data below each."""
    if isinstance(data, str) and data and above:
        yield data, None
    elif isinstance(data, list):
        for one in data:
            if isinstance(one, str):
                yield one, None
            elif isinstance(one, dict):
                yield from _members(one, above, where)
            else:
                raise TreeFileError(f"{where}: expected a name or an object, got {kind_of(one)}")
    elif isinstance(data, dict):
        if (node := _node_name(data, where)) is not None:
            yield node, data.get("children")
        else:
            yield from data.items()
    elif not above or data not in (None, ""):
        raise TreeFileError(f"{where}: expected an object, a list or a name, got {kind_of(data)}")


def _node_name(fields: Mapping[str, object], where: str) -> str | None:
    """Return the name of an object that is one node, with ``name`` and perhaps ``children``."""
    words = _NAMES if "children" in fields or len(fields) == 1 else _NAMES[:1]
    found = next((str(fields[key]) for key in words if isinstance(fields.get(key), str)), None)
    if found is None and isinstance(fields.get("children"), list):
        raise TreeFileError(f"{where}: an object has children and no name: call its name name")
    if found is not None:
        for key, value in fields.items():
            if key != "children" and isinstance(value, list | dict):
                raise TreeFileError(
                    f"{where}: expected what lies below {shorten(found)} as children, got it as "
                    f"{shorten(key)}: rename that"
                )
    return found


# Words


def outline(tree: LabelTree) -> str:
    """Return the tree for people: one label per line, two blanks per level."""
    return "\n".join(f"{'  ' * tree.levels[node]}{tree.names[node]}" for node in tree.preorder)


def summary(tree: LabelTree) -> str:
    """Return how many labels there are on how many levels."""
    return f"{len(tree)} labels on {tree.depth} level(s), {len(tree.leaves)} without any below"
