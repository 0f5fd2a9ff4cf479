"""An index of the images that tasks' references led to, so that none is fetched again."""

import hashlib
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from inference.cache_database import CacheDatabase

#: Bytes of an image key.
_KEY: Final = 32
_TABLE: Final = """
    CREATE TABLE IF NOT EXISTS seen (
        reference BLOB PRIMARY KEY, picture BLOB NOT NULL, at REAL NOT NULL
    ) WITHOUT ROWID
"""


class ReferenceIndex:
    """Image keys by reference; threads and processes may share one folder.

    References are kept as hashes only, for they may hold signatures and tokens. They mean an image
    within one Label Studio: give each its own folder.
    """

    def __init__(self, folder: Path) -> None:
        """Nothing is read or written yet."""
        self._database = CacheDatabase(folder / "references.sqlite", [_TABLE])

    def known(self, refs: Sequence[str], max_age_s: float) -> list[str | None]:
        """Return each one's image key, if it was seen in the last ``max_age_s`` seconds."""
        since = time.time() - max_age_s
        query = "SELECT picture FROM seen WHERE reference = ? AND at >= ?"

        def look(database: sqlite3.Connection) -> list[str | None]:
            rows = (database.execute(query, (_name(ref), since)).fetchone() for ref in refs)
            return [_image_key(row) for row in rows]

        return self._database.run(look) or [None] * len(refs)

    def remember(self, found: Sequence[tuple[str, str]]) -> None:
        """Note several references, and the image key that each led to just now."""
        now = time.time()
        rows = [(_name(ref), bytes.fromhex(image), now) for ref, image in found]

        def note(database: sqlite3.Connection) -> None:
            with database:
                database.execute("BEGIN IMMEDIATE")
                database.executemany("INSERT OR REPLACE INTO seen VALUES (?, ?, ?)", rows)

        if rows:
            self._database.run(note)

    def prune(self, max_age_s: float) -> int:
        """Forget references older than ``max_age_s`` seconds; return how many."""
        limit = (time.time() - max_age_s,)

        def forget(database: sqlite3.Connection) -> int:
            return database.execute("DELETE FROM seen WHERE at < ?", limit).rowcount

        return self._database.run(forget) or 0


def _image_key(row: tuple[object] | None) -> str | None:
    """SQLite checks the shape of what it holds, not the content."""
    found = row[0] if row else None
    return found.hex() if isinstance(found, bytes) and len(found) == _KEY else None


def _name(ref: str) -> bytes:
    return hashlib.sha256(ref.encode("utf-8", "surrogatepass")).digest()
