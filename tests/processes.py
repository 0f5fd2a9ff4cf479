"""Processes that tests start: none is waited for without end, and none outlives its test."""

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

#: Seconds that a process has to end by itself before it is killed.
GRACE: Final = 10.0

#: Seconds between two tries of a step that needs the network.
PAUSE: Final = 5.0


def end(
    process: "subprocess.Popen[Any]",
    *,
    grace: float = GRACE,
    by: signal.Signals = signal.SIGTERM,
) -> int:
    """End a process, by SIGKILL if it still runs after ``grace`` seconds; its exit status.

    One that leads a session of its own is ended with all that it has started in it.
    """
    for number in (by, signal.SIGKILL):
        if process.poll() is not None:
            break
        with suppress(ProcessLookupError):
            if os.getpgid(process.pid) == process.pid:
                os.killpg(process.pid, number)
            else:
                process.send_signal(number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(grace)
    return process.wait(grace)


@contextmanager
def running(command: Sequence[str], **how: Any) -> "Iterator[subprocess.Popen[bytes]]":
    """A process that runs in this block, started in a session of its own.

    Args:
        command: program and arguments.
        how: as for `subprocess.Popen`.
    """
    process = subprocess.Popen(command, start_new_session=True, **how)
    try:
        yield process
    finally:
        end(process)
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def finished(
    command: Sequence[str],
    *,
    seconds: float = 60.0,
    tries: int = 1,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> str:
    """Run a command to its end; what it printed.

    Args:
        command: program and arguments.
        seconds: how long each try may take.
        tries: more than one for a step that needs the network.
        env: all of its environment; None: this one's.
        cwd: where it runs.

    Raises:
        AssertionError: the last try failed or took too long; with all that it printed.
    """
    for left in reversed(range(tries)):
        with tempfile.TemporaryFile() as output:  # no pipe: a grandchild may hold it open
            began = time.monotonic()
            with running(command, env=env, cwd=cwd, stdout=output, stderr=output) as process:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(seconds)
                status = process.poll()
            output.seek(0)
            text = output.read().decode(errors="replace")
        if status == 0:
            return text
        how = f"not ended in {seconds:g} s" if status is None else f"ended with {status}"
        told = f"{' '.join(command)}: {how}, after {time.monotonic() - began:.0f} s\n{text}"
        print(told)
        assert left, told
        time.sleep(PAUSE)
    raise AssertionError("tries: expected 1 or more")
