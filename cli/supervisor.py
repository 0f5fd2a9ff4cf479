"""Runs several processes as one: starts them, restarts what dies, ends all of them together."""

import contextlib
import ctypes
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

log = logging.getLogger(__name__)

#: Seconds before a process that died is started again, doubling up to the second number.
PAUSE, LONGEST_PAUSE = 1.0, 30.0

#: Seconds after which a process that then dies is not taken for one that cannot start.
HEALTHY = 60.0

#: Seconds a process has to end by itself before it is killed.
GRACE = 10.0

#: Seconds it has after a second word, on which a worker ends the job in hand too.
LAST_GRACE = 3.0

PR_SET_PDEATHSIG = 1


class StartError(Exception):
    """A process did not come up; the message has the end of its log."""


@dataclass
class Child:
    """A process that should run."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    pause: float = PAUSE
    due: float = 0.0


class Supervisor:
    """A context in which processes run; leaving it ends them, last started first."""

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        self.children: list[Child] = []
        self.stopping = False  # no event: a second signal would wait for the first one's lock
        self._handlers: dict[signal.Signals, Any] = {}
        self._running = False

    def __enter__(self) -> Self:
        self.logs.mkdir(parents=True, exist_ok=True)
        for name in (signal.SIGINT, signal.SIGTERM):
            self._handlers[name] = signal.signal(name, self._stop)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._running = True  # a second Ctrl-C must not keep the others from being ended
        self.stopping = True
        for child in reversed(self.children):
            _end(child)
        for name, handler in self._handlers.items():
            signal.signal(name, handler)

    def start(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        ready: Callable[[], bool] | None = None,
        seconds: float = 60.0,
    ) -> None:
        """Start a process and wait until it is ready.

        Args:
            name: of its log file.
            command: program and arguments.
            environment: all of it; nothing is inherited.
            ready: asked until it says yes.
            seconds: how long to ask.

        Raises:
            StartError: it ended, or was not ready in time.
        """
        child = Child(name, command, environment)
        self.children.append(child)
        self._spawn(child)
        assert child.process is not None  # noqa: S101 - just started
        deadline = time.monotonic() + seconds
        while ready is not None and not self.stopping and not ready():
            if child.process.poll() is not None or time.monotonic() > deadline:
                ended = child.process.poll()
                what = f"ended with {ended}" if ended is not None else f"not ready in {seconds:g} s"
                raise StartError(
                    f"{name} {what}. The end of {self.logs / name}.log:\n{self.tail(name)}"
                )
            time.sleep(0.1)

    def run(self, every_second: Callable[[], None] | None = None) -> None:
        """Keep everything running until told to stop."""
        self._running = True
        while self._waited(1.0):
            for child in self.children:
                self._restart(child)
            if every_second is not None:
                every_second()

    def tail(self, name: str, lines: int = 15) -> str:
        """Return the end of a process's log."""
        try:
            text = (self.logs / f"{name}.log").read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            return str(error)
        return "\n".join(text.splitlines()[-lines:])

    def _spawn(self, child: Child) -> None:
        child.started = time.monotonic()
        with (self.logs / f"{child.name}.log").open("ab") as output:
            child.process = subprocess.Popen(
                child.command,
                env=dict(child.environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches us alone; we end them in order
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509
            )

    def _restart(self, child: Child) -> None:
        if child.process is None or child.process.poll() is None:
            return
        now = time.monotonic()
        if not child.due:
            if now - child.started > HEALTHY:
                child.pause = PAUSE
            log.warning("%s ended with %s; starting it again", child.name, child.process.returncode)
            child.due, child.pause = now + child.pause, min(child.pause * 2, LONGEST_PAUSE)
        elif now >= child.due:
            child.due = 0.0
            self._spawn(child)

    def _waited(self, seconds: float) -> bool:
        """Wait; False, and at once, if told to stop."""
        ends = time.monotonic() + seconds
        while not self.stopping and time.monotonic() < ends:
            time.sleep(0.05)
        return not self.stopping

    def _stop(self, _signal: int, _frame: FrameType | None) -> None:
        self.stopping = True
        if not self._running:  # whatever is being started or prepared is left at once
            raise KeyboardInterrupt


def _die_with_parent() -> None:
    """Runs in the child: it gets SIGTERM when we are killed and cannot end it ourselves."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _end(child: Child) -> None:
    if child.process is None or child.process.poll() is not None:
        return
    for seconds in (GRACE, LAST_GRACE):
        child.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.process.wait(seconds)
            return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.process.pid, signal.SIGKILL)
    child.process.wait(GRACE)
