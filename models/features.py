"""From a decoded picture to the network's input, and feature maps kept on disk by content.

Everything here is a cache: damage, a full disk or a folder that cannot be written costs time and
a log line, never an answer. C channels; h, w positions of the map; H, W pixels.
"""

import hashlib
import logging
import os
import re
import secrets
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy
from PIL import Image

from models.backbone import Preparation
from models.views import PLAIN, name_of

log = logging.getLogger(__name__)

#: ``(C, h, w)``.
KeptMaps = npt.NDArray[np.float16]

#: Sides longer than this many times the other are cut before resizing, which would otherwise
#: make a strip of 1 x 50,000 pixels 256 times as large.
_MAX_RATIO: Final = 8
#: A file's time is renewed at most so often, in seconds: reading should not mean writing.
_TOUCH_AFTER: Final = 3600.0
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


def prepare(image: Image.Image, preparation: Preparation) -> npt.NDArray[np.uint8]:
    """Resize the short side, cut the centre: pixel for pixel what torchvision does with Pillow.

    Args:
        image: RGB, upright, any size. Of one longer than 8 times its width (or wider), the middle
            is taken first.
        preparation: which sizes and filter.

    Returns:
        ``(3, H, W)``, H = W = ``preparation.crop``, 0 to 255.
    """
    image = _without_far_ends(image.convert("RGB"))
    width, height = image.size
    short, crop = min(width, height), preparation.crop
    size = (int(preparation.resize * width / short), int(preparation.resize * height / short))
    resampling = Image.Resampling[preparation.interpolation.upper()]
    if size != image.size:
        image = image.resize(size, resampling)
    # An odd margin is split as torchvision splits it: rounded to even.
    left, top = round((size[0] - crop) / 2), round((size[1] - crop) / 2)
    cut = np.asarray(image.crop((left, top, left + crop, top + crop)))
    return np.ascontiguousarray(cut.transpose(2, 0, 1))


def _without_far_ends(image: Image.Image) -> Image.Image:
    width, height = image.size
    most = _MAX_RATIO * min(width, height)
    if max(width, height) <= most:
        return image
    left, top = max(0, (width - most) // 2), max(0, (height - most) // 2)
    return image.crop((left, top, left + min(width, most), top + min(height, most)))


@dataclass(frozen=True)
class _Compact:
    """A map in 256 steps between its least and greatest number.

    Zero stays exactly zero for networks that end in a ReLU. For ReLU6 (EfficientNet-lite) the
    largest error is 0.012, against 0.016 for bfloat16's own rounding; measured on 64 photos, it is
    0.4 % of a map's length (L2), where computing in bfloat16 errs by 5 to 10 %.
    """

    steps: npt.NDArray[np.uint8]
    scale: npt.NDArray[np.float32]  # least number, step

    @classmethod
    def of(cls, maps: npt.NDArray[np.floating]) -> "_Compact":
        most = np.finfo(np.float16).max
        values = np.clip(maps, -most, most, dtype=np.float32)
        low, high = values.min(), values.max()
        step = (high - low) / np.float32(255)
        steps = np.rint((values - low) / (step or np.float32(1))).astype(np.uint8)
        return cls(steps, np.array([low, step], np.float32))

    def restore(self) -> KeptMaps:
        low, step = self.scale
        table = (low + step * np.arange(256, dtype=np.float32)).astype(np.float16)
        maps: KeptMaps = table[self.steps]
        return maps

    def to_bytes(self) -> bytes:
        # safetensors checks sizes but not contents.
        check = np.array([self._checksum()], np.uint32)
        tensors: dict[str, npt.NDArray[Any]] = {
            "steps": self.steps,
            "scale": self.scale,
            "check": check,
        }
        return bytes(safetensors.numpy.save(tensors))

    @classmethod
    def from_bytes(cls, data: bytes) -> "_Compact":
        """Raises ValueError, KeyError or SafetensorError if the bytes are not those written."""
        tensors = safetensors.numpy.load(data)
        steps, scale, check = tensors["steps"], tensors["scale"], tensors["check"]
        if steps.dtype != np.uint8 or steps.ndim != 3 or scale.shape != (2,) or check.shape != (1,):
            raise ValueError("not a feature map")
        compact = cls(steps, scale)
        if scale.dtype != np.float32 or compact._checksum() != check[0]:
            raise ValueError("changed since it was written")
        return compact

    def _checksum(self) -> int:
        start = zlib.crc32(f"{self.steps.shape}{self.scale.tolist()}".encode())
        return zlib.crc32(self.steps.tobytes(), start)


def as_kept(maps: npt.NDArray[np.floating]) -> KeptMaps:
    """The maps as the cache gives them back, so that a picture's features never depend on it.

    Args:
        maps: ``(C, h, w)``; numbers beyond float16's are cut to its range. With one that is not
            finite among them, they come back as they are, in float16.
    """
    if not np.isfinite(maps).all():
        with np.errstate(over="ignore"):
            return maps.astype(np.float16)
    return _Compact.of(maps).restore()


@dataclass(frozen=True)
class CacheSize:
    """What a cache holds."""

    files: int
    nbytes: int


class FeatureCache:
    """Feature maps by picture content and backbone; many processes may share one folder."""

    def __init__(self, root: Path, fingerprint: str) -> None:
        """Nothing is read or written yet.

        Args:
            root: a folder of the cache's own, for any number of backbones.
            fingerprint: the backbone's.
        """
        if not re.fullmatch(r"\w[\w.-]*", fingerprint):
            raise ValueError(f"expected a fingerprint of letters, digits, . - _: {fingerprint!r}")
        self._root = root
        self._folder = root / fingerprint
        self._complained = False

    def get(self, digest: str, *, view: int = PLAIN) -> KeptMaps | None:
        """The maps ``(C, h, w)``, or ``None``; a damaged file is removed and counts as missing."""
        path = self._path(digest, view)
        try:
            data = _read_and_touch(path)
            return _Compact.from_bytes(data).restore()
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, safetensors.SafetensorError) as error:
            log.warning("feature file is damaged, removed file=%s: %s", path.name, error)
            with suppress(OSError):
                path.unlink()
        except OSError as error:
            self._complain(error)
        return None

    def put(self, digest: str, maps: npt.NDArray[np.floating], *, view: int = PLAIN) -> KeptMaps:
        """Keep the maps ``(C, h, w)``; return what `get` will give, kept or not."""
        path = self._path(digest, view)
        if not np.isfinite(maps).all():
            log.warning("maps that are not finite are not kept digest=%s", digest[:12])
            return as_kept(maps)
        compact = _Compact.of(maps)
        try:
            _write_whole(path, compact.to_bytes())
        except OSError as error:
            self._complain(error)
        return compact.restore()

    def size(self) -> CacheSize:
        """Files and bytes, of all backbones."""
        sizes = [stat.st_size for _, stat in self._files()]
        return CacheSize(len(sizes), sum(sizes))

    def prune(self, max_bytes: int) -> int:
        """Remove the least recently used files, of any backbone, beyond ``max_bytes``.

        Also what a killed process left half written. Times are renewed once an hour, so files
        used within the same hour count as equally old.

        Returns:
            Bytes removed.
        """
        _remove_leftovers(self._root)
        files = sorted(self._files(), key=lambda file: file[1].st_mtime)
        total = sum(stat.st_size for _, stat in files)
        removed = 0
        for path, stat in files:
            if total - removed <= max_bytes:
                break
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                self._complain(error)
                break
            removed += stat.st_size
        return removed

    def _path(self, digest: str, view: int) -> Path:
        if not _DIGEST.fullmatch(digest):
            raise ValueError(f"expected a SHA-256 in 64 hex digits, got {digest[:80]!r}")
        return self._folder / digest[:2] / f"{digest}{name_of(view)}.safetensors"

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        for path in self._root.glob("*/??/*.safetensors"):
            with suppress(OSError):  # another process removed it
                yield path, path.stat()

    def _complain(self, error: OSError) -> None:
        """Say it once: a full disk fails thousands of times."""
        if not self._complained:
            self._complained = True
            log.warning("feature cache does not work, going on without: %s", error)


