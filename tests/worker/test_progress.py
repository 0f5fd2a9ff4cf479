"""Progress: reports, heartbeats, and being told to stop."""

import json
import time

import pytest

from worker import progress as module
from worker.errors import CancelledError, ReplacedError
from worker.order import Order
from worker.progress import Progress
from worker.queue import Board, connect

KEY = "studio-1-1"


@pytest.fixture
def running(board: Board) -> Progress:
    return Progress(board, KEY, "train-1", "asked")


def test_a_report_says_where_the_job_is_and_how_long_it_takes(
    board: Board, running: Progress
) -> None:
    running("fitting", 0, 4)
    time.sleep(0.05)
    running("fitting", 4, 4, loss=0.123456)
    told = board.progress(KEY)
    assert told is not None
    assert (told["job"], told["stage"], told["done"], told["total"]) == ("train-1", "fitting", 4, 4)
    assert told["seconds_left"] == 0
    assert told["figures"] == {"loss": 0.1235}
    assert told["curve"] == [{"stage": "fitting", "at": 1.0, "loss": 0.123456}]


def test_what_a_checkpoint_spared_does_not_count_as_quick(board: Board, running: Progress) -> None:
    running("fine-tuning", 80, 100)
    told = board.progress(KEY)
    assert told is not None
    assert told["seconds_left"] is None
    time.sleep(module.INTERVAL)
    running("fine-tuning", 81, 100)
    told = board.progress(KEY)
    assert told is not None
    assert told["seconds_left"] >= module.INTERVAL * 19


def test_reports_in_quick_succession_are_not_all_sent(board: Board, running: Progress) -> None:
    running("fitting", 0, 100)
    running("fitting", 1, 100)
    told = board.progress(KEY)
    assert told is not None
    assert told["done"] == 0


def test_a_curve_keeps_its_shape_and_both_ends(board: Board, running: Progress) -> None:
    many = 5 * module.CURVE
    for step in range(many):
        running("fitting", step, many, loss=float(step))
    running("publishing", 0, 1)
    told = board.progress(KEY)
    assert told is not None
    points = [point["loss"] for point in told["curve"]]
    assert module.CURVE // 2 <= len(points) <= module.CURVE
    assert (points[0], points[-1]) == (0, many - 1)
    assert points == sorted(points)
    assert len(json.dumps(told)) < 20_000


def test_a_point_stands_where_its_own_run_is(board: Board, running: Progress) -> None:
    """Of several runs side by side each knows how far it is itself."""
    running("fitting", 10, 100, loss=0.5, at=0.8)
    running("calibrating", 0, 1)
    told = board.progress(KEY)
    assert told is not None
    assert told["curve"] == [{"stage": "fitting", "at": 0.8, "loss": 0.5}]
    assert told["figures"] == {}


def test_a_cancelled_job_is_stopped_at_its_next_report(board: Board, running: Progress) -> None:
    asked = board.ask(Order(KEY))
    stopped = Progress(board, KEY, asked.job, "asked")
    board.redis.set(f"hrn:{KEY}:cancel", asked.job)
    with pytest.raises(CancelledError):
        stopped("fitting", 1, 10)
    board.redis.delete(f"hrn:{KEY}:alive")
    running("fitting", 1, 10)  # another job's cancellation is not ours


def test_a_heart_beats_while_the_block_runs(
    board: Board, running: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HEARTBEAT", 0.02)
    with running.heartbeat():
        time.sleep(0.1)
        assert board.is_alive(KEY, "train-1")
        board.redis.delete(f"hrn:{KEY}:alive")
        time.sleep(0.1)
        assert board.is_alive(KEY, "train-1")


def test_a_job_that_another_has_replaced_stops(board: Board, running: Progress) -> None:
    board.beat(KEY, "train-2")
    with running.heartbeat():
        time.sleep(0.1)
        with pytest.raises(ReplacedError):
            running("publishing", 1, 1)


def test_a_training_goes_on_while_redis_is_away() -> None:
    running = Progress(Board(connect("redis://127.0.0.1:1/0")), KEY, "train-1", "asked")
    with running.heartbeat():
        running("fitting", 0, 10)
        running("fitting", 10, 10)
