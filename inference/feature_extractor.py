"""From tasks' references to feature vectors: fetch, decode and infer at the same time.

Images that were seen before are neither fetched nor inferred again. One bad image costs itself
only. n images; C numbers per image: those of all networks, side by side.
"""

from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Final, TypeGuard

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from inference.augmentation import MIRRORED, PLAIN, crop, prepare
from inference.backbone import Backbone
from inference.batching import MicroBatcher
from inference.engine import Engine
from inference.feature_cache import FeatureCache, Vectors
from inference.prefetch import prefetch
from inference.reference_index import ReferenceIndex
from studio.errors import ImageError
from studio.image_decoder import ImageLimits
from studio.image_fetcher import FetchedImage
from studio.image_sandbox import ImageDecoder, InProcessDecoder

__all__ = ["MAX_AGE_S", "FeatureExtractor", "Item", "Loaded", "Network", "Progress", "Vectors"]

#: A task's image: what stands in its data, and the task's id, which some storages need.
Item = tuple[str, int | None]
Progress = Callable[[int, int], None]

#: Seconds for which a reference is taken to lead to the same image: a week.
MAX_AGE_S: Final = 7 * 24 * 3600.0

#: Images inferred together. Engines cut this into passes of their own liking.
_BATCH: Final = 32
#: Images that are inferred together while others are still fetched: two passes of a CPU.
_ENOUGH: Final = 16
#: Images under way at once, fetched and waiting included: 45 MB at 224 and 260 pixels.
_WINDOW: Final = 4 * _BATCH
#: Images whose place in the cache is looked up at once.
_LOOKED_UP: Final = 2048

#: A network's number, and an augmentation: what a vector of an image is of.
_Part = tuple[int, int]


class Network:
    """A backbone and the inference engine that runs it."""

    def __init__(self, backbone: Backbone, engine: Engine) -> None:
        """Take both; calls of few images that come at the same time are computed together."""
        self.backbone = backbone
        self.engine = engine
        self.batched = MicroBatcher(engine.vectors)


@dataclass(frozen=True)
class Loaded:
    """An image that is at hand: vectors from the cache, and pixels where they are missing.

    Attributes:
        image_key: SHA-256 of its bytes.
        pixels: ``(3, H, W)`` of what `vectors` lacks.
        vectors: each network's, by its number and the augmentation.
        fetched: was its reference followed just now?
    """

    image_key: str
    pixels: dict[_Part, NDArray[np.uint8]]
    vectors: dict[_Part, Vectors]
    fetched: bool = False


