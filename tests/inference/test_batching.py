"""Calls of many threads in few: who waits is answered together, and nobody for another's fault."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any

import numpy as np
import pytest

from inference.batching import Rows, Together, _Ask


class Slow:
    """Doubles rows; each call waits until it is let go, and is counted."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.begun = threading.Semaphore(0)
        self.go = threading.Semaphore(0)

    def __call__(self, rows: Rows) -> Rows:
        self.sizes.append(len(rows))
        self.begun.release()
        assert self.go.acquire(timeout=30)
        if (rows < 0).any():
            raise ValueError("negative")
        return rows * 2


def rows_of(*values: float) -> Rows:
    return np.array(values)[:, None]


class Crowd:
    """Threads that ask, begun one after the other; each has surely joined the queue."""

    def __init__(self, together: Together[Rows, Rows]) -> None:
        self.together = together
        self.found: dict[int, Any] = {}
        self.threads: list[threading.Thread] = []

    def ask(self, rows: Rows, *, queued: int | None = None) -> None:
        number = len(self.threads)

        def run() -> None:
            try:
                self.found[number] = self.together(rows)
            except ValueError as error:
                self.found[number] = error

        self.threads.append(threading.Thread(target=run))
        self.threads[-1].start()
        while queued is not None and len(self.together._queue) < queued:
            threading.Event().wait(0.001)

    def end(self) -> None:
        for thread in self.threads:
            thread.join(30)
            assert not thread.is_alive()


@pytest.fixture
def crowd_of() -> Callable[..., tuple[Crowd, Slow]]:
    """A first ask under way, and others of these rows behind it."""

    def make(*waiting: Rows, most: int = 32) -> tuple[Crowd, Slow]:
        slow = Slow()
        crowd = Crowd(Together(slow, most=most))
        crowd.ask(rows_of(1))
        assert slow.begun.acquire(timeout=30)
        for place, rows in enumerate(waiting, 1):
            crowd.ask(rows, queued=place)
        return crowd, slow

    return make


def test_a_lone_call_runs_at_once_and_alone() -> None:
    slow = Slow()
    slow.go.release()
    np.testing.assert_array_equal(Together(slow)(rows_of(1, 2)), rows_of(2, 4))
    assert slow.sizes == [2]


def test_those_who_wait_are_answered_in_one_call(
    crowd_of: Callable[..., tuple[Crowd, Slow]],
) -> None:
    crowd, slow = crowd_of(rows_of(2), rows_of(3, 4), rows_of(5))
    slow.go.release(2)
    crowd.end()
    assert slow.sizes == [1, 4]
    for place, rows in enumerate([rows_of(1), rows_of(2), rows_of(3, 4), rows_of(5)]):
        np.testing.assert_array_equal(crowd.found[place], rows * 2)


def test_no_call_is_larger_than_allowed_and_the_order_is_that_of_arrival(
    crowd_of: Callable[..., tuple[Crowd, Slow]],
) -> None:
    crowd, slow = crowd_of(rows_of(2, 2), rows_of(3, 3), rows_of(4), most=3)
    slow.go.release(3)
    crowd.end()
    assert slow.sizes == [1, 2, 3]


def test_a_failure_stays_with_the_one_who_caused_it(
    crowd_of: Callable[..., tuple[Crowd, Slow]],
) -> None:
    crowd, slow = crowd_of(rows_of(2), rows_of(-1), rows_of(3))
    slow.go.release(5)  # the first, the three together, and each alone
    crowd.end()
    assert isinstance(crowd.found[2], ValueError)
    np.testing.assert_array_equal(crowd.found[1], rows_of(4))
    np.testing.assert_array_equal(crowd.found[3], rows_of(6))
    assert slow.sizes == [1, 3, 1, 1, 1]


