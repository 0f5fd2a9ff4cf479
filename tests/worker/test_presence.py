"""A project that was taken away: what counts as that, and what an outage must not do."""

import logging
from dataclasses import replace

import pytest

from inference.store import CONNECTED, DISCONNECTED, GONE, UNCONFIRMED, Project
from tests.published import publish
from tests.worker.stand import Stand
from worker import reconcile
from worker.doctor import examine
from worker.jobs import train_once
from worker.order import Order
from worker.parts import Parts
from worker.prelabel_sync import Synced, SyncState, sync_prelabels
from worker.presence import sentence, words
from worker.queue import Board
from worker.reconcile import LOOKS_UNTIL_GONE, Reconciler

OURS = "http://backend.example:9090"


@pytest.fixture
def parts(parts: Parts) -> Parts:
    """Parts that know their own address."""
    made = Parts(replace(parts.settings, backend_url=OURS))
    vars(made)["board"] = parts.board
    return made


@pytest.fixture
def known(known: Project, stand: Stand) -> Project:
    """A project that is connected."""
    stand.backends = [{"id": 1, "url": OURS, "title": "untrained"}]
    stand.hooks = [
        {"id": 7, "url": f"{OURS}/webhook"},
        {"id": 8, "url": "http://other.example/webhook"},
    ]
    return known


def state(parts: Parts, known: Project) -> Project:
    found = parts.store.project(known.key)
    assert found is not None
    return found


def test_a_backend_that_is_registered_is_noted_with_its_address(
    parts: Parts, known: Project, stand: Stand
) -> None:
    Reconciler(parts).look(known)
    now = state(parts, known)
    assert (now.state, now.backend) == (CONNECTED, OURS)
    assert words(now) is None


def test_a_backend_that_was_removed_is_disconnected_and_said_once(
    parts: Parts, known: Project, stand: Stand, board: Board, caplog: pytest.LogCaptureFixture
) -> None:
    stand.label(30, minute=0)
    stand.backends = []
    board.ask(Order(known.key))
    ours = Reconciler(parts)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            ours.look(state(parts, known))
    assert state(parts, known).state == DISCONNECTED
    assert caplog.text.count("is disconnected") == 1
    assert [hook["id"] for hook in stand.hooks] == [8]
    assert board.depth() == 0


def test_events_of_a_webhook_that_is_left_ask_for_nothing(
    parts: Parts, known: Project, stand: Stand, board: Board
) -> None:
    parts.store.note_state(known.key, DISCONNECTED)
    stand.backends = []
    for _ in range(30):
        board.note_event(known.key)
    board.note_tasks(known.key)
    Reconciler(parts).glance()
    assert board.depth() == 0


def test_what_stands_in_the_queue_ends_before_it_has_read_a_label(
    parts: Parts, known: Project, stand: Stand
) -> None:
    stand.label(30, minute=0)
    publish(parts.store, known)
    stand.backends = []
    ended = train_once(Order(known.key), parts, "train-1")
    assert ended["state"] == "disconnected"
    assert f"`hrn connect --project {known.number}`" in ended["why"]
    assert state(parts, known).state == DISCONNECTED
    assert sync_prelabels(known.key, "v1", parts) == Synced(SyncState.DISCONNECTED)
    assert stand.stored == []


def test_another_backend_in_our_place_is_no_reason_to_go_on(
    parts: Parts, known: Project, stand: Stand
) -> None:
    ours = Reconciler(parts)
    ours.look(known)
    stand.backends = [{"id": 2, "url": "http://other.example", "title": "sam"}]
    ours.look(state(parts, known))
    assert state(parts, known).state == DISCONNECTED


def test_a_backend_under_another_name_of_ours_may_be_this_one(
    parts: Parts, known: Project, stand: Stand
) -> None:
    """As where HRN_BACKEND_URL was changed, or was never right: doctor tells of that."""
    stand.backends = [{"id": 2, "url": "http://alias.example:9090", "title": "untrained"}]
    Reconciler(parts).look(known)
    assert state(parts, known).state == CONNECTED
    parts.store.note_state(known.key, CONNECTED, "http://alias.example:9090")
    Reconciler(parts).look(state(parts, known))
    assert state(parts, known).state == CONNECTED


def test_a_backend_that_is_registered_again_is_taken_up_again(
    parts: Parts, known: Project, stand: Stand, board: Board
) -> None:
    there, stand.backends = stand.backends, []
    ours = Reconciler(parts)
    ours.look(known)
    stand.backends = there
    ours.look(state(parts, known))
    assert state(parts, known).state == CONNECTED
    assert board.queue.job_ids == [f"refresh-{known.key}-untrained"]


