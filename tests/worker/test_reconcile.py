"""Wanted against done: the policy on paper, and what is asked for when every hint is lost."""

import logging
import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from rq.job import JobStatus

from inference.store import Project
from tests.published import project, publish, publish_earlier
from tests.worker.stand import Stand
from worker import reconcile
from worker.order import Order
from worker.parts import Parts
from worker.queue import Board, connect
from worker.reading import Read
from worker.reconcile import Policy, Reconciler
from worker.training import read_labels


@pytest.mark.parametrize(
    ("new", "last", "now", "reason"),
    [
        (0, None, 0.0, None),
        (0, 0.0, 1e9, None),
        (19, 1000.0, 1299.0, None),
        (19, None, 1e9, None),
        (20, 1000.0, 1000.0, "20 new labels"),
        (21, None, 0.0, "21 new labels"),
        (1, 1000.0, 1300.0, "1 new labels, the last one 5 minutes ago"),
    ],
)
def test_the_policy(new: int, last: float | None, now: float, reason: str | None) -> None:
    assert Policy(every=20, after=300).reason(new, last, now) == reason


def queued(parts: Parts, known: Project) -> dict[str, Any] | None:
    """The order of the project's waiting job."""
    jobs = [job for job in parts.board.queue.jobs if job.id.startswith("train-")]
    return jobs[0].args[0] if jobs and jobs[0].args[0]["project"] == known.key else None


# --- the truth in Label Studio ---


def test_labels_are_found_where_every_hint_was_lost(
    parts: Parts, known: Project, stand: Stand, board: Board
) -> None:
    stand.label(20, minute=0)
    board.redis.flushdb()
    Reconciler(parts).glance()
    order = queued(parts, known)
    assert order is not None
    assert order["reason"] == "20 new labels"


def test_few_labels_are_learnt_from_when_none_has_come_for_a_while(
    parts: Parts, known: Project, stand: Stand
) -> None:
    stand.label(3, minute=0)
    Reconciler(parts).glance()
    order = queued(parts, known)
    assert order is not None
    assert order["reason"].startswith("3 new labels, the last one")


def test_few_labels_of_just_now_can_wait(parts: Parts, known: Project, stand: Stand) -> None:
    stand.label(3, minute=0)
    for task in stand.tasks:
        task["annotations"][0]["updated_at"] = datetime.now(UTC).isoformat()
    Reconciler(parts).glance()
    assert queued(parts, known) is None


def test_nothing_is_asked_twice_for_labels_that_an_attempt_has_read(
    parts: Parts, known: Project, stand: Stand, board: Board
) -> None:
    stand.label(20, minute=0)
    newest = max(task["annotations"][0]["updated_at"] for task in stand.tasks)
    board.note_attempt(known.key, Read(newest))
    Reconciler(parts).glance()
    assert queued(parts, known) is None
    stand.label(20, minute=5)
    Reconciler(parts).glance()
    assert queued(parts, known) is not None


def test_nothing_is_asked_for_labels_that_the_live_version_has_learnt_from(
    parts: Parts, known: Project, stand: Stand
) -> None:
    stand.label(20, minute=0)
    newest = max(task["annotations"][0]["updated_at"] for task in stand.tasks)
    publish(parts.store, known, trained_through=newest)
    Reconciler(parts).glance()
    assert queued(parts, known) is None


def test_what_an_earlier_release_trained_is_replaced_by_itself_and_asked_for_once(
    parts: Parts, known: Project, stand: Stand, board: Board
) -> None:
    stand.label(4, minute=0)
    newest = max(task["annotations"][0]["updated_at"] for task in stand.tasks)
    board.note_attempt(known.key, Read(newest))  # no label is new
    publish_earlier(parts.store, known)
    ours = Reconciler(parts)
    ours.look(known)
    order = queued(parts, known)
    assert order is not None
    assert order["reason"].startswith("v1 was trained by an earlier release")
    board.queue.remove(board.wishes(known.key)[0]["job"])
    board.finished(known.key, "train-1")
    ours.look(known)
    assert queued(parts, known) is None


