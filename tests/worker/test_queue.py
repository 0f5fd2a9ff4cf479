"""The board on a real Redis: however often asked, one runs and one waits."""

import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from rq.job import Job, JobStatus

from worker import queue
from worker.order import Order
from worker.queue import Board, RedisError, connect
from worker.reading import Read

KEY = "studio-1-1"
ORDER = Order(KEY, "asked")


def job_of(board: Board, name: str) -> Job:
    return Job.fetch(name, connection=board.redis, serializer="json")


def start(board: Board, name: str) -> None:
    """What a worker does with a job before it runs it."""
    board.queue.remove(name)
    job_of(board, name).set_status(JobStatus.STARTED)


def long_ago(board: Board, name: str, status: JobStatus = JobStatus.STARTED) -> None:
    """A job that began an hour ago and whose heart does not beat."""
    board.queue.remove(name)
    job = job_of(board, name)
    job.started_at = datetime.now(UTC) - timedelta(hours=1)
    job.save()
    job.set_status(status)


# --- asking ---


def test_however_often_asked_one_waits(board: Board) -> None:
    first = board.ask(ORDER)
    assert first.state == "queued"
    assert {board.ask(ORDER) for _ in range(5)} == {queue.Asked(first.job, "waiting")}
    assert board.depth() == 1


def test_however_often_asked_one_runs_and_one_waits(board: Board) -> None:
    first = board.ask(ORDER)
    start(board, first.job)
    waiting = {board.ask(ORDER) for _ in range(5)}
    assert len(waiting) == 1
    assert waiting.pop().job != first.job
    assert board.state(KEY) == ("running", first.job)
    assert board.depth() == 0


def test_what_is_asked_before_a_death_is_buried_waits_behind_the_dead_one_s_wish(
    board: Board,
) -> None:
    """RQ says at once that a job's process is gone; its heart is trusted for seconds more.

    A job queued in between found its place taken and ended, and both wishes were lost.
    """
    first = board.ask(replace(ORDER, force=True))
    start(board, first.job)
    assert board.beat(KEY, first.job)
    job_of(board, first.job).set_status(JobStatus.FAILED)
    second = board.ask(ORDER)
    assert second.state == "waiting"
    assert board.depth() == 0
    assert board.revive(KEY) is None
    assert [wish["state"] for wish in board.wishes(KEY)] == ["queued", "waiting"]
    board.redis.delete(board._key(KEY, "alive"))
    long_ago(board, first.job, JobStatus.FAILED)
    assert "died" in str(board.revive(KEY))
    state, again = board.state(KEY)
    assert (state, board.depth()) == ("queued", 1)
    assert again is not None
    assert job_of(board, again).args[0]["force"]
    start(board, again)
    board.finished(KEY, again)
    assert board.state(KEY) == ("queued", second.job)


def test_a_training_that_died_can_be_cancelled_before_it_is_tried_again(board: Board) -> None:
    first = board.ask(ORDER)
    start(board, first.job)
    job_of(board, first.job).set_status(JobStatus.FAILED)
    assert [one["job"] for one in board.cancel(KEY)] == [first.job]
    assert board.revive(KEY) is None
    assert board.state(KEY) == ("idle", None)


def test_a_lock_that_a_killed_process_left_delays_a_wish_and_does_not_turn_it_away(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "LOCK_LIFE", 1)
    board.redis.set(board._key(KEY, "lock"), "of somebody who is gone", px=1500)
    assert board.ask(ORDER).state == "queued"


