"""Lines of a collection's text lists, each error with the file's name and the line's number."""

import csv
from collections.abc import Sequence
from pathlib import Path

from evaluation.errors import DatasetError


def read_lines(file: Path) -> list[str]:
    """Read the lines of a text file that are not empty, without the space around them.

    Raises:
        DatasetError: there is no such file, or it is not UTF-8 text.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise DatasetError(
            f"expected the list {file.name} in {file.parent}, and it is not there: "
            "unpack the collection whole"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{file}: cannot be read as UTF-8 text ({error})") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def read_pairs(file: Path) -> dict[str, str]:
    """Read lines ``key value``: what stands before the first blank, and the rest.

    Raises:
        DatasetError: as :func:`read_lines`; a line has no blank, or a key comes twice.
    """
    found: dict[str, str] = {}
    for number, line in enumerate(read_lines(file), 1):
        key, _, value = line.partition(" ")
        if not value:
            raise DatasetError(f"{file}, line {number}: expected two words, got {line!r}")
        if key in found:
            raise DatasetError(f"{file}, line {number}: {key} was given before; list it once")
        found[key] = value.strip()
    return found


def read_table(file: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Read a CSV file that has at least these columns; cells come without the space around them.

    Raises:
        DatasetError: as :func:`read_lines`; a column is missing, or a row is too short.
    """
    reader = csv.DictReader(read_lines(file))
    missing = [name for name in columns if name not in (reader.fieldnames or [])]
    if missing:
        raise DatasetError(
            f"{file}: expected the columns {', '.join(columns)}, "
            f"got {', '.join(reader.fieldnames or ['an empty file'])}"
        )
    rows = []
    for number, row in enumerate(reader, 1):
        if any(row[name] is None for name in columns):
            raise DatasetError(f"{file}, row {number}: expected {len(columns)} cells or more")
        rows.append({name: row[name].strip() for name in columns})
    return rows


def whole(text: str, where: str) -> int:
    """Read a whole number.

    Raises:
        DatasetError: it is none; ``where`` says which.
    """
    try:
        return int(text)
    except ValueError as error:
        raise DatasetError(f"{where}: expected a whole number, got {text.strip()!r}") from error
