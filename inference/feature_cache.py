"""Feature vectors on disk: one SQLite table, by image key, network and augmentation."""

import sqlite3
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from inference.augmentation import PLAIN
from inference.cache_database import CacheDatabase

#: ``(n, C)`` feature vectors.
Vectors = NDArray[np.float16]

_SECONDS_PER_DAY: Final = 24 * 3600
#: Days after which a vector's last use is noted again: noting it rewrites the row.
_NOTED_AFTER: Final = 7
#: Rows read or written at once: others wait for the connection meanwhile.
_AT_ONCE: Final = 500
#: Pages given back to the disk at once: 64 MB.
_PAGES_AT_ONCE: Final = 2000
#: Rows evicted in one transaction.
_EVICTED_AT_ONCE: Final = 5000

_TABLES: Final = (
    """
    CREATE TABLE IF NOT EXISTS features (
        image BLOB NOT NULL, network TEXT NOT NULL, augmentation INTEGER NOT NULL,
        used INTEGER NOT NULL, vector BLOB NOT NULL,
        PRIMARY KEY (image, network, augmentation)
    )
    """,
    "CREATE INDEX IF NOT EXISTS by_last_use ON features (used)",
)


@dataclass(frozen=True)
class CacheSize:
    """The number and size of a feature cache's vectors."""

    vectors: int
    nbytes: int


class FeatureCache:
    """Feature vectors of any number of networks; threads and processes may share one folder.

    A vector is kept as float16 with its checksum. A row that is damaged counts as missing.
    """

    def __init__(self, folder: Path) -> None:
        """Nothing is read or written yet."""
        file = folder / "features.sqlite"
        # Those who read do not wait for those of their own process who write.
        self._reading = CacheDatabase(file, _TABLES)
        self._writing = CacheDatabase(file, _TABLES)

    def read(
        self, image_keys: Sequence[str], network: str, channels: int, *, augmentation: int = PLAIN
    ) -> tuple[NDArray[np.bool_], Vectors]:
        """Read many images' vectors.

        Args:
            image_keys: SHA-256 in 64 hex digits, each.
            network: the network's fingerprint.
            channels: C, what it puts out.
            augmentation: of the images.

        Returns:
            ``(n,)`` which there are, and ``(n, C)`` vectors, zeros where there are none.
        """
        found = np.zeros(len(image_keys), bool)
        vectors = np.zeros((len(image_keys), channels), np.float16)
        today, stale = _today(), set[int]()
        for start, keys in _some(image_keys):
            select = partial(
                _select, "image, CAST(vector AS BLOB), rowid, used", keys, network, augmentation
            )
            known = {row[0]: row for row in self._reading.run(select) or ()}
            for at, key in enumerate(keys, start):
                row = known.get(key)
                if row is None or (vector := _checked(row[1], channels)) is None:
                    continue
                found[at], vectors[at] = True, vector
                if row[3] + _NOTED_AFTER <= today:
                    stale.add(row[2])
        note = "UPDATE features SET used = ? WHERE rowid = ?"
        self._write(note, [(today, rowid) for rowid in stale])
        return found, vectors

    def holds(
        self, image_keys: Sequence[str], network: str, *, augmentation: int = PLAIN
    ) -> NDArray[np.bool_]:
        """``(n,)`` which images' vectors there are, by the index alone: far quicker than `read`."""
        held = np.zeros(len(image_keys), bool)
        for start, keys in _some(image_keys):
            select = partial(_select, "image", keys, network, augmentation)
            known = {row[0] for row in self._reading.run(select) or ()}
            held[start : start + len(keys)] = [key in known for key in keys]
        return held

    def write(self, rows: Sequence[tuple[str, int]], network: str, vectors: Vectors) -> None:
        """Keep ``(n, C)`` vectors.

        Args:
            rows: image key and augmentation of each.
            network: the network's fingerprint.
            vectors: theirs; those that are not finite are not kept.
        """
        today = _today()
        finite = set(np.flatnonzero(np.isfinite(vectors).all(axis=1)).tolist())
        keep = "INSERT OR REPLACE INTO features VALUES (?, ?, ?, ?, ?)"
        self._write(
            keep,
            [
                (bytes.fromhex(image), network, augmentation, today, _packed(vectors[at]))
                for at, (image, augmentation) in enumerate(rows)
                if at in finite
            ],
        )

    def size(self) -> CacheSize:
        """Count vectors and the bytes that they take."""
        counted = self._reading.run(
            lambda db: CacheSize(
                int(db.execute("SELECT count(*) FROM features").fetchone()[0]), _bytes(db)
            )
        )
        return counted or CacheSize(0, 0)

    def prune(self, max_bytes: int) -> int:
        """Evict the vectors that were not used for longest beyond ``max_bytes``.

        Last uses are noted once a week.

        Returns:
            Bytes that the file got smaller by.
        """
        before = self._writing.run(_bytes) or 0
        while (self._writing.run(_bytes) or 0) > max_bytes:
            if not self._writing.run(_evict):
                break
        left = self._writing.run(_unused_pages) or 0
        for _ in range(0, left, _PAGES_AT_ONCE):  # in steps: others write in between
            self._writing.run(_shrink)
        self._writing.run(lambda db: db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall())
        return before - (self._writing.run(_bytes) or 0)

    def _write(self, statement: str, rows: Sequence[tuple[object, ...]]) -> None:
        for start in range(0, len(rows), _AT_ONCE):
            self._writing.run(partial(_execute, statement, rows[start : start + _AT_ONCE]))


