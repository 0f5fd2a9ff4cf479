"""From a decoded picture to the network's input, and feature maps kept on disk by content.

Everything here is a cache: damage, a full disk or a folder that cannot be written costs time and
a log line, never an answer. C channels; h, w positions of the map; H, W pixels.
"""

import logging
import re
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray
from PIL import Image

from hierarchy.quantised import QuantisedMaps
from inference import segments
from inference.backbone import Preparation
from inference.segments import TOUCH_AFTER, Key, Segments
from inference.views import PLAIN, name_of
from studio.image_decoder import fitted

log = logging.getLogger(__name__)

#: Folder of a backbone's segments, and how files of releases before them are called.
_SEGMENTS: Final = "segments"
_FORMER: Final = ".safetensors"
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")

_FoundT = TypeVar("_FoundT")


def prepare(image: Image.Image, preparation: Preparation) -> NDArray[np.uint8]:
    """Resize the short side, cut the centre: pixel for pixel what torchvision does with Pillow.

    Args:
        image: RGB, upright, any size. Of one longer than 8 times its width (or wider), the middle
            is taken first.
        preparation: which sizes and filter.

    Returns:
        ``(3, H, W)``, H = W = ``preparation.crop``, 0 to 255.
    """
    square = np.asarray(fitted(image.convert("RGB"), preparation.fit()))
    return np.ascontiguousarray(square.transpose(2, 0, 1))


@dataclass(frozen=True)
class CacheSize:
    """What a cache holds."""

    maps: int
    nbytes: int


