"""Tables of labels -> paths: which layout a table has, by its headings.

A column counts by its heading, whatever the heading's case, blanks, marks and prefix. What the
headings do not say is refused with the line and a fix, never guessed. Layouts: levels or ranks from
coarse to fine, parents by id or name, edges, a path per row, ICD codes, SpeciesNet's label file.
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


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


#: Ranks of a taxonomy, coarse to fine.
RANKS: Final = _words(
    "domain superkingdom kingdom subkingdom infrakingdom superphylum phylum division subphylum"
    " subdivision infraphylum superclass class subclass infraclass cohort superorder order suborder"
    " infraorder parvorder superfamily family subfamily supertribe tribe subtribe genus subgenus"
    " species subspecies variety form"
)
# Headings without case, blanks and marks, the most telling first.
_SCIENTIFIC: Final = _words("canonicalname scientificname latinname sciname binomial")
_PLAIN: Final = _words(
    "completename taxonname name label preflabel title categoryname classname labelname displayname"
    " speciesname taxon term"
)
_COMMON: Final = _words(
    "vernacularname vernacular commonname commonnames englishname englishcommonname"
    " preferredcommonname"
)
_NAMES: Final = (*_SCIENTIFIC, *_PLAIN, *_COMMON)
_DESCRIPTION: Final = _words(
    "longdescription description descriptionlong fulldescription codedescription icddescription"
    " diagnosis longtitle shortdescription"
)
_PATH: Final = _words(
    "path fullpath labelpath categorypath taxonomypath treepath hierarchy lineage breadcrumb"
)
_CODE: Final = _words("code icdcode icd10 icd10code icd10cm icd10cmcode icd9code diagnosiscode")
_KEYS: Final = frozenset(
    (*_words("id key tsn uid uuid guid identifier usagekey taxonkey index"), *_CODE)
)
_AUTHOR: Final = ("scientificnameauthorship", "authorship", "authority")
_STATUS: Final = ("taxonomicstatus", "taxonstatus", "status")
_ACCEPTED_ID: Final = _words(
    "acceptednameusageid acceptedtaxonkey acceptedusagekey acceptedtaxonid aphiaidaccepted"
    " validaphiaid acceptedid"
)
_RANK: Final = ("taxonrank", "rank")
_OTHER_IDS: Final = ("parent", "accepted", "valid", "original", "dataset", "source", "alternative")
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
#: What empty cells hold in exports of databases and of R or Python.
_EMPTY: Final = frozenset({"", "NA", "N/A", "#N/A", "NaN", "nan", "NULL", "null", r"\N"})
_NO_RANK: Final = _EMPTY | {"None", "none", "-", "--"}
#: What the parent of a root node may be, if no row has it as its id.
_NO_PARENT: Final = _NO_RANK | {"0", "-1"}
#: Status of names that are in use.
_ACCEPTED: Final = frozenset(
    {"accepted", "valid", "provisionally accepted", "accepted name", "doubtful"}
)
_NUMBER: Final = re.compile(r"[-+]?[\d.,\s]*\d[\d.,\s]*%?")
_UUID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_ICD: Final = re.compile(r"(?:[A-Z]\d[0-9A-Z]|\d{3})(?:\.?[0-9A-Z]{1,4})?", re.IGNORECASE)
_ICD_BLOCK: Final = re.compile(
    r"([A-Z]\d[0-9A-Z]|\d{3})\s*[-\u2013]\s*([A-Z]\d[0-9A-Z]|\d{3})", re.IGNORECASE
)
_SPECIESNET: Final = ["class", "order", "family", "genus", "species"]

#: How to name the levels; ends messages about headings that are not understood.
CHOOSE: Final = (
    "Say --levels COLUMN,COLUMN,... with the columns that are levels from coarse to fine"
)


@dataclass
class Table:
    """Paths that were read, each with its line, and notes on the reading.

    With ``split``, each path is one text that is still to be cut at its separators.
    """

    paths: list[tuple[str, Path]]
    notes: list[str] = field(default_factory=list)
    split: bool = False


def shorten(text: str) -> str:
    """Return a name in quotation marks, safe to print, cut if it is long."""
    cut = text if len(text) <= 60 else f"{text[:60]}..."
    return '"' + "".join(c if c.isprintable() else repr(c)[1:-1] for c in cut) + '"'


def some(words: Iterable[str]) -> str:
    """Return the first three of some names, and how many more there are."""
    listed = list(words)
    first = ", ".join(word if " repeats " in word else shorten(word) for word in listed[:3])
    return f"{first}, and {len(listed) - 3} more" if len(listed) > 3 else first


def is_heading(cell: str) -> bool:
    """Return whether a cell reads like the heading of a column rather than like a label."""
    word = _heading_word(cell)
    known = {*RANKS, *_NAMES, *_DESCRIPTION, *_PATH, *_STATUS, *_ACCEPTED_ID, *_KEYS}
    return (
        _LEVEL.fullmatch(word) is not None
        or word in known
        or _is_parent(word)
        or _HEADING_ENDS.search(cell.strip()) is not None
    )


def is_row_id(cell: str) -> bool:
    """Return whether a cell is a number or a UUID."""
    return cell.isdecimal() or _UUID.fullmatch(cell) is not None


def _heading_word(cell: str) -> str:
    """Return a heading without case, blanks, marks and prefix (``dwc:taxonID`` is ``taxonid``)."""
    name = re.split(r"[/#:]", cell.strip().rstrip("/:"))[-1] if cell.strip("# ") else ""
    return re.sub(r"[\W_]+", "", name.casefold())


def _is_parent(word: str) -> bool:
    """Return whether a heading's word names the parents of the rows' labels."""
    return word in {"broader", "subclassof"} or (
        (word.startswith("parent") or word.endswith("parent")) and not word.endswith("rank")
    )


class _Columns:
    """Columns of a table by heading."""

    def __init__(self, head: Sequence[str], line: int) -> None:
        self.head = head
        self.line = line
        self.words = [_heading_word(cell) for cell in head]
        for word, cell in zip(self.words, head, strict=True):
            if word and self.words.count(word) > 1:
                raise TreeFileError(
                    f"line {line}: two columns are headed {shorten(cell)}: rename or remove one"
                )

    def first(self, words: Iterable[str]) -> int | None:
        """Return the column of the first of these headings that the table has."""
        return next(iter(self.all(words)), None)

    def all(self, words: Iterable[str]) -> list[int]:
        """Return the columns of all of these headings that the table has, in this order."""
        return [self.words.index(word) for word in words if word in self.words]

    def named(self, heading: str) -> int:
        """Return the column that a person names."""
        if (word := _heading_word(heading)) and word in self.words:
            return self.words.index(word)
        raise TreeFileError(
            f"line {self.line}: expected a column headed {shorten(heading)}, the headings are "
            f"{', '.join(map(shorten, self.head))}"
        )

    def cell(self, row: Sequence[str], words: Iterable[str]) -> str:
        """Return a row's text below the first of these headings, empty if there is none."""
        column = self.first(words)
        return "" if column is None else row[column]

    def ids(self) -> list[int]:
        """Return the columns that may hold the row's own id."""
        return [
            column
            for column, word in enumerate(self.words)
            if (word in _KEYS or word.endswith(("id", "key"))) and not word.startswith(_OTHER_IDS)
        ]

    def left_out(self, used: Iterable[int]) -> list[str]:
        """Return a note on the columns that are not read."""
        read = set(used)
        left = [cell for column, cell in enumerate(self.head) if column not in read and cell]
        return [f"column(s) left out: {some(left)}"] if left else []

    def common_names(self, named: int) -> list[str]:
        """Return a note that common names could be taken."""
        common = self.first(_COMMON)
        if common is None or common == named:
            return []
        heading = shorten(self.head[common])
        return [f"labels are named by {shorten(self.head[named])}; --name {heading} takes those"]