def test_a_training_that_failed_before_it_read_a_label_is_not_wished_for_at_every_look(
    parts: Parts, known: Project, board: Board, stand: Stand
) -> None:
    stand.label(20, minute=0)
    board.log_run(known.key, {"job": "train-1", "state": "failed", "why": "unexpected"})
    ours = Reconciler(parts)
    ours.look(known)
    assert queued(parts, known) is None
    long_ago = {"job": "train-1", "state": "failed", "ended_at": time.time() - 7200}
    board.log_run(known.key, long_ago)
    ours.look(known)
    assert queued(parts, known) is not None


def test_a_version_wants_its_pre_labels_once(parts: Parts, known: Project, board: Board) -> None:
    publish(parts.store, known)
    ours = Reconciler(parts)
    ours.look(known)
    assert board.queue.job_ids == [f"refresh-{known.key}-v1"]
    board.queue.empty()
    ours.look(known)  # it was lost: asked for again
    assert board.queue.job_ids == [f"refresh-{known.key}-v1"]
    board.queue.empty()
    board.note_refreshed(known.key, "v1")
    ours.look(known)
    assert board.queue.job_ids == []


def test_another_project_with_the_same_number_is_not_taken_for_this_one(
    parts: Parts, known: Project, stand: Stand, caplog: pytest.LogCaptureFixture
) -> None:
    """As after a reset of Label Studio: its numbers begin anew, its creation times do not."""
    stand.label(20, minute=0)
    stand.created_at = "2027-01-01T00:00:00Z"
    Reconciler(parts).glance()
    assert queued(parts, known) is None
    assert "belongs to another Label Studio or was deleted" in caplog.text


def test_label_studio_is_not_asked_at_every_glance(
    parts: Parts, known: Project, stand: Stand
) -> None:
    ours = Reconciler(parts)
    for _ in range(3):
        ours.glance()
    assert stand.server is not None
    assert stand.server.paths().count("/api/tasks") == 2  # the newest task, and new labels


# --- hints ---


def test_events_are_enough_to_ask(parts: Parts, known: Project, board: Board) -> None:
    for _ in range(20):
        board.note_event(known.key)
    Reconciler(parts).glance()
    assert queued(parts, known) is not None
    assert board.events(known.key)[0] == 0


def test_a_postponed_order_is_asked_again(parts: Parts, known: Project, board: Board) -> None:
    board.postpone(Order(known.key, "asked", force=True), -1)
    Reconciler(parts).glance()
    order = queued(parts, known)
    assert order is not None
    assert (order["attempt"], order["force"]) == (1, True)


def test_new_tasks_get_pre_labels(parts: Parts, known: Project, board: Board) -> None:
    ours = Reconciler(parts)
    ours.glance()
    board.queue.empty()
    board.note_tasks(known.key)
    ours.glance()
    assert board.queue.job_ids == [f"refresh-{known.key}-untrained"]
    board.queue.empty()
    publish(parts.store, known)
    board.note_tasks(known.key)
    ours.glance()
    assert board.queue.job_ids == [f"refresh-{known.key}-v1"]


def test_tasks_whose_event_was_lost_get_pre_labels(
    parts: Parts, known: Project, board: Board, stand: Stand
) -> None:
    publish(parts.store, known)
    board.note_refreshed(known.key, "v1")
    ours = Reconciler(parts)
    ours.look(known)
    ours.look(known)
    board.queue.empty()
    ours.look(known)
    ours.sync_if_due(known, "v1")
    assert board.queue.job_ids == []
    stand.tasks.append({"id": 1, "data": {}, "annotations": [], "predictions": []})
    ours.look(known)
    ours.sync_if_due(known, "v1")
    assert board.queue.job_ids == [f"refresh-{known.key}-v1"]


def test_tasks_are_ordered_before_there_is_a_version(
    parts: Parts, known: Project, board: Board
) -> None:
    ours = Reconciler(parts)
    ours.look(known)
    assert board.queue.job_ids == [f"refresh-{known.key}-untrained"]
    board.queue.empty()
    board.note_refreshed(known.key, "untrained")
    ours.look(known)
    assert board.queue.job_ids == []


