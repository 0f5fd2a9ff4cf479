"""Rows of feature maps in files that only grow: quick to read in bulk, safe to kill at any line.

A segment is three files. ``.maps`` and ``.means`` hold rows of one size; ``.index`` holds a header
and an entry a row, written last, so that a row without its entry does not exist. Whatever is read
is checked against its entry, and each entry against itself. One process appends to a segment, under
a lock that ends with the process; anyone may read, at the same time.

C channels; h, w positions of the map.
"""

import fcntl
import os
import secrets
import threading
import time
import weakref
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from hierarchy.quantised import QuantisedMaps, positions, room

Shape = tuple[int, int, int]
#: A picture's SHA-256 in hex, and the view.
Key = tuple[str, int]
#: Entries of an index, ``(n,)`` records.
Entries = npt.NDArray[np.void]

_ENTRY: Final = np.dtype(
    [
        ("digest", "V32"),
        ("view", "<u4"),
        ("maps_check", "<u4"),
        ("means_check", "<u4"),
        ("scale", "<f4", 2),  # least number, step
        ("unused", "V8"),
        ("check", "<u4"),
    ]
)
_SIZE: Final = _ENTRY.itemsize
#: Maps channels last, as they are in memory, and as releases before wrote them, channels first.
_MAGIC: Final = b"HRNROWS2"
_MAGIC_FIRST: Final = b"HRNROWS1"
_HEADER: Final = np.dtype(
    [("magic", "S8"), ("shape", "<u4", 3), ("rows", "<u4"), ("unused", "V36"), ("check", "<u4")]
)
#: Bytes of a full segment: what is thrown away at once when room is needed.
_SEGMENT_BYTES: Final = 32_000_000
#: A segment's time is renewed at most so often, in seconds: reading should not mean writing.
TOUCH_AFTER: Final = 3600.0
#: A folder whose time is younger than this may have changed again within the same tick.
_SETTLED_S: Final = 0.05
#: Places that are looked up in a dictionary before they are sorted in among the others.
_LOOSE: Final = 20_000


@dataclass(frozen=True)
class Rows:
    """Maps as they are kept.

    Attributes:
        found: ``(n,)`` whether there was a whole one.
        maps: of n pictures; rubbish where there was none.
    """

    found: npt.NDArray[np.bool_]
    maps: QuantisedMaps


@dataclass
class _Segment:
    """What is known of one, from its index."""

    path: Path  # of the index
    shape: Shape
    capacity: int
    rows: int = 0  # looked at so far
    channels_first: bool = False  # of an earlier release: read, but not written

    @property
    def full(self) -> bool:
        return self.rows >= self.capacity


@dataclass
class _Pen:
    """Where this process appends."""

    segment: _Segment
    row: int
    process: int
    index: int  # file descriptors
    maps: int
    means: int

    def usable(self, shape: Shape) -> bool:
        """Not after a fork, when full, for other shapes, or when the files were pruned."""
        return (
            self.process == os.getpid()
            and self.row < self.segment.capacity
            and self.segment.shape == shape
            and os.fstat(self.index).st_nlink > 0
        )


#: Of a segment: at which keys, which rows, their entries -> the rows that are damaged.
_Take = Callable[[_Segment, list[int], list[int], Entries], list[int]]