def read_table(
    head: Sequence[str],
    line: int,
    rows: Sequence[Row],
    *,
    levels: Sequence[str] | None = None,
    name: str | None = None,
) -> Table:
    """Return the paths of a table, by what its headings say of its columns.

    Headings that say nothing at all name levels, coarse to fine.

    Args:
        head: the headings.
        line: their line.
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
        chosen = [columns.named(one) for one in levels]
        gaps = all(columns.words[column] in RANKS for column in chosen)
        return Table(list(_levels(rows, chosen, gaps=gaps)))
    own = None if name is None else columns.named(name)
    if parents := _parent_columns(columns, rows):
        return _parent_table(columns, rows, parents, own)
    ranks = columns.all(RANKS)
    if len(ranks) > 1 or (ranks and columns.first(_NAMES) is not None):
        if len(head) == 7 and columns.words[1:6] == _SPECIESNET and _have_uuids(rows):
            return _speciesnet(rows, common=own == 6)
        return _rank_table(columns, rows, ranks, own)
    return _code_table(columns, rows, own) or _level_table(columns, rows, own)


# Levels, or a path in one column


def headless(rows: Sequence[Row]) -> Table:
    """Return the paths of a table without headings: SpeciesNet's labels, or a column per level."""
    width = max(len(cells) for _, cells in rows)
    rows = [(line, cells + [""] * (width - len(cells))) for line, cells in rows]
    if width == 7 and _have_uuids(rows):
        return _speciesnet(rows)
    columns, notes = list(range(width)), []
    first = [cells[0] for _, cells in rows]
    if width > 1 and all(map(is_row_id, first)) and len(set(first)) == len(first):
        columns = columns[1:]
        notes.append("the first column holds a number of each row, no label: left out")
    _check_names(rows, columns)
    return Table(list(_levels(rows, columns)), notes)


