"""What an admin decides in a real Label Studio holds here: a backend removed, a project deleted.

Our server and Redis are real as well; jobs and the reconciler's looks are run one by one, in place
of waiting for those that `hrn up` runs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests
from werkzeug.serving import make_server

from backend.app import create_app
from cli import projects
from cli.connecting import connect_project, disconnect_project, forget_project
from cli.projects import UsageError
from inference.store import CONNECTED, DISCONNECTED, GONE, UNCONFIRMED, Project
from studio.client import LabelStudio
from tests.end_to_end.campaign import photos, taxonomy
from tests.end_to_end.label_studio import RunningLabelStudio, free_port
from tests.end_to_end.shop import Annotator
from tests.published import TREE, publish
from tests.redis import redis_url
from tests.studio.configs import taxonomy_xml
from worker import reconcile
from worker.doctor import examine_projects
from worker.errors import MisconfiguredError
from worker.jobs import train_once
from worker.order import Order
from worker.parts import Parts
from worker.prelabel_sync import Synced, SyncState, sync_prelabels
from worker.presence import DisconnectedError
from worker.reconcile import Reconciler
from worker.settings import Secret, Settings

__all__ = ["redis_url"]

pytestmark = [pytest.mark.slow, pytest.mark.label_studio]

AUTH = ("label-studio", "open sesame")


@pytest.fixture(scope="module")
def parts(
    label_studio: RunningLabelStudio, tmp_path_factory: pytest.TempPathFactory, redis_url: str
) -> Iterator[Parts]:
    """Of a server that listens."""
    port = free_port()
    made = Parts(
        Settings(
            home=tmp_path_factory.mktemp("home"),
            redis_url=redis_url,
            label_studio_url=label_studio.url,
            label_studio_token=Secret(label_studio.personal_token()),
            backend_url=f"http://127.0.0.1:{port}",
            user=AUTH[0],
            password=Secret(AUTH[1]),
            device="cpu",
        )
    )
    server = make_server("127.0.0.1", port, create_app(made), threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield made
    server.shutdown()
    thread.join(60)
    server.server_close()


def nobody(_question: str) -> bool:
    """As where no terminal is."""
    return False


def connected(parts: Parts, number: int, *, take_over: bool = False) -> str:
    """What `hrn connect` prints."""
    return str(connect_project(parts, number, take_over=take_over, ask=nobody))


def record(parts: Parts, number: int) -> Project:
    (found,) = [one for one in parts.store.projects() if one.number == number]
    return found


def wrong(parts: Parts, number: int) -> list[str]:
    """What doctor finds wrong with the project."""
    found = examine_projects(parts)
    return [one.what for project, one in found if project == number and not one.ok]


def delete(client: LabelStudio, path: str) -> None:
    """As the web pages do."""
    headers = dict(client.authorization())
    requests.delete(f"{client.url}{path}", headers=headers, timeout=30).raise_for_status()


def names(client: LabelStudio, number: int) -> set[str]:
    """Versions of all predictions that are stored."""
    return {row["model_version"] for task in client.tasks(number) for row in task["predictions"]}


# --- a backend that is removed, a project that is deleted ---


@pytest.fixture(scope="module")
def number(label_studio: RunningLabelStudio, parts: Parts, shared: Path) -> int:
    """A project of three photos, connected, in the order of work."""
    made = label_studio.create_project("Taken away", taxonomy_xml(TREE))
    connected(parts, made)
    files = [photo.file for photo in photos(shared / "data" / "grocery" / "train")[:3]]
    label_studio.upload(made, files)
    key = record(parts, made).key
    assert sync_prelabels(key, "untrained", parts) == Synced(SyncState.DONE, 3)
    return made


def test_a_removed_backend_ends_trainings_and_pre_labels(parts: Parts, number: int) -> None:
    """Label Studio leaves its webhook behind, whose events ask for a training."""
    client, known = parts.studio, record(parts, number)
    assert known.state == CONNECTED
    delete(client, f"/api/ml/{client.known_backends(number)[0]['id']}")
    assert client.webhooks(number)
    task = next(client.tasks(number))["id"]
    before, _ = parts.board.events(known.key)
    client.create_annotation(task, taxonomy(("Milk",)))
    assert parts.board.events(known.key)[0] == before + 1
    version = publish(parts.store, known, fingerprint=parts.extractors.base().fingerprint)
    assert sync_prelabels(known.key, version, parts) == Synced(SyncState.DISCONNECTED, 0)
    ended = train_once(Order(known.key, "many new labels"), parts, "train-1")
    assert ended["state"] == "disconnected"
    assert "hrn connect" in ended["why"]
    ours = Reconciler(parts)
    ours.glance()
    ours.glance()
    assert client.webhooks(number) == []
    assert parts.board.queue.job_ids == []
    assert names(client, number) == {"untrained"}
    assert record(parts, number).state == DISCONNECTED


def test_what_is_disconnected_is_said_and_is_nothing_wrong(parts: Parts, number: int) -> None:
    known = record(parts, number)
    told = projects.describe(projects.project_status(parts, known))
    assert f"Project {number} is disconnected" in told
    assert f"`hrn connect --project {number}` brings it back" in told
    assert wrong(parts, number) == []
    with pytest.raises(DisconnectedError, match="is disconnected"):
        projects.ask_training(parts, known, Order(known.key))
    body = {"action": "START_TRAINING", "project": parts.studio.project(number)}
    url = f"{parts.settings.backend_url}/webhook"
    reply = requests.post(url, json=body, auth=AUTH, timeout=10)
    assert reply.status_code == 409
    assert "is disconnected" in reply.json()["detail"]


def test_it_comes_back_by_connect_and_goes_by_disconnect(parts: Parts, number: int) -> None:
    told = connected(parts, number)
    assert "is registered" in told
    assert "The webhook now carries the password and is sent only for" in told
    assert "set right" not in told
    assert record(parts, number).state == CONNECTED
    assert parts.studio.settings(number)["model_version"] == "v1"
    told = "\n".join(disconnect_project(parts, number))
    assert "removed from the project" in told
    assert "Its webhook is removed" in told
    assert "Its versions stay (1)" in told
    assert (parts.studio.known_backends(number), parts.studio.webhooks(number)) == ([], [])
    assert record(parts, number).state == DISCONNECTED


def test_a_deleted_project_is_gone_after_several_looks_and_can_be_forgotten(
    parts: Parts, number: int
) -> None:
    connected(parts, number)
    key = record(parts, number).key
    delete(parts.studio, f"/api/projects/{number}")
    ours = Reconciler(parts)
    for _ in range(reconcile.LOOKS_UNTIL_GONE - 1):
        ours.look(record(parts, number))
    assert record(parts, number).state == CONNECTED
    ours.look(record(parts, number))
    assert record(parts, number).state == GONE
    assert wrong(parts, number) == []
    told = projects.describe(projects.project_status(parts, record(parts, number)))
    assert f"Project {number} is not in Label Studio any more" in told
    assert parts.store.versions(key) == ["v1"]
    with pytest.raises(UsageError, match="--yes"):
        forget_project(parts, str(number), nobody)
    forget_project(parts, str(number), lambda _: True)
    assert (parts.store.project(key), parts.store.versions(key)) == (None, [])
    assert not list(parts.board.redis.scan_iter(match=f"hrn:{key}:*"))


def test_an_invented_project_is_forgotten(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    body = {"project": "987654.1795440233", "schema": taxonomy_xml(TREE), "hostname": ""}
    url = f"{parts.settings.backend_url}/setup"
    requests.post(url, json=body, auth=AUTH, timeout=10).raise_for_status()
    made = record(parts, 987654)
    assert made.state == UNCONFIRMED
    monkeypatch.setattr(reconcile, "SETTLE", 0.0)
    Reconciler(parts).look(made)
    assert parts.store.project(made.key) is None


# --- pre-annotations that were imported ---


@pytest.fixture(scope="module")
def imported(label_studio: RunningLabelStudio) -> int:
    """A project whose three tasks were imported with a pre-annotation each."""
    made = label_studio.create_project("Imported", taxonomy_xml(TREE))
    rows: list[dict[str, Any]] = [
        {
            "data": {"image": f"http://images.invalid/{place}.jpg"},
            "predictions": [{"model_version": "clip-zeroshot", "result": taxonomy(("Milk",))}],
        }
        for place in range(3)
    ]
    label_studio.client().import_tasks(made, rows)
    return made


@pytest.fixture(scope="module")
def shown(label_studio: RunningLabelStudio, imported: int) -> Callable[[], list[tuple[str, bool]]]:
    """Version of each pre-label that the next task shows, and whether it holds a label."""
    annotator = Annotator(label_studio)

    def look() -> list[tuple[str, bool]]:
        task = annotator.next_task(imported)
        return [(row["model_version"], bool(row["result"])) for row in task["predictions"]]

    return look


Shown = Callable[[], list[tuple[str, bool]]]
THEIRS = [("clip-zeroshot", True)]


def test_imported_pre_annotations_stay_while_we_have_nothing_to_show(
    parts: Parts, imported: int, shown: Shown
) -> None:
    assert shown() == THEIRS
    told = connected(parts, imported)
    assert "goes on showing the pre-labels 'clip-zeroshot' (3 stored)" in told
    assert "--take-over" in told
    assert shown() == THEIRS
    Reconciler(parts).look(record(parts, imported))  # `hrn up` does so once a minute
    assert shown() == THEIRS
    found = {one.code: one for _, one in examine_projects(parts, imported)}
    assert all(one.ok for one in found.values())
    assert "tasks come by the scores of those that are shown" in found["model_version"].what


def test_ours_are_shown_once_the_admin_agrees_and_another_choice_is_kept(
    parts: Parts, imported: int
) -> None:
    client, known = parts.studio, record(parts, imported)
    publish(parts.store, known)
    Reconciler(parts).look(known)
    assert client.known_backends(imported)[0]["title"] == "v1"
    connected(parts, imported)  # there is nobody to ask
    assert client.settings(imported)["model_version"] == "clip-zeroshot"
    told = connected(parts, imported, take_over=True)
    assert "'clip-zeroshot' (3 stored) are hidden now, not deleted" in told
    assert client.settings(imported)["model_version"] == "v1"
    client.update_project(imported, {"model_version": "clip-zeroshot"})
    publish(parts.store, known)
    Reconciler(parts).look(known)
    assert client.settings(imported)["model_version"] == "clip-zeroshot"
    assert client.known_backends(imported)[0]["title"] == "v2"


def test_a_disconnected_project_shows_the_imported_ones_again(
    parts: Parts, imported: int, shown: Shown
) -> None:
    connected(parts, imported, take_over=True)
    told = "\n".join(disconnect_project(parts, imported))
    assert "now shows the stored pre-labels 'clip-zeroshot' (3)" in told
    assert shown() == THEIRS


# --- another password ---


def test_connecting_with_another_password_is_refused_and_changes_nothing(
    label_studio: RunningLabelStudio, parts: Parts
) -> None:
    made = label_studio.create_project("Password", taxonomy_xml(TREE))
    connected(parts, made)
    before = parts.studio.webhooks(made), parts.studio.known_backends(made)
    for password in ("another", ""):
        other = Parts(replace(parts.settings, password=Secret(password)))
        with pytest.raises(MisconfiguredError, match="nothing was changed") as told:
            connected(other, made)
        assert parts.settings.backend_url in str(told.value)
    assert (parts.studio.webhooks(made), parts.studio.known_backends(made)) == before