def test_a_leader_who_is_interrupted_leaves_the_others_to_the_next() -> None:
    begun, go = threading.Event(), threading.Event()
    calls: list[int] = []

    def work(rows: Rows) -> Rows:
        calls.append(len(rows))
        if len(calls) == 1:
            begun.set()
            assert go.wait(30)
            raise KeyboardInterrupt
        return rows * 2

    together = Together(work)
    ended: list[str] = []

    def interrupted() -> None:
        with pytest.raises(KeyboardInterrupt):
            together(rows_of(1))
        ended.append("interrupted")

    first = threading.Thread(target=interrupted)
    first.start()
    assert begun.wait(30)
    crowd = Crowd(together)
    crowd.ask(rows_of(5), queued=1)
    go.set()
    crowd.end()
    first.join(30)
    np.testing.assert_array_equal(crowd.found[0], rows_of(10))
    assert ended == ["interrupted"]
    np.testing.assert_array_equal(together(rows_of(7)), rows_of(14))


def test_as_many_groups_are_at_work_as_there_are_lanes() -> None:
    slow = Slow()
    crowd = Crowd(Together(slow, lanes=2))
    for first in (1, 2):
        crowd.ask(rows_of(first))
        assert slow.begun.acquire(timeout=30)  # the second does not wait for the first
    for place, rows in enumerate([rows_of(3), rows_of(4), rows_of(5)], 1):
        crowd.ask(rows, queued=place)
    slow.go.release()
    assert slow.begun.acquire(timeout=30)  # those who waited, in the lane that is free
    slow.go.release(2)
    crowd.end()
    assert slow.sizes == [1, 1, 3]
    for place in range(5):
        np.testing.assert_array_equal(crowd.found[place], rows_of(2 * (place + 1)))


def test_lists_are_put_together_as_they_are_told() -> None:
    begun, go = threading.Event(), threading.Event()
    calls: list[list[str]] = []

    def work(words: list[str]) -> list[str]:
        calls.append(words)
        begun.set()
        assert go.wait(30)
        return [word.upper() for word in words]

    together: Together[list[str], list[str]] = Together(
        work, join=lambda some: list(chain.from_iterable(some))
    )
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(together, ["a"])
        assert begun.wait(30)
        others = [pool.submit(together, words) for words in (["b", "c"], ["d"])]
        while len(together._queue) < 2:
            threading.Event().wait(0.001)
        go.set()
        assert [one.result(30) for one in (first, *others)] == [["A"], ["B", "C"], ["D"]]
    assert sorted(map(len, calls)) == [1, 3]


def test_who_is_interrupted_the_moment_the_lead_comes_hands_it_on(
    crowd_of: Callable[..., tuple[Crowd, Slow]],
) -> None:
    crowd, slow = crowd_of(rows_of(2))
    (waiting,) = crowd.together._queue

    class Interrupted(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            del timeout
            raise KeyboardInterrupt

    later: _Ask[Rows, Rows] = _Ask(rows_of(3))
    later.woken, later.called = Interrupted(), True  # called, and not yet told so
    crowd.together._busy += 1
    crowd.together._queue.append(later)
    with pytest.raises(KeyboardInterrupt):
        crowd.together._wait(later)
    assert waiting.called  # in the lane of the one that is gone
    slow.go.release(2)
    crowd.end()
    assert slow.sizes == [1, 1]
    assert crowd.together._busy == 0


def test_many_threads_get_their_own_answers_in_fewer_calls() -> None:
    calls: list[int] = []
    gate = threading.Barrier(16)

    def work(rows: Rows) -> Rows:
        calls.append(len(rows))
        return rows + 1

    together, found = Together(work), {}

    def ask(number: int) -> None:
        gate.wait(30)
        found[number] = [float(together(rows_of(number + at))[0, 0]) for at in range(50)]

    threads = [threading.Thread(target=ask, args=(100 * number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sum(calls) == 800
    for number, values in found.items():
        assert values == [number + at + 1 for at in range(50)]