def _levels(
    rows: Sequence[Row], columns: Sequence[int], *, gaps: bool = False
) -> Iterator[tuple[str, Path]]:
    """Yield the paths of rows whose columns are levels, coarse to fine."""
    empty = _NO_RANK if gaps else _EMPTY
    for line, row in rows:
        cells = ["" if row[column] in empty else row[column] for column in columns]
        if not any(cells):
            raise TreeFileError(f"line {line}: expected a label, all its levels are empty")
        path = cells[: max(depth for depth, cell in enumerate(cells, 1) if cell)]
        if gaps:
            path = [cell for cell in path if cell]
        if "" in path:
            raise TreeFileError(
                f"line {line}: level {path.index('') + 1} is empty and a deeper one is not "
                f"({shorten(path[-1])}): expected the levels from coarse to fine without a gap"
            )
        yield f"line {line}", tuple(path)


def _level_table(columns: _Columns, rows: Sequence[Row], own: int | None) -> Table:
    """Read a path in one column, or a column per level in their order; leave ids out."""
    if (path := columns.first(_PATH)) is not None:
        texts: list[tuple[str, Path]] = [(f"line {line}", (row[path],)) for line, row in rows]
        return Table(texts, columns.left_out([path]), split=True)
    if not any(is_heading(cell) for cell in columns.head):
        return headless(rows)
    index = [
        column
        for column, word in enumerate(columns.words)
        if not word and all(row[column].isdecimal() for _, row in rows)
    ]
    ids = {*columns.ids(), *index}
    rest = [column for column in range(len(columns.head)) if column not in ids]
    rest.sort(key=lambda column: not columns.words[column].startswith("super"))
    words = {column: columns.words[column] for column in rest}
    strange = [
        columns.head[column]
        for column, word in words.items()
        if not _LEVEL.fullmatch(word) and word not in {*RANKS, *_NAMES}
    ]
    if not rest or (strange and rest != [own]):
        what = f"do not understand the heading(s) {some(strange)}" if strange else "see no names"
        raise TreeFileError(
            f"line {columns.line}: expected headings of levels or ranks from coarse to fine (such "
            f"as order, family, species), or id, name and parent_id, or path; {what}. {CHOOSE}, "
            "remove the other columns, or say --no-header if the line is a label"
        )
    for column in rest[:-1]:
        if words[column] in _NAMES:
            raise TreeFileError(
                f"line {columns.line}: the column {shorten(columns.head[column])} stands before "
                f"{shorten(columns.head[column + 1])}; expected the levels from coarse to fine. "
                f"{CHOOSE}"
            )
    _check_names(rows, rest)
    return Table(list(_levels(rows, rest)), columns.left_out([*rest, *index]))