def test_many_answers_ask_for_others_to_be_chosen(
    parts: Parts, known: Project, board: Board
) -> None:
    publish(parts.store, known)
    ours = Reconciler(parts)
    for _ in range(reconcile.LOOK_AGAIN - 1):
        board.note_event(known.key)
    ours.sync_if_due(known, "v1")
    assert board.queue.job_ids == []
    board.note_event(known.key)
    ours.sync_if_due(known, "v1")
    assert board.queue.job_ids == [f"refresh-{known.key}-v1"]
    board.queue.empty()
    ours.sync_if_due(known, "v1")
    assert board.queue.job_ids == []


def test_answers_whose_events_were_lost_count_as_well(
    parts: Parts, known: Project, board: Board, stand: Stand
) -> None:
    newest = "2026-11-23T14:00:00.000000Z"
    publish(parts.store, known, trained_through=newest)
    ours = Reconciler(parts)
    ours.look(known)
    stand.label(reconcile.LOOK_AGAIN, minute=1)
    ours.look(known)
    assert board.take_answers(known.key, 1) == reconcile.LOOK_AGAIN


def test_after_going_back_newer_answers_are_counted_against_the_live_version(
    parts: Parts, known: Project, board: Board, stand: Stand
) -> None:
    """A training has read all 35; v1, which is live again, has learnt from 20 of them."""
    stand.label(20, minute=0)
    learnt = read_labels(known, parts)[2]
    publish(parts.store, known, trained_through=learnt.trained_through)
    stand.label(15, minute=10)
    read = read_labels(known, parts)[2]
    publish(parts.store, known, trained_through=read.trained_through)
    board.note_attempt(known.key, read.read)
    version_read = Read(learnt.trained_through)
    ours = Reconciler(parts)
    ours.glance()
    assert board.unlearnt(known.key) == 0
    assert board.behind(known.key, "v2", Read(read.trained_through)) == 0

    parts.store.point(known.key, "v1", reason="by hand")
    assert board.behind(known.key, "v1", version_read) is None  # not counted yet
    ours.glance()  # at once, although the last look was a moment ago
    assert board.unlearnt(known.key) == 0
    assert board.behind(known.key, "v1", version_read) == 15

    stand.label(2, minute=20)
    ours.look(known)
    assert (board.unlearnt(known.key), board.behind(known.key, "v1", version_read)) == (2, 15)


def test_a_refresh_that_a_person_stopped_is_asked_for_with_the_next_version_only(
    parts: Parts, known: Project, board: Board
) -> None:
    publish(parts.store, known)
    board.stop_refresh(known.key, "v1")
    board.note_tasks(known.key)
    ours = Reconciler(parts)
    ours.glance()
    assert board.queue.job_ids == []
    publish(parts.store, known)
    ours.look(known)
    assert board.queue.job_ids == [f"refresh-{known.key}-v2"]


def test_rows_of_earlier_versions_are_removed_once_their_time_has_come(
    parts: Parts, known: Project, board: Board
) -> None:
    publish(parts.store, known)
    ours = Reconciler(parts)
    board.note_untidy(known.key, 4e9)
    ours.sync_if_due(known, "v1")
    assert board.queue.job_ids == []
    board.note_untidy(known.key, 1.0)
    ours.sync_if_due(known, "v1")
    assert board.queue.job_ids == [f"refresh-{known.key}-v1"]
    assert not board.take_untidy(known.key)


