"""The page of a project's training: ask, watch, cancel; queue, workers, past runs."""

from collections.abc import Callable
from typing import Any

import pytest
from flask.testing import FlaskClient
from rq.job import JobStatus

from inference.store import DISCONNECTED, GONE, Project
from tests.backend.conftest import go_live
from tests.backend.console.conftest import Post
from tests.backend.console.test_projects import running
from worker.order import Order
from worker.parts import Parts
from worker.queue import Board
from worker.taking import OurWorker


@pytest.fixture
def known(fresh: Callable[..., Project]) -> Project:
    return fresh()


def page_of(client: FlaskClient, known: Project) -> str:
    return client.get(f"/console/projects/{known.key}/training").text


def state_of(client: FlaskClient, known: Project) -> dict[str, Any]:
    told: dict[str, Any] = client.get(f"/console/projects/{known.key}/training/state").get_json()
    return told


@pytest.mark.parametrize(
    ("way", "tune"), [("usual", None), ("tune", True), ("head", False), ("other", None)]
)
def test_a_training_is_asked_for_as_the_form_says(
    post: Post, known: Project, board: Board, way: str, *, tune: bool | None
) -> None:
    start = f"/console/projects/{known.key}/training/start"
    reply = post(start, way=way, force="yes", note="  after\x00\n relabelling ")
    assert "The training is in the queue." in reply.text
    (wish,) = board.wishes(known.key)
    order = Order.from_json(wish["order"])
    assert (order.fine_tune, order.force) == (tune, True)
    assert order.reason == "asked in the console: after relabelling"


@pytest.mark.parametrize("one", [DISCONNECTED, GONE])
def test_nothing_is_asked_for_a_project_that_was_taken_away(
    post: Post, fresh: Callable[..., Project], parts: Parts, board: Board, one: str
) -> None:
    known = fresh()
    parts.store.note_state(known.key, one)
    reply = post(f"/console/projects/{known.key}/training/start")
    assert "Nothing was asked for: " in reply.text
    assert board.wishes(known.key) == []


def test_a_note_is_cut_and_need_not_be(post: Post, known: Project, board: Board) -> None:
    start = f"/console/projects/{known.key}/training/start"
    post(start, note="x" * 5000)
    assert len(board.wishes(known.key)[0]["order"]["reason"]) < 300
    board.cancel(known.key)
    post(start)
    assert board.wishes(known.key)[0]["order"] == Order(known.key, "asked in the console").to_json()


def test_what_is_said_of_a_training_follows_it_to_its_end(
    post: Post, admin: FlaskClient, known: Project, board: Board
) -> None:
    reply = post(f"/console/projects/{known.key}/training/start")
    job = board.wishes(known.key)[0]["job"]
    address = f"/console/projects/{known.key}/training?asked={job}"
    assert reply.request.full_path.endswith(f"training?asked={job}")
    assert "is in the queue" in reply.text
    revision = admin.get(address.replace("?", "/state?")).get_json()["revision"]
    assert f"state?asked={job}" in reply.text

    board._job(known.key).set_status(JobStatus.STARTED)  # type: ignore[union-attr]
    text = admin.get(address).text
    assert "The training runs." in text
    assert "is in the queue" not in text
    assert admin.get(address.replace("?", "/state?")).get_json()["revision"] != revision

    board.finished(known.key, job)
    why = "v1 has learnt from all 20 labels"
    board.log_run(known.key, {"job": job, "state": "nothing new", "why": why})
    text = admin.get(address).text
    assert f"The training has ended, nothing new: {why}." in text
    assert "is in the queue" not in text
    assert "has ended" not in page_of(admin, known)


def test_a_training_whose_process_died_is_followed_to_the_one_in_its_place(
    admin: FlaskClient, known: Project, board: Board
) -> None:
    board.log_run(known.key, {"job": "train-1", "state": "died", "why": "killed", "again": "two"})
    board.log_run(known.key, {"job": "two", "state": "published", "why": "the first version"})
    told = admin.get(f"/console/projects/{known.key}/training?asked=train-1").text
    assert "The training has ended, published: the first version." in told


