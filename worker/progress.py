"""A running job's voice: where it is, that it lives, and whether it should stop."""

import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
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


def _rounded(point: dict[str, float | str]) -> dict[str, float | str]:
    """Short enough for Redis."""
    return {
        name: value if isinstance(value, str) else round(value, 6) for name, value in point.items()
    }


class Progress:
    """Reports of one job to the board; a Redis that is away is only a report that is lost."""

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
        self._stage_started = time.monotonic()
        self._stage_first = 0
        self._told = 0.0
        self._replaced = threading.Event()
        self._curve: list[dict[str, float | str]] = []

    def __call__(self, stage: str, done: int, total: int, **figures: float) -> None:
        """Report ``done`` of ``total`` in ``stage``.

        Raises:
            CancelledError: somebody asked the job to stop.
            ReplacedError: the job was taken for dead and another runs in its place.
        """
        now = time.monotonic()
        new_stage = stage != self._state.get("stage")
        if new_stage:
            self._stage_started, self._stage_first = now, done
        if figures:
            self._curve.append({"stage": stage, "at": done / max(total, 1), **figures})
            if len(self._curve) > CURVE:  # every other point, but for the ends
                self._curve = [*self._curve[:-1:2], self._curve[-1]]
        if self._replaced.is_set():
            raise ReplacedError(REPLACED)
        if not new_stage and done < total and now - self._told < INTERVAL:
            return
        self._told = now
        # A stage that goes on from a checkpoint begins with most of it done.
        spent, passed = now - self._stage_started, done - self._stage_first
        self._state.update(
            stage=stage,
            done=done,
            total=total,
            at=time.time(),
            seconds_left=round(spent / passed * (total - done), 1) if passed > 0 else None,
            figures={name: round(value, 4) for name, value in figures.items() if name != "at"},
            curve=[_rounded(point) for point in self._curve],
        )
        self._publish()

    def _publish(self) -> None:
        try:
            if not self._board.beat(self._project, self._job):  # as after a long pause
                self._replaced.set()
                raise ReplacedError(REPLACED)
            self._board.report(self._project, self._state)
            cancelled = self._board.is_cancelled(self._project, self._job)
        except RedisError as error:
            log.warning("progress not reported job=%s: %s", self._job, error)
            return
        if cancelled:
            raise CancelledError("asked to stop")

    @contextmanager
    def heartbeat(self) -> Iterator[None]:
        """Beat while the block runs, from a thread of its own: training holds up this one."""
        stop = threading.Event()
        thread = threading.Thread(target=self._beat, args=(stop,), daemon=True, name="heartbeat")
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(timeout=5)

    def _beat(self, stop: threading.Event) -> None:
        while True:
            try:
                if not self._board.beat(self._project, self._job):
                    self._replaced.set()
            except RedisError as error:
                log.warning("heartbeat missed job=%s: %s", self._job, error)
            if stop.wait(HEARTBEAT):
                return
