"""Connecting, disconnecting and forgetting, on a real Label Studio with a recording backend."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cli.connecting import (
    _check_server,
    _shows_something,
    connect_project,
    disconnect_project,
    forget_project,
)
from cli.projects import UsageError
from inference.store import (
    CONNECTED,
    DISCONNECTED,
    GONE,
    UNCONFIRMED,
    UNTRAINED,
    Project,
    project_key,
)
from studio.errors import StudioRequestError
from studio.schemas import project_key as studio_key
from tests.end_to_end.label_studio import RunningLabelStudio, free_port
from tests.inference.small import head_of, seen
from tests.inference.small import publish as publish_with_evidence
from tests.published import TREE, project, publish
from tests.studio.recording_backend import HEADER, PASSWORD, USER, RecordingBackend, running_backend
from tests.studio.servers import Reply, serving
from tests.studio.test_client import CONFIG, fruit
from worker.errors import MisconfiguredError
from worker.parts import Parts
from worker.presence import StillConnectedError
from worker.queue import Board
from worker.settings import Secret, Settings


def nobody(_question: str) -> bool:
    """As where no terminal is."""
    return False


class Yes:
    """Somebody who agrees.

    Attributes:
        asked: the questions, in order.
    """

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, question: str) -> bool:
        self.asked.append(question)
        return True


def test_connecting_needs_our_own_address(settings: Settings) -> None:
    for connecting in (
        lambda parts: connect_project(parts, 1, take_over=False, ask=nobody),
        lambda parts: disconnect_project(parts, 1),
    ):
        with pytest.raises(MisconfiguredError, match="HRN_BACKEND_URL"):
            connecting(Parts(settings))


def test_label_studio_and_the_backend_are_two(settings: Settings) -> None:
    same = replace(
        settings,
        label_studio_url="http://127.0.0.1:9090",
        label_studio_token=Secret("token"),
        backend_url="http://127.0.0.1:9090/",
    )
    with pytest.raises(MisconfiguredError, match="are the same address"):
        connect_project(Parts(same), 1, take_over=False, ask=nobody)


def test_an_unconnected_project_is_forgotten_after_a_yes(settings: Settings, board: Board) -> None:
    parts = Parts(settings)
    known = parts.store.register(project("http://long-gone.example"))
    publish(parts.store, known)
    board.note_event(known.key)
    with pytest.raises(UsageError, match="--yes"):
        forget_project(parts, "1", nobody)
    assert parts.store.versions(known.key) == ["v1"]
    somebody = Yes()
    assert "is forgotten, with 1 version(s)" in forget_project(parts, "1", somebody)
    assert known.key in somebody.asked[0]
    assert parts.store.projects() == []
    assert not list(board.redis.scan_iter(match=f"hrn:{known.key}:*"))


def test_what_a_version_shows_is_judged_by_what_the_project_asks_for_now(
    settings: Settings,
) -> None:
    """`hrn connect` asks whether to hide others' pre-labels only for something to show."""
    parts = Parts(settings)
    known = parts.store.register(project("http://studio.example"))
    assert not _shows_something(parts, known.key, UNTRAINED)
    version = publish_with_evidence(parts.store, known, TREE, head_of(TREE), known=seen())
    assert _shows_something(parts, known.key, version)
    parts.store.save_project(replace(known, target_accuracy=0.999))
    assert parts.store.manifest(known.key, version).calibration["given"] > 0
    assert not _shows_something(parts, known.key, version)
    assert not _shows_something(parts, "no-such-project", version)


# --- on a real Label Studio ---


@pytest.fixture
def backend() -> Iterator[RecordingBackend]:
    with running_backend() as running:
        yield running


@pytest.fixture
def parts(
    label_studio: RunningLabelStudio, backend: RecordingBackend, tmp_path: Path, redis_url: str
) -> Parts:
    """Of a shell in which everything is set right."""
    return Parts(
        Settings(
            home=tmp_path,
            redis_url=redis_url,
            label_studio_url=label_studio.url,
            label_studio_token=Secret(label_studio.legacy_token),
            backend_url=backend.url,
            user=USER,
            password=Secret(PASSWORD),
        )
    )


@pytest.fixture
def number(label_studio: RunningLabelStudio) -> int:
    return label_studio.create_project("Connecting", CONFIG)


def called(parts: Parts, number: int) -> Project:
    """The project's record, as its `/setup` makes it in the store that the server shares."""
    name = studio_key(number, str(parts.studio.settings(number)["created_at"]))
    known = project(parts.settings.label_studio_url, name, CONFIG)
    assert known.key == project_key(parts.settings.label_studio_url, name)
    return parts.store.register(replace(known, state=UNCONFIRMED))


