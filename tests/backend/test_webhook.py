"""POST /webhook: events are noted at once, trainings asked for, and nothing is done here."""

import contextlib
import json
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from backend.app import create_app
from backend.services import Services
from studio.schemas import WebhookCall
from tests.published import TREE
from tests.studio.configs import taxonomy_xml
from worker.parts import Parts
from worker.queue import Board

RECORDED = (
    "ANNOTATION_CREATED",
    "ANNOTATION_CREATED_skipped_task",
    "ANNOTATION_UPDATED",
    "ANNOTATIONS_CREATED",
    "ANNOTATIONS_DELETED",
    "TASKS_CREATED",
    "TASKS_DELETED",
    "PROJECT_UPDATED",
    "START_TRAINING",
)

#: Those that no training follows from, however many there are.
SILENT = ("PROJECT_UPDATED", "START_TRAINING")


def recorded(shared: Path, name: str) -> dict[str, Any]:
    """A body as Label Studio sent it, its label config made whole again."""
    page = shared / "label-studio" / f"webhook_{name}.json"
    body: dict[str, Any] = json.loads(page.read_text(encoding="utf-8"))["request_body"]
    body["project"]["label_config"] = taxonomy_xml(TREE)
    return body


def key(parts: Parts, body: dict[str, Any]) -> str:
    """Of the project this body tells of."""
    asked = WebhookCall.from_json(body).project_key
    assert asked is not None
    return Services(parts).key(asked)


@pytest.mark.parametrize("name", RECORDED)
def test_every_recorded_event_is_answered_with_201(
    client: FlaskClient, parts: Parts, board: Board, shared: Path, name: str
) -> None:
    body = recorded(shared, name)
    body["project"]["id"] = 4000 + RECORDED.index(name)
    reply = client.post("/webhook", json=body)
    assert reply.status_code == 201
    count, last = board.events(key(parts, body))
    assert count == (0 if name in SILENT else 1)
    assert (last is None) == (name in SILENT)
    assert board.depth() == (1 if name == "START_TRAINING" else 0)


def test_start_training_tells_the_job(
    client: FlaskClient, parts: Parts, board: Board, shared: Path
) -> None:
    body = recorded(shared, "START_TRAINING")
    first = client.post("/webhook", json=body).get_json()
    again = client.post("/webhook", json=body).get_json()
    assert first["status"] == "queued"
    assert again == {"job": first["job"], "status": "waiting"}
    assert board.state(key(parts, body)) == ("queued", first["job"])


def test_a_skip_asks_for_another_order(
    client: FlaskClient, parts: Parts, board: Board, shared: Path
) -> None:
    body = recorded(shared, "ANNOTATION_CREATED")
    client.post("/webhook", json=body)
    assert not board.take_new_tasks(key(parts, body))
    client.post("/webhook", json=recorded(shared, "ANNOTATION_CREATED_skipped_task"))
    assert board.take_new_tasks(key(parts, body))


def test_new_tasks_want_pre_labels(
    client: FlaskClient, parts: Parts, board: Board, shared: Path
) -> None:
    body = recorded(shared, "TASKS_CREATED")
    client.post("/webhook", json=body)
    assert board.take_new_tasks(key(parts, body))
    assert not board.take_new_tasks(key(parts, body))


@pytest.mark.parametrize("name", RECORDED)
def test_without_redis_only_a_training_is_refused(
    without_redis: FlaskClient, shared: Path, name: str
) -> None:
    reply = without_redis.post("/webhook", json=recorded(shared, name))
    if name == "START_TRAINING":
        assert reply.status_code == 503
        assert "Redis" in reply.get_json()["detail"]
    else:
        assert reply.status_code == 201


def test_a_redis_that_does_not_answer_is_not_asked_at_every_event(
    parts: Parts, shared: Path
) -> None:
    """Else a storm of events would hold every thread for seconds."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        lame = Parts(replace(parts.settings, redis_url=f"redis://127.0.0.1:{port}/0"))
        client = create_app(lame).test_client()
        body = recorded(shared, "ANNOTATION_CREATED")
        assert client.post("/webhook", json=body).status_code == 201
        silent.settimeout(0)
        tried = _waiting(silent)
        assert tried
        for _ in range(3):
            assert client.post("/webhook", json=body).status_code == 201
        assert not _waiting(silent)


def _waiting(server: socket.socket) -> int:
    """Connections that were made since this was last asked."""
    count = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            server.accept()[0].close()
            count += 1
    return count


def test_where_no_redis_is_set_events_are_still_taken(
    bare: Callable[..., FlaskClient], shared: Path
) -> None:
    client = bare()
    assert client.post("/webhook", json=recorded(shared, "ANNOTATION_CREATED")).status_code == 201
    reply = client.post("/webhook", json=recorded(shared, "START_TRAINING"))
    assert reply.status_code == 503
    assert "REDIS_URL" in reply.get_json()["detail"]


@pytest.mark.parametrize(
    "body",
    [{"action": "ANNOTATION_CREATED"}, {"action": "SOMETHING_NEW", "project": {"id": 1}}],
    ids=["no project", "not known"],
)
def test_events_that_tell_nothing_are_taken(
    bare: Callable[..., FlaskClient], body: dict[str, Any]
) -> None:
    assert bare().post("/webhook", json=body).status_code == 201


def test_an_event_without_an_action_is_refused(bare: Callable[..., FlaskClient]) -> None:
    reply = bare().post("/webhook", json={"project": {"id": 1}})
    assert reply.status_code == 400
    assert reply.get_json()["detail"].startswith("action: expected a string")