def test_a_project_is_gone_after_several_looks_and_comes_back_by_itself(
    parts: Parts, known: Project, stand: Stand
) -> None:
    publish(parts.store, known)
    ours = Reconciler(parts)
    stand.listed = False
    for _ in range(LOOKS_UNTIL_GONE - 1):
        ours.look(known)
    assert state(parts, known).state == CONNECTED
    ours.look(known)
    assert state(parts, known).state == GONE
    assert parts.store.versions(known.key) == ["v1"]
    stand.listed = True
    ours.look(state(parts, known))
    assert state(parts, known).state == CONNECTED


def test_a_look_that_finds_it_begins_the_count_again(
    parts: Parts, known: Project, stand: Stand
) -> None:
    ours = Reconciler(parts)
    for _ in range(3):
        stand.listed = False
        for _ in range(LOOKS_UNTIL_GONE - 1):
            ours.look(known)
        stand.listed = True
        ours.look(known)
    assert state(parts, known).state == CONNECTED


def test_a_disconnected_project_is_gone_after_several_looks_too(
    parts: Parts, known: Project, stand: Stand
) -> None:
    stand.backends = []
    ours = Reconciler(parts)
    for _ in range(LOOKS_UNTIL_GONE + 3):
        ours.look(state(parts, known))
    created, stand.created_at = stand.created_at, "2027-01-01T00:00:00Z"
    ours.look(state(parts, known))
    assert state(parts, known).state == DISCONNECTED
    stand.created_at = created


def test_an_outage_is_no_end_of_a_project(
    parts: Parts, known: Project, stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    monkeypatch.setattr(reconcile, "LOOK", 0.0)
    stand.away = True
    ours = Reconciler(parts)
    for _ in range(LOOKS_UNTIL_GONE + 1):
        ours.glance()
    assert state(parts, known).state == CONNECTED


def test_a_project_whose_events_come_is_only_not_to_be_seen(
    parts: Parts, known: Project, stand: Stand, board: Board, caplog: pytest.LogCaptureFixture
) -> None:
    """The token's account may not see it, which Label Studio answers as if it were not there."""
    ours = Reconciler(parts)
    stand.listed = False
    ours.look(known)
    board.note_event(known.key)
    for _ in range(LOOKS_UNTIL_GONE):
        ours.look(known)
    assert state(parts, known).state == CONNECTED
    assert "set LABEL_STUDIO_API_KEY" in caplog.text


def test_a_project_that_was_only_named_is_forgotten_unless_it_has_versions(
    parts: Parts, known: Project, stand: Stand, board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts.store.note_state(known.key, UNCONFIRMED)
    board.note_event(known.key)
    stand.listed = False
    ours = Reconciler(parts)
    ours.glance()
    assert state(parts, known).state == UNCONFIRMED
    monkeypatch.setattr(reconcile, "SETTLE", 0.0)
    monkeypatch.setattr(reconcile, "RETRY", 0.0)
    publish(parts.store, known)
    Reconciler(parts).look(state(parts, known))
    assert state(parts, known).state == GONE
    parts.store.note_state(known.key, UNCONFIRMED)
    parts.store.forget(known.key)
    parts.store.register(replace(known, state=UNCONFIRMED))
    Reconciler(parts).look(state(parts, known))
    assert parts.store.project(known.key) is None
    assert not list(board.redis.scan_iter(match=f"hrn:{known.key}:*"))


def test_a_project_that_is_being_connected_is_waited_for(
    parts: Parts, known: Project, stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Label Studio calls `/setup` before it registers a backend, and makes its webhook."""
    parts.store.note_state(known.key, UNCONFIRMED)
    there, stand.backends = stand.backends, []
    monkeypatch.setattr(reconcile, "RETRY", 0.0)
    ours = Reconciler(parts)
    ours.glance()
    assert state(parts, known).state == UNCONFIRMED
    assert len(stand.hooks) == 2
    stand.backends = there
    ours.glance()
    assert state(parts, known).state == CONNECTED
    parts.store.note_state(known.key, UNCONFIRMED)
    stand.backends = []
    monkeypatch.setattr(reconcile, "SETTLE", 0.0)
    ours.glance()
    assert state(parts, known).state == DISCONNECTED


@pytest.mark.parametrize("one", [UNCONFIRMED, DISCONNECTED, GONE])
def test_each_state_says_what_to_do(known: Project, one: str) -> None:
    for since in (0.0, 1.8e9):
        told = sentence(replace(known, state=one, since=since))
        assert f"Project {known.number}" in told
        assert "`hrn " in told
    assert sentence(known) == ""


@pytest.mark.parametrize("one", [DISCONNECTED, GONE])
def test_doctor_finds_no_fault_with_a_project_that_was_taken_away(
    parts: Parts, known: Project, one: str
) -> None:
    """Its images are not tried, which could only fail."""
    parts.store.note_state(known.key, one)
    found = [finding for finding in examine(parts) if finding.code in ("left", "images", "project")]
    assert [(finding.code, finding.ok) for finding in found] == [("left", True)]
