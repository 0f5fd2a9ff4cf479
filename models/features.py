"""From a decoded picture to the network's input, and feature maps kept on disk by content.

Everything here is a cache: damage, a full disk or a folder that cannot be written costs time and
a log line, never an answer. C channels; h, w positions of the map; H, W pixels.
"""

import logging
import math
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
import torch
from numpy.typing import NDArray
from PIL import Image

from models import segments
from models.backbone import Preparation
from models.segments import TOUCH_AFTER, Key, Row, Segments
from models.views import PLAIN, name_of
from studio.decoding import fitted

log = logging.getLogger(__name__)

#: ``(C, h, w)``.
KeptMaps = NDArray[np.float16]

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
    return turned(fitted(image.convert("RGB"), preparation.fit()))


def turned(image: Image.Image) -> NDArray[np.uint8]:
    """RGB of (H, W) pixels -> ``(3, H, W)``."""
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


@dataclass(frozen=True)
class _Compact:
    """A map in 256 steps between its least and greatest number.

    Zero stays exactly zero for networks that end in a ReLU. For ReLU6 (EfficientNet-lite) the
    largest error is 0.012, against 0.016 for bfloat16's own rounding; measured on 64 photos, it is
    0.4 % of a map's length (L2), where computing in bfloat16 errs by 5 to 10 %.
    """

    steps: NDArray[np.uint8]
    scale: NDArray[np.float32]  # least number, step

    @classmethod
    def of(cls, maps: NDArray[np.floating]) -> "tuple[_Compact, KeptMaps] | None":
        """The map, and what it comes back as; None if a number of it is not finite."""
        given = torch.from_numpy(np.ascontiguousarray(maps))
        most = float(np.finfo(np.float16).max)
        bounds = [float(bound) for bound in given.aminmax()]  # NaN if there is one
        if not all(map(math.isfinite, bounds)):
            return None
        low, high = (np.float32(min(most, max(-most, bound))) for bound in bounds)
        step = (high - low) / np.float32(255)
        values = given.clamp(float(low), float(high)).float().sub_(float(low))
        values.div_(float(step) or 1.0).round_()
        steps: NDArray[np.uint8] = values.to(torch.uint8).numpy()
        kept: KeptMaps = values.mul_(float(step)).add_(float(low)).half().numpy()
        return cls(steps, np.array([low, step], np.float32)), kept

    def row(self) -> Row:
        """As it is written."""
        flat = torch.from_numpy(self.steps).flatten(1)
        sums = flat.float().sum(dim=1).double().numpy()  # of whole numbers: exact
        low, step = self.scale.astype(np.float64)
        means = low + step * sums / max(1, self.steps[0].size)
        return Row(self.steps, self.scale, means.astype(np.float32))

    @classmethod
    def from_bytes(cls, data: bytes) -> "_Compact":
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
        return cls(steps, scale)


def _restored(steps: NDArray[np.uint8], scale: NDArray[np.float32]) -> KeptMaps:
    """``(n, C, h, w)`` steps and ``(n, 2)`` scales -> maps; a map alone and among others alike."""
    maps: KeptMaps = np.empty(steps.shape, np.float16)
    into = torch.from_numpy(maps)
    for place, (low, step) in enumerate(scale.tolist()):  # a map fits the processor's own memory
        into[place] = torch.from_numpy(steps[place]).float().mul_(step).add_(low)
    return maps


def as_kept(maps: NDArray[np.floating]) -> KeptMaps:
    """The maps as the cache gives them back, so that a picture's features never depend on it.

    Args:
        maps: ``(C, h, w)``; numbers beyond float16's are cut to its range. With one that is not
            finite among them, they come back as they are, in float16.
    """
    if (found := _Compact.of(maps)) is not None:
        return found[1]
    with np.errstate(over="ignore"):
        return maps.astype(np.float16)


@dataclass(frozen=True)
class CacheSize:
    """What a cache holds."""

    maps: int
    nbytes: int


class FeatureCache:
    """Feature maps by picture content and backbone; many processes may share one folder.

    A picture's maps lie in segments (``models.segments``), one row a view. What releases before
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

    def get(self, digest: str, *, view: int = PLAIN) -> KeptMaps | None:
        """The maps ``(C, h, w)``, or ``None``; what is damaged is removed and counts as missing."""
        if not self.holds([digest], view=view)[0]:  # most are new: that is all they should cost
            return None
        found, maps = self.maps([digest], view=view)
        return maps[0] if found[0] else None

    def maps(
        self, digests: Sequence[str], *, view: int = PLAIN
    ) -> tuple[NDArray[np.bool_], KeptMaps]:
        """``(n,)`` which there are, and ``(n, C, h, w)`` the maps, rubbish where there is none."""
        keys = _keys(digests, view)
        rows = self._read(keys, self._segments.maps)
        if rows is None or not rows.found.all():
            missing = keys if rows is None else [keys[at] for at in np.flatnonzero(~rows.found)]
            if self._move_in(missing):
                rows = self._read(keys, self._segments.maps)
        if rows is None:
            return np.zeros(len(keys), bool), np.zeros((len(keys), 0, 0, 0), np.float16)
        return rows.found, _restored(rows.steps, rows.scale)

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

    def put(self, digest: str, maps: NDArray[np.floating], *, view: int = PLAIN) -> KeptMaps:
        """Keep the maps ``(C, h, w)``; return what `get` will give, kept or not."""
        (key,) = _keys([digest], view)
        found = _Compact.of(maps)
        if found is None:
            log.warning("maps that are not finite are not kept digest=%s", digest[:12])
            return as_kept(maps)
        compact, kept = found
        try:
            new = self._segments.append(key, compact.row())
        except OSError as error:
            self._complain(error)
            return kept
        known = None if new else self.get(digest, view=view)
        return kept if known is None else known

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
                self._segments.append(key, _Compact.from_bytes(path.read_bytes()).row())
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
