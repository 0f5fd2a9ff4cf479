"""The page of a project's connection: what `hrn disconnect` and `hrn forget` do, in the browser."""

import html
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from flask.testing import FlaskClient

from inference.store import CONNECTED, DISCONNECTED, GONE, UNCONFIRMED, Project
from tests.backend.console.conftest import PASSWORD, Post
from tests.published import TREE, project, publish
from tests.studio.configs import taxonomy_xml
from tests.studio.servers import serving
from tests.worker.stand import LEGACY, Stand
from worker.order import Order
from worker.parts import Parts
from worker.queue import Board
from worker.settings import Secret, Settings

OURS = "http://backend.example:9090"


@pytest.fixture
def stand() -> Iterator[Stand]:
    """A Label Studio that uses this backend, and another one, for its project."""
    made = Stand()
    made.backends = [{"id": 1, "url": OURS, "title": "v1"}]
    made.hooks = [
        {"id": 7, "url": f"{OURS}/webhook"},
        {"id": 8, "url": "http://other.example/webhook"},
    ]
    with serving(made) as server:
        made.server = server
        yield made


@pytest.fixture
def console_parts(tmp_path: Path, redis_url: str, stand: Stand) -> Parts:
    return Parts(
        Settings(
            home=tmp_path,
            redis_url=redis_url,
            label_studio_url=stand.url,
            label_studio_token=Secret(LEGACY),
            backend_url=OURS,
            console_password=Secret(PASSWORD),
            device="cpu",
        )
    )


@pytest.fixture
def known(console_parts: Parts, stand: Stand) -> Project:
    """The stand's project, connected, with two versions."""
    made = project(stand.url, xml=taxonomy_xml(TREE))
    console_parts.store.register(replace(made, title="Birds"))
    now = console_parts.store.note_state(made.key, CONNECTED, OURS)
    assert now is not None
    publish(console_parts.store, now)
    publish(console_parts.store, now)
    return now


def page_of(client: FlaskClient, known: Project, rest: str = "") -> str:
    """Without markup, as it is read."""
    text = client.get(f"/console/projects/{known.key}/connection{rest}").text
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", text.split("<main")[1])))


def test_a_project_is_disconnected_in_label_studio_and_keeps_its_versions(
    post: Post, admin: FlaskClient, known: Project, stand: Stand, console_parts: Parts, board: Board
) -> None:
    told = page_of(admin, known)
    assert "Label Studio asks this backend for pre-labels" in told
    assert f"at {OURS}" in told
    assert "Disconnect it first" in told
    board.ask(Order(known.key, "asked"))
    reply = post(f"/console/projects/{known.key}/connection/disconnect")
    assert f"Birds is disconnected. The backend at {OURS} is removed" in reply.text
    assert (stand.backends, [hook["id"] for hook in stand.hooks]) == ([], [8])
    now = console_parts.store.project(known.key)
    assert now is not None
    assert now.state == DISCONNECTED
    assert console_parts.store.versions(known.key) == ["v1", "v2"]
    assert board.wishes(known.key) == []
    told = page_of(admin, known)
    assert "is disconnected: this backend is not among those" in told
    assert "Disconnect Birds" not in told
    assert "Forget …" in told


def test_the_question_says_what_goes_and_what_stays(admin: FlaskClient, known: Project) -> None:
    told = page_of(admin, known, "/forget")
    assert "Forget Birds? This cannot be undone." in told
    goes, stays = told.split("What is removed")[1].split("What stays")
    assert "2 versions, v1 to v2, with their weights, figures and notes" in goes
    assert "labels, images and stored pre-labels: they are in Label Studio" in stays
    assert "It is still connected: disconnect it first" in told
    assert "Forget Birds " not in told  # no button that would be refused


def test_what_is_connected_is_not_forgotten(
    post: Post, known: Project, console_parts: Parts, stand: Stand
) -> None:
    forget = f"/console/projects/{known.key}/connection/forget"
    assert "Nothing was removed" in post(forget).text
    stand.away = True  # nor is one of which nobody knows
    vars(console_parts)["studio"] = console_parts.studio.__class__(stand.url, LEGACY, retries=0)
    assert "it is not known whether project 1 is still connected" in post(forget).text
    assert console_parts.store.versions(known.key) == ["v1", "v2"]


@pytest.mark.parametrize("state", [DISCONNECTED, GONE])
def test_a_project_that_was_left_is_forgotten(
    post: Post,
    admin: FlaskClient,
    known: Project,
    console_parts: Parts,
    board: Board,
    state: str,
) -> None:
    console_parts.store.note_state(known.key, state)
    board.note_event(known.key)
    assert "Forget Birds Keep it" in page_of(admin, known, "/forget")
    reply = post(f"/console/projects/{known.key}/connection/forget")
    assert reply.request.path == "/console"
    assert "Birds is forgotten, with 2 versions. Its labels are in Label Studio." in reply.text
    assert console_parts.store.projects() == []
    assert not list(board.redis.scan_iter(match=f"hrn:{known.key}:*"))


def test_a_project_that_label_studio_does_not_know_can_only_be_forgotten(
    post: Post, known: Project, console_parts: Parts, stand: Stand
) -> None:
    stand.listed = False
    console_parts.store.note_state(known.key, UNCONFIRMED)
    told = post(f"/console/projects/{known.key}/connection/disconnect").text
    assert "Nothing was changed" in told
    assert "It can be forgotten" in told
    assert "is forgotten" in post(f"/console/projects/{known.key}/connection/forget").text


def test_a_project_of_another_label_studio_is_not_looked_for_in_this_one(
    admin: FlaskClient, post: Post, console_parts: Parts, stand: Stand
) -> None:
    other = console_parts.store.register(project("http://elsewhere.example"))
    told = page_of(admin, other)
    assert "belongs to another Label Studio" in told
    assert "Disconnect" not in told
    reply = post(f"/console/projects/{other.key}/connection/disconnect")
    assert "Nothing was changed" in reply.text
    assert [row["id"] for row in stand.backends] == [1]