def test_a_training_that_nobody_knows_is_not_spoken_of(admin: FlaskClient, known: Project) -> None:
    told = admin.get(f"/console/projects/{known.key}/training?asked=<b>x").text
    assert "The training" not in told
    assert "<b>x" not in told


def test_asking_while_one_runs_says_that_the_second_waits(
    post: Post, known: Project, board: Board
) -> None:
    running(board, known)
    start = f"/console/projects/{known.key}/training/start"
    assert "another one of this project is before it" in post(start).text


def test_what_is_queued_is_dropped_and_listed(post: Post, known: Project, board: Board) -> None:
    board.ask(Order(known.key, "20 new labels"))
    reply = post(f"/console/projects/{known.key}/training/cancel", only="queued")
    assert "had not begun was dropped" in reply.text
    assert "asked to stop before it began" in reply.text
    assert board.wishes(known.key) == []
    assert board.runs(known.key)[0]["state"] == "cancelled"


def test_cancelling_what_runs_says_how_it_goes_and_keeps_what_waits(
    post: Post, known: Project, board: Board
) -> None:
    running(board, known)
    behind = board.ask(Order(known.key, "asked for after it", force=True))
    cancel = f"/console/projects/{known.key}/training/cancel"
    reply = post(cancel, only="running")
    first = board.wishes(known.key)[0]["job"]
    assert board.is_cancelled(known.key, first)
    assert "asked to stop; it does so within seconds" in reply.text
    assert [wish["state"] for wish in board.wishes(known.key)] == ["running", "waiting"]
    board.log_run(known.key, {"job": first, "state": "cancelled", "why": "asked to stop"})
    board.finished(known.key, first)
    assert board.state(known.key) == ("queued", behind.job)


def test_what_waits_is_dropped_alone_with_a_row_that_says_so(
    post: Post, admin: FlaskClient, known: Project, board: Board
) -> None:
    running(board, known)
    board.queue.remove(board.wishes(known.key)[0]["job"])  # as its worker did
    board.ask(Order(known.key, "asked for after it", force=True))
    text = page_of(admin, known)
    assert "1 job waits" in text
    assert '<input type="hidden" name="only" value="waiting">' in text
    text = post(f"/console/projects/{known.key}/training/cancel", only="waiting").text
    past = text.split("Past trainings", 1)[1]
    assert "asked for after it" in past
    assert "cancelled" in past
    assert not board.is_stopping(known.key)
    assert [wish["state"] for wish in board.wishes(known.key)] == ["running"]


def test_cancelling_what_is_gone_is_told(post: Post, known: Project) -> None:
    reply = post(f"/console/projects/{known.key}/training/cancel", only="waiting")
    assert "Nothing was stopped" in reply.text


def test_progress_is_told_with_stage_time_and_curves(
    admin: FlaskClient, known: Project, board: Board
) -> None:
    told = running(board, known)
    told("fitting", 1, 100)
    for epoch in range(1, 11):
        told("fitting", 4 * epoch, 100, loss=1 / epoch, at=epoch / 10)
        told("fitting", 4 * epoch + 1, 100, accuracy=1 - 1 / (epoch + 1), at=epoch / 10)
    told("calibrating", 0, 1)
    told("fitting", 50, 100)
    state = state_of(admin, known)
    assert state["stage"] == "Fitting the head"
    assert state["percent"] == 50
    assert state["pause"] == 1000
    assert state["loss"]["x"] == [round(epoch / 10, 4) for epoch in range(1, 11)]
    assert state["loss"]["series"][0]["values"][-1] == 0.1
    assert state["accuracy"]["y_range"] == [0, 1]
    assert state["accuracy"]["y_name"] == "Right on the level that was answered, of images held out"
    assert state["figures"].startswith("loss 0.100 nats, right so far 90.9")
    text = page_of(admin, known)
    assert "Cancel training" in text
    assert "Accuracy as it learns" in text
    assert '<script type="application/json">' in text


def test_an_idle_project_is_asked_about_slowly(admin: FlaskClient, known: Project) -> None:
    state = state_of(admin, known)
    assert state["pause"] == 5000
    assert state["stage"] == ""
    assert state["loss"] is None