class Segments:
    """All segments of one folder. Any number of threads and processes."""

    def __init__(self, folder: Path, damaged: Callable[[str], None]) -> None:
        """Nothing is read or written yet.

        Args:
            folder: theirs alone.
            damaged: told the file's name when a row turns out to be damaged and is dropped.
        """
        self._folder = folder
        self._damaged = damaged
        self._lock = threading.RLock()
        self._stamp: int | None = None
        self._segments: list[_Segment] = []  # grows only: places point into it
        self._names: dict[str, int] = {}
        self._sorted = np.zeros(0, np.uint64)  # names of keys
        self._places = np.zeros(0, np.int64)  # segment << 32 | row, in the same order
        self._loose: dict[int, int] = {}
        self._pen: _Pen | None = None

    def holds(self, keys: Sequence[Key]) -> npt.NDArray[np.bool_]:
        """``(n,)`` of which there is a row, which may yet turn out to be damaged."""
        return self._find(keys) >= 0

    def maps(self, keys: Sequence[Key]) -> Rows:
        """The maps, read in the order in which they lie on disk."""
        found = np.zeros(len(keys), bool)
        steps: npt.NDArray[np.uint8] = np.zeros((len(keys), 0, 0, 0), np.uint8)
        scale = np.zeros((len(keys), 2), np.float32)

        def take(segment: _Segment, at: list[int], rows: list[int], entries: Entries) -> list[int]:
            nonlocal steps
            if not steps.size:
                steps = room((len(keys), *segment.shape), np.uint8)
            if steps.shape[1:] != segment.shape:
                return []
            size, there = int(np.prod(segment.shape)), positions(steps)
            first = np.empty(segment.shape, np.uint8)
            wrong = []
            with _opened(segment.path.with_suffix(".maps")) as file:
                for place, row, entry in zip(at, rows, entries, strict=True):
                    one = (first if segment.channels_first else there[place]).data.cast("B")
                    whole = os.preadv(file, [one], row * size)
                    if whole == size and zlib.crc32(one) == entry["maps_check"]:
                        found[place], scale[place] = True, entry["scale"]
                        if segment.channels_first:
                            steps[place] = first
                    else:
                        wrong.append(row)
            return wrong

        self._visit(keys, take)
        return Rows(found, QuantisedMaps(steps, scale))

    def means(self, keys: Sequence[Key]) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float32]]:
        """``(n,)`` whether there is a whole one, and ``(n, C)`` the maps' means."""
        found = np.zeros(len(keys), bool)
        means: npt.NDArray[np.float32] = np.zeros((len(keys), 0), np.float32)

        def take(segment: _Segment, at: list[int], rows: list[int], entries: Entries) -> list[int]:
            nonlocal means
            channels = segment.shape[0]
            if not means.size:
                means = np.zeros((len(keys), channels), np.float32)
            if means.shape[1] != channels:
                return []
            first, last = min(rows), max(rows)
            with _opened(segment.path.with_suffix(".means")) as file:
                data = os.pread(file, (last - first + 1) * channels * 4, first * channels * 4)
            wrong = []
            for place, row, entry in zip(at, rows, entries, strict=True):
                start = (row - first) * channels * 4
                part = data[start : start + channels * 4]
                if len(part) == channels * 4 and zlib.crc32(part) == entry["means_check"]:
                    means[place], found[place] = np.frombuffer(part, "<f4"), True
                else:
                    wrong.append(row)
            return wrong

        self._visit(keys, take)
        return found, means

    def append(self, keys: Sequence[Key], maps: QuantisedMaps) -> npt.NDArray[np.bool_]:
        """Keep rows of keys that have none yet; ``(n,)`` which had none.

        Raises:
            OSError: some cannot be written; what is left of those is whole, or nothing.
        """
        with self._lock:
            new = self._find(keys) < 0
            seen: set[Key] = set()
            for at in np.flatnonzero(new).tolist():
                new[at] = keys[at] not in seen
                seen.add(keys[at])
            todo = np.flatnonzero(new)
            while len(todo):
                pen = self._ready(maps.steps.shape[1:])
                some, todo = np.split(todo, [pen.segment.capacity - pen.row])
                part = maps if len(some) == len(keys) else maps[some]
                self._append(pen, [keys[at] for at in some.tolist()], part)
        return new

    def _append(self, pen: _Pen, keys: Sequence[Key], maps: QuantisedMaps) -> None:
        """Rows for which the pen's segment has room."""
        steps, means = np.ascontiguousarray(positions(maps.steps)), maps.means.astype("<f4")
        _write(pen.maps, steps.data.cast("B"), pen.row * steps[0].nbytes)
        _write(pen.means, means.data.cast("B"), pen.row * means[0].nbytes)
        entries = np.zeros(len(keys), _ENTRY)
        entries["digest"] = np.frombuffer(bytes.fromhex("".join(name for name, _ in keys)), "V32")
        entries["view"] = [view for _, view in keys]
        entries["maps_check"] = [zlib.crc32(one) for one in steps]
        entries["means_check"] = [zlib.crc32(one) for one in means]
        entries["scale"] = maps.scale
        entries["check"] = _checks(entries)
        try:
            _write(pen.index, entries.tobytes(), (1 + pen.row) * _SIZE)
        except BaseException:  # some may be there, whole: whoever goes on begins behind them
            self._put_down()
            raise
        first = self._names[pen.segment.path.name] << 32 | pen.row
        self._loose.update((_name(key), first + at) for at, key in enumerate(keys))
        pen.row += len(keys)
        pen.segment.rows = pen.row

    def _visit(self, keys: Sequence[Key], take: _Take) -> None:
        """Show ``take`` each segment with the rows that are wanted of it; drop what it rejects."""
        places = self._find(keys)
        order = np.argsort(places, kind="stable")
        order = order[places[order] >= 0]
        numbers, starts = np.unique(places[order] >> 32, return_index=True)
        for number, part in zip(numbers.tolist(), np.split(order, starts[1:]), strict=False):
            rows = (places[part] & 0xFFFFFFFF).tolist()
            try:
                lost = _show(self._segments[number], keys, part.tolist(), rows, take)
            except FileNotFoundError:  # pruned, or part of it is missing
                lost = rows
            if lost:
                self._drop(number, lost)

    def _find(self, keys: Sequence[Key]) -> npt.NDArray[np.int64]:
        """``(n,)`` where each is, -1 where it is not."""
        names = np.array([_name(key) for key in keys], np.uint64)
        with self._lock:
            self._list()
            places = self._look(names)
            if (places < 0).any() and self._catch_up():
                places = self._look(names)
        return places

    def _look(self, names: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        places = np.full(len(names), -1, np.int64)
        if len(self._sorted):
            # Of equal names the last: rows are sorted in in the order in which they were found.
            at = np.searchsorted(self._sorted, names, side="right") - 1
            same = (at >= 0) & (self._sorted[at] == names)
            places[same] = self._places[at[same]]
        if self._loose:
            for place, name in enumerate(names.tolist()):
                places[place] = self._loose.get(name, places[place])
        return places

    def _catch_up(self) -> bool:
        """Look for rows that others have added; False if there are none."""
        fresh: list[tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]] = []
        for number, segment in enumerate(self._segments):
            if segment.full or segment.path.name not in self._names:
                continue
            try:
                there = min((segment.path.stat().st_size - _SIZE) // _SIZE, segment.capacity)
                if there > segment.rows:
                    entries = _entries(segment, segment.rows, there)
                    rows = segment.rows + np.flatnonzero(_whole(entries))
                    fresh.append((_names(entries[rows - segment.rows]), (number << 32) + rows))
                    segment.rows += len(entries)
            except OSError:  # pruned just now
                continue
        if fresh:
            self._sort_in(fresh)
        return bool(fresh)

    def _list(self) -> None:
        """Take up segments that are new; forget those that are gone."""
        try:
            changed = self._folder.stat().st_mtime_ns
        except OSError:
            changed = 0
        if changed == self._stamp:
            return
        self._stamp = changed if time.time() - changed / 1e9 > _SETTLED_S else None
        there = {path.name: path for path in self._folder.glob("*.index")}
        gone = [self._names.pop(name) for name in self._names.keys() - there.keys()]
        if gone:
            self._forget(lambda places: np.isin(places >> 32, gone))
        for name in sorted(there.keys() - self._names.keys()):
            if (segment := _open_segment(there[name])) is not None:
                self._names[name] = len(self._segments)
                self._segments.append(segment)

    def _sort_in(
        self, fresh: Sequence[tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]]
    ) -> None:
        count = sum(len(names) for names, _ in fresh)
        if count + len(self._loose) <= _LOOSE and len(self._sorted):
            for names, places in fresh:
                self._loose.update(zip(names.tolist(), places.tolist(), strict=True))
            return
        loose = np.array(list(self._loose.items()), object).reshape(-1, 2)
        names = np.concatenate(
            [self._sorted, loose[:, 0].astype(np.uint64), *(names for names, _ in fresh)]
        )
        places = np.concatenate(
            [self._places, loose[:, 1].astype(np.int64), *(places for _, places in fresh)]
        )
        order = np.argsort(names, kind="stable")
        self._sorted, self._places = names[order], places[order]
        self._loose.clear()

    def _drop(self, number: int, rows: Sequence[int]) -> None:
        """Forget rows, here and, where files can be written, for everyone."""
        segment = self._segments[number]
        gone = [number << 32 | row for row in rows]
        with self._lock:
            self._forget(lambda places: np.isin(places, gone))
        with suppress(OSError), _opened(segment.path, os.O_WRONLY) as file:
            for row in rows:
                _write(file, bytes(_SIZE), (1 + row) * _SIZE)
            self._damaged(segment.path.name)

    def _forget(self, chosen: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.bool_]]) -> None:
        keep = ~chosen(self._places)
        self._sorted, self._places = self._sorted[keep], self._places[keep]
        places = np.array(list(self._loose.values()), np.int64)
        for name in np.array(list(self._loose), np.uint64)[chosen(places)].tolist():
            del self._loose[name]

    def _ready(self, shape: Shape) -> _Pen:
        """Where to append: what we have, else a segment that a process left, else a new one."""
        if self._pen is not None and self._pen.usable(shape):
            return self._pen
        self._put_down()
        self._list()
        self._catch_up()
        left = [
            segment
            for segment in self._segments
            if segment.shape == shape
            and not (segment.full or segment.channels_first)
            and segment.path.name in self._names
        ]
        for segment in left:
            with suppress(OSError):
                pen = _take_pen(segment, os.O_RDWR)
                if pen is not None and pen.usable(shape):
                    return self._hold(pen)
                if pen is not None:
                    _close(pen.index, pen.maps, pen.means)
        return self._hold(self._begin(shape))

    def _begin(self, shape: Shape) -> _Pen:
        name = f"{time.time_ns():016x}-{secrets.token_hex(4)}.index"
        capacity = max(1, _SEGMENT_BYTES // (int(np.prod(shape)) + 4 * shape[0]))
        segment = _Segment(self._folder / name, shape, capacity)
        self._folder.mkdir(parents=True, exist_ok=True)
        pen = _take_pen(segment, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        assert pen is not None  # noqa: S101 - nobody else knows the name
        try:
            _write(pen.index, _header(segment), 0)
        except OSError:
            _close(pen.index, pen.maps, pen.means)
            remove(segment.path)
            raise
        self._names[name] = len(self._segments)
        self._segments.append(segment)
        return pen

    def _hold(self, pen: _Pen) -> _Pen:
        self._pen = pen
        self._closing = weakref.finalize(self, _close, pen.index, pen.maps, pen.means)
        return pen

    def _put_down(self) -> None:
        if self._pen is not None:
            self._pen = None
            self._closing()


@dataclass(frozen=True)
class Kept:
    """What can be thrown away at once.

    Attributes:
        index: by which it is named, see `remove`.
        rows: how many.
        nbytes: on disk.
        used: when it was last used, as a file's time, to the hour.
    """

    index: Path
    rows: int
    nbytes: int
    used: float


def listed(folder: Path) -> Iterator[Kept]:
    """All segments of a folder."""
    for index in folder.glob("*.index"):
        with suppress(OSError):  # another process removed it
            stat = index.stat()
            nbytes = stat.st_size
            for suffix in (".maps", ".means"):
                with suppress(OSError):
                    nbytes += index.with_suffix(suffix).stat().st_size
            yield Kept(index, max(0, stat.st_size // _SIZE - 1), nbytes, stat.st_mtime)


def remove(index: Path) -> None:
    """Remove a segment; whoever is reading it goes on undisturbed.

    Raises:
        OSError: it cannot be removed.
    """
    for suffix in (".index", ".maps", ".means"):  # without its index the rest does not count
        index.with_suffix(suffix).unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """What a process left that was killed in `remove`; an index is always made first."""
    for suffix in (".maps", ".means"):
        for path in folder.glob(f"*{suffix}"):
            if not path.with_suffix(".index").exists():
                with suppress(OSError):
                    path.unlink()


def _show(
    segment: _Segment, keys: Sequence[Key], at: list[int], rows: list[int], take: _Take
) -> list[int]:
    """Let ``take`` have the rows whose entries are whole and are those keys'; the damaged ones."""
    first = min(rows)
    entries = _entries(segment, first, max(rows) + 1)[np.array(rows) - first]
    whole = _whole(entries)
    digests = entries["digest"].tobytes().hex()
    # Another picture's row may bear the same name: it is not ours, but there is nothing wrong.
    ours = [
        number
        for number in np.flatnonzero(whole).tolist()
        if keys[at[number]] == (digests[64 * number : 64 * number + 64], entries["view"][number])
    ]
    damaged = [rows[number] for number in np.flatnonzero(~whole).tolist()]
    if ours:
        chosen = [at[number] for number in ours], [rows[number] for number in ours]
        damaged += take(segment, *chosen, entries[ours])
    _touch(segment.path)
    return damaged


def _name(key: Key) -> int:
    """64 bits of a key; what is found by it is compared in full."""
    return int(key[0][:16], 16) ^ (key[1] * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF)


def _names(entries: Entries) -> npt.NDArray[np.uint64]:
    first = np.frombuffer(entries.tobytes(), np.uint8).reshape(-1, _SIZE)[:, :8]
    views = entries["view"].astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    names: npt.NDArray[np.uint64] = np.ascontiguousarray(first).view(">u8")[:, 0] ^ views
    return names.astype(np.uint64)


def _whole(entries: Entries) -> npt.NDArray[np.bool_]:
    """``(n,)`` of which entries say what was written."""
    whole: npt.NDArray[np.bool_] = entries["check"] == _checks(entries)
    return whole


def _checks(entries: Entries) -> npt.NDArray[np.uint32]:
    """``(n,)`` what each entry's own check is to be."""
    data = entries.tobytes()
    checks = [zlib.crc32(data[at : at + _SIZE - 4]) for at in range(0, len(data), _SIZE)]
    return np.array(checks, np.uint32)


def _entries(segment: _Segment, first: int, last: int) -> Entries:
    """Entries of rows ``first`` to ``last``; zeros beyond the end of the file."""
    with _opened(segment.path) as file:
        data = os.pread(file, (last - first) * _SIZE, (1 + first) * _SIZE)
    return np.frombuffer(data.ljust((last - first) * _SIZE, b"\0"), _ENTRY)


def _header(segment: _Segment) -> bytes:
    header = np.zeros((), _HEADER)
    header["magic"], header["shape"], header["rows"] = _MAGIC, segment.shape, segment.capacity
    header["check"] = zlib.crc32(header.tobytes()[:-4])
    return header.tobytes()


def _open_segment(path: Path) -> _Segment | None:
    """What the header says; None while it is being written, or if it is damaged."""
    try:
        with _opened(path) as file:
            data = os.pread(file, _SIZE, 0)
    except OSError:
        return None
    if len(data) < _SIZE or not data.startswith((_MAGIC, _MAGIC_FIRST)):
        return None
    header = np.frombuffer(data, _HEADER)[0]
    if zlib.crc32(data[:-4]) != header["check"]:
        return None
    channels, height, width = header["shape"].tolist()
    first = data.startswith(_MAGIC_FIRST)
    return _Segment(path, (channels, height, width), int(header["rows"]), channels_first=first)


def _take_pen(segment: _Segment, flags: int) -> _Pen | None:
    """Open a segment for appending, unless another process does that."""
    index = os.open(segment.path, flags | os.O_CLOEXEC, 0o644)
    opened = [index]
    try:
        try:
            fcntl.flock(index, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:  # a file system without locks: only what is new is surely ours alone
            if not flags & os.O_EXCL:
                raise
        for suffix in (".maps", ".means"):
            path = segment.path.with_suffix(suffix)
            opened.append(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644))
        # A last entry that was cut short is left as it is: it says nothing.
        row = max(0, -(-os.fstat(index).st_size // _SIZE) - 1)
    except BaseException as error:
        _close(*opened)
        if isinstance(error, BlockingIOError):
            return None
        raise
    return _Pen(segment, row, os.getpid(), *opened)


def _touch(path: Path) -> None:
    """Its time becomes now if it is an hour old, for whoever prunes to see."""
    if time.time() - path.stat().st_mtime > TOUCH_AFTER:
        with suppress(OSError):
            os.utime(path)


@contextmanager
def _opened(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    file = os.open(path, flags | os.O_CLOEXEC)
    try:
        yield file
    finally:
        os.close(file)


def _write(file: int, data: bytes | memoryview, at: int) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(file, view, at)
        view, at = view[done:], at + done


def _close(*files: int) -> None:
    for file in files:
        with suppress(OSError):
            os.close(file)
