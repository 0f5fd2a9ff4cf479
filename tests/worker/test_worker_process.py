"""`python -m worker` as a process: it takes our jobs and no others, and may be killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from rq import Callback
from rq.job import Job, JobStatus

from cli.services import as_environment
from inference.store import ModelStore, Project
from tests.published import TREE, project
from tests.studio.configs import taxonomy_xml
from tests.studio.servers import serving
from tests.worker.stand import LEGACY, Stand
from worker import queue
from worker.order import Order
from worker.queue import FINE_TUNE, Board, connect
from worker.settings import Secret, Settings

pytestmark = pytest.mark.slow

T = TypeVar("T")

#: Leaves a file behind as soon as it is imported.
TRIPWIRE = """
import os, pathlib
pathlib.Path(os.environ["TRIPWIRE"]).touch()
def run(*_): pathlib.Path(os.environ["TRIPWIRE"]).touch()
"""


def until(look: Callable[[], T | None], seconds: float = 20) -> T:
    """What ``look`` sees as soon as it sees something."""
    deadline = time.monotonic() + seconds
    while not (seen := look()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return seen


class Worker:
    """One worker process, its Redis and the Label Studio it asks."""

    def __init__(self, home: Path, redis_url: str, stand: Stand) -> None:
        self.settings = Settings(
            home=home,
            redis_url=f"{redis_url}?db=1",  # beside the tests that empty theirs
            label_studio_url=stand.url,
            label_studio_token=Secret(LEGACY),
            device="cpu",
        )
        self.stand = stand
        self.tripwire = home / "touched"
        (home / "tripwire.py").write_text(TRIPWIRE, encoding="utf-8")
        self.board = Board(connect(self.settings.redis_url))
        environment = {
            **os.environ,
            **as_environment(self.settings),
            "PYTHONPATH": f"{home}:{Path(__file__).parents[2]}",
            "TRIPWIRE": str(self.tripwire),
        }
        self.log = (home / "worker.log").open("wb")
        command = [sys.executable, "-m", "worker"]
        self.process = subprocess.Popen(
            command, env=environment, stdout=self.log, stderr=subprocess.STDOUT
        )
        until(self.board.workers, 60)

    def known(self, number: int) -> Project:
        """A project of its own for each test; the stand answers for all of them."""
        made = project(self.stand.url, f"{number}.1795440233", taxonomy_xml(TREE))
        return ModelStore(self.settings.store).register(made)

    def wait_until_held(self) -> None:
        """A job reads labels, and waits for a Label Studio that does not answer."""
        server = self.stand.server
        assert server is not None
        until(lambda: "/api/tasks" in server.paths())
        server.requests.clear()

    def ended(self, job: Job) -> Job:
        """The job when the worker has done with it."""
        until(lambda: job.get_status(refresh=True) in (JobStatus.FAILED, JobStatus.FINISHED))
        job.refresh()
        return job


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[Worker]:
    stand = Stand()
    with serving(stand) as server:
        stand.server = server
        made = Worker(tmp_path_factory.mktemp("worker"), redis_url, stand)
        try:
            yield made
        finally:
            stand.free.set()
            made.process.kill()
            made.process.wait(10)
            made.log.close()


@pytest.mark.parametrize("name", ["os.system", "tripwire.run", "worker.jobs.train_once"])
def test_a_function_that_is_not_a_job_of_ours_is_neither_run_nor_imported(
    worker: Worker, name: str
) -> None:
    args = [f"touch {worker.tripwire}"]
    job = worker.ended(worker.board.queue.enqueue_call(name, args=args))
    assert job.get_status() == JobStatus.FAILED
    result = job.latest_result()
    assert result is not None
    assert "PermissionError" in str(result.exc_string)
    assert not worker.tripwire.exists()


def test_a_job_of_ours_calls_nothing_back(worker: Worker) -> None:
    """RQ reads names of callbacks from the queue as well, and would import them."""
    job = worker.board.queue.enqueue_call(
        FINE_TUNE,
        args=[Order("studio-8-8").to_json()],
        on_success=Callback("tripwire.run"),
        on_failure=Callback("tripwire.run"),
    )
    worker.ended(job)
    refused = worker.board.queue.enqueue_call(
        "os.system", args=["true"], on_failure=Callback("tripwire.run")
    )
    worker.ended(refused)
    assert not worker.tripwire.exists()


def test_a_job_killed_in_the_middle_is_run_again_and_ends(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, board = worker.known(1), worker.board
    worker.stand.free.clear()
    asked = board.ask(Order(known.key, "asked"))
    told = until(lambda: board.progress(known.key))
    worker.wait_until_held()
    os.kill(int(told["worker"].rpartition(":")[2]), signal.SIGKILL)
    monkeypatch.setattr(queue, "HEARTBEAT_LIFE", 0.1)  # its last beat is long ago
    board.redis.delete(f"hrn:{known.key}:alive")
    assert "queued again" in str(until(lambda: board.revive(known.key)))
    worker.stand.label_config = "<View/>"  # a reason to end soon
    worker.stand.free.set()
    until(lambda: len(board.runs(known.key)) == 2)
    last, first = board.runs(known.key)
    assert (first["job"], first["state"]) == (asked.job, "died")
    assert (last["job"], last["state"]) == (first["again"], "failed")
    worker.stand.label_config = taxonomy_xml(TREE)
    assert until(lambda: board.state(known.key) == ("idle", None))


def test_a_worker_killed_with_its_job_leaves_the_work_to_be_queued_again(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, board = worker.known(2), worker.board
    worker.stand.free.clear()
    board.ask(Order(known.key, "asked"))
    told = until(lambda: board.progress(known.key))
    worker.wait_until_held()
    worker.process.kill()
    os.kill(int(told["worker"].rpartition(":")[2]), signal.SIGKILL)
    worker.process.wait(10)
    assert board.revive(known.key) is None  # its heart may still beat
    monkeypatch.setattr(queue, "HEARTBEAT_LIFE", 0.1)
    board.redis.delete(f"hrn:{known.key}:alive")
    assert "queued again" in str(until(lambda: board.revive(known.key)))
    assert board.state(known.key)[0] == "queued"
    assert board.depth() == 1


def test_a_worker_without_redis_says_what_is_missing() -> None:
    environment = {key: value for key, value in os.environ.items() if key != "REDIS_URL"}
    command = [sys.executable, "-m", "worker", "reconcile"]
    ended = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert ended.returncode != 0
    assert "REDIS_URL is not set" in ended.stderr


def test_a_worker_that_ends_leaves_no_pages_about_leaks(tmp_path: Path) -> None:
    """nanobind, in triton, prints them unless what is loaded is collected at the end."""
    settings = Settings(home=tmp_path, redis_url="redis://127.0.0.1:1/0", device="cpu")
    ended = subprocess.run(
        [sys.executable, "-m", "worker"],
        env={**os.environ, **as_environment(settings)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert "127.0.0.1:1" in ended.stderr
    assert "nanobind" not in ended.stderr
