"""The check that a fast engine is right: a comparison with PyTorch in float32, once per machine."""

import hashlib
import json
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import numpy as np
import torch

from inference.backbone import Backbone
from inference.openvino_engine import OUTPUT
from inference.torch_engine import Engine, EngineVectors, Pixels, TorchEngine, cpu_name

#: Largest error that an engine may make, as a share of the vector's own length (L2), for any image:
#: it keeps the cosine at 0.99 or more, and unlike a cosine sees a wrong scale too.
MAX_ERROR: Final = 0.14


def disagreement(engine: Engine, backbone: Backbone) -> float:
    """Measure how far the engine's vectors are from PyTorch's in float32, on made-up images.

    Returns:
        The largest error of any image, as a share of the length (L2) of what PyTorch gives;
        infinite if a number is not finite. Each image is computed in a batch and alone.
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


def check_file(label: str, backbone: Backbone, cache_dir: Path) -> Path:
    """Name the file that keeps an engine's check, by all that may change its outcome."""
    place = torch.cuda.get_device_name() if "cuda" in label else cpu_name()
    openvino = find_spec("openvino") and metadata.version("openvino")
    versions = [str(torch.__version__), openvino if "openvino" in label else ""]
    what = json.dumps([label, backbone.fingerprint, versions, OUTPUT, place, MAX_ERROR])
    return cache_dir / f"check-{hashlib.sha256(what.encode()).hexdigest()[:16]}.json"


def agreed_before(file: Path) -> bool | None:
    """Tell whether the engine agreed when it was checked; None where that is not known."""
    try:
        found = json.loads(file.read_text())["agrees"]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return found if isinstance(found, bool) else None
