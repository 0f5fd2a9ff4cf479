"""From tasks' picture references to feature maps: fetch, decode and infer at the same time.

Pictures that were seen before are neither fetched nor inferred again. One bad picture costs
itself only. C channels; h, w positions of the map.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from queue import Empty, SimpleQueue
from typing import Final, TypeGuard

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hierarchy.quantised import QuantisedMaps, joined
from inference.backbone import Preparation
from inference.engine import Engine
from inference.features import FeatureCache, prepare
from inference.references import ReferenceIndex
from inference.views import MIRRORED, PLAIN, crop
from studio.errors import ImageError
from studio.image_decoder import ImageLimits
from studio.image_fetcher import FetchedImage
from studio.image_sandbox import ImageDecoder, InProcessDecoder

#: A task's picture: what stands in its data, and the task's id, which some storages need.
Item = tuple[str, int | None]
Progress = Callable[[int, int], None]
#: ``(C, h, w)`` of a picture, or ``(n, C, h, w)``.
FloatMaps = NDArray[np.float16]

#: Seconds for which a reference is taken to lead to the same picture: a week.
MAX_AGE_S: Final = 7 * 24 * 3600.0

#: Pictures inferred together. Engines cut this into passes of their own liking.
_BATCH: Final = 32
#: Pictures that are enough to begin with while others are still fetched: two passes of a CPU.
_ENOUGH: Final = 16
#: Pictures under way at once, fetched and waiting included: 4 batches are 20 MB at 224 pixels.
_WINDOW: Final = 4 * _BATCH


@dataclass(frozen=True)
class Loaded:
    """A picture that is at hand: features from the cache, or pixels to infer."""

    digest: str
    pixels: dict[int, NDArray[np.uint8]]  # (3, H, W) of the views that `maps` lacks
    maps: dict[int, QuantisedMaps]  # of this picture alone, by view
    fetched: bool = False  # its reference was followed just now


#: A picture and the view that it lacks.
_Wanted = tuple[Loaded, int]

#: Position and what a thread made of the item: an error of ours, too.
_Arrival = tuple[int, Loaded | BaseException]


class Gallery:
    """Feature maps of many pictures. Threads may share one: each call has its own workers."""

    def __init__(  # noqa: PLR0913 - it is where these parts meet
        self,
        fetch: Callable[[str, int | None], FetchedImage],
        engine: Engine,
        preparation: Preparation,
        *,
        cache: FeatureCache | None = None,
        index: ReferenceIndex | None = None,
        limits: ImageLimits | None = None,
        decode: ImageDecoder | None = None,
        threads: int = 8,
        max_age_s: float = MAX_AGE_S,
    ) -> None:
        """Nothing is started yet.

        Args:
            fetch: reference and task id -> picture, or `ImageError`; called from many threads.
            engine: runs the backbone.
            preparation: the backbone's.
            cache: keeps features by picture content, for this backbone.
            index: keeps which reference led to which picture.
            limits: what one picture may cost to decode.
            decode: does it, called from many threads; if not given, this process itself.
            threads: pictures fetched and decoded at once, for each call.
            max_age_s: seconds for which ``index`` is believed.
        """
        self._fetch = fetch
        self._engine = engine
        self._preparation = preparation
        self._cache = cache
        self._index = index
        self._limits = limits or ImageLimits()
        self._decode = decode or InProcessDecoder()
        self._threads = threads
        self._max_age_s = max_age_s

    def maps(
        self, items: Sequence[Item], *, view: int = PLAIN, progress: Progress | None = None
    ) -> list[FloatMaps | ImageError]:
        """Feature maps ``(C, h, w)`` float16 in the order of ``items``, or what went wrong.

        All of them are held in memory (125 kB each for EfficientNet-lite0); see `stream`.

        Args:
            items: references and task ids.
            view: how the picture is looked at, see `inference.views`.
            progress: called with pictures done and pictures in all, from the caller's thread.
        """
        results: dict[int, FloatMaps | ImageError] = {}
        for position, result in self.stream(items, view=view):
            results[position] = result if isinstance(result, ImageError) else result.restored()[0]
            if progress is not None:
                progress(len(results), len(items))
        return [results[position] for position in range(len(items))]

    def maps_of_picture(self, picture: FetchedImage) -> QuantisedMaps:
        """Feature maps of one picture that is at hand.

        Raises:
            ImageError: it cannot be decoded.
        """
        maps = self._cached(picture.digest, (PLAIN,))
        if not maps:
            pixels = self._looked_at(picture, (PLAIN,))
            return self.infer([Loaded(picture.digest, pixels, maps)])
        return maps[PLAIN]

    def load(self, items: Sequence[Item]) -> list[Loaded | ImageError]:
        """Fetch and decode a few pictures, in order; `infer` does the rest."""
        known, views = self._known(items), (PLAIN,)
        if len(items) == 1:
            loaded = [self._load(items[0], known[0], views)]
        else:
            with ThreadPoolExecutor(self._threads, thread_name_prefix="gallery") as pool:
                loaded = list(
                    pool.map(lambda item, digest: self._load(item, digest, views), items, known)
                )
        self._remember(zip(items, loaded, strict=True))
        return loaded

    def infer(self, loaded: Sequence[Loaded]) -> QuantisedMaps:
        """Feature maps of n > 0 pictures that `load` gave, in order."""
        self._infer(loaded)
        return joined([one.maps[PLAIN] for one in loaded])

    def decoded(self, picture: FetchedImage, *, at_least: int) -> Image.Image:
        """The picture as RGB, upright, its shorter side no less than so many pixels if it was.

        Raises:
            ImageError: it cannot be decoded.
        """
        return self._decode.decode(picture.data, limits=self._limits, at_least=at_least)

    def stream(
        self, items: Sequence[Item], *, view: int = PLAIN
    ) -> Generator[tuple[int, QuantisedMaps | ImageError], None, None]:
        """Position and maps of each item, as they get ready: in no order, each position once.

        Memory stays the same for any number of items. Leaving the loop early is fine: what has
        not been started is dropped.
        """
        for position, result in self.stream_views(items, (view,)):
            yield position, result if isinstance(result, ImageError) else result[view]

    def stream_views(
        self, items: Sequence[Item], views: tuple[int, ...]
    ) -> Generator[tuple[int, dict[int, QuantisedMaps] | ImageError], None, None]:
        """Position and each view's maps of each item, decoded once; see `stream`."""
        for position, found in self._stream(items, views):
            yield position, found if isinstance(found, ImageError) else found.maps

    def ensure(
        self, items: Sequence[Item], views: tuple[int, ...]
    ) -> Generator[tuple[int, str | ImageError], None, None]:
        """Position and digest of each item, whose maps are in the cache then; see `stream`.

        Those that the cache has are not read, so this is much quicker than `stream_views`.
        """
        todo: list[int] = []
        for start in range(0, len(items), _WINDOW):
            digests = self._known(items[start : start + _WINDOW])
            there = self._held(digests, views)
            todo += [start + at for at, held in enumerate(there) if not held]
            yield from (
                (start + at, digest)
                for at, (digest, held) in enumerate(zip(digests, there, strict=True))
                if digest is not None and held
            )
        for at, found in self._stream([items[position] for position in todo], views):
            yield todo[at], found if isinstance(found, ImageError) else found.digest

    def kept(
        self, items: Sequence[Item], digests: Sequence[str], *, view: int = PLAIN
    ) -> FloatMaps:
        """``(n, C, h, w)`` maps of pictures that `ensure` went through, read in bulk.

        Raises:
            ImageError: one is not in the cache any more, and cannot be had either.
        """
        if self._cache is None:
            return np.stack(self._again(items, view))
        found, quantised = self._cache.maps(digests, view=view)
        lost = np.flatnonzero(~found).tolist()
        if not lost:
            return quantised.restored()
        again = self._again([items[at] for at in lost], view)
        if len(lost) == len(items):
            return np.stack(again)
        maps = quantised.restored()
        maps[lost] = np.stack(again)
        return maps

    def means(
        self, items: Sequence[Item], digests: Sequence[str], *, view: int = PLAIN
    ) -> NDArray[np.float32]:
        """``(n, C)`` means of the same maps over their grid; the maps themselves are not read.

        Raises:
            ImageError: see `kept`.
        """
        if self._cache is None:
            return _means(self._again(items, view))
        found, means = self._cache.means(digests, view=view)
        lost = np.flatnonzero(~found).tolist()
        if not lost:
            return means
        again = _means(self._again([items[at] for at in lost], view))
        if len(lost) == len(items):
            return again
        means[lost] = again
        return means

    def _again(self, items: Sequence[Item], view: int) -> list[FloatMaps]:
        found = []
        for result in self.maps(items, view=view):
            if isinstance(result, ImageError):
                raise result
            found.append(result)
        return found

    def _stream(
        self, items: Sequence[Item], views: tuple[int, ...]
    ) -> Generator[tuple[int, Loaded | ImageError], None, None]:
        waiting: list[tuple[int, Loaded]] = []
        todo = iter(enumerate(items))
        arrived: SimpleQueue[_Arrival] = SimpleQueue()
        loading = 0
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="gallery")
        try:
            while True:
                room = _WINDOW - loading - len(waiting)
                some = list(islice(todo, -(-room // len(views))))
                known = self._known([item for _, item in some])
                ready = self._at_once(known, views)
                for one, digest, loaded in zip(some, known, ready, strict=True):
                    if loaded is None:
                        pool.submit(self._deliver, arrived, one, digest, views)
                        loading += 1
                yield from _there(some, ready)
                if not some and not loading and not waiting:
                    return
                came = list(_taken(arrived)) if loading else []
                loading -= len(came)
                self._remember((items[position], found) for position, found in came)
                waiting += [(at, found) for at, found in came if _lacks(found)]
                came = [(at, found) for at, found in came if not _lacks(found)]
                yield from came
                while len(waiting) >= _ENOUGH or (waiting and not loading):
                    batch, waiting = waiting[:_BATCH], waiting[_BATCH:]
                    self._infer([loaded for _, loaded in batch])
                    yield from batch
        finally:
            pool.shutdown(cancel_futures=True)

    def _deliver(
        self,
        arrived: "SimpleQueue[_Arrival]",
        one: tuple[int, Item],
        known: str | None,
        views: tuple[int, ...],
    ) -> None:
        """Load, in a thread of its own, and hand over what came of it."""
        position, item = one
        try:
            arrived.put((position, self._load(item, known, views)))
        except BaseException as error:  # noqa: BLE001 - raised by whoever takes it
            arrived.put((position, error))

    def _at_once(
        self, digests: Sequence[str | None], views: tuple[int, ...]
    ) -> list[Loaded | None]:
        """Each picture's maps where the cache has all views of it, read together."""
        ready: list[Loaded | None] = [None] * len(digests)
        if self._cache is None or not digests:
            return ready
        there = np.flatnonzero(self._held(digests, views)).tolist()
        maps: dict[int, dict[int, QuantisedMaps]] = {at: {} for at in there}
        for view in views if there else ():
            found, some = self._cache.maps([str(digests[at]) for at in there], view=view)
            for row, (at, whole) in enumerate(zip(there, found.tolist(), strict=True)):
                if whole:
                    maps[at][view] = some[row : row + 1]
        for at, own in maps.items():
            if len(own) == len(views):
                ready[at] = Loaded(str(digests[at]), {}, own)
        return ready

    def _known(self, items: Sequence[Item]) -> list[str | None]:
        """The pictures' digests, where references were followed not long ago."""
        if self._index is None:
            return [None] * len(items)
        return self._index.known([ref for ref, _ in items], self._max_age_s)

    def _held(self, digests: Sequence[str | None], views: tuple[int, ...]) -> NDArray[np.bool_]:
        """``(n,)`` of which pictures the cache has all views."""
        held = np.array([digest is not None for digest in digests], dtype=bool)
        if self._cache is None:
            return np.zeros(len(digests), dtype=bool)
        for view in views:
            at = np.flatnonzero(held)
            held[at] = self._cache.holds([str(digests[one]) for one in at.tolist()], view=view)
        return held

    def _remember(self, loaded: Iterable[tuple[Item, Loaded | ImageError]]) -> None:
        """Note where the references led that were followed."""
        fetched = [
            (item[0], one.digest) for item, one in loaded if isinstance(one, Loaded) and one.fetched
        ]
        if self._index is not None and fetched:
            self._index.remember_all(fetched)

    def _load(self, item: Item, known: str | None, views: tuple[int, ...]) -> Loaded | ImageError:
        """What a worker thread does: everything but the inference.

        Args:
            item: whose picture.
            known: the picture's digest, if its reference was followed not long ago.
            views: that are wanted.
        """
        ref, task_id = item
        maps = self._cached(known, views)
        if known is not None and len(maps) == len(views):
            return Loaded(known, {}, maps)
        try:
            picture = self._fetch(ref, task_id)
            if picture.digest != known:
                maps = self._cached(picture.digest, views)
            missing = [view for view in views if view not in maps]
            if not missing:
                return Loaded(picture.digest, {}, maps, fetched=True)
            pixels = self._looked_at(picture, missing)
        except ImageError as error:
            return error
        return Loaded(picture.digest, pixels, maps, fetched=True)

    def _looked_at(
        self, picture: FetchedImage, views: Sequence[int]
    ) -> dict[int, NDArray[np.uint8]]:
        """The network's input for each view.

        Raises:
            ImageError: it cannot be decoded.
        """
        fit = self._preparation.fit()
        if max(views) > MIRRORED:
            image = self.decoded(picture, at_least=2 * fit.resize)
            return self._pixels(image, views, picture.digest)
        # Brought to size where it is decoded: a third of the pixels come back.
        whole = self._decode.planes(picture.data, fit, limits=self._limits)
        pixels = _both_ways(np.frombuffer(whole, np.uint8).reshape(3, fit.crop, fit.crop))
        return {view: pixels[view] for view in views}

    def _pixels(
        self, image: Image.Image, views: Sequence[int], digest: str
    ) -> dict[int, NDArray[np.uint8]]:
        """The network's input for each view."""
        pixels = {}
        if PLAIN in views or MIRRORED in views:
            pixels = _both_ways(prepare(image, self._preparation))
        return {
            view: pixels[view] if view in pixels else crop(image, self._preparation, view, digest)
            for view in views
        }

    def _cached(self, digest: str | None, views: tuple[int, ...]) -> dict[int, QuantisedMaps]:
        """Those of the views that the cache has."""
        if self._cache is None or digest is None:
            return {}
        found = {view: self._cache.get(digest, view=view) for view in views}
        return {view: maps for view, maps in found.items() if maps is not None}

    def _infer(self, batch: Sequence[Loaded]) -> None:
        """Run the engine on every view that is missing and keep what it says."""
        todo = [(loaded, view) for loaded in batch for view in loaded.pixels]
        for start in range(0, len(todo), _BATCH):
            part = todo[start : start + _BATCH]

            def keep(rows: slice, maps: NDArray[np.float32], part: list[_Wanted] = part) -> None:
                some = part[rows]
                kept = self._keep([(loaded.digest, view) for loaded, view in some], maps)
                for row, (loaded, view) in enumerate(some):
                    loaded.maps[view] = kept[row : row + 1]

            self._engine.each(np.stack([loaded.pixels[view] for loaded, view in part]), keep)

    def _keep(self, keys: Sequence[tuple[str, int]], maps: NDArray[np.float32]) -> QuantisedMaps:
        return QuantisedMaps.of(maps) if self._cache is None else self._cache.put(keys, maps)


def _taken(arrived: SimpleQueue[_Arrival]) -> Iterator[tuple[int, Loaded | ImageError]]:
    """What has arrived by now; waits for one at least.

    A queue and not futures: to wait for one of n of those is n times the work.
    """
    block = True
    while True:
        try:
            position, found = arrived.get(block=block)
        except Empty:
            return
        if isinstance(found, BaseException) and not isinstance(found, ImageError):
            raise found
        yield position, found
        block = False


def _lacks(found: Loaded | ImageError) -> TypeGuard[Loaded]:
    """Is there something to infer?"""
    return isinstance(found, Loaded) and bool(found.pixels)


def _there(
    some: Sequence[tuple[int, Item]], ready: Sequence[Loaded | None]
) -> Iterator[tuple[int, Loaded]]:
    for (position, _), loaded in zip(some, ready, strict=True):
        if loaded is not None:
            yield position, loaded


def _both_ways(whole: NDArray[np.uint8]) -> dict[int, NDArray[np.uint8]]:
    """The whole picture as it is and mirrored, ``(3, H, W)`` each."""
    return {PLAIN: whole, MIRRORED: whole[..., ::-1]}


def _means(maps: Sequence[FloatMaps]) -> NDArray[np.float32]:
    """``(n, C)`` of maps over their grid."""
    return np.stack([one.mean(axis=(1, 2), dtype=np.float32) for one in maps])