class FeatureExtractor:
    """Feature vectors of many images. Threads may share one: each call has its own workers.

    Attributes:
        networks: whose vectors stand side by side, in this order.
        name: the networks' names, joined by "+".
        fingerprint: likewise; equal fingerprints, equal vectors but for rounding.
        channels: C.
    """

    def __init__(  # noqa: PLR0913 - it is where these parts meet
        self,
        fetch: Callable[[str, int | None], FetchedImage],
        networks: Sequence[Network],
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
            fetch: reference and task id -> image, or `ImageError`; called from many threads.
            networks: one or more.
            cache: keeps vectors by image key.
            index: keeps which reference led to which image.
            limits: what one image may cost to decode.
            decode: does it, called from many threads; if not given, this process itself.
            threads: images fetched and decoded at once, for each call.
            max_age_s: seconds for which ``index`` is believed.
        """
        self.networks = tuple(networks)
        self.name = "+".join(one.backbone.name for one in networks)
        self.fingerprint = "+".join(one.backbone.fingerprint for one in networks)
        self.channels = sum(one.backbone.channels for one in networks)
        self._fetch = fetch
        self._cache = cache
        self._index = index
        self._limits = limits or ImageLimits()
        self._decode = decode or InProcessDecoder()
        self._threads = threads
        self._max_age_s = max_age_s

    def vectors(
        self,
        items: Sequence[Item],
        *,
        augmentation: int = PLAIN,
        progress: Progress | None = None,
    ) -> list[Vectors | ImageError]:
        """Compute or read each item's ``(C,)`` vector, in order; or what went wrong with it.

        Args:
            items: references and task ids.
            augmentation: of the images, see `inference.augmentation`.
            progress: called with images done and images in all, from the caller's thread.
        """
        results: dict[int, Vectors | ImageError] = {}
        for position, result in self.stream(items, augmentation=augmentation):
            results[position] = result
            if progress is not None:
                progress(len(results), len(items))
        return [results[position] for position in range(len(items))]

    def stream(
        self, items: Sequence[Item], *, augmentation: int = PLAIN
    ) -> Generator[tuple[int, Vectors | ImageError], None, None]:
        """Yield each item's position and ``(C,)`` vector as it gets ready, in no order.

        Memory stays the same for any number of items. Leaving the loop early is fine: what has
        not been started is dropped.
        """
        for start in range(0, len(items), _LOOKED_UP):
            some = items[start : start + _LOOKED_UP]
            keys = self._known(some)
            there = [at for at, key in enumerate(keys) if key is not None]
            held, vectors = self._cached([str(keys[at]) for at in there], augmentation)
            ready = {at: row for row, at in enumerate(there) if held[row]}
            yield from ((start + at, vectors[row]) for at, row in ready.items())
            todo = [at for at in range(len(some)) if at not in ready]
            for at, found in self._stream([some[at] for at in todo], (augmentation,)):
                if isinstance(found, Loaded):
                    yield start + todo[at], self._joined(found, augmentation)
                else:
                    yield start + todo[at], found

    def ensure(
        self, items: Sequence[Item], augmentations: Sequence[int]
    ) -> Generator[tuple[int, str | ImageError], None, None]:
        """Yield each item's position and image key, its vectors being in the cache then.

        Vectors that the cache has are not read, so this is much quicker than `stream`.
        """
        wanted = tuple(augmentations)
        for start in range(0, len(items), _LOOKED_UP):
            some = items[start : start + _LOOKED_UP]
            keys = self._known(some)
            held = self._held(keys, wanted)
            yield from ((start + at, str(keys[at])) for at in np.flatnonzero(held).tolist())
            todo = np.flatnonzero(~held).tolist()
            for at, found in self._stream([some[at] for at in todo], wanted):
                yield start + todo[at], found.image_key if isinstance(found, Loaded) else found

    def read(
        self, items: Sequence[Item], image_keys: Sequence[str], *, augmentation: int = PLAIN
    ) -> Vectors:
        """Read ``(n, C)`` vectors of images that `ensure` went through, in bulk.

        Raises:
            ImageError: one is not in the cache any more, and cannot be had either.
        """
        held, vectors = self._cached(image_keys, augmentation)
        lost = np.flatnonzero(~held).tolist()
        for at, found in self.stream([items[at] for at in lost], augmentation=augmentation):
            if isinstance(found, ImageError):
                raise found
            vectors[lost[at]] = found
        return vectors

    def load(self, items: Sequence[Item]) -> list[Loaded | ImageError]:
        """Fetch and decode a few images, in order; `infer` does the rest."""
        keys, wanted = self._known(items), (PLAIN,)
        if len(items) == 1:
            loaded = [self._load(items[0], keys[0], wanted)]
        else:
            with ThreadPoolExecutor(self._threads, thread_name_prefix="extractor") as pool:
                loaded = list(
                    pool.map(lambda item, key: self._load(item, key, wanted), items, keys)
                )
        self._remember(zip(items, loaded, strict=True))
        return loaded

    def infer(self, loaded: Sequence[Loaded]) -> Vectors:
        """Compute ``(n, C)`` vectors of images that `load` gave, with those of other threads."""
        self._infer(loaded, together=True)
        if not loaded:
            return np.zeros((0, self.channels), np.float16)
        return np.stack([self._joined(one, PLAIN) for one in loaded])

    def vectors_of_image(self, picture: FetchedImage) -> Vectors:
        """Compute the ``(C,)`` vector of one image that is at hand.

        Raises:
            ImageError: it cannot be decoded.
        """
        vectors = self._vectors_of(picture.digest, (PLAIN,))
        pixels = self._pixels(picture, self._missing(vectors, (PLAIN,)))
        vector: Vectors = self.infer([Loaded(picture.digest, pixels, vectors)])[0]
        return vector

    def prepared(self, picture: FetchedImage) -> list[NDArray[np.uint8]]:
        """Decode an image and bring it to each network's size, ``(3, H, W)``.

        Raises:
            ImageError: it cannot be decoded.
        """
        parts = self._parts((PLAIN,))
        pixels = self._pixels(picture, parts)
        return [pixels[part] for part in parts]

    def decoded(self, picture: FetchedImage, *, at_least: int) -> Image.Image:
        """Decode to RGB, upright, scaled down to ``at_least`` pixels on the shorter side at most.

        Raises:
            ImageError: it cannot be decoded.
        """
        return self._decode.decode(picture.data, limits=self._limits, at_least=at_least)

    # What is known already

    def _known(self, items: Sequence[Item]) -> list[str | None]:
        """Look up image keys of references that were followed not long ago."""
        if self._index is None:
            return [None] * len(items)
        return self._index.known([ref for ref, _ in items], self._max_age_s)

    def _remember(self, loaded: Iterable[tuple[Item, Loaded | ImageError]]) -> None:
        """Note where the references led that were followed."""
        if self._index is not None:
            self._index.remember(
                [(item[0], one.image_key) for item, one in loaded if _was_fetched(one)]
            )

    def _held(self, keys: Sequence[str | None], wanted: Sequence[int]) -> NDArray[np.bool_]:
        """``(n,)`` of which images the cache has everything."""
        held = np.array([key is not None for key in keys], dtype=bool)
        if self._cache is None:
            return np.zeros(len(keys), dtype=bool)
        for network, augmentation in self._parts(wanted):
            at = np.flatnonzero(held)
            some = [str(keys[one]) for one in at.tolist()]
            mark = self.networks[network].backbone.fingerprint
            held[at] = self._cache.holds(some, mark, augmentation=augmentation)
        return held

    def _cached(self, keys: Sequence[str], augmentation: int) -> tuple[NDArray[np.bool_], Vectors]:
        """``(n,)`` of which images the cache has all, and ``(n, C)`` vectors."""
        vectors = np.zeros((len(keys), self.channels), np.float16)
        if self._cache is None:
            return np.zeros(len(keys), dtype=bool), vectors
        held, start = np.ones(len(keys), dtype=bool), 0
        for network in self.networks:
            backbone = network.backbone
            found, part = self._cache.read(
                keys, backbone.fingerprint, backbone.channels, augmentation=augmentation
            )
            held &= found
            vectors[:, start : start + backbone.channels] = part
            start += backbone.channels
        return held, vectors

    def _vectors_of(self, key: str | None, wanted: Sequence[int]) -> dict[_Part, Vectors]:
        """Read those of one image that the cache has."""
        vectors: dict[_Part, Vectors] = {}
        if self._cache is None or key is None:
            return vectors
        for network, augmentation in self._parts(wanted):
            backbone = self.networks[network].backbone
            found, rows = self._cache.read(
                [key], backbone.fingerprint, backbone.channels, augmentation=augmentation
            )
            if found[0]:
                vectors[network, augmentation] = rows[0]
        return vectors

    def _parts(self, wanted: Sequence[int]) -> list[_Part]:
        return [(number, one) for number in range(len(self.networks)) for one in wanted]

    def _missing(self, vectors: dict[_Part, Vectors], wanted: Sequence[int]) -> list[_Part]:
        return [part for part in self._parts(wanted) if part not in vectors]

    def _joined(self, loaded: Loaded, augmentation: int) -> Vectors:
        parts = [loaded.vectors[part] for part in self._parts((augmentation,))]
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    # Fetching, decoding and inferring at the same time

    def _stream(
        self, items: Sequence[Item], wanted: tuple[int, ...]
    ) -> Generator[tuple[int, Loaded | ImageError], None, None]:
        def load(one: tuple[int, Item, str | None]) -> tuple[int, Loaded | ImageError]:
            position, item, known = one
            return position, self._load(item, known, wanted)

        todo = zip(range(len(items)), items, self._known(items), strict=True)
        ahead = -(-_WINDOW // len(wanted))
        results = prefetch(todo, load, threads=self._threads, ahead=ahead, in_order=False)
        waiting: list[tuple[int, Loaded]] = []
        with closing(results):
            for position, found in results:
                self._remember([(items[position], found)])
                if isinstance(found, ImageError) or not found.pixels:
                    yield position, found
                    continue
                waiting.append((position, found))
                if len(waiting) >= _ENOUGH:
                    self._infer([one for _, one in waiting], together=False)
                    yield from waiting
                    waiting = []
        self._infer([one for _, one in waiting], together=False)
        yield from waiting

    def _load(self, item: Item, known: str | None, wanted: tuple[int, ...]) -> Loaded | ImageError:
        """Do everything but the inference.

        Args:
            item: whose image.
            known: the image key, if the reference was followed not long ago.
            wanted: augmentations.
        """
        vectors = self._vectors_of(known, wanted)
        if known is not None and not self._missing(vectors, wanted):
            return Loaded(known, {}, vectors)
        try:
            picture = self._fetch(*item)
            if picture.digest != known:
                vectors = self._vectors_of(picture.digest, wanted)
            pixels = self._pixels(picture, self._missing(vectors, wanted))
        except ImageError as error:
            return error
        return Loaded(picture.digest, pixels, vectors, fetched=True)

    def _pixels(
        self, picture: FetchedImage, missing: Sequence[_Part]
    ) -> dict[_Part, NDArray[np.uint8]]:
        """Decode an image once and prepare it for each network and augmentation.

        Raises:
            ImageError: it cannot be decoded.
        """
        if not missing:
            return {}
        numbers = sorted({network for network, _ in missing})
        preparations = {number: self.networks[number].backbone.preparation for number in numbers}
        if max(augmentation for _, augmentation in missing) <= MIRRORED:
            # Brought to size where it is decoded: a third of the pixels come back.
            squares = self._decode.planes(
                picture.data, [one.fit() for one in preparations.values()], limits=self._limits
            )
            whole = dict(zip(numbers, map(_as_array, squares), strict=True))
            return {part: _mirrored(whole[part[0]], part[1]) for part in missing}
        enough = 2 * max(one.resize for one in preparations.values())
        image = self.decoded(picture, at_least=enough)
        pixels: dict[_Part, NDArray[np.uint8]] = {}
        for number, augmentation in missing:
            preparation = preparations[number]
            if augmentation > MIRRORED:
                made = crop(image, preparation, augmentation, picture.digest)
            elif (number, MIRRORED - augmentation) in pixels:
                made = pixels[number, MIRRORED - augmentation][..., ::-1]
            else:
                made = _mirrored(prepare(image, preparation), augmentation)
            pixels[number, augmentation] = made
        return pixels

    def _infer(self, batch: Sequence[Loaded], *, together: bool) -> None:
        """Compute every vector that is missing and keep it."""
        for number, network in enumerate(self.networks):
            todo = [(one, part) for one in batch for part in one.pixels if part[0] == number]
            work = network.batched if together else network.engine.vectors
            for start in range(0, len(todo), _BATCH):
                some = todo[start : start + _BATCH]
                pixels = np.stack([loaded.pixels[part] for loaded, part in some])
                vectors = _as_float16(work(pixels))
                for (loaded, part), vector in zip(some, vectors, strict=True):
                    loaded.vectors[part] = vector
                if self._cache is not None:
                    rows = [(loaded.image_key, part[1]) for loaded, part in some]
                    self._cache.write(rows, network.backbone.fingerprint, vectors)


def _was_fetched(found: Loaded | ImageError) -> TypeGuard[Loaded]:
    return isinstance(found, Loaded) and found.fetched


def _as_array(square: bytes | bytearray | memoryview) -> NDArray[np.uint8]:
    """``(3, H, W)`` of an image's planes."""
    side = round((len(square) / 3) ** 0.5)
    return np.frombuffer(square, np.uint8).reshape(3, side, side)


def _mirrored(whole: NDArray[np.uint8], augmentation: int) -> NDArray[np.uint8]:
    """The whole image as it is, or mirrored."""
    return whole[..., ::-1] if augmentation == MIRRORED else whole


def _as_float16(vectors: NDArray[np.float32]) -> Vectors:
    """Round; what is too large for float16 becomes the largest that is not."""
    most = float(np.finfo(np.float16).max)
    return np.clip(vectors, -most, most).astype(np.float16)