def _check_names(rows: Sequence[Row], columns: Sequence[int]) -> None:
    """Refuse a column in which all cells are numbers or ids."""
    for column in columns:
        filled = [(line, row[column]) for line, row in rows if row[column] not in _EMPTY]
        if filled and all(_NUMBER.fullmatch(cell) or _UUID.fullmatch(cell) for _, cell in filled):
            raise TreeFileError(
                f"line {filled[0][0]}: expected names, column {column + 1} holds nothing but "
                f"numbers ({some(cell for _, cell in filled)}), which read like ids. Remove it, or "
                "head the columns (such as id, name, parent_id). Labels that are numbers can be "
                'given as JSON: ["1", "2"]'
            )


# Ranks


def _rank_table(
    columns: _Columns, rows: Sequence[Row], ranks: Sequence[int], own: int | None
) -> Table:
    """Read a column per rank; cells may be empty, further columns may name the row's own taxon.

    A taxon is known by its rank and the cell there, and named by the cell, or by what names it
    better: the row's own name, or the column that a person chose.
    """
    scientific = columns.all(_SCIENTIFIC)
    names = scientific or columns.all(_PLAIN)[:1]
    if not names and "species" not in columns.words:
        names = columns.all(_COMMON)[:1]
    rows, notes = _accepted_rows(columns, rows)
    taxa: list[tuple[int, list[tuple[str, str]]]] = []
    titles: dict[tuple[tuple[str, str], ...], str] = {}
    for line, row in rows:
        path = [(columns.words[c], row[c]) for c in ranks if row[c] not in _NO_RANK]
        name = _own_name(columns, row, names, path)
        if not path and not name:
            raise TreeFileError(
                f"line {line}: expected a name in one of the columns "
                f"{some(columns.head[c] for c in ranks)}, all are empty"
            )
        if number := next((c for _, c in [("", name), *path] if _NUMBER.fullmatch(c)), ""):
            raise TreeFileError(f"line {line}: expected a name, got the number {shorten(number)}")
        rank = columns.cell(row, _RANK).casefold()
        if name and not _same_taxon(name, path, rank, scientific=bool(scientific)):
            path.append(("", name))
        elif name and not name.startswith(path[-1][1]):
            titles.setdefault(tuple(path), name)  # "Mytilus edulis" where the column says "edulis"
        if own is not None and row[own] not in _NO_RANK:
            titles[tuple(path)] = row[own]
        taxa.append((line, path))
    notes += columns.common_names(own if own is not None else (names or ranks)[-1])
    used = {*ranks, *names, *columns.all(_RANK), *([] if own is None else [own])}
    paths = [
        (
            f"line {line}",
            tuple(titles.get(tuple(path[: end + 1]), cell) for end, (_, cell) in enumerate(path)),
        )
        for line, path in taxa
    ]
    return Table(paths, [*notes, *columns.left_out(used)])


def _own_name(
    columns: _Columns, row: Sequence[str], names: Sequence[int], path: Sequence[tuple[str, str]]
) -> str:
    """Return the row's own taxon by a column beside the ranks, or by genus and epithet."""
    name = next((row[c] for c in names if row[c] not in _NO_RANK), "")
    name = _without_author(name, columns.cell(row, _AUTHOR))
    epithet = columns.cell(row, ("specificepithet",))
    if name or epithet in _NO_RANK:
        return name
    return f"{dict(path).get('genus', '')} {epithet}".strip()


