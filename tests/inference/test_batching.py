"""Calls of many threads in few: who waits is computed together, and nobody for another's fault."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest

from inference.batching import MicroBatcher, Rows


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
    """A first call under way, and others of these rows behind it."""

    def __init__(self, pool: ThreadPoolExecutor, *waiting: Rows, most: int = 32) -> None:
        self.slow = Slow()
        self.batcher = MicroBatcher(self.slow, most=most)
        self.calls: list[Future[Rows]] = [pool.submit(self.batcher, rows_of(1))]
        assert self.slow.begun.acquire(timeout=30)
        for place, rows in enumerate(waiting, 1):
            self.calls.append(pool.submit(self.batcher, rows))
            while len(self.batcher._waiting) < place:
                threading.Event().wait(0.001)

    def end(self, calls: int) -> None:
        for _ in range(calls):
            self.slow.go.release()
        for call in self.calls:
            call.exception(timeout=30)


@pytest.fixture
def pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(20)


def test_a_lone_call_runs_at_once_and_alone() -> None:
    ran_in: list[int] = []

    def work(rows: Rows) -> Rows:
        ran_in.append(threading.get_ident())
        return rows + 1

    np.testing.assert_array_equal(MicroBatcher(work)(rows_of(1, 2)), rows_of(2, 3))
    assert ran_in == [threading.get_ident()]


def test_those_that_wait_are_computed_in_one_call(pool: ThreadPoolExecutor) -> None:
    crowd = Crowd(pool, rows_of(2, 3), rows_of(4), rows_of(5))
    crowd.end(2)
    assert crowd.slow.sizes == [1, 4]
    for call, values in zip(crowd.calls, [(1,), (2, 3), (4,), (5,)], strict=True):
        np.testing.assert_array_equal(call.result(), 2 * rows_of(*values))


def test_no_more_are_put_together_than_fit(pool: ThreadPoolExecutor) -> None:
    crowd = Crowd(pool, rows_of(2, 3), rows_of(4), rows_of(5, 6), rows_of(7), most=3)
    crowd.end(3)
    assert crowd.slow.sizes == [1, 3, 3]
    np.testing.assert_array_equal(crowd.calls[-1].result(), rows_of(14))


def test_a_call_larger_than_the_most_runs_alone(pool: ThreadPoolExecutor) -> None:
    crowd = Crowd(pool, rows_of(*range(5)), rows_of(6), most=3)
    crowd.end(3)
    assert crowd.slow.sizes == [1, 5, 1]
    np.testing.assert_array_equal(crowd.calls[1].result(), rows_of(0, 2, 4, 6, 8))


def test_a_failure_stays_with_the_call_that_it_is_of(pool: ThreadPoolExecutor) -> None:
    crowd = Crowd(pool, rows_of(2), rows_of(-3), rows_of(4))
    crowd.end(5)
    assert crowd.slow.sizes == [1, 3, 1, 1, 1]
    assert [call.exception() is None for call in crowd.calls] == [True, True, False, True]
    with pytest.raises(ValueError, match="negative"):
        crowd.calls[2].result()
    np.testing.assert_array_equal(crowd.calls[3].result(), rows_of(8))


def test_an_interruption_leaves_nobody_waiting(pool: ThreadPoolExecutor) -> None:
    begun, go, seen = threading.Event(), threading.Event(), []

    def work(rows: Rows) -> Rows:
        seen.append(len(rows))
        begun.set()
        assert go.wait(30)
        if len(seen) == 2:  # the call that works for all that wait
            raise KeyboardInterrupt
        return rows * 2

    batcher = MicroBatcher(work)
    calls = [pool.submit(batcher, rows_of(1))]
    assert begun.wait(30)
    for place in (1, 2, 3):
        calls.append(pool.submit(batcher, rows_of(place)))
        while len(batcher._waiting) < place:
            threading.Event().wait(0.001)
    go.set()
    ended = [call.exception(timeout=30) for call in calls]
    assert [type(error) for error in ended if error is not None] == [KeyboardInterrupt]
    assert seen[:2] == [1, 3]


def test_each_of_very_many_calls_gets_its_own() -> None:
    batcher = MicroBatcher(lambda rows: rows * 3)
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda n: batcher(rows_of(*[n] * (n % 5 + 1))), range(500)))
    for number, rows in enumerate(found):
        np.testing.assert_array_equal(rows, np.full((number % 5 + 1, 1), 3 * number))
