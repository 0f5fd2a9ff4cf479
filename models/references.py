"""Which picture a task's reference led to, so that it need not be fetched again.

A cache, as `models.features`: damage, a full disk or a folder that cannot be written costs time and
a log line, never an answer.
"""

import hashlib
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

log = logging.getLogger(__name__)

_FILE: Final = "references.sqlite"
#: Bytes of a picture's SHA-256.
_DIGEST: Final = 32
#: Seconds that another process's write is waited for.
_PATIENCE_S: Final = 2.0
_TABLE: Final = """
    CREATE TABLE IF NOT EXISTS seen (
        reference BLOB PRIMARY KEY, picture BLOB NOT NULL, at REAL NOT NULL
    ) WITHOUT ROWID
"""
_SETUP: Final = (
    "PRAGMA journal_mode = WAL",  # readers and a writer do not wait for each other
    "PRAGMA synchronous = OFF",  # after a loss of power pictures are fetched again
    _TABLE,
)

_FoundT = TypeVar("_FoundT")
#: Connections of the process that this one was forked from: closing one here would end its locks.
_LEFT: Final[list[sqlite3.Connection]] = []


class ReferenceIndex:
    """References and pictures' digests; threads and processes may share one folder.

    References are kept as hashes only, for they may hold signatures and tokens. They mean a
    picture within one Label Studio: give each its own folder.
    """

    def __init__(self, root: Path) -> None:
        """Nothing is read or written yet."""
        self._root = root
        self._lock = threading.Lock()
        self._base: sqlite3.Connection | None = None
        self._process = 0
        self._complained = False

    def known(self, refs: Sequence[str], max_age_s: float) -> list[str | None]:
        """Of each the picture's digest, if it was seen in the last ``max_age_s`` seconds."""
        since = time.time() - max_age_s
        query = "SELECT picture FROM seen WHERE reference = ? AND at >= ?"

        def look(base: sqlite3.Connection) -> list[str | None]:
            rows = (base.execute(query, (_name(ref), since)).fetchone() for ref in refs)
            return [row[0].hex() if row and len(row[0]) == _DIGEST else None for row in rows]

        return self._with(look) or [None] * len(refs)

    def remember(self, ref: str, digest: str) -> None:
        """Note that ``ref`` gave the picture ``digest`` just now."""
        row = (_name(ref), bytes.fromhex(digest), time.time())
        self._with(lambda base: base.execute("INSERT OR REPLACE INTO seen VALUES (?, ?, ?)", row))

    def prune(self, max_age_s: float) -> int:
        """Forget references older than ``max_age_s`` seconds; return how many."""
        for path in self._root.glob("??/*"):  # releases before wrote a file each
            with suppress(OSError):
                path.unlink()
        limit = (time.time() - max_age_s,)
        gone = self._with(lambda base: base.execute("DELETE FROM seen WHERE at < ?", limit))
        return gone.rowcount if gone else 0

    def _with(self, work: Callable[[sqlite3.Connection], _FoundT]) -> _FoundT | None:
        """What the work finds; None where the index does not work."""
        with self._lock:
            try:
                return work(self._opened())
            except (sqlite3.Error, OSError) as error:
                if not self._complained:
                    self._complained = True
                    log.warning("reference index does not work, going on without: %s", error)
                if type(error) is sqlite3.DatabaseError:  # damaged, not merely busy or full
                    self._begin_anew()
                return None

    def _opened(self) -> sqlite3.Connection:
        if self._base is not None and self._process == os.getpid():
            return self._base
        if self._base is not None:
            _LEFT.append(self._base)
        self._root.mkdir(parents=True, exist_ok=True)
        self._process = os.getpid()
        self._base = sqlite3.connect(
            self._root / _FILE,
            timeout=_PATIENCE_S,
            isolation_level=None,  # each statement for itself
            check_same_thread=False,  # the lock is ours
        )
        for statement in _SETUP:
            self._base.execute(statement)
        return self._base

    def _begin_anew(self) -> None:
        if self._base is not None:
            self._base.close()
            self._base = None
        for path in self._root.glob(f"{_FILE}*"):
            with suppress(OSError):
                path.unlink()


def _name(ref: str) -> bytes:
    return hashlib.sha256(ref.encode("utf-8", "surrogatepass")).digest()
