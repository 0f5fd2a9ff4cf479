"""How long the feature cache takes to write and read vectors, and what they take on disk.

    python -m benchmarks.cache --images 20000

Fills a cache in a temporary folder with made-up vectors of two networks, as inference writes them
(32 at a time), then reads all of one network in bulk, in another order than they were written; one
by one; and asks what there is. Beside the wall time of each, the time of the processor, which other
programs on the machine do not change much. Files come from the operating system's memory.
"""

import argparse
import hashlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.common import report
from inference.augmentation import PLAIN
from inference.feature_cache import FeatureCache

#: Vectors written together.
BATCH = 32

NETWORKS = {"lite0-0123456789ab": 1280, "lite2-ba9876543210": 1280}


def timed(work: Callable[[], object], times: int = 3) -> dict[str, float]:
    """Return the least wall and processor seconds of a few runs."""
    wall, processor = [], []
    for _ in range(times):
        began = time.monotonic(), time.process_time()
        work()
        wall.append(time.monotonic() - began[0])
        processor.append(time.process_time() - began[1])
    return {"wall": min(wall), "processor": min(processor)}


def measure(folder: Path, count: int) -> dict[str, dict[str, float]]:
    """Return the seconds of writing and reading so many images' vectors."""
    draw = np.random.default_rng(0)
    keys = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(count)]
    rows = [(key, PLAIN) for key in keys]
    shuffled = [keys[at] for at in draw.permutation(count).tolist()]
    cache = FeatureCache(folder)

    def write() -> None:
        for network, channels in NETWORKS.items():
            vectors = draw.standard_normal((count, channels), np.float32).astype(np.float16)
            for start in range(0, count, BATCH):
                part = slice(start, start + BATCH)
                cache.write(rows[part], network, vectors[part])

    network, channels = next(iter(NETWORKS.items()))
    found = {"write, two networks": timed(write, times=1)}
    found["read one network"] = timed(lambda: cache.read(shuffled, network, channels))
    found["read 1,000 one by one"] = timed(
        lambda: [cache.read([key], network, channels) for key in shuffled[:1000]]
    )
    found["what there is"] = timed(lambda: cache.holds(shuffled, network))
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=20_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), arguments.images)
        size = FeatureCache(Path(folder)).size()
    per_image = size.nbytes / arguments.images
    report({"seconds": found, "images": arguments.images, "bytes per image": per_image}, None)


if __name__ == "__main__":
    main()