def test_answers_that_were_heard_of_are_followed_once_in_a_while(
    parts: Parts, known: Project, board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(parts.store, known)
    job = f"follow-{known.key}-v1"
    ours = Reconciler(parts)
    ours.take_hints(known)
    assert board.queue.job_ids == []
    board.note_event(known.key)
    ours.take_hints(known)
    assert board.queue.job_ids == [job]
    board.queue.empty()
    for _ in range(3):
        board.note_event(known.key)
        ours.take_hints(known)
    assert board.queue.job_ids == []
    monkeypatch.setattr(reconcile, "FOLLOW_PAUSE", 0.0)
    ours.take_hints(known)
    ours.take_hints(known)
    assert board.queue.job_ids == [job]
    board.queue.empty()
    monkeypatch.setattr(reconcile, "FOLLOW_ANYWAY", 0.0)  # an hour has passed without a hint
    ours.take_hints(known)
    assert board.queue.job_ids == [job]


def test_a_hint_is_kept_while_the_job_that_may_have_missed_it_runs(
    parts: Parts, known: Project, board: Board
) -> None:
    publish(parts.store, known)
    board.ask_follow(known.key, "v1")
    (job,) = board.queue.jobs
    board.queue.empty()
    job.save()
    job.set_status(JobStatus.STARTED)
    board.note_event(known.key)
    Reconciler(parts).take_hints(known)
    assert board.queue.job_ids == []
    assert board.take_heard(known.key)


def test_answers_whose_events_were_lost_are_followed(
    parts: Parts, known: Project, board: Board, stand: Stand
) -> None:
    publish(parts.store, known)
    stand.label(1, minute=0)
    ours = Reconciler(parts)
    ours.look(known)
    assert board.take_heard(known.key)
    ours.look(known)
    assert not board.take_heard(known.key)
    stand.label(1, minute=1)
    ours.look(known)
    assert board.take_heard(known.key)


def test_an_untrained_project_is_not_followed(parts: Parts, known: Project, board: Board) -> None:
    board.note_event(known.key)
    Reconciler(parts).glance()
    assert not any(name.startswith("follow-") for name in board.queue.job_ids)


def test_a_rule_that_moved_is_told_once_its_time_has_come(
    parts: Parts, known: Project, board: Board
) -> None:
    publish(parts.store, known)
    board.ask_follow(known.key, "v1")
    board.note_shown(known.key, "v1", {})
    board.note_moved(known.key, "v1")
    job = f"refresh-{known.key}-v1"
    Reconciler(parts).take_hints(known)
    assert job not in board.queue.job_ids
    soon = Parts(replace(parts.settings, follow_minutes=0.0))
    Reconciler(soon).take_hints(known)
    assert job in board.queue.job_ids
    assert not board.moved(known.key, "v1", 0)


# --- what fails ---


def test_one_project_that_fails_does_not_stop_the_others(
    parts: Parts, known: Project, stand: Stand, board: Board, caplog: pytest.LogCaptureFixture
) -> None:
    first = project(stand.url, "0.1700000000", known.label_config)  # comes first by its key
    parts.store.register(first)
    stand.label(20, minute=0)
    with caplog.at_level(logging.WARNING):
        Reconciler(parts).glance()
    assert first.key in caplog.text
    assert queued(parts, known) is not None


def test_a_fault_of_ours_in_one_project_does_not_stop_the_others(
    parts: Parts,
    known: Project,
    stand: Stand,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    first = project(stand.url, "0.1700000000", known.label_config)
    parts.store.register(first)
    stand.label(20, minute=0)
    reconciler = Reconciler(parts)
    look = reconciler.look

    def faulty(one: Project) -> None:
        if one.key == first.key:
            raise ZeroDivisionError
        look(one)

    monkeypatch.setattr(reconciler, "look", faulty)
    reconciler.glance()
    assert f"unexpected project={first.key}" in caplog.text
    assert queued(parts, known) is not None


def test_it_goes_on_while_label_studio_is_away(
    parts: Parts, known: Project, board: Board, monkeypatch: pytest.MonkeyPatch, stand: Stand
) -> None:
    stand.created_at = "nonsense"
    rounds = iter([False, False, True])
    monkeypatch.setattr(reconcile, "GLANCE", 0.01)
    board.note_event(known.key)
    Reconciler(parts).run(lambda: next(rounds))
    assert next(rounds, None) is None


def test_it_goes_on_while_redis_is_away(
    parts: Parts, known: Project, caplog: pytest.LogCaptureFixture
) -> None:
    lame = Parts(parts.settings)
    vars(lame)["board"] = Board(connect("redis://127.0.0.1:1/0"))
    Reconciler(lame).glance()
    assert "redis is away" in caplog.text
