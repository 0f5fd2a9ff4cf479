"""Two hosts that share a Redis and a folder, whatever each of them does in whatever order.

The same state is read through both, since neither may keep one of its own.
"""

import shutil
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from rq.job import Job, JobStatus

from inference.errors import UnknownVersionError, VersionInUseError
from inference.store import ModelStore
from tests.published import project, publish
from worker.order import Order
from worker.queue import Board, connect

HOSTS = st.integers(0, 1)
VERSIONS = st.integers(1, 12).map(lambda number: f"v{number}")


class TwoStores(RuleBasedStateMachine):
    """Versions are published, made live, taken back and deleted by either host."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.stores = [ModelStore(self.folder), ModelStore(self.folder)]
        self.known = self.stores[0].register(project("http://studio.example"))
        self.given: list[str] = []
        self.deleted: set[str] = set()
        self.live: str | None = None

    @rule(host=HOSTS)
    def publish(self, host: int) -> None:
        self.live = publish(self.stores[host], self.known)
        self.given.append(self.live)

    @rule(host=HOSTS, version=VERSIONS)
    def promote(self, host: int, version: str) -> None:
        there = version in self.given and version not in self.deleted
        if there:
            self.stores[host].point(self.known.key, version, reason="promoted")
            self.live = version
        else:
            with pytest.raises(UnknownVersionError):
                self.stores[host].point(self.known.key, version, reason="promoted")

    @rule(host=HOSTS, version=VERSIONS)
    def delete(self, host: int, version: str) -> None:
        store = self.stores[host]
        needed = store.needed(self.known.key) if self.live else {}
        if version in self.given and version not in self.deleted and version not in needed:
            store.delete(self.known.key, version)
            self.deleted.add(version)
        else:
            with pytest.raises((UnknownVersionError, VersionInUseError)):
                store.delete(self.known.key, version)

    @invariant()
    def no_number_is_given_twice(self) -> None:
        assert len(set(self.given)) == len(self.given)

    @invariant()
    def both_see_the_same(self) -> None:
        for store in self.stores:
            assert set(store.versions(self.known.key)) == set(self.given) - self.deleted
            assert store.current(self.known.key) == self.live

    @invariant()
    def what_is_live_is_whole(self) -> None:
        if self.live is not None:
            for store in self.stores:
                assert store.weights(self.known.key, self.live)

    def teardown(self) -> None:
        shutil.rmtree(self.folder)


class TwoBoards(RuleBasedStateMachine):
    """Trainings are asked for, taken, finished and killed by either host."""

    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.boards = [Board(connect(self.url)), Board(connect(self.url))]
        self.boards[0].redis.flushdb()
        self.running: str | None = None
        self.wished = False

    @rule(host=HOSTS, why=st.sampled_from(["20 new labels", "hrn train"]))
    def ask(self, host: int, why: str) -> None:
        self.boards[host].ask(Order("studio-1-1", why))
        self.wished = True

    @precondition(lambda self: self.running is None and self.boards[0].queue.job_ids)
    @rule(host=HOSTS)
    def take(self, host: int) -> None:
        board = self.boards[host]
        (name,) = board.queue.job_ids
        board.queue.remove(name)
        Job.fetch(name, connection=board.redis, serializer="json").set_status(JobStatus.STARTED)
        self.running, self.wished = name, False

    @precondition(lambda self: self.running is not None)
    @rule(host=HOSTS)
    def finish(self, host: int) -> None:
        assert self.running is not None
        self.boards[host].finished("studio-1-1", self.running)
        self.running = None

    @invariant()
    def one_runs_and_one_waits_at_most(self) -> None:
        waiting = self.boards[0].queue.job_ids
        assert waiting == self.boards[1].queue.job_ids
        assert len(waiting) <= 1
        if self.running is not None:
            assert waiting == []  # the one behind it is not for any worker to take
            assert {board.state("studio-1-1") for board in self.boards} == {
                ("running", self.running)
            }

    @invariant()
    def no_wish_is_lost(self) -> None:
        if self.wished:
            for board in self.boards:
                assert board.wishes("studio-1-1")


QUICK: Any = settings(
    max_examples=15,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


def test_whatever_two_hosts_do_to_versions() -> None:
    run_state_machine_as_test(TwoStores, settings=QUICK)


def test_whatever_two_hosts_do_to_the_queue(redis_url: str) -> None:
    class OnThis(TwoBoards):
        url = redis_url

    run_state_machine_as_test(OnThis, settings=QUICK)


def publish_some(folder: Path) -> list[str]:
    """What a process of another host does."""
    store = ModelStore(folder)
    (known,) = store.projects()
    return [publish(store, known) for _ in range(10)]


@pytest.mark.slow
def test_processes_that_publish_at_once_get_numbers_of_their_own(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    known = store.register(project("http://studio.example"))
    with ProcessPoolExecutor(3, mp_context=get_context("spawn")) as pool:
        given = [name for some in pool.map(publish_some, [tmp_path] * 3) for name in some]
    assert sorted(given, key=lambda name: int(name[1:])) == [f"v{n}" for n in range(1, 31)]
    assert store.versions(known.key) == [f"v{n}" for n in range(1, 31)]
    assert all(store.weights(known.key, version) for version in given)
    assert store.current(known.key) in given