def _without_author(name: str, author: str) -> str:
    """Return a name without the authorship at its end, where the table gives that too."""
    return name.removesuffix(author).strip() if author not in _NO_RANK else name


def _same_taxon(name: str, path: Sequence[tuple[str, str]], rank: str, *, scientific: bool) -> bool:
    """Return whether a row's own name names the deepest taxon of its ranks, not one below it."""
    if not path:
        return False
    word, cell = path[-1]
    if rank in RANKS:
        return RANKS.index(rank) <= RANKS.index(word)
    if name == cell or rank or not scientific or not name.startswith(f"{cell} "):
        return name == cell
    return not name[len(cell) + 1 :][:1].islower()  # "Panthera Oken", not "Panthera leo"


def _have_uuids(rows: Sequence[Row]) -> bool:
    return all(_UUID.fullmatch(row[0]) for _, row in rows)


def _speciesnet(rows: Sequence[Row], *, common: bool = False) -> Table:
    """Read SpeciesNet's label file: id;class;order;family;genus;species;common name.

    Its species are epithets; what has no rank (blank, vehicle) is a label of its own, and "animal"
    is above all that has one.
    """
    root = any(not any(row[1:6]) and row[6].casefold() == "animal" for _, row in rows)
    as_ranks: list[Row] = []
    for line, (_, *ranks, title) in rows:
        if any(ranks):
            epithet = f"{ranks[3]} {ranks[4]}" if ranks[3] and ranks[4] else ranks[4]
            cells = ["animal" if root else "", *ranks[:4], epithet, "", title]
        else:
            animal = title.casefold() == "animal"
            cells = ["animal" if animal else "", *[""] * 5, "" if animal else title, title]
        as_ranks.append((line, cells))
    columns = _Columns(["domain", *_SPECIESNET, "name", "common name"], rows[0][0])
    table = _rank_table(columns, as_ranks, range(6), 7 if common else None)
    notes = ["read as SpeciesNet's labels: ids are left out, and common names beside ranks"]
    if root:
        notes.append('"animal" stands above all classes, as in SpeciesNet')
    return Table(table.paths, notes)


def _accepted_rows(columns: _Columns, rows: Sequence[Row]) -> tuple[list[Row], list[str]]:
    """Return the rows of accepted names, and a note on the synonyms."""
    status, accepted = columns.first(_STATUS), columns.first(_ACCEPTED_ID)
    words = {row[status].casefold() for _, row in rows} if status is not None else set()
    if columns.first(_STATUS[:2]) is None and not words & _ACCEPTED:
        status = None  # some other status
    ids = columns.ids()

    def is_accepted(row: Sequence[str]) -> bool:
        if status is not None and row[status]:
            return row[status].casefold() in _ACCEPTED
        if accepted is None or row[accepted] in _NO_PARENT or not ids:
            return True
        return any(row[column] == row[accepted] for column in ids)

    found = [(line, row) for line, row in rows if is_accepted(row)]
    if rows and not found:
        raise TreeFileError(
            f"line {rows[0][0]}: no row is an accepted name: expected some whose "
            f"{shorten(columns.head[status if status is not None else accepted or 0])} says so"
        )
    if len(found) == len(rows):
        return found, []
    first = next(line for line, row in rows if not is_accepted(row))
    return found, [f"{len(rows) - len(found)} synonym(s) left out, such as on line {first}"]


# Parents by id or by name, and edges


@dataclass(frozen=True)
class _Node:
    """A label of a table of parents: its line, its name, and the key of its parent."""

    line: int
    name: str
    parent: str


def _paths(nodes: Mapping[str, _Node]) -> list[tuple[str, Path]]:
    """Return the path of each node, found by going up."""
    paths: dict[str, Path] = {"": ()}
    for key in nodes:
        way: list[str] = []
        seen: set[str] = set()
        at = key
        while at not in paths:
            if at in seen:
                ring = [nodes[one].name for one in [*way[way.index(at) :], at]]
                raise TreeFileError(
                    f"line {nodes[at].line}: the parents go round in a circle "
                    f"({' > '.join(map(shorten, ring[:5]))}): empty the parent of the label at the "
                    "top"
                )
            way.append(at)
            seen.add(at)
            at = nodes[at].parent
        for one in reversed(way):
            paths[one] = (*paths[nodes[one].parent], nodes[one].name)
    return [(f"line {node.line}", paths[key]) for key, node in nodes.items()]


