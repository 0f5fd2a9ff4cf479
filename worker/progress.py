"""Progress of a running job: how far it is, that its process lives, and whether it should stop."""

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from worker.errors import CancelledError, ReplacedError
from worker.queue import Board, RedisError

log = logging.getLogger(__name__)

#: Seconds between two reports, and between two questions whether to stop.
INTERVAL = 0.5

#: Seconds between heartbeats; three may be missed before a job counts as dead.
HEARTBEAT = 10.0

REPLACED = "another job took this one's place while it could not be reached"

#: Points of a curve that are kept: enough for a plot, little enough for Redis.
CURVE = 200


class Stages:
    """Clock of a job's stages: how far the present one is, and how long it will take."""

    def __init__(self) -> None:
        self._stage = ""
        self._started = self._reported = 0.0
        self._first = 0

    def at(self, stage: str, done: int, total: int) -> dict[str, Any] | None:
        """Return what to report; None within `INTERVAL` seconds but for a stage's two ends."""
        now, new = time.monotonic(), stage != self._stage
        if new:
            self._stage, self._started, self._first = stage, now, done
        if not new and done < total and now - self._reported < INTERVAL:
            return None
        self._reported = now
        # A stage that goes on from a checkpoint begins with most of it done.
        spent, passed = now - self._started, done - self._first
        return {
            "stage": stage,
            "done": done,
            "total": total,
            "at": time.time(),
            "seconds_left": round(spent / passed * (total - done), 1) if passed > 0 else None,
        }


@contextmanager
def beating(beat: Callable[[], None]) -> Iterator[None]:
    """Call ``beat`` every `HEARTBEAT` seconds while the block runs, from a thread of its own."""
    stop = threading.Event()

    def go_on() -> None:
        while True:
            try:
                beat()
            except RedisError as error:
                log.warning("heartbeat missed: %s", error)
            if stop.wait(HEARTBEAT):
                return

    thread = threading.Thread(target=go_on, daemon=True, name="heartbeat")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=5)


class Progress:
    """Reports of one training to the queue; while Redis is away, only reports are lost."""

    def __init__(self, board: Board, project: str, job: str, reason: str) -> None:
        self._board = board
        self._project = project
        self._job = job
        self._state: dict[str, Any] = {
            "job": job,
            "reason": reason,
            "started_at": time.time(),
            "worker": f"{socket.gethostname()}:{os.getpid()}",
        }
        self._stages = Stages()
        self._replaced = threading.Event()
        self._curve: list[dict[str, Any]] = []

    def __call__(self, stage: str, done: int, total: int, **figures: float) -> None:
        """Report ``done`` of ``total`` in ``stage``.

        Raises:
            CancelledError: somebody asked the job to stop.
            ReplacedError: the job was taken for dead and another runs in its place.
        """
        if figures:
            self._curve.append({"stage": stage, "at": done / max(total, 1), **figures})
            if len(self._curve) > CURVE:  # every other point, but for the ends
                self._curve = [*self._curve[:-1:2], self._curve[-1]]
        if self._replaced.is_set():
            raise ReplacedError(REPLACED)
        stage_now = self._stages.at(stage, done, total)
        if stage_now is None:
            return
        rounded = {name: round(value, 4) for name, value in figures.items() if name != "at"}
        curve = [
            {name: round(v, 6) if isinstance(v, float) else v for name, v in point.items()}
            for point in self._curve
        ]
        self._state.update(stage_now, figures=rounded, curve=curve)
        try:
            self._beat()  # as after a long pause
            if self._replaced.is_set():
                raise ReplacedError(REPLACED)
            self._board.report(self._project, self._state)
            cancelled = self._board.is_cancelled(self._project, self._job)
        except RedisError as error:
            log.warning("progress not reported job=%s: %s", self._job, error)
            return
        if cancelled:
            raise CancelledError("asked to stop")

    def heartbeat(self) -> AbstractContextManager[None]:
        """Beat while the block runs: a training holds up the thread that it runs in."""
        return beating(self._beat)

    def _beat(self) -> None:
        if not self._board.beat(self._project, self._job):
            self._replaced.set()
