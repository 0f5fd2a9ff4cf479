"""Several processes as one: kept running, ended together, and never left behind."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cli import supervisor as module
from cli.supervisor import StartError, Supervisor
from tests.processes import running

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]
ENVIRONMENT = dict(os.environ)


def until(look: Callable[[], object], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def runs(pid: int) -> bool:
    """Is it there, and more than a name that nobody has read off?"""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def pids(supervisor: Supervisor) -> list[int]:
    return [child.process.pid for child in supervisor.children if child.process is not None]


def test_leaving_ends_every_child(tmp_path: Path) -> None:
    with Supervisor(tmp_path / "logs") as supervisor:
        for name in ("one", "two"):
            supervisor.start(name, SLEEP, ENVIRONMENT)
        started = pids(supervisor)
        assert all(runs(pid) for pid in started)
    assert not any(runs(pid) for pid in started)


def test_an_error_inside_ends_them_too(tmp_path: Path) -> None:
    supervisor = Supervisor(tmp_path)

    def fail() -> None:
        with supervisor:
            supervisor.start("one", SLEEP, ENVIRONMENT)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not runs(pids(supervisor)[0])


def test_a_child_that_does_not_listen_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GRACE", 0.2)
    monkeypatch.setattr(module, "LAST_GRACE", 0.1)
    deaf = "import signal,time; signal.signal(15, signal.SIG_IGN); print('up', flush=True)"
    with Supervisor(tmp_path) as supervisor:
        command = [sys.executable, "-c", f"{deaf}; time.sleep(60)"]
        supervisor.start("deaf", command, ENVIRONMENT, ready=lambda: bool(supervisor.tail("deaf")))
        (pid,) = pids(supervisor)
    assert not runs(pid)


def test_a_child_that_dies_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAUSE", 0.0)
    with Supervisor(tmp_path) as supervisor:
        supervisor.start("short", [sys.executable, "-c", "print('born')"], ENVIRONMENT)
        supervisor.children[0].pause = 0.0

        def seen() -> None:
            if supervisor.tail("short").count("born") >= 2:
                supervisor.stopping = True

        supervisor.run(seen)
        assert supervisor.tail("short").count("born") >= 2


def test_a_child_that_cannot_start_shows_the_end_of_its_log(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print('first'); raise SystemExit('no port is free')"]
    with (
        pytest.raises(StartError, match="server ended with 1") as told,
        Supervisor(tmp_path) as supervisor,
    ):
        supervisor.start("server", command, ENVIRONMENT, ready=lambda: False)
    assert "no port is free" in str(told.value)
    assert str(tmp_path / "server.log") in str(told.value)


def test_a_child_that_is_never_ready_is_given_up(tmp_path: Path) -> None:
    with (
        pytest.raises(StartError, match=r"not ready in 0\.2 s"),
        Supervisor(tmp_path) as supervisor,
    ):
        supervisor.start("server", SLEEP, ENVIRONMENT, ready=lambda: False, seconds=0.2)


def test_a_log_keeps_its_end(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text("\n".join(map(str, range(100))), encoding="utf-8")
    assert Supervisor(tmp_path).tail("a", 2) == "98\n99"
    assert "No such file" in Supervisor(tmp_path).tail("b")


#: What a signal does, in a process of its own: this one has handlers of other libraries.
SIGNALLED = """
import os, signal, sys, threading
from pathlib import Path
from cli.supervisor import Supervisor
before = signal.getsignal(signal.SIGTERM)
try:
    with Supervisor(Path(sys.argv[1])) as supervisor:
        {body}
except KeyboardInterrupt:
    print("left at once")
print(signal.getsignal(signal.SIGTERM) == before, supervisor.stopping)
"""


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("signal.raise_signal(signal.SIGTERM)", "left at once\nTrue True\n"),
        ("supervisor.run(lambda: signal.raise_signal(signal.SIGTERM))", "True True\n"),
        (
            # As many as `make` and a terminal send at once: handlers run within handlers.
            (
                "kill = lambda: [os.kill(os.getpid(), 15) for _ in range(3000)]; "
                "storm = threading.Thread(target=kill); "
                "supervisor.run(lambda: (storm.start(), storm.join()))"
            ),
            "True True\n",
        ),
    ],
    ids=["while preparing", "while running", "many at once"],
)
def test_a_signal_ends_it_and_is_given_back(tmp_path: Path, body: str, told: str) -> None:
    script = SIGNALLED.format(body=body)
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout == told


def test_a_killed_supervisor_leaves_no_orphan(tmp_path: Path) -> None:
    code = f"""
import sys, time
from pathlib import Path
from cli.supervisor import Supervisor
with Supervisor(Path({str(tmp_path)!r})) as supervisor:
    supervisor.start("child", {SLEEP!r}, dict(__import__("os").environ))
    print(supervisor.children[0].process.pid, flush=True)
    time.sleep(60)
"""
    with running([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert runs(child)
        parent.kill()
        until(lambda: not runs(child))