class ReferenceIndex:
    """Which picture a task's reference led to, so that it need not be fetched again.

    References are kept as hashes only, for they may hold signatures and tokens. They mean a
    picture within one Label Studio: give each its own folder.
    """

    def __init__(self, root: Path) -> None:
        """Nothing is read or written yet."""
        self._root = root
        self._complained = False

    def known(self, ref: str, max_age_s: float) -> str | None:
        """The picture's digest, if it was seen in the last ``max_age_s`` seconds."""
        path = self._path(ref)
        try:
            age = time.time() - path.stat().st_mtime
            digest = path.read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError):
            return None
        return digest if age <= max_age_s and _DIGEST.fullmatch(digest) else None

    def remember(self, ref: str, digest: str) -> None:
        """Note that ``ref`` gave the picture ``digest`` just now."""
        try:
            _write_whole(self._path(ref), digest.encode("ascii"))
        except OSError as error:
            if not self._complained:
                self._complained = True
                log.warning("reference index does not work, going on without: %s", error)

    def prune(self, max_age_s: float) -> int:
        """Forget references older than ``max_age_s`` seconds; return how many."""
        _remove_leftovers(self._root)
        limit = time.time() - max_age_s
        removed = 0
        for path in self._root.glob("??/*"):
            with suppress(OSError):  # another process removed it
                if path.stat().st_mtime < limit:
                    path.unlink()
                    removed += 1
        return removed

    def _path(self, ref: str) -> Path:
        name = hashlib.sha256(ref.encode("utf-8", "surrogatepass")).hexdigest()
        return self._root / name[:2] / name


def _read_and_touch(path: Path) -> bytes:
    """The file's bytes; its time becomes now if it is an hour old, for `prune` to see."""
    with path.open("rb") as file:
        old = time.time() - os.fstat(file.fileno()).st_mtime > _TOUCH_AFTER
        data = file.read()
    if old:
        with suppress(OSError):
            os.utime(path)
    return data


def _write_whole(path: Path, data: bytes) -> None:
    """Write under another name, then rename: readers see all of it or nothing."""
    part = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        try:
            part.write_bytes(data)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(data)
        part.replace(path)
    except OSError:
        with suppress(OSError):
            part.unlink()
        raise


def _remove_leftovers(root: Path) -> None:
    """Half-written files of processes that were killed an hour ago or earlier."""
    for part in root.rglob(".*.part"):
        with suppress(OSError):
            if time.time() - part.stat().st_mtime > _TOUCH_AFTER:
                part.unlink()
