"""Is a fast engine also right? A comparison with PyTorch in float32, made once a machine."""

import hashlib
import json
import logging
import os
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final

import numpy as np
import torch

from inference.backbone import Backbone
from inference.openvino_engine import OUTPUT
from inference.torch_engine import Engine, EngineVectors, Pixels, TorchEngine, cpu_name

log = logging.getLogger(__name__)

#: Largest error that an engine may make, as a share of the vector's own length (L2), for any image:
#: it keeps the cosine at 0.99 or more, and unlike a cosine sees a wrong scale too.
MAX_ERROR: Final = 0.14


def disagreement(engine: Engine, backbone: Backbone) -> float:
    """Measure how far the engine's vectors are from PyTorch's in float32, on made-up images.

    Returns:
        The largest error of any image, as a share of the length (L2) of what PyTorch gives;
        infinite if a number is not finite. Each image is looked at in a batch and alone.
    """
    images = _images(backbone.preparation.crop)
    right = TorchEngine(backbone).vectors(images)
    together = engine.vectors(images)
    alone = np.concatenate([engine.vectors(images[i : i + 1]) for i in range(len(images))])
    worst = max(_error(together, right), _error(alone, right))
    return worst if np.isfinite(worst) else float("inf")


def _error(given: EngineVectors, right: EngineVectors) -> float:
    """Find the largest relative error of a row."""
    off = given.astype(np.float64) - right
    lengths = np.maximum(np.linalg.norm(right, axis=1), 1e-12)
    return float(np.max(np.linalg.norm(off, axis=1) / lengths))


def _images(side: int, count: int = 4) -> Pixels:
    """Make images with the statistics of photos: much coarse structure, some fine, hard edges."""
    random = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)[None, :])
    noise = np.fft.fft2(random.standard_normal((count, 3, side, side)))
    fields = np.fft.ifft2(noise / np.maximum(frequency, 1 / side)).real
    fields = fields / fields.std(axis=(2, 3), keepdims=True)
    rows, columns = np.mgrid[0:side, 0:side] / side
    for i, (y, x, radius) in enumerate(random.uniform(0.2, 0.6, (count, 3))):
        disc = np.hypot(rows - y, columns - x) < radius / 2
        fields[i] += np.where(disc, random.uniform(-2, 2, (3, 1, 1)), 0)
    images: Pixels = np.clip(128 + 50 * fields, 0, 255).astype(np.uint8)
    return images


@dataclass(frozen=True)
class Verdict:
    """Whether an engine agreed, kept by machine and versions, for any of them may change it."""

    path: Path | None

    @classmethod
    def of(cls, label: str, backbone: Backbone, cache_dir: Path | None) -> "Verdict":
        """Where the verdict on the engine called ``label`` is kept."""
        if cache_dir is None:
            return cls(None)
        place = torch.cuda.get_device_name() if "cuda" in label else cpu_name()
        versions = [str(torch.__version__), _openvino_version() if "openvino" in label else ""]
        what = json.dumps([label, backbone.fingerprint, versions, OUTPUT, place, MAX_ERROR])
        return cls(cache_dir / f"check-{hashlib.sha256(what.encode()).hexdigest()[:16]}.json")

    def read(self) -> bool | None:
        """What was found, ``None`` if nothing was or the file is damaged."""
        if self.path is None:
            return None
        try:
            found = json.loads(self.path.read_text())["agrees"]
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return found if isinstance(found, bool) else None

    def write(self, *, agrees: bool, error: float) -> None:
        """Keep the finding; a folder that cannot be written costs a log line and nothing else."""
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            part = self.path.with_suffix(f".{os.getpid()}.part")
            part.write_text(json.dumps({"agrees": agrees, "error": error}))
            part.replace(self.path)
        except OSError as problem:
            log.warning("cannot keep the engine's check: %s", problem)


def _openvino_version() -> str:
    try:
        return metadata.version("openvino")
    except metadata.PackageNotFoundError:
        return ""
