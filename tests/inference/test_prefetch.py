"""Results are made ahead by threads, in order or as they get ready, and nothing is left behind."""

import threading

import pytest

from inference.prefetch import prefetch


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_results_come_in_the_order_of_the_items(threads: int) -> None:
    assert list(prefetch(range(50), lambda n: n * n, threads=threads, ahead=7)) == [
        n * n for n in range(50)
    ]


def test_as_they_get_ready_a_slow_one_holds_up_no_other() -> None:
    release = threading.Event()

    def work(number: int) -> int:
        if number == 0:
            assert release.wait(20)
        return number

    results = prefetch(range(9), work, threads=2, ahead=4, in_order=False)
    first = next(results)
    release.set()
    assert first != 0
    assert sorted([first, *results]) == list(range(9))


@pytest.mark.parametrize("in_order", [True, False])
def test_it_runs_no_further_ahead_than_it_may_and_leaves_no_thread(in_order: bool) -> None:  # noqa: FBT001
    started: list[int] = []
    results = prefetch(range(1000), started.append, threads=3, ahead=5, in_order=in_order)
    next(results)
    results.close()
    assert len(started) <= 5
    assert not [one for one in threading.enumerate() if "prefetch" in one.name]


def test_an_error_stands_where_its_result_would_have() -> None:
    results = prefetch([2, 1, 0, 3], lambda n: 6 // n, threads=2, ahead=4)
    assert [next(results), next(results)] == [3, 6]
    with pytest.raises(ZeroDivisionError):
        next(results)
