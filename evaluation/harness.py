"""The harness: runs of any kind, several at a time -> rows of results.

Each process has one thread, so that seeds mean what they say and seconds are comparable; the
feature vectors are read from files that all processes share.
"""

import os
import platform
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from evaluation.features import Features
from evaluation.results import Row

#: One run: takes the features to its rows. A frozen dataclass or a ``functools.partial`` of a
#: function on a module's top level, so that another process can be given it.
Run = Callable[[Features], list[Row]]


def run_all(runs: Sequence[Run], features: Features, *, jobs: int) -> Iterator[list[Row]]:
    """Do the runs, ``jobs`` at a time, and yield the rows of each, in order.

    A run that fails ends the comparison at once.
    """
    with tempfile.TemporaryDirectory() as folder:
        features.save(Path(folder))
        pool = ProcessPoolExecutor(
            jobs, mp_context=get_context("spawn"), initializer=_start, initargs=(Path(folder),)
        )
        try:
            under_way = [pool.submit(_do, run) for run in runs]
            for future in under_way:
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


_features: Features | None = None


def _start(folder: Path) -> None:
    """Prepare one process of the pool."""
    global _features  # noqa: PLW0603 - a pool's initialiser has no other way to hand things over
    torch.set_num_threads(1)
    _features = Features.load(folder)


def _do(run: Run) -> list[Row]:
    assert _features is not None  # noqa: S101 - the pool started us
    return run(_features)


def machine() -> dict[str, str]:
    """Describe where this runs, for the file of results."""
    return {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _processor() -> str:
    """Return the processor's name on Linux, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
