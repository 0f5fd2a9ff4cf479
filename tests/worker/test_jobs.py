"""What the queue runs: every way a training ends is recorded in words for people."""

import time

import pytest

from cli.services import as_environment
from inference.store import Project
from studio.client import LabelStudio
from studio.http_client import RetryLimits
from tests.published import publish
from tests.worker.stand import LEGACY, Stand
from worker import jobs
from worker.order import Order
from worker.parts import Parts
from worker.queue import FINE_TUNE, FOLLOW, REFRESH, Board
from worker.settings import Settings
from worker.taking import ALLOWED

QUICK = RetryLimits(backoff=0.01)


@pytest.fixture
def away(parts: Parts, stand: Stand) -> Parts:
    """Parts whose Label Studio does not answer, and a client that soon gives up."""
    stand.away = True
    vars(parts)["studio"] = LabelStudio(stand.url, LEGACY, retries=0, limits=QUICK)
    return parts


def test_label_studio_down_puts_a_training_off_for_growing_times_then_fails_it(
    away: Parts, known: Project, board: Board
) -> None:
    for attempt in range(jobs.MOST_ATTEMPTS):
        outcome = jobs.train_once(Order(known.key, attempt=attempt), away, f"train-{attempt}")
        pause = 30 * 2**attempt
        assert outcome["state"] == "postponed"
        assert outcome["why"].endswith(f"tried again in {pause} s")
        (request,) = board.wishes(known.key)
        assert request["order"]["attempt"] == attempt + 1
        assert request["not_before"] == pytest.approx(time.time() + pause, abs=20)
        board.drop_due(known.key)
    outcome = jobs.train_once(Order(known.key, attempt=jobs.MOST_ATTEMPTS), away, "train-last")
    assert outcome["state"] == "failed"
    assert "503" in outcome["why"]
    assert "tried 6 times" in outcome["why"]
    assert board.wishes(known.key) == []
    assert board.runs(known.key)[0]["why"] == outcome["why"]


def test_a_project_that_never_called_is_told_to_connect(parts: Parts, board: Board) -> None:
    outcome = jobs.train_once(Order("studio-9-9"), parts, "train-1")
    assert outcome["state"] == "misconfigured"
    assert "connect it first" in outcome["why"]


@pytest.mark.slow
def test_too_few_labels_are_told_and_count_as_read(
    parts: Parts, known: Project, board: Board, stand: Stand
) -> None:
    stand.label(1, minute=7)
    outcome = jobs.train_once(Order(known.key, "asked"), parts, "train-1")
    assert outcome["state"] == "too few labels"
    (run,) = board.runs(known.key)
    assert (run["job"], run["reason"], run["state"]) == ("train-1", "asked", "too few labels")
    assert board.attempted(known.key).through == stand.tasks[0]["annotations"][0]["updated_at"]


def test_a_label_config_without_a_tree_fails_a_training_with_its_reason(
    parts: Parts, known: Project, board: Board, stand: Stand
) -> None:
    stand.label_config = "<View/>"
    outcome = jobs.train_once(Order(known.key), parts, "train-1")
    assert outcome["state"] == "failed"
    assert "Taxonomy" in outcome["why"]


def test_a_cancelled_training_says_so(parts: Parts, known: Project, board: Board) -> None:
    board.redis.set(f"hrn:{known.key}:cancel", "train-1")
    assert jobs.train_once(Order(known.key), parts, "train-1")["state"] == "cancelled"


def test_an_unexpected_error_is_recorded_and_raised(
    parts: Parts, known: Project, board: Board, stand: Stand
) -> None:
    vars(parts)["studio"] = None
    with pytest.raises(AttributeError):
        jobs.train_once(Order(known.key), parts, "train-1")
    (run,) = board.runs(known.key)
    assert run["state"] == "failed"
    assert "unexpected AttributeError" in run["why"]
    assert "train-1" in run["why"]


def test_what_waits_is_queued_however_a_training_ends(
    parts: Parts, known: Project, board: Board
) -> None:
    vars(parts)["studio"] = None
    board._set(known.key, "again", {"id": "train-2", "order": Order(known.key).to_json()})
    with pytest.raises(AttributeError):
        jobs.train_once(Order(known.key), parts, "train-1")
    assert board.state(known.key) == ("queued", "train-2")


def test_a_refresh_of_a_version_that_is_not_live_does_nothing(
    known: Project, parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment(parts.settings, monkeypatch)
    assert jobs.refresh(known.key, "v1") == {"state": "outdated", "stored": 0}


def test_a_refresh_with_nothing_open_loads_nothing(
    known: Project, parts: Parts, stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(parts.store, known)
    stand.label(2, minute=0)
    environment(parts.settings, monkeypatch)
    assert jobs.refresh(known.key, "v1") == {"state": "done", "stored": 0}


def test_a_refresh_that_label_studio_refuses_stops_with_its_reason(
    known: Project, parts: Parts, stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(parts.store, known)
    environment(parts.settings, monkeypatch)
    monkeypatch.setenv("LABEL_STUDIO_URL", f"{stand.url}/nowhere")
    outcome = jobs.refresh(known.key, "v1")
    assert outcome["state"] == "stopped"
    assert "404" in outcome["why"] or "/nowhere" in outcome["why"]


def test_following_where_nothing_was_answered_loads_nothing(
    known: Project, parts: Parts, stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(parts.store, known)
    stand.label(2, minute=0)
    environment(parts.settings, monkeypatch)
    ended = jobs.follow(known.key, "v1")
    assert (ended["state"], ended["answers"]) == ("done", 0)
    assert jobs.follow(known.key, "v2")["state"] == "outdated"


def test_following_goes_on_when_label_studio_is_back(
    known: Project,
    parts: Parts,
    stand: Stand,
    board: Board,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    publish(parts.store, known)
    environment(parts.settings, monkeypatch)
    monkeypatch.setenv("LABEL_STUDIO_URL", "http://127.0.0.1:1")
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)
    ended = jobs.follow(known.key, "v1")
    assert ended["state"] == "stopped"
    assert board.take_heard(known.key)


def test_following_that_label_studio_refuses_waits_for_the_next_look(
    known: Project, parts: Parts, stand: Stand, board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(parts.store, known)
    environment(parts.settings, monkeypatch)
    monkeypatch.setenv("LABEL_STUDIO_URL", f"{stand.url}/nowhere")
    assert jobs.follow(known.key, "v1")["state"] == "stopped"
    assert not board.take_heard(known.key)


def test_a_queue_entry_reads_its_settings_from_the_environment(
    known: Project, parts: Parts, stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment(parts.settings, monkeypatch)
    stand.label_config = "<View/>"
    outcome = jobs.fine_tune(Order(known.key).to_json())
    assert (outcome["job"], outcome["state"]) == ("by-hand", "failed")


def environment(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables that make these settings."""
    for name, value in as_environment(settings).items():
        monkeypatch.setenv(name, value)


def test_jobs_are_named_as_the_queue_asks_for_them() -> None:
    names = {
        f"{job.__module__}.{job.__name__}" for job in (jobs.fine_tune, jobs.refresh, jobs.follow)
    }
    assert names == {FINE_TUNE, REFRESH, FOLLOW} == ALLOWED
