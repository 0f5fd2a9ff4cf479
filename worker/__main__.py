"""`python -m worker` takes jobs; `python -m worker reconcile` asks for what is missing."""

import atexit
import contextlib
import gc
import multiprocessing
import os
import signal
import sys
from typing import Final

from redis import Redis

from inference.errors import EngineError
from inference.openvino_engine import load_openvino
from worker.errors import MisconfiguredError
from worker.parts import Parts
from worker.queue import QUEUE_NAME
from worker.reconcile import Reconciler
from worker.redaction import start_logging
from worker.settings import Settings
from worker.taking import OurJob, OurWorker

#: Seconds after which a worker that was killed is no longer counted among those that serve.
WORKER_LIFE: Final = 60


def device_name(settings: Settings) -> str:
    """Return what jobs will compute on, in words.

    Asked in a process of its own: one that has touched a GPU cannot fork jobs that use it.
    """
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(_device_name, (settings.device,))


def _device_name(wanted: str) -> str:
    import torch

    if wanted != "cpu" and torch.cuda.is_available():
        return f"GPU: {torch.cuda.get_device_name(0)}"
    return f"CPU, {os.cpu_count() or 1} cores"


def load() -> None:
    """Load what jobs need: before the fork, so that a job starts at once.

    None of it touches a GPU on import, which a forked process could not use any more, or starts a
    thread that a fork would miss.
    """
    import scipy.linalg  # noqa: F401
    import timm  # noqa: F401

    import worker.jobs  # noqa: F401

    with contextlib.suppress(EngineError):  # a job that wants it says that it is missing
        load_openvino()
    # Python's collector would walk through it again and again, a quarter of a second each time, and
    # write to pages that jobs share with this process.
    gc.collect()
    gc.freeze()
    # What is frozen is not collected when the interpreter ends, and libraries written with nanobind
    # (triton) then print pages about leaks into the log.
    atexit.register(gc.unfreeze)


def work(settings: Settings) -> None:
    """Take jobs until asked to stop; a job in hand is finished first."""
    load()
    connection = Redis.from_url(settings.redis_url)
    ours = OurWorker(
        [QUEUE_NAME],
        connection=connection,
        serializer="json",
        job_class=OurJob,
        maintenance_interval=30,
        worker_ttl=WORKER_LIFE,
        job_monitoring_interval=5,
    )
    ours.device = device_name(settings)
    ours.work(logging_level="INFO", with_scheduler=False)


def main(arguments: list[str]) -> int:
    """Run the role named, from the environment's settings."""
    settings = Settings.from_environ(os.environ)
    start_logging(settings)
    if not settings.redis_url:
        raise MisconfiguredError("REDIS_URL is not set: `hrn up` starts a Redis and sets it")
    if arguments == ["reconcile"]:
        signals: list[int] = []  # no event: a second signal would wait for the first one's lock
        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, lambda number, _: signals.append(number))
        Reconciler(Parts(settings)).run(lambda: bool(signals))
    else:
        work(settings)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
