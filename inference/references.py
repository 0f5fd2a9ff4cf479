"""Which picture a task's reference led to, so that it need not be fetched again.

A cache, as `inference.features`: damage, a full disk or a folder that cannot be written costs time
and a log line, never an answer.
"""

import hashlib
import logging
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Final, TypeVar

log = logging.getLogger(__name__)

_FILE: Final = "references.sqlite"
#: Bytes of a picture's SHA-256.
_DIGEST: Final = 32
#: Rows of one statement: every SQLite takes as many values.
_AT_ONCE: Final = 256
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

#: What no waiting fixes: the file is damaged, or it is not ours.
_LOST: Final = frozenset(
    {sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_SCHEMA}
)

_FoundT = TypeVar("_FoundT")


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
        self._complained = False
        _OPEN.add(self)

    def known(self, refs: Sequence[str], max_age_s: float) -> list[str | None]:
        """Of each the picture's digest, if it was seen in the last ``max_age_s`` seconds."""
        since = time.time() - max_age_s
        query = "SELECT picture FROM seen WHERE reference = ? AND at >= ?"

        def look(base: sqlite3.Connection) -> list[str | None]:
            rows = (base.execute(query, (_name(ref), since)).fetchone() for ref in refs)
            return [_digest(row) for row in rows]

        return self._with(look) or [None] * len(refs)

    def remember(self, ref: str, digest: str) -> None:
        """Note that ``ref`` gave the picture ``digest`` just now."""
        self.remember_all([(ref, digest)])

    def remember_all(self, found: Sequence[tuple[str, str]]) -> None:
        """Note several references, and the picture that each gave, in one go."""
        now = time.time()
        rows = [(_name(ref), bytes.fromhex(digest), now) for ref, digest in found]
        for start in range(0, len(rows), _AT_ONCE):
            part = rows[start : start + _AT_ONCE]
            places = ", ".join(["(?, ?, ?)"] * len(part))  # one statement: one write
            many = f"INSERT OR REPLACE INTO seen VALUES {places}"  # noqa: S608 - question marks
            self._with(partial(_run, many, list(chain.from_iterable(part))))

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
                if getattr(error, "sqlite_errorcode", 0) & 0xFF in _LOST:
                    self._begin_anew()
                return None

    def _opened(self) -> sqlite3.Connection:
        if self._base is None:
            self._root.mkdir(parents=True, exist_ok=True)
            made = sqlite3.connect(
                self._root / _FILE,
                timeout=_PATIENCE_S,
                isolation_level=None,  # each statement for itself
                check_same_thread=False,  # the lock is ours
            )
            try:
                for statement in _SETUP:
                    made.execute(statement)
            except sqlite3.Error:
                made.close()
                raise
            self._base = made
        return self._base

    def _begin_anew(self) -> None:
        self._close()
        for path in self._root.glob(f"{_FILE}*"):
            with suppress(OSError):
                path.unlink()

    def _close(self) -> None:
        if self._base is not None:
            self._base.close()
            self._base = None

    def before_fork(self) -> None:
        """Close, and let nobody open until `after_fork`: SQLite must not be carried into a fork."""
        self._lock.acquire()
        self._close()

    def after_fork(self) -> None:
        """Go on, in both processes."""
        self._lock.release()


#: Those of this process, and those of them that wait while it forks.
_OPEN: Final[weakref.WeakSet[ReferenceIndex]] = weakref.WeakSet()
_WAITING: Final[list[ReferenceIndex]] = []


def _before_fork() -> None:
    _WAITING.extend(_OPEN)
    for index in _WAITING:
        index.before_fork()


def _after_fork() -> None:
    while _WAITING:
        _WAITING.pop().after_fork()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)


def _run(statement: str, values: Sequence[object], base: sqlite3.Connection) -> sqlite3.Cursor:
    return base.execute(statement, values)


def _digest(row: tuple[object] | None) -> str | None:
    """SQLite checks the shape of what it holds, not the content."""
    found = row[0] if row else None
    return found.hex() if isinstance(found, bytes) and len(found) == _DIGEST else None


def _name(ref: str) -> bytes:
    return hashlib.sha256(ref.encode("utf-8", "surrogatepass")).digest()
