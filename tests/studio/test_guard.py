"""One thread ends what takes too long, for all pictures of a process."""

import multiprocessing
import socket
import threading
import time
from contextlib import ExitStack

import pytest

from studio import guard
from studio.guard import Clock, PictureUnavailableError


def cut_after(seconds: float) -> float:
    """Seconds until a connection that never says anything is cut."""
    ours, other = socket.socketpair()
    with ours, other, Clock(seconds) as clock:
        clock.watch(ours)
        began = time.monotonic()
        assert ours.recv(1) == b""
        return time.monotonic() - began


def watchers() -> int:
    return sum(thread.name == "watch" for thread in threading.enumerate())


def test_what_is_over_in_time_is_left_alone() -> None:
    ours, other = socket.socketpair()
    with ours, other:
        with Clock(0.05) as clock:
            clock.watch(ours)
        time.sleep(0.15)
        other.sendall(b"x")
        assert ours.recv(1) == b"x"


def test_the_first_to_run_out_is_cut_first_whatever_the_order() -> None:
    with ExitStack() as stack:
        for seconds in (60.0, 30.0, 45.0):
            stack.enter_context(Clock(seconds))
        assert 0.1 <= cut_after(0.1) < 10
        assert 0.05 <= cut_after(0.05) < 10


def test_a_thousand_pictures_need_one_thread() -> None:
    with ExitStack() as stack:
        for _ in range(1000):
            stack.enter_context(Clock(60.0))
        assert watchers() == 1
    assert cut_after(0.05) < 10
    assert watchers() == 1


def test_a_machine_without_threads_costs_that_picture_only(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = guard._Watch()
    monkeypatch.setattr(guard, "_WATCH", watch)

    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as full:
        full.setattr(threading.Thread, "start", refuse)
        with pytest.raises(PictureUnavailableError, match="can't start new thread"):
            cut_after(0.05)
    assert cut_after(0.05) < 10


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_watches_for_itself() -> None:
    with Clock(60.0):  # the parent's thread runs
        fork = multiprocessing.get_context("fork")
        told = fork.SimpleQueue()
        child = fork.Process(target=lambda: told.put(cut_after(0.05)))
        child.start()
        assert told.get() < 10
        child.join(60)
