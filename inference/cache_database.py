"""An SQLite file that may be lost: what is in it can be computed or fetched again.

Damage, a full disk or a folder that cannot be written costs time and a log line, never an answer.
"""

import logging
import os
import sqlite3
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

log = logging.getLogger(__name__)

#: Seconds that another process's write is waited for.
_TIMEOUT_S: Final = 10.0
#: Bytes of a page: ten feature vectors fit, and little of it is left empty.
_PAGE: Final = 32768
#: For a new file alone: of one that is there they would wait for who writes.
_SETUP_ANEW: Final = (
    f"PRAGMA page_size = {_PAGE}",
    "PRAGMA auto_vacuum = INCREMENTAL",  # so that eviction gives space back to the disk
)
_SETUP: Final = (
    "PRAGMA journal_mode = WAL",  # readers and a writer do not wait for each other
    "PRAGMA synchronous = NORMAL",
    "PRAGMA journal_size_limit = 67108864",
    "PRAGMA cache_size = -32000",  # kilobytes: rows that are read together lie far apart
)
#: What no waiting fixes: the file is damaged, or it is not ours.
_LOST: Final = frozenset(
    {sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_SCHEMA}
)

FoundT = TypeVar("FoundT")


class CacheDatabase:
    """One connection to a database that threads share; processes may share the file.

    A damaged file is removed and begun again. A process that has it open goes on with the new one.
    """

    def __init__(self, path: Path, tables: Sequence[str]) -> None:
        """Nothing is read or written yet.

        Args:
            path: the file; its folder is made when it is first needed.
            tables: SQL that makes tables and indices where they are not there.
        """
        self.path = path
        self._tables = tables
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._inode = 0
        self._complained = False
        _OPEN.add(self)

    def run(self, work: Callable[[sqlite3.Connection], FoundT]) -> FoundT | None:
        """Return what the work finds; None where the database does not work."""
        with self._lock:
            try:
                found = work(self._opened())
            except (sqlite3.Error, OSError) as error:
                if not self._complained:  # a full disk fails thousands of times
                    self._complained = True
                    log.warning("%s does not work, going on without: %s", self.path.name, error)
                if getattr(error, "sqlite_errorcode", 0) & 0xFF in _LOST:
                    self._begin_again()
                return None
            self._complained = False
            return found

    def _opened(self) -> sqlite3.Connection:
        if self._connection is not None and self._inode == self._inode_now():
            return self._connection
        self._close()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        made = sqlite3.connect(
            self.path,
            timeout=_TIMEOUT_S,
            isolation_level=None,  # transactions are begun by name
            check_same_thread=False,  # the lock is ours
        )
        try:
            new = not made.execute("PRAGMA page_count").fetchone()[0]
            for statement in (*(_SETUP_ANEW if new else ()), *_SETUP, *self._tables):
                made.execute(statement)
        except sqlite3.Error:
            made.close()
            raise
        self._connection, self._inode = made, self._inode_now()
        return made

    def _inode_now(self) -> int:
        """The file's number, 0 where there is none: another process may have begun it again."""
        try:
            return self.path.stat().st_ino
        except OSError:
            return 0

    def _begin_again(self) -> None:
        ours = self._inode in (0, self._inode_now())
        self._close()
        if ours:  # otherwise another process was quicker
            # The database itself last: beside a new one, an old log would be taken for its own.
            for path in sorted(self.path.parent.glob(f"{self.path.name}*"), reverse=True):
                with suppress(OSError):
                    path.unlink()

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection, self._inode = None, 0

    def before_fork(self) -> None:
        """Close, and let nobody open until `after_fork`: SQLite must not be carried into a fork."""
        self._lock.acquire()
        self._close()

    def after_fork(self) -> None:
        """Go on, in both processes."""
        self._lock.release()


#: Those of this process, and those of them that wait while it forks.
_OPEN: Final[weakref.WeakSet[CacheDatabase]] = weakref.WeakSet()
_WAITING: Final[list[CacheDatabase]] = []
#: Held by the thread that forks: another one would release what it waits for.
_FORKING: Final = threading.Lock()


def _before_fork() -> None:
    _FORKING.acquire()
    _WAITING.extend(_OPEN)
    for database in _WAITING:
        database.before_fork()


def _after_fork() -> None:
    while _WAITING:
        _WAITING.pop().after_fork()
    _FORKING.release()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)