def _parent_columns(columns: _Columns, rows: Sequence[Row]) -> list[int]:
    """Return the columns that hold each row's parent."""
    found = [column for column, word in enumerate(columns.words) if _is_parent(word)]
    above, name = columns.first(("supercategory",)), columns.first(_PLAIN)
    if found or above is None or name is None:
        return found
    # In Roboflow's exports these are categories as well, in COCO's they are not.
    known = {row[name] for _, row in rows} | _NO_PARENT
    return [above] if all(row[above] in known for _, row in rows) else []


def _parent_table(
    columns: _Columns, rows: Sequence[Row], parents: Sequence[int], own: int | None
) -> Table:
    """Read a row per label, with its parent by id or by name, or a row per edge."""
    parent = next((c for c in parents if not columns.words[c].endswith("name")), parents[0])
    child = columns.first(("child", "childname", "childlabel"))
    named = own if own is not None else columns.first(_NAMES)
    edges = named is None and child is not None
    if named is None:
        named = child
    if named is None:
        named = columns.first(("species", "category", "class", "type", *_DESCRIPTION))
    if named is None:
        raise TreeFileError(
            f"line {columns.line}: expected a column with the names of the labels beside "
            f"{shorten(columns.head[parent])}: head it name, or say --name COLUMN"
        )
    accepted, notes = _accepted_rows(columns, rows)
    key = named if edges else _key_column(columns, rows, parent, named)
    nodes, repeated = _nodes(columns, rows, accepted, (parent, key, named))
    notes += _repeated_notes(repeated)
    missing = [node for node in nodes.values() if node.parent and node.parent not in nodes]
    if edges:  # what is nobody's child is at the top
        nodes |= {node.parent: _Node(node.line, node.parent, "") for node in missing}
    elif missing:
        first = missing[0]
        known = any(row[key] == first.parent for _, row in rows)
        what = "is no accepted name" if known else "is on no line"
        why = f"line {first.line}: its parent {shorten(first.parent)} {what}"
        if len(ranks := columns.all(RANKS)) > 1:
            table = _rank_table(columns, rows, ranks, own)
            table.notes.insert(0, f"{why}, so the columns of ranks are read instead")
            return table
        more = f" (nor are {len(missing) - 1} others)" if len(missing) > 1 else ""
        raise TreeFileError(
            f"{why}{more}: expected it in the column {shorten(columns.head[key])}. Add a row for "
            "it, or empty the cell if the label is at the top"
        )
    _check_names([(node.line, [node.name]) for node in nodes.values()], [0])
    used = {parent, named, key, *columns.all(_SCIENTIFIC), *columns.all(_AUTHOR)}
    return Table(_paths(nodes), [*notes, *columns.common_names(named), *columns.left_out(used)])