def test_what_a_screen_reader_hears_changes_by_quarters(
    admin: FlaskClient, known: Project, board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.progress.INTERVAL", 0.0)  # every report is sent
    told = running(board, known)
    heard = set()
    for done in range(0, 101, 5):
        told("fitting", done, 100)
        heard.add(state_of(admin, known)["announce"])
    assert len(heard) == 5


def test_the_queue_is_told_in_words(admin: FlaskClient, known: Project, board: Board) -> None:
    running(board, known)
    board.ask(Order(known.key, "20 new labels", fine_tune=True))
    board.postpone(Order(known.key, "when Label Studio is back"), 600)
    text = page_of(admin, known)
    for part in (
        "Runs now",
        "Waits for the one that runs",
        "20 new labels",
        "the backbone too",
        "Put off; tried again by itself",
        "when Label Studio is back",
    ):
        assert part in text


def test_workers_are_told_with_host_and_device(
    admin: FlaskClient, known: Project, board: Board
) -> None:
    assert "No worker runs" in page_of(admin, known)
    worker = OurWorker([board.queue], connection=board.redis, serializer="json")
    worker.device = "GPU: <b>NVIDIA</b>"
    worker.register_birth()
    text = page_of(admin, known)
    assert "GPU: &lt;b&gt;NVIDIA&lt;/b&gt;" in text
    assert f"{worker.hostname}" in text
    assert "Ready" in text


def test_a_worker_says_what_it_computes_on_for_as_long_as_it_lives(board: Board) -> None:
    worker = OurWorker([board.queue], connection=board.redis, serializer="json")
    worker.device = "CPU, 2 cores"
    worker.register_birth()
    (told,) = board.workers()
    assert told["device"] == "CPU, 2 cores"
    assert board.redis.ttl(worker.key) > 0
    worker.register_death()  # type: ignore[no-untyped-call]
    assert board.workers() == []


def test_a_worker_of_another_release_says_nothing(board: Board) -> None:
    from rq import Worker

    Worker([board.queue], connection=board.redis, serializer="json").register_birth()
    assert board.workers()[0]["device"] == ""


def test_past_runs_are_told_with_their_reasons(
    admin: FlaskClient, known: Project, board: Board
) -> None:
    ended = {"job": "train-1", "reason": "20 new labels", "seconds": 75}
    why = "v3 stays in the store, v2 stays live: 3 points worse"
    board.log_run(known.key, {**ended, "state": "refused", "why": why, "version": "v3"})
    text = page_of(admin, known)
    for part in ("refused", why, "20 new labels", "v3", "75 s"):
        assert part in text


def test_the_refresh_of_open_tasks_is_shown_and_stopped(
    admin: FlaskClient, post: Post, known: Project, board: Board
) -> None:
    assert state_of(admin, known)["refresh_text"] == ""
    board.report_refresh(known.key, {"version": "v2", "stage": "storing", "done": 30, "total": 120})
    board.beat_refresh(known.key)
    state = state_of(admin, known)
    assert state["refresh_percent"] == 25
    assert "30 of 120" in state["refresh_text"]
    assert state["pause"] == 1000
    post(f"/console/projects/{known.key}/training/stop-refresh")
    assert board.refresh_stopped(known.key, "v2")


def test_the_revision_stands_still_while_only_figures_move(
    admin: FlaskClient, known: Project, board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.progress.INTERVAL", 0.0)
    told = running(board, known)
    told("fitting", 1, 100)
    first = state_of(admin, known)["revision"]
    told("fitting", 2, 100)
    assert state_of(admin, known)["revision"] == first
    board.log_run(known.key, {"job": "x", "state": "failed", "why": "", "reason": ""})
    assert state_of(admin, known)["revision"] != first


def test_the_page_stands_while_redis_is_away(
    admin_without_redis: FlaskClient, parts: Any, known: Project
) -> None:
    go_live(parts, known)
    text = page_of(admin_without_redis, known)
    assert "Unknown while Redis is away." in text
    assert state_of(admin_without_redis, known)["announce"] == "Needs attention"