def test_a_job_that_ends_between_two_looks_is_gone_and_no_error(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = board.ask(ORDER)
    known = job_of(board, first.job)
    known.delete()
    monkeypatch.setattr(Board, "_job", lambda _self, _project: known)  # looked up before
    assert board.state(KEY) == ("idle", None)
    assert board.wishes(KEY) == []
    assert board.cancel(KEY) == []
    assert board.ask(ORDER).state == "queued"


def test_projects_do_not_wait_for_each_other(board: Board) -> None:
    assert board.ask(ORDER).state == board.ask(Order("studio-2-1")).state == "queued"
    assert board.depth() == 2


def test_what_waits_behind_a_running_job_is_queued_when_it_has_finished(board: Board) -> None:
    first = board.ask(ORDER)
    start(board, first.job)
    second = board.ask(Order(KEY, "again"))
    board.finished(KEY, first.job)
    assert board.state(KEY) == ("queued", second.job)
    assert board.queue.job_ids == [second.job]
    assert job_of(board, second.job).args[0]["reason"] == "again"


def test_a_finish_with_nothing_behind_leaves_nothing(board: Board) -> None:
    first = board.ask(ORDER)
    start(board, first.job)
    board.report(KEY, {"stage": "fitting"})
    board.finished(KEY, first.job)
    assert board.state(KEY) == ("idle", None)
    assert board.progress(KEY) is None


@pytest.mark.parametrize("running", [False, True], ids=["queued", "behind a running one"])
def test_a_wider_wish_takes_a_narrower_ones_place(board: Board, *, running: bool) -> None:
    first = board.ask(ORDER)
    if running:
        start(board, first.job)
        board.ask(ORDER)
    asked = board.ask(Order(KEY, "hrn train", force=True))
    assert board.ask(ORDER) == asked
    board.finished(KEY, first.job if running else "another")
    assert job_of(board, asked.job).args[0]["force"] is True
    assert board.depth() == 1


def test_a_job_is_plain_json_with_a_limit_of_its_own(board: Board) -> None:
    asked = board.ask(ORDER)
    raw = board.redis.hget(f"rq:job:{asked.job}", "data")
    assert isinstance(raw, bytes)
    assert b"worker.jobs.fine_tune" in raw or raw.startswith(b"x\x9c")
    assert not raw.startswith(b"\x80")  # how a pickle begins
    assert job_of(board, asked.job).timeout == queue.TRAINING_TIMEOUT


def test_asking_without_redis_says_so() -> None:
    board = Board(connect("redis://127.0.0.1:1/0"))
    with pytest.raises(RedisError):
        board.ask(ORDER)


# --- death and revival ---


@pytest.mark.parametrize("status", [JobStatus.STARTED, JobStatus.FAILED])
def test_a_dead_jobs_work_is_queued_again_under_a_new_name(board: Board, status: JobStatus) -> None:
    first = board.ask(ORDER)
    long_ago(board, first.job, status)
    told = board.revive(KEY)
    assert told is not None
    assert "queued again" in told
    state, second = board.state(KEY)
    assert state == "queued"
    assert second not in (None, first.job)
    (run,) = board.runs(KEY)
    assert (run["job"], run["state"], run["again"]) == (first.job, "died", second)
    assert board.revive(KEY) is None


def test_a_job_that_kills_its_process_each_time_is_given_up(board: Board) -> None:
    board.ask(ORDER)
    for _ in range(queue.CRASHES_FORGIVEN + 1):
        name = board.state(KEY)[1]
        assert name is not None
        long_ago(board, name)
        assert board.revive(KEY)
    assert board.state(KEY) == ("idle", None)
    assert [run["state"] for run in board.runs(KEY)] == ["failed", "died", "died"]
    assert "died 3 times" in board.runs(KEY)[0]["why"]


def test_what_waits_behind_a_job_that_is_given_up_gets_its_turn(board: Board) -> None:
    first = board.ask(Order(KEY, crashes=queue.CRASHES_FORGIVEN))
    start(board, first.job)
    second = board.ask(ORDER)
    long_ago(board, first.job)
    board.revive(KEY)
    assert board.state(KEY) == ("queued", second.job)


def test_a_job_whose_heart_beats_is_left_alone(board: Board) -> None:
    first = board.ask(ORDER)
    long_ago(board, first.job)
    assert board.beat(KEY, first.job)
    assert board.revive(KEY) is None


def test_a_job_that_has_only_begun_is_left_alone(board: Board) -> None:
    first = board.ask(ORDER)
    board.queue.remove(first.job)
    job = job_of(board, first.job)
    job.started_at = datetime.now(UTC)
    job.save()
    job.set_status(JobStatus.STARTED)
    assert board.revive(KEY) is None


def test_a_waiting_job_is_left_alone(board: Board) -> None:
    board.ask(ORDER)
    assert board.revive(KEY) is None
    assert board.depth() == 1


def test_a_job_that_redis_forgot_lets_the_next_one_through(board: Board) -> None:
    first = board.ask(ORDER)
    start(board, first.job)
    second = board.ask(ORDER)
    job_of(board, first.job).delete()
    assert board.revive(KEY)
    assert board.state(KEY) == ("queued", second.job)


def test_a_job_that_was_replaced_does_not_stop_its_successors_heart(board: Board) -> None:
    """It ends late; were the new one's signs of life removed, it would count as dead too."""
    first = board.ask(ORDER)
    long_ago(board, first.job)
    board.revive(KEY)
    second = board.state(KEY)[1]
    assert second is not None
    long_ago(board, second)
    board.beat(KEY, second)
    board.report(KEY, {"stage": "fitting"})
    assert not board.beat(KEY, first.job)
    board.finished(KEY, first.job)
    assert board.is_alive(KEY, second)
    assert board.progress(KEY) == {"stage": "fitting"}
    assert board.revive(KEY) is None


# --- cancelling ---


def test_cancelling_a_queued_job_removes_it(board: Board) -> None:
    asked = board.ask(ORDER)
    (stopped,) = board.cancel(KEY)
    assert (stopped["state"], stopped["job"]) == ("queued", asked.job)
    assert board.depth() == 0
    assert board.state(KEY) == ("idle", None)
    (run,) = board.runs(KEY)
    assert (run["state"], run["job"], run["reason"]) == ("cancelled", asked.job, "asked")


def test_cancelling_what_runs_keeps_what_waits_behind_it(board: Board) -> None:
    asked = board.ask(ORDER)
    start(board, asked.job)
    behind = board.ask(Order(KEY, "20 new labels"))
    assert [one["state"] for one in board.cancel(KEY, "running")] == ["running"]
    assert board.is_cancelled(KEY, asked.job)
    assert board.is_stopping(KEY)
    assert not board.is_cancelled(KEY, behind.job)
    board.finished(KEY, asked.job)
    assert board.state(KEY) == ("queued", behind.job)
    assert not board.is_stopping(KEY)


def test_dropping_what_waits_leaves_the_running_one_and_a_word(board: Board) -> None:
    asked = board.ask(ORDER)
    start(board, asked.job)
    behind = board.ask(Order(KEY, "20 new labels"))
    board.cancel(KEY, "waiting")
    assert not board.is_cancelled(KEY, asked.job)
    (run,) = board.runs(KEY)
    assert (run["state"], run["job"]) == ("cancelled", behind.job)
    assert (run["reason"], run["why"]) == ("20 new labels", "asked to stop before it began")
    board.finished(KEY, asked.job)
    assert board.state(KEY) == ("idle", None)


def test_cancelling_everything_says_all_that_was_stopped(board: Board) -> None:
    asked = board.ask(ORDER)
    start(board, asked.job)
    board.ask(ORDER)
    board.postpone(ORDER, 60)
    assert [one["state"] for one in board.cancel(KEY)] == ["running", "waiting", "put off"]
    assert [run["state"] for run in board.runs(KEY)] == ["cancelled", "cancelled"]
    board.finished(KEY, asked.job)
    assert board.state(KEY) == ("idle", None)
    assert board.due(KEY) is None


def test_cancelling_nothing_says_so(board: Board) -> None:
    assert board.cancel(KEY) == []


# --- putting off ---


def test_a_postponed_order_is_due_from_its_time_until_it_is_dropped(board: Board) -> None:
    board.postpone(ORDER, 0.05)
    assert board.due(KEY) is None
    time.sleep(0.06)
    assert board.due(KEY) == Order(KEY, "asked", attempt=1)
    assert board.due(KEY) == Order(KEY, "asked", attempt=1)
    board.drop_due(KEY)
    assert board.due(KEY) is None


# --- refreshes ---


def test_one_refresh_a_version_waits(board: Board) -> None:
    for _ in range(3):
        board.ask_refresh(KEY, "v1")
    assert board.depth() == 1
    board.ask_refresh(KEY, "v2")
    assert board.depth() == 2


def test_a_refresh_asks_for_what_it_leaves_beside_itself(board: Board) -> None:
    board.ask_refresh(KEY, "v1")
    board.ask_refresh(KEY, "v1", again=True)
    assert board.depth() == 2


def test_a_refresh_that_failed_can_be_asked_for_again(board: Board) -> None:
    board.ask_refresh(KEY, "v1")
    (name,) = board.queue.job_ids
    board.queue.remove(name)
    job_of(board, name).set_status(JobStatus.FAILED)
    board.ask_refresh(KEY, "v1")
    assert board.queue.job_ids == [name]


@pytest.mark.parametrize(
    ("minutes", "alive", "waits"), [(0, False, 0), (60, True, 0), (60, False, 1)]
)
def test_a_refresh_whose_process_died_does_not_block_the_next(
    board: Board, minutes: int, *, alive: bool, waits: int
) -> None:
    board.ask_refresh(KEY, "v1")
    (name,) = board.queue.job_ids
    board.queue.remove(name)
    job = job_of(board, name)
    job.started_at = datetime.now(UTC) - timedelta(minutes=minutes)
    job.save()
    job.set_status(JobStatus.STARTED)
    if alive:
        board.beat_refresh(KEY)
    assert board.ask_refresh(KEY, "v1") is bool(waits)
    assert board.depth() == waits


def test_a_refresh_is_shown_while_it_lives(board: Board) -> None:
    assert board.refresh_progress(KEY) is None
    board.report_refresh(KEY, {"done": 3, "total": 9})
    assert board.refresh_progress(KEY) is None
    board.beat_refresh(KEY)
    assert board.refresh_progress(KEY) == {"done": 3, "total": 9}
    board.refresh_ended(KEY)
    assert board.refresh_progress(KEY) is None


def test_a_stopped_refresh_stays_so_until_it_is_asked_for(board: Board) -> None:
    board.stop_refresh(KEY, "v1")
    assert board.refresh_stopped(KEY, "v1")
    assert not board.refresh_stopped(KEY, "v2")
    board.ask_refresh(KEY, "v1", again=True)
    assert board.refresh_stopped(KEY, "v1")
    board.ask_refresh(KEY, "v1")
    assert not board.refresh_stopped(KEY, "v1")


def test_answers_are_taken_once_there_are_enough(board: Board) -> None:
    board.note_event(KEY)
    board.note_event(KEY)
    assert board.take_answers(KEY, 3) == 0
    assert board.take_answers(KEY, 2) == 2
    assert board.take_answers(KEY, 1) == 0


def test_a_training_goes_before_a_refresh(board: Board) -> None:
    board.ask_refresh(KEY, "v1")
    asked = board.ask(ORDER)
    assert board.queue.job_ids[0] == asked.job


# --- what is remembered ---


def test_runs_are_remembered_newest_first_up_to_a_number(board: Board) -> None:
    for number in range(queue.RUNS_KEPT + 5):
        board.log_run(KEY, {"job": number, "state": "published"})
    runs = board.runs(KEY)
    assert [run["job"] for run in runs[:2]] == [queue.RUNS_KEPT + 4, queue.RUNS_KEPT + 3]
    assert len(runs) == queue.RUNS_KEPT
    assert runs[0]["ended_at"] <= time.time()


@pytest.mark.parametrize(
    ("states", "seconds"),
    [
        ([], 0),
        (["failed"], 60),
        (["published", "failed", "failed", "failed"], 240),
        (["failed", "published"], 0),
        (["failed", "died", "postponed"], 60),
        (["failed"] * 20, 3600),
    ],
)
def test_after_failures_in_a_row_nothing_is_asked_for_unasked_for_longer_and_longer(
    board: Board, states: list[str], seconds: float
) -> None:
    for state in states:
        board.log_run(KEY, {"job": "j", "state": state})
    assert board.rest(KEY) == pytest.approx(seconds, abs=2)


@pytest.mark.parametrize("text", ["no JSON", b"\xff\xfe", "[1, 2]", "null", "[" * 10_000])
def test_what_others_wrote_in_place_of_a_hint_is_a_hint_lost(
    board: Board, text: bytes | str
) -> None:
    for name in ("again", "later", "progress"):
        board.redis.set(f"hrn:{KEY}:{name}", text)
    board.redis.lpush(f"hrn:{KEY}:runs", text)
    assert board.progress(KEY) is None
    assert board.due(KEY) is None
    assert board.runs(KEY) == []
    assert board.wishes(KEY) == []
    assert board.ask(Order(KEY, "asked")).state == "queued"


def test_events_are_counted_until_labels_are_read(board: Board) -> None:
    assert board.events(KEY) == (0, None)
    before = time.time()
    board.note_event(KEY)
    board.note_event(KEY)
    count, last = board.events(KEY)
    assert count == 2
    assert last is not None
    assert before <= last <= time.time()
    board.events_read(KEY)
    assert board.events(KEY)[0] == 0


def test_an_attempt_is_remembered(board: Board) -> None:
    assert board.attempted(KEY) == Read()
    read = Read("2026-11-23T14:00:00Z", {"7": "2026-11-23T14:00:00Z"})
    board.note_attempt(KEY, read)
    assert board.attempted(KEY) == read
    for damaged in ("2026-11-23T14:00:00Z", "{}", '{"through": 1, "recent": 2}'):
        board.redis.set(board._key(KEY, "attempted"), damaged)
        assert board.attempted(KEY) == Read()


# --- following ---


def test_one_job_that_follows_a_version_waits(board: Board) -> None:
    assert all(board.ask_follow(KEY, "v1") for _ in range(3))
    assert board.queue.job_ids == [f"follow-{KEY}-v1"]
    start(board, f"follow-{KEY}-v1")
    assert not board.ask_follow(KEY, "v1")
    assert board.ask_follow(KEY, "v2")
    assert board.queue.job_ids == [f"follow-{KEY}-v2"]


def test_a_hint_that_answers_came_is_taken_once(board: Board) -> None:
    assert not board.take_heard(KEY)
    board.note_event(KEY)
    assert (board.take_heard(KEY), board.take_heard(KEY)) == (True, False)
    board.note_heard(KEY)
    assert board.take_heard(KEY)


def test_the_rule_that_open_tasks_were_answered_by_is_known_for_its_version(board: Board) -> None:
    assert board.shown(KEY, "v1") is None
    board.note_shown(KEY, "v1", {"price": 3.0})
    noted = board.shown(KEY, "v1")
    assert noted is not None
    assert noted[0] == {"price": 3.0}
    assert abs(noted[1] - time.time()) < 60
    assert board.shown(KEY, "v2") is None


def test_a_rule_that_moved_waits_for_its_time(board: Board) -> None:
    assert not board.moved(KEY, "v1", 0)
    board.note_moved(KEY, "v1")
    assert board.moved(KEY, "v1", 600)  # nothing was synced yet
    board.note_shown(KEY, "v1", {})
    assert not board.moved(KEY, "v1", 600)
    assert board.moved(KEY, "v1", 0)
    assert not board.moved(KEY, "v2", 0)
    board.drop_moved(KEY)
    assert not board.moved(KEY, "v1", 0)
