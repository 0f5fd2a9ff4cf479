"""Columns of a table of labels by their headings, and what its cells may hold."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
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

SCIENTIFIC: Final = ("canonicalname", "scientificname", "latinname", "sciname", "binomial")
PLAIN: Final = (
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
COMMON: Final = (
    "vernacularname",
    "vernacular",
    "commonname",
    "commonnames",
    "englishname",
    "englishcommonname",
    "preferredcommonname",
)
DESCRIPTION: Final = (
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
PATH: Final = (
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
CODE: Final = (
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
        *CODE,
    }
)
AUTHOR: Final = ("scientificnameauthorship", "authorship", "authority")
STATUS: Final = ("taxonomicstatus", "taxonstatus", "status")
ACCEPTED_ID: Final = (
    "acceptednameusageid",
    "acceptedtaxonkey",
    "acceptedusagekey",
    "acceptedtaxonid",
    "aphiaidaccepted",
    "validaphiaid",
    "acceptedid",
)
_OTHER_IDS: Final = ("parent", "accepted", "valid", "original", "dataset", "source", "alternative")

RANK: Final = ("taxonrank", "rank")
#: Headings of levels whose order is that of their columns.
LEVEL: Final = re.compile(
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
EMPTY: Final = frozenset({"", "NA", "N/A", "#N/A", "NaN", "nan", "NULL", "null", r"\N"})
NO_RANK: Final = EMPTY | {"None", "none", "-", "--"}

#: What a top's parent may be, if no row has it as its id.
NO_PARENT: Final = NO_RANK | {"0", "-1"}

NUMBER: Final = re.compile(r"[-+]?[\d.,\s]*\d[\d.,\s]*%?")
UUID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)

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
        LEVEL.fullmatch(word) is not None
        or word in _KEYS
        or word in {*RANKS, *SCIENTIFIC, *PLAIN, *COMMON, *DESCRIPTION, *PATH, *STATUS}
        or word in ACCEPTED_ID
        or is_parent(word)
        or _HEADING_ENDS.search(cell.strip()) is not None
    )


def is_parent(word: str) -> bool:
    """Whether a heading's word heads the parents of the rows' labels."""
    return word in {"broader", "subclassof"} or (
        (word.startswith("parent") or word.endswith("parent")) and not word.endswith("rank")
    )


class Columns:
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
            and not is_parent(word)
        ]


def left_out(columns: Columns, used: Iterable[int]) -> list[str]:
    """A note on the columns that are not read."""
    there = set(used)
    left = [cell for column, cell in enumerate(columns.head) if column not in there and cell]
    return [f"column(s) left out: {some(left)}"] if left else []


def check_names(rows: Sequence[Row], columns: Sequence[int]) -> None:
    """Refuse a column in which all cells are numbers or ids."""
    for column in columns:
        filled = [(line, row[column]) for line, row in rows if row[column] not in EMPTY]
        if filled and all(_is_number(cell) for _, cell in filled):
            raise TreeFileError(
                f"line {filled[0][0]}: expected names, column {column + 1} holds nothing but "
                f"numbers ({some(cell for _, cell in filled)}), which read like ids. Remove it, or "
                "head the columns (such as id, name, parent_id). Labels that are numbers can be "
                'given as JSON: ["1", "2"]'
            )


def _is_number(cell: str) -> bool:
    return NUMBER.fullmatch(cell) is not None or UUID.fullmatch(cell) is not None


def repeated_rows(found: Sequence[str]) -> list[str]:
    """A note on rows that say what another one says."""
    return [f"{len(found)} row(s) given again, and ignored: {some(found)}"] if found else []


def choice_of_names(columns: Columns, named: int) -> list[str]:
    """A note that common names could be taken."""
    common = columns.first(COMMON)
    if common in {None, named}:
        return []
    heading = shorten(columns.head[common or 0])
    return [f"labels are named by {shorten(columns.head[named])}; --name {heading} takes those"]
