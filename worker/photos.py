"""Images for training a backbone: fetched and decoded once, then varied each time they are shown.

What is fetched is stored in a file without a name, so that an epoch costs no network and little
decoding, memory holds what is in use, and nothing is left behind. H, W pixels.
"""

import io
import math
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from os import pread
from pathlib import Path
from types import TracebackType
from typing import Final, Generic, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from inference.augmentation import MIRRORED, crop, prepare
from inference.backbone import Preparation

#: ``(3, H, W)`` red, green, blue, 0 to 255.
Pixels = NDArray[np.uint8]

#: Short side of a stored image over that of the plain view: a crop of 0.64 of its area still has as
#: many pixels as the network is shown.
_ROOM: Final = 1.25
#: Stored images are JPEGs a fifth as large as their pixels; what this loses is less than the change
#: of light that is drawn.
_QUALITY: Final = 95
#: A JPEG has at most 65,535 pixels a side.
_LONGEST: Final = 60_000

KeyT = TypeVar("KeyT", bound=Hashable)
ItemT = TypeVar("ItemT")
FoundT = TypeVar("FoundT")


class Shelf(Generic[KeyT]):
    """Bytes by key, each made when first asked for and stored on disk. Thread-safe.

    Use it in a ``with``: the space is given back at its end, and when the process dies.
    """

    def __init__(self, folder: Path, make: Callable[[KeyT], bytes]) -> None:
        """Open an empty one.

        Args:
            folder: where there is room; made if it is not there.
            make: makes the bytes of a key; what it raises is raised to whoever asked.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by __exit__
        self._make = make
        self._places: dict[KeyT, tuple[int, int]] = {}
        self._end = 0
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def __getitem__(self, key: KeyT) -> bytes:
        with self._lock:
            place = self._places.get(key)
        if place is not None:
            return pread(self._file.fileno(), place[1], place[0])
        data = self._make(key)
        with self._lock:
            if key not in self._places:  # else another thread was quicker
                self._file.write(data)
                self._file.flush()
                self._places[key] = self._end, len(data)
                self._end += len(data)
        return data


def small(image: Image.Image, preparation: Preparation) -> bytes:
    """Return an image as a JPEG to be varied: the whole of it, no larger than is needed.

    Args:
        image: RGB, upright.
        preparation: says what the network is shown.
    """
    short, long = min(image.size), max(image.size)
    scale = min(1.0, _ROOM * preparation.resize / short, _LONGEST / long)
    if scale < 1:
        width, height = (max(1, math.ceil(scale * side)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=_QUALITY, subsampling=0)
    return buffer.getvalue()


def varied(data: bytes, preparation: Preparation, draw: str) -> Pixels:
    """Return a crop of what `small` stored, at times mirrored, its light changed.

    Args:
        data: what `small` made.
        preparation: gives the side and the filter.
        draw: equal texts draw alike, so that a training goes on as it began on any number of
            threads, and after any interruption.
    """
    with Image.open(io.BytesIO(data)) as image:
        return crop(image.convert("RGB"), preparation, MIRRORED + 1, draw)


def plain(image: Image.Image, preparation: Preparation) -> bytes:
    """Return an image as it is judged on: exactly what is served, see `from_plain`."""
    return prepare(image, preparation).tobytes()


def from_plain(data: bytes, preparation: Preparation) -> Pixels:
    """Read what `plain` returned."""
    side = preparation.crop
    return np.frombuffer(data, np.uint8).reshape(3, side, side)


def prefetched(
    items: Iterable[ItemT], work: Callable[[ItemT], FoundT], *, threads: int, ahead: int
) -> Generator[FoundT, None, None]:
    """Yield ``work`` of each item, in order, done by threads before it is asked for.

    Args:
        items: what to work on; read as it is needed.
        work: mostly waits, or does what lets other threads run: decoding and resizing do.
        threads: how many; 0 does each when it is asked for, without any.
        ahead: items under way or waiting to be taken, at most.

    Yields:
        The results. Close it to leave early: what has not been started is dropped.

    Raises:
        Exception: what ``work`` raised, where its result would have stood.
    """
    if not threads:
        yield from map(work, items)
        return
    todo = iter(items)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="photos")
    try:
        under_way: deque[Future[FoundT]] = deque()
        while True:
            under_way.extend(pool.submit(work, one) for one in islice(todo, ahead - len(under_way)))
            if not under_way:
                return
            yield under_way.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def stacked(pixels: Iterator[Pixels], sizes: Iterable[int]) -> Iterator[NDArray[np.uint8]]:
    """Yield the next images stacked, ``(size, 3, H, W)``, for each size."""
    for size in sizes:
        yield np.stack(list(islice(pixels, size)))