def _nodes(
    columns: _Columns, rows: Sequence[Row], accepted: Sequence[Row], positions: tuple[int, int, int]
) -> tuple[dict[str, _Node], list[str]]:
    """Return the labels by key, and which rows repeat another one."""
    parent, key, named = positions
    names = [named, *columns.all(_SCIENTIFIC)]
    known, in_use = {row[key] for _, row in rows}, {row[key] for _, row in accepted}
    to = columns.first(_ACCEPTED_ID)
    synonyms = {row[key]: row[to] for _, row in rows if to is not None and row[key] not in in_use}
    nodes: dict[str, _Node] = {}
    repeated = []
    for line, row in accepted:
        name = next((row[c] for c in names if row[c] not in _EMPTY), "")
        name = _without_author(name, columns.cell(row, _AUTHOR))
        up = row[parent] if row[parent] in known or row[parent] not in _NO_PARENT else ""
        if row[key] in _EMPTY:
            raise TreeFileError(f"line {line}: expected an id or a name, the row has none")
        if not name:
            raise TreeFileError(
                f"line {line}: expected a name, the cell is empty: fill it in, or remove the row"
            )
        node = _Node(line, name, synonyms.get(up, up))
        first = nodes.setdefault(row[key], node)
        if (first.name, first.parent) != (node.name, node.parent):
            raise TreeFileError(
                f"line {line}: {shorten(row[key])} stands on line {first.line} already, with "
                f"another name or parent ({shorten(first.name)}): expected each once in the column "
                f"{shorten(columns.head[key])}"
            )
        if first is not node:
            repeated.append(f"line {line} repeats line {first.line}")
    return nodes, repeated


def _repeated_notes(repeated: Sequence[str]) -> list[str]:
    if not repeated:
        return []
    return [f"{len(repeated)} row(s) given again, and ignored: {some(repeated)}"]


def _key_column(columns: _Columns, rows: Sequence[Row], parent: int, named: int) -> int:
    """Return the column to which the parents refer: an id, or else the name."""
    wanted = {row[parent] for _, row in rows} - _NO_PARENT
    ids = columns.ids()
    candidates = ids if ids and columns.words[parent].endswith(("id", "key", "tsn")) else []
    candidates = candidates or [*ids, named]
    return max(candidates, key=lambda column: len(wanted & {row[column] for _, row in rows}))


# ICD codes


def _code_table(columns: _Columns, rows: Sequence[Row], own: int | None) -> Table | None:
    """Read ICD codes with their texts; None where there is no column of codes."""
    code = columns.first(_CODE)
    text = own if own is not None else columns.first((*_PLAIN, *_DESCRIPTION))
    if code is None or text is None:
        return None
    if columns.words[text] in _PLAIN and not any(_ICD.fullmatch(row[code]) for _, row in rows):
        return None  # ids of another kind, beside names
    table = icd_codes(((line, row[code], row[text]) for line, row in rows), columns.head[code])
    table.notes += columns.left_out([code, text])
    return table


def icd_codes(rows: Iterable[tuple[int, str, str]], heading: str = "code") -> Table:
    """Return labels by ICD-9 or ICD-10 code, each below the longest code that begins it.

    Args:
        rows: line, code and description of each.
        heading: what the codes are called.
    """
    found: dict[str, tuple[int, str]] = {}
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
        first, known = found.setdefault(code, (line, name))
        if known != name:
            raise TreeFileError(
                f"line {line}: the code {shorten(text)} stands on line {first} already, "
                f"for {shorten(known)}: expected each once"
            )
        if first != line:
            repeated.append(f"line {line} repeats line {first}")
        elif block is not None:
            blocks.append((block[1], block[2], code))
    nodes = {
        code: _Node(line, name, _icd_parent(code, found, blocks))
        for code, (line, name) in found.items()
    }
    example = next((f"{code} below {one.parent}" for code, one in nodes.items() if one.parent), "")
    note = "each code lies below the longest code that begins it, such as "
    return Table(_paths(nodes), [note + (example or "A00.1 below A00"), *_repeated_notes(repeated)])


def _icd_parent(
    code: str, codes: Mapping[str, object], blocks: Sequence[tuple[str, str, str]]
) -> str:
    start, end = code[:3], code[:3]
    if (block := _ICD_BLOCK.fullmatch(code)) is not None:
        start, end = block[1], block[2]
    else:
        for length in range(len(code) - 1, 2, -1):
            if code[:length] in codes:
                return code[:length]
    around = [
        (first, last, name)
        for first, last, name in blocks
        if first <= start and end <= last and name != code and (first, last) != (start, end)
    ]
    # The smallest: the last to begin, and of those the first to end.
    around.sort(key=lambda one: (one[0], [-ord(letter) for letter in one[1]]))
    return around[-1][2] if around else ""