def _unused_pages(database: sqlite3.Connection) -> int:
    return int(database.execute("PRAGMA freelist_count").fetchone()[0])


def _shrink(database: sqlite3.Connection) -> None:
    """Give some unused pages back to the disk."""
    # As a script, for `execute` would stop after the first page.
    database.executescript(f"PRAGMA incremental_vacuum({_PAGES_AT_ONCE})")


def _some(image_keys: Sequence[str]) -> Iterator[tuple[int, list[bytes]]]:
    """Cut keys into parts that are read at once; each with the position of its first."""
    for start in range(0, len(image_keys), _AT_ONCE):
        yield start, [bytes.fromhex(key) for key in image_keys[start : start + _AT_ONCE]]


def _select(
    columns: str,
    keys: Sequence[bytes],
    network: str,
    augmentation: int,
    database: sqlite3.Connection,
) -> list[Any]:
    marks = ", ".join("?" * len(keys))
    where = f"image IN ({marks}) AND network = ? AND augmentation = ?"
    query = f"SELECT {columns} FROM features WHERE {where}"  # noqa: S608 - names and question marks
    return database.execute(query, (*keys, network, augmentation)).fetchall()


def _execute(
    statement: str, rows: Sequence[tuple[object, ...]], database: sqlite3.Connection
) -> None:
    """Run a statement for each row, in one transaction."""
    with database:
        database.execute("BEGIN IMMEDIATE")
        database.executemany(statement, rows)


def _evict(database: sqlite3.Connection) -> int:
    """Remove some rows, those not used for longest first; how many."""
    oldest = "SELECT rowid FROM features ORDER BY used, rowid LIMIT ?"
    statement = f"DELETE FROM features WHERE rowid IN ({oldest})"  # noqa: S608 - no values in it
    return database.execute(statement, (_EVICTED_AT_ONCE,)).rowcount


def _bytes(database: sqlite3.Connection) -> int:
    """Count the bytes of pages that are in use."""
    total, free, page = (
        int(database.execute(f"PRAGMA {name}").fetchone()[0])
        for name in ("page_count", "freelist_count", "page_size")
    )
    return (total - free) * page


def _packed(vector: Vectors) -> bytes:
    data = vector.astype("<f2", copy=False).tobytes()
    return data + zlib.crc32(data).to_bytes(4, "little")


def _checked(data: object, channels: int) -> Vectors | None:
    """Unpack a vector; None where it is not what was written."""
    if not isinstance(data, bytes) or len(data) != 2 * channels + 4:
        return None
    if zlib.crc32(data[:-4]) != int.from_bytes(data[-4:], "little"):
        return None
    return np.frombuffer(data, "<f2", channels)


def _today() -> int:
    """Days since 1970."""
    return int(time.time() // _SECONDS_PER_DAY)
