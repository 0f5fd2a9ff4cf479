"""From tasks' picture references to feature maps: fetch, decode and infer at the same time.

Pictures that were seen before are neither fetched nor inferred again. One bad picture costs
itself only. C channels; h, w positions of the map.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from typing import Final

import numpy as np
import numpy.typing as npt

from models.backbone import Preparation
from models.engine import Engine
from models.features import FeatureCache, KeptMaps, ReferenceIndex, as_kept, prepare
from studio.errors import PictureError
from studio.pictures import Picture, PictureLimits, decode

#: A task's picture: what stands in its data, and the task's id, which some storages need.
Item = tuple[str, int | None]
Progress = Callable[[int, int], None]

#: Seconds for which a reference is taken to lead to the same picture: a week.
MAX_AGE_S: Final = 7 * 24 * 3600.0

#: Pictures inferred together. Engines cut this into passes of their own liking.
_BATCH: Final = 32
#: Pictures under way at once, fetched and waiting included: 4 batches are 20 MB at 224 pixels.
_WINDOW: Final = 4 * _BATCH


@dataclass(frozen=True)
class _Loaded:
    """A picture as a worker thread leaves it: features from the cache, or pixels to infer."""

    digest: str
    pixels: npt.NDArray[np.uint8] | None  # (3, H, W); None if `maps` has every view
    maps: dict[bool, KeptMaps]  # by mirrored


class Gallery:
    """Feature maps of many pictures. Threads may share one: each call has its own workers."""

    def __init__(  # noqa: PLR0913 - it is where these parts meet
        self,
        fetch: Callable[[str, int | None], Picture],
        engine: Engine,
        preparation: Preparation,
        *,
        cache: FeatureCache | None = None,
        index: ReferenceIndex | None = None,
        limits: PictureLimits | None = None,
        threads: int = 8,
        max_age_s: float = MAX_AGE_S,
    ) -> None:
        """Nothing is started yet.

        Args:
            fetch: reference and task id -> picture, or `PictureError`; called from many threads.
            engine: runs the backbone.
            preparation: the backbone's.
            cache: keeps features by picture content, for this backbone.
            index: keeps which reference led to which picture.
            limits: what one picture may cost to decode.
            threads: pictures fetched and decoded at once, for each call.
            max_age_s: seconds for which ``index`` is believed.
        """
        self._fetch = fetch
        self._engine = engine
        self._preparation = preparation
        self._cache = cache
        self._index = index
        self._limits = limits or PictureLimits()
        self._threads = threads
        self._max_age_s = max_age_s

    def maps(
        self, items: Sequence[Item], *, mirrored: bool = False, progress: Progress | None = None
    ) -> list[KeptMaps | PictureError]:
        """Feature maps ``(C, h, w)`` float16 in the order of ``items``, or what went wrong.

        All of them are held in memory (125 kB each for EfficientNet-lite0); see `stream`.

        Args:
            items: references and task ids.
            mirrored: the picture is flipped left to right first.
            progress: called with pictures done and pictures in all, from the caller's thread.
        """
        results: dict[int, KeptMaps | PictureError] = {}
        for position, result in self.stream(items, mirrored=mirrored):
            results[position] = result
            if progress is not None:
                progress(len(results), len(items))
        return [results[position] for position in range(len(items))]

    def pairs(
        self, items: Sequence[Item], *, progress: Progress | None = None
    ) -> list[tuple[KeptMaps, KeptMaps] | PictureError]:
        """Maps of each picture as it is and mirrored; see `maps`. Each is decoded once."""
        results: dict[int, tuple[KeptMaps, KeptMaps] | PictureError] = {}
        for position, result in self.stream_pairs(items):
            results[position] = result
            if progress is not None:
                progress(len(results), len(items))
        return [results[position] for position in range(len(items))]

    def stream(
        self, items: Sequence[Item], *, mirrored: bool = False
    ) -> Generator[tuple[int, KeptMaps | PictureError], None, None]:
        """Position and maps of each item, as they get ready: in no order, each position once.

        Memory stays the same for any number of items. Leaving the loop early is fine: what has
        not been started is dropped.
        """
        for position, result in self._stream(items, (mirrored,)):
            yield position, result if isinstance(result, PictureError) else result[mirrored]

    def stream_pairs(
        self, items: Sequence[Item]
    ) -> Generator[tuple[int, tuple[KeptMaps, KeptMaps] | PictureError], None, None]:
        """Position and maps of each item as it is and mirrored; see `stream`."""
        for position, result in self._stream(items, (False, True)):
            if isinstance(result, PictureError):
                yield position, result
            else:
                yield position, (result[False], result[True])

    def _stream(
        self, items: Sequence[Item], views: tuple[bool, ...]
    ) -> Iterator[tuple[int, dict[bool, KeptMaps] | PictureError]]:
        """Keep a window of items under way; infer whenever a batch has gathered."""
        waiting: list[tuple[int, _Loaded]] = []
        todo = iter(enumerate(items))
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="gallery")
        try:
            under_way: dict[Future[_Loaded | PictureError], int] = {}
            while True:
                room = _WINDOW - len(under_way) - len(waiting)
                for position, item in islice(todo, room):
                    under_way[pool.submit(self._load, item, views)] = position
                if not under_way and not waiting:
                    return
                done = wait(under_way, return_when=FIRST_COMPLETED).done if under_way else ()
                for future in done:
                    position, loaded = under_way.pop(future), future.result()
                    if isinstance(loaded, PictureError):
                        yield position, loaded
                    elif loaded.pixels is None:
                        yield position, loaded.maps
                    else:
                        waiting.append((position, loaded))
                while len(waiting) >= _BATCH or (waiting and not under_way):
                    batch, waiting = waiting[:_BATCH], waiting[_BATCH:]
                    yield from self._infer(batch, views)
        finally:
            pool.shutdown(cancel_futures=True)

    def _load(self, item: Item, views: tuple[bool, ...]) -> _Loaded | PictureError:
        """What a worker thread does: everything but the inference."""
        ref, task_id = item
        known = self._index.known(ref, self._max_age_s) if self._index else None
        if known is not None and (cached := self._cached(known, views)) is not None:
            return cached
        try:
            picture = self._fetch(ref, task_id)
            if self._index is not None:
                self._index.remember(ref, picture.digest)
            if picture.digest != known and (cached := self._cached(picture.digest, views)):
                return cached
            # Twice the size we need leaves the resizing filter everything it can use.
            enough = 2 * self._preparation.resize
            image = decode(picture.data, limits=self._limits, at_least=enough)
        except PictureError as error:
            return error
        return _Loaded(picture.digest, prepare(image, self._preparation), {})

    def _cached(self, digest: str, views: tuple[bool, ...]) -> _Loaded | None:
        """The picture with all views from the cache, or ``None``."""
        if self._cache is None:
            return None
        maps: dict[bool, KeptMaps] = {}
        for mirrored in views:
            found = self._cache.get(digest, mirrored=mirrored)
            if found is None:
                return None
            maps[mirrored] = found
        return _Loaded(digest, None, maps)

    def _infer(
        self, batch: list[tuple[int, _Loaded]], views: tuple[bool, ...]
    ) -> Iterator[tuple[int, dict[bool, KeptMaps]]]:
        """Run the engine once a view and keep what it says."""
        pixels = np.stack([loaded.pixels for _, loaded in batch if loaded.pixels is not None])
        for mirrored in views:
            maps = self._engine.maps(pixels[..., ::-1] if mirrored else pixels)
            for (_, loaded), one in zip(batch, maps, strict=True):
                loaded.maps[mirrored] = self._keep(loaded.digest, one, mirrored=mirrored)
        for position, loaded in batch:
            yield position, loaded.maps

    def _keep(self, digest: str, maps: npt.NDArray[np.float32], *, mirrored: bool) -> KeptMaps:
        if self._cache is None:
            return as_kept(maps)
        return self._cache.put(digest, maps, mirrored=mirrored)