def test_the_running_server_is_asked_before_its_webhook_is_changed(
    parts: Parts, backend: RecordingBackend, number: int
) -> None:
    connect_project(parts, number, take_over=False, ask=nobody)
    before = parts.studio.webhooks(number)
    assert before[0]["headers"] == {"Authorization": HEADER}
    other = Parts(replace(parts.settings, password=Secret("another")))
    with pytest.raises(MisconfiguredError, match="was started with another password") as told:
        connect_project(other, number, take_over=False, ask=nobody)
    assert backend.url in str(told.value)
    assert f"HRN_USER={USER}" in str(told.value)
    assert "another" not in str(told.value).replace("another password", "")
    assert parts.studio.webhooks(number) == before


def test_the_running_server_is_never_asked_through_a_proxy(
    parts: Parts, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with serving(lambda _: Reply(status=403)) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        _check_server(parts, "any")
        assert proxy.requests == []


def test_a_server_that_does_not_run_is_said_so(parts: Parts, number: int) -> None:
    nowhere = replace(parts.settings, backend_url=f"http://127.0.0.1:{free_port()}")
    with pytest.raises(StudioRequestError, match="start `hrn up` first") as told:
        connect_project(Parts(nowhere), number, take_over=False, ask=nobody)
    assert "HTTPConnectionPool" not in str(told.value)
    assert parts.studio.known_backends(number) == []


def test_an_address_of_something_else_is_said_so(parts: Parts, number: int) -> None:
    wrong = replace(parts.settings, backend_url=f"{parts.settings.label_studio_url}/user")
    with pytest.raises(MisconfiguredError, match="is not this backend"):
        connect_project(Parts(wrong), number, take_over=False, ask=nobody)


def test_a_wrong_number_is_answered_with_those_that_are_there(parts: Parts, number: int) -> None:
    with pytest.raises(UsageError, match="has no project 4711000") as told:
        connect_project(parts, 4711000, take_over=False, ask=nobody)
    assert "This account sees these projects: " in str(told.value)
    assert f"{number} (Connecting)" in str(told.value)


def test_a_person_is_asked_where_ours_would_hide_others(
    parts: Parts, backend: RecordingBackend, number: int, board: Board
) -> None:
    row = {"model_version": "clip", "result": fruit("Milk")}
    parts.studio.import_tasks(number, [{"data": {"image": "a.jpg"}, "predictions": [row]}])
    somebody = Yes()
    known = called(parts, number)
    connect_project(parts, number, take_over=False, ask=somebody)
    assert somebody.asked == []  # there is nothing to show yet
    assert parts.studio.settings(number)["model_version"] == "clip"
    backend.version = publish(parts.store, known)
    connect_project(parts, number, take_over=False, ask=nobody)
    assert parts.studio.settings(number)["model_version"] == "clip"
    connect_project(parts, number, take_over=False, ask=somebody)
    assert "'clip' (1 stored)" in somebody.asked[0]
    assert parts.studio.settings(number)["model_version"] == "v1"


def test_what_is_connected_is_disconnected_before_it_is_forgotten(
    parts: Parts, number: int, board: Board
) -> None:
    known = called(parts, number)
    connect_project(parts, number, take_over=False, ask=nobody)
    assert parts.store.projects()[0].state == CONNECTED
    with pytest.raises(StillConnectedError, match=f"hrn disconnect --project {number}"):
        forget_project(parts, str(number), lambda _: True)
    told = disconnect_project(parts, number)
    assert len(told) == 3
    assert told[-1] == "The project shows no pre-labels any more."
    assert parts.store.projects()[0].state == DISCONNECTED
    assert disconnect_project(parts, number) == [
        f"There was nothing of this backend in project {number}."
    ]
    forget_project(parts, str(number), lambda _: True)
    assert parts.store.project(known.key) is None


def test_a_project_that_is_gone_cannot_be_disconnected_but_forgotten(
    parts: Parts, board: Board
) -> None:
    known = parts.store.register(
        replace(project(parts.settings.label_studio_url, "4711000.5"), state=GONE)
    )
    with pytest.raises(UsageError, match="`hrn forget --project 4711000`"):
        disconnect_project(parts, 4711000)
    parts.store.note_state(known.key, CONNECTED)  # before the reconciler has noticed
    forget_project(parts, "4711000", lambda _: True)
    assert parts.store.projects() == []


def test_whether_it_is_connected_must_be_known(settings: Settings, board: Board) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    away = Parts(replace(settings, label_studio_url=url, label_studio_token=Secret("0" * 40)))
    away.store.register(project(url))
    vars(away)["studio"] = away.studio.__class__(url, "0" * 40, retries=0)
    with pytest.raises(StillConnectedError, match="not known whether project 1 is still connected"):
        forget_project(away, "1", lambda _: True)