class FeatureCache:
    """Feature maps by picture content and backbone; many processes may share one folder.

    A picture's maps lie in segments (``inference.segments``), one row a view. What releases before
    them wrote, a file a map, is read still, and moved into a segment when it is.
    """

    def __init__(self, root: Path, fingerprint: str) -> None:
        """Nothing is read or written yet.

        Args:
            root: a folder of the cache's own, for any number of backbones.
            fingerprint: the backbone's.
        """
        if not re.fullmatch(r"\w[\w.-]*", fingerprint):
            raise ValueError(f"expected a fingerprint of letters, digits, . - _: {fingerprint!r}")
        self._root = root
        self._former = root / fingerprint
        self._segments = Segments(self._former / _SEGMENTS, _tell_of_damage)
        self._complained = False

    def holds(self, digests: Sequence[str], *, view: int = PLAIN) -> NDArray[np.bool_]:
        """``(n,)`` which pictures' maps there are, by the index alone; see `maps`."""
        keys = _keys(digests, view)
        try:
            there = self._segments.holds(keys)
            for at in np.flatnonzero(~there).tolist():
                there[at] = self._former_path(keys[at]).exists()
        except OSError as error:
            self._complain(error)
            return np.zeros(len(keys), bool)
        return there

    def get(self, digest: str, *, view: int = PLAIN) -> QuantisedMaps | None:
        """The picture's maps, or ``None``; what is damaged is removed and counts as missing."""
        if not self.holds([digest], view=view)[0]:  # most are new: that is all they should cost
            return None
        found, maps = self.maps([digest], view=view)
        return maps if found[0] else None

    def maps(
        self, digests: Sequence[str], *, view: int = PLAIN
    ) -> tuple[NDArray[np.bool_], QuantisedMaps]:
        """``(n,)`` which there are, and n pictures' maps, rubbish where there are none."""
        keys = _keys(digests, view)
        rows = self._read(keys, self._segments.maps)
        if rows is None or not rows.found.all():
            missing = keys if rows is None else [keys[at] for at in np.flatnonzero(~rows.found)]
            if self._move_in(missing):
                rows = self._read(keys, self._segments.maps)
        if rows is None:
            nothing = np.zeros((len(keys), 0, 0, 0), np.uint8), np.zeros((len(keys), 2), np.float32)
            return np.zeros(len(keys), bool), QuantisedMaps(*nothing)
        return rows.found, rows.maps

    def means(
        self, digests: Sequence[str], *, view: int = PLAIN
    ) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
        """``(n,)`` which there are, and ``(n, C)`` the maps' means over their grid.

        Far less is read for them than for the maps.
        """
        keys = _keys(digests, view)
        result = self._read(keys, self._segments.means)
        if result is None or not result[0].all():
            missing = keys if result is None else [keys[at] for at in np.flatnonzero(~result[0])]
            if self._move_in(missing):
                result = self._read(keys, self._segments.means)
        if result is None:
            return np.zeros(len(keys), bool), np.zeros((len(keys), 0), np.float32)
        return result

    def put(self, keys: Sequence[Key], maps: NDArray[np.floating]) -> QuantisedMaps:
        """Keep ``(n, C, h, w)`` maps; return what `get` will give, kept or not.

        Args:
            keys: digest and view of each.
            maps: theirs.
        """
        keys = [key for digest, view in keys for key in _keys([digest], view)]
        quantised = QuantisedMaps.of(maps)
        whole = np.flatnonzero(quantised.finite)
        if len(whole) < len(keys):
            log.warning("maps that are not finite are not kept count=%d", len(keys) - len(whole))
        some = quantised if len(whole) == len(keys) else quantised[whole]
        try:
            new = self._segments.append([keys[at] for at in whole], some)
        except OSError as error:
            self._complain(error)
            return quantised
        for at in whole[~new].tolist():  # somebody was quicker
            digest, view = keys[at]
            if (known := self.get(digest, view=view)) is not None:
                quantised.steps[at], quantised.scale[at] = known.steps[0], known.scale[0]
        return quantised if new.all() else QuantisedMaps(quantised.steps, quantised.scale)

    def size(self) -> CacheSize:
        """Maps and bytes, of all backbones."""
        kept = list(self._kept())
        return CacheSize(sum(one.rows for one in kept), sum(one.nbytes for one in kept))

    def prune(self, max_bytes: int) -> int:
        """Remove the least recently used segments, of any backbone, beyond ``max_bytes``.

        Also what a killed process left half written. Times are renewed once an hour, so what was
        used within the same hour counts as equally old.

        Returns:
            Bytes removed.
        """
        _remove_leftovers(self._root)
        for folder in self._root.glob(f"*/{_SEGMENTS}"):
            segments.remove_leftovers(folder)
        kept = sorted(self._kept(), key=lambda one: one.used)
        total = sum(one.nbytes for one in kept)
        removed = 0
        for one in kept:
            if total - removed <= max_bytes:
                break
            try:
                if one.index.suffix == _FORMER:
                    one.index.unlink(missing_ok=True)
                else:
                    segments.remove(one.index)
            except OSError as error:
                self._complain(error)
                break
            removed += one.nbytes
        return removed

    def _kept(self) -> Iterator[segments.Kept]:
        for folder in self._root.glob(f"*/{_SEGMENTS}"):
            yield from segments.listed(folder)
        for path in self._root.glob(f"*/??/*{_FORMER}"):
            with suppress(OSError):  # another process removed it
                stat = path.stat()
                yield segments.Kept(path, 1, stat.st_size, stat.st_mtime)

    def _read(self, keys: Sequence[Key], how: Callable[[Sequence[Key]], _FoundT]) -> _FoundT | None:
        try:
            return how(keys)
        except OSError as error:
            self._complain(error)
            return None

    def _move_in(self, keys: Sequence[Key]) -> bool:
        """Take files of the former layout into a segment; False if there were none."""
        moved = False
        for key in keys:
            path = self._former_path(key)
            try:
                self._segments.append([key], _from_former(path.read_bytes()))
                moved = True
            except FileNotFoundError:
                continue
            except (ValueError, KeyError, safetensors.SafetensorError) as error:
                log.warning("feature file is damaged, removed file=%s: %s", path.name, error)
            except OSError as error:
                self._complain(error)
                continue
            with suppress(OSError):
                path.unlink()
        return moved

    def _former_path(self, key: Key) -> Path:
        return self._former / key[0][:2] / f"{key[0]}{name_of(key[1])}{_FORMER}"

    def _complain(self, error: OSError) -> None:
        """Say it once: a full disk fails thousands of times."""
        if not self._complained:
            self._complained = True
            log.warning("feature cache does not work, going on without: %s", error)


def _from_former(data: bytes) -> QuantisedMaps:
    """What releases before the segments wrote, a file a map.

    Raises ValueError, KeyError or SafetensorError if the bytes are not those written.
    """
    tensors = safetensors.numpy.load(data)
    steps, scale, check = tensors["steps"], tensors["scale"], tensors["check"]
    if steps.dtype != np.uint8 or steps.ndim != 3 or scale.shape != (2,) or check.shape != (1,):
        raise ValueError("not a feature map")
    told = zlib.crc32(steps.tobytes(), zlib.crc32(f"{steps.shape}{scale.tolist()}".encode()))
    if scale.dtype != np.float32 or told != check[0]:
        raise ValueError("changed since it was written")
    return QuantisedMaps(steps[None], scale[None])


def _keys(digests: Sequence[str], view: int) -> list[Key]:
    for digest in digests:
        if not _DIGEST.fullmatch(digest):
            raise ValueError(f"expected a SHA-256 in 64 hex digits, got {digest[:80]!r}")
    name_of(view)  # refuses what is no view
    return [(digest, view) for digest in digests]


def _tell_of_damage(name: str) -> None:
    log.warning("cached features are damaged, dropped file=%s", name)


def _remove_leftovers(root: Path) -> None:
    """Half-written files of processes that were killed an hour ago or earlier."""
    for part in root.rglob(".*.part"):
        with suppress(OSError):
            if time.time() - part.stat().st_mtime > TOUCH_AFTER:
                part.unlink()
