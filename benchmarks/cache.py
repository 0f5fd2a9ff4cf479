"""How long it takes to read what is cached of many pictures, and where the limit is.

    python -m benchmarks.cache --pictures 10000

Fills caches in a temporary folder with made-up maps, then reads all of them: from a file a map, as
releases before the segments did; from segments one by one and in bulk; their means alone; and, as
the limit, a plain copy of as many bytes in memory. All figures come from one run, read from the
operating system's memory where it is large enough; each is the best of three.
"""

import argparse
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import safetensors.numpy
import torch
from hierarchy.quantised import QuantisedMaps
from inference.features import FeatureCache
from numpy.typing import NDArray

from evaluation.harness import machine
from inference.augmentation import PLAIN

#: Maps read together.
CHUNK = 64


def maps_like(shape: tuple[int, int, int], seed: int) -> NDArray[np.float32]:
    """Like a ReLU6's: mostly zero, at most 6."""
    values = np.random.default_rng(seed).normal(-3, 3, shape)
    return np.clip(values, 0, 6).astype(np.float32)


def digests(count: int) -> list[str]:
    """Of so many pictures."""
    return [hashlib.sha256(str(number).encode()).hexdigest() for number in range(count)]


def write_files(root: Path, names: list[str], steps: NDArray[np.uint8]) -> None:
    """A file a map."""
    scale = np.array([0, 6 / 255], np.float32)
    for name in names:
        path = root / name[:2] / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(safetensors.numpy.save({"steps": steps, "scale": scale}))


def read_file(root: Path, name: str) -> NDArray[np.float16]:
    """As it was done: the file's bytes, and each step's number from a table."""
    tensors = safetensors.numpy.load((root / name[:2] / f"{name}.safetensors").read_bytes())
    low, step = tensors["scale"]
    table = (low + step * np.arange(256, dtype=np.float32)).astype(np.float16)
    found: NDArray[np.float16] = table[tensors["steps"]]
    return found


def best(work: Callable[[], object], times: int = 3) -> float:
    """Wall seconds."""
    seconds = []
    for _ in range(times):
        started = time.monotonic()
        work()
        seconds.append(time.monotonic() - started)
    return min(seconds)


def measure(folder: Path, count: int, shape: tuple[int, int, int]) -> dict[str, float]:
    """Wall seconds of each way of reading ``count`` maps."""
    names = digests(count)
    maps = maps_like(shape, 0)[None]
    write_files(folder / "files", names, QuantisedMaps.of(maps).steps[0])
    cache = FeatureCache(folder / "cache", "net")
    started = time.monotonic()
    for name in names:
        cache.put([(name, PLAIN)], maps)
    written = time.monotonic() - started
    chunks = [names[at : at + CHUNK] for at in range(0, count, CHUNK)]
    source = np.empty((CHUNK, *shape), np.uint8)
    return {
        "a file a map": best(lambda: [read_file(folder / "files", name) for name in names]),
        "segments, one by one": best(lambda: [cache.get(name) for name in names]),
        "segments, in bulk": best(lambda: [cache.maps(chunk) for chunk in chunks]),
        "segments, means alone": best(lambda: [cache.means(chunk) for chunk in chunks]),
        "segments, opening": best(lambda: FeatureCache(folder / "cache", "net").holds(names)),
        "limit: a copy in memory": best(lambda: [source.copy() for _ in chunks]),
        "segments, written": written,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=10_000)
    parser.add_argument("--shape", type=int, nargs=3, default=(1280, 7, 7))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    channels, height, width = arguments.shape
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), arguments.pictures, (channels, height, width))
    for name, seconds in found.items():
        print(f"{name}: {seconds:.2f} s, {1e6 * seconds / arguments.pictures:.0f} us a map")
    print(json.dumps({"machine": machine(), "cores": os.cpu_count(), "seconds": found}))


if __name__ == "__main__":
    main()
