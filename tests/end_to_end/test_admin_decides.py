"""What an admin decides in a real Label Studio holds here: a backend removed, a project deleted."""

from __future__ import annotations

import base64
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from models.store import CONNECTED, DISCONNECTED, GONE, UNCONFIRMED, Project
from tests.end_to_end.backend import HRN, RunningBackend
from tests.end_to_end.campaign import taxonomy
from tests.end_to_end.label_studio import RunningLabelStudio
from tests.end_to_end.shop import Annotator, Shop, open_shop
from tests.published import TREE, publish
from tests.studio.configs import taxonomy_xml
from worker import reconcile
from worker.doctor import examine_projects
from worker.order import Order
from worker.reconcile import Reconciler

pytestmark = [pytest.mark.slow, pytest.mark.label_studio]


@pytest.fixture(scope="module")
def shop(label_studio: RunningLabelStudio, backend: RunningBackend, shared: Path) -> Shop:
    """Eight photos, connected."""
    return open_shop(label_studio, backend, shared / "data" / "grocery", 8, "Taken away")


def record(shop: Shop) -> Project:
    found = shop.parts.store.project(shop.key)
    assert found is not None
    return found


def wrong(shop: Shop) -> list[str]:
    """What doctor finds wrong with the project."""
    found = examine_projects(shop.parts)
    return [one.what for number, one in found if number == shop.number and not one.ok]


def live(shop: Shop) -> str:
    """A version without a training, made live."""
    parts = shop.parts
    fingerprint = parts.galleries.backbone().fingerprint
    return publish(parts.store, record(shop), fingerprint=fingerprint)


def test_a_removed_backend_ends_trainings_and_pre_labels(shop: Shop) -> None:
    """Label Studio leaves its webhook behind, whose events ask for a training."""
    client, board = shop.studio.client(), shop.parts.board
    assert record(shop).state == CONNECTED
    shop.backend.until(lambda: None not in shop.listed().values(), 60, "an order")
    requests.delete(
        f"{client.url}/api/ml/{client.known_backends(shop.number)[0]['id']}",
        headers=dict(client.authorization()),
        timeout=30,
    ).raise_for_status()
    assert client.webhooks(shop.number)
    for task in list(shop.truth)[:2]:
        client.create_annotation(task, taxonomy(shop.truth[task]))
    version = live(shop)
    board.ask_refresh(shop.key, version)
    board.ask(Order(shop.key, "many new labels"))
    ended = shop.backend.until(lambda: board.runs(shop.key), 60, "what came of the training")
    assert ended[0]["state"] == "disconnected"
    assert "hrn connect" in ended[0]["why"]
    shop.backend.until(lambda: board.depth() == 0, 30, "the pre-label sync")
    Reconciler(shop.parts).look(record(shop))  # `hrn up` does so once a minute
    assert client.webhooks(shop.number) == []
    rows = [
        row["model_version"] for task in client.tasks(shop.number) for row in task["predictions"]
    ]
    assert set(rows) == {"untrained"}
    assert shop.parts.store.versions(shop.key) == [version]


def test_what_is_disconnected_is_said_and_is_nothing_wrong(shop: Shop) -> None:
    status = shop.backend.hrn("status")
    assert f"Project {shop.number} is disconnected" in status
    assert f"`hrn connect --project {shop.number}` brings it back" in status
    assert wrong(shop) == []
    with pytest.raises(RuntimeError, match="is disconnected"):
        shop.backend.hrn("train", "--project", str(shop.number))
    body = {
        "action": "START_TRAINING",
        "project": shop.studio.client().project(shop.number),
    }
    reply = requests.post(
        f"{shop.backend.url}/webhook", json=body, auth=shop.backend.auth, timeout=10
    )
    assert reply.status_code == 409
    assert "is disconnected" in reply.json()["detail"]


def test_it_comes_back_by_connect_and_goes_by_disconnect(shop: Shop) -> None:
    told = shop.backend.hrn("connect", "--project", str(shop.number))
    assert "is registered" in told
    assert "The webhook now carries the password and is sent only for" in told
    assert record(shop).state == CONNECTED
    assert shop.parts.studio.settings(shop.number)["model_version"] == "v1"
    told = shop.backend.hrn("disconnect", "--project", str(shop.number))
    assert "removed from the project" in told
    assert "Its webhook is removed" in told
    assert "Its versions stay (1)" in told
    client = shop.studio.client()
    assert (client.known_backends(shop.number), client.webhooks(shop.number)) == ([], [])
    assert record(shop).state == DISCONNECTED


def test_a_deleted_project_is_gone_after_several_looks_and_can_be_forgotten(shop: Shop) -> None:
    backend, key = shop.backend, shop.key
    backend.hrn("connect", "--project", str(shop.number))
    parts, client = shop.parts, shop.studio.client()
    requests.delete(
        f"{client.url}/api/projects/{shop.number}",
        headers=dict(client.authorization()),
        timeout=30,
    ).raise_for_status()
    ours = Reconciler(parts)
    for _ in range(reconcile.LOOKS_UNTIL_GONE - 1):
        ours.look(record(shop))
    assert record(shop).state == CONNECTED
    ours.look(record(shop))
    assert record(shop).state == GONE
    assert wrong(shop) == []
    assert f"Project {shop.number} is not in Label Studio any more" in backend.hrn("status")
    assert parts.store.versions(key) == ["v1"]
    with pytest.raises(RuntimeError, match="--yes"):
        backend.hrn("forget", "--project", str(shop.number))
    backend.hrn("forget", "--project", str(shop.number), "--yes")
    assert parts.store.project(key) is None
    assert parts.store.versions(key) == []
    assert not list(parts.board.redis.scan_iter(match=f"hrn:{key}:*"))


def test_an_invented_project_is_forgotten(
    backend: RunningBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = {"project": "987654.1795440233", "schema": taxonomy_xml(TREE), "hostname": ""}
    requests.post(
        f"{backend.url}/setup", json=body, auth=backend.auth, timeout=10
    ).raise_for_status()
    parts = backend.parts()
    (made,) = [one for one in parts.store.projects() if one.number == 987654]
    assert made.state == UNCONFIRMED
    monkeypatch.setattr(reconcile, "SETTLE", 0.0)
    Reconciler(parts).look(made)
    assert parts.store.project(made.key) is None


# --- pre-annotations that were imported ---


@pytest.fixture(scope="module")
def imported(
    label_studio: RunningLabelStudio, backend: RunningBackend
) -> Iterator[tuple[int, RunningBackend]]:
    """A project whose three tasks were imported with a pre-annotation each."""
    number = label_studio.create_project("Imported", taxonomy_xml(TREE))
    rows: list[dict[str, Any]] = [
        {
            "data": {"image": f"http://images.invalid/{place}.jpg"},
            "predictions": [{"model_version": "clip-zeroshot", "result": taxonomy(("Milk",))}],
        }
        for place in range(3)
    ]
    label_studio.client().import_tasks(number, rows)
    yield number, backend
    backend.hrn("disconnect", "--project", str(number), status=None)
    backend.hrn("forget", "--project", str(number), "--yes", status=None)


def shown(studio: RunningLabelStudio, number: int) -> list[tuple[str, bool]]:
    """Version of each pre-label that the next task shows, and whether it holds a label."""
    task = Annotator(studio).next_task(number)
    return [(row["model_version"], bool(row["result"])) for row in task["predictions"]]


def test_imported_pre_annotations_stay_while_we_have_nothing_to_show(
    label_studio: RunningLabelStudio, imported: tuple[int, RunningBackend]
) -> None:
    number, backend = imported
    assert shown(label_studio, number) == [("clip-zeroshot", True)]
    told = backend.hrn("connect", "--project", str(number))
    assert "goes on showing the pre-labels 'clip-zeroshot' (3 stored)" in told
    assert "--take-over" in told
    assert shown(label_studio, number) == [("clip-zeroshot", True)]
    parts = backend.parts()
    (known,) = [one for one in parts.store.projects() if one.number == number]
    Reconciler(parts).look(known)  # `hrn up` does so once a minute
    assert shown(label_studio, number) == [("clip-zeroshot", True)]
    found = {one.code: one for _, one in examine_projects(parts, number)}
    assert all(one.ok for one in found.values())
    assert "tasks come by the scores of those that are shown" in found["model_version"].what


def test_ours_are_shown_once_the_admin_agrees_and_another_choice_is_kept(
    label_studio: RunningLabelStudio, imported: tuple[int, RunningBackend]
) -> None:
    number, backend = imported
    parts, client = backend.parts(), label_studio.client()
    (known,) = [one for one in parts.store.projects() if one.number == number]
    publish(parts.store, known)
    Reconciler(parts).look(known)
    assert client.known_backends(number)[0]["title"] == "v1"
    assert client.settings(number)["model_version"] == "clip-zeroshot"
    told = backend.hrn("connect", "--project", str(number))  # nobody to ask
    assert client.settings(number)["model_version"] == "clip-zeroshot"
    told = backend.hrn("connect", "--project", str(number), "--take-over")
    assert "'clip-zeroshot' (3 stored) are hidden now, not deleted" in told
    assert client.settings(number)["model_version"] == "v1"
    client.update_project(number, {"model_version": "clip-zeroshot"})
    publish(parts.store, known)
    Reconciler(parts).look(known)
    assert client.settings(number)["model_version"] == "clip-zeroshot"
    assert client.known_backends(number)[0]["title"] == "v2"


def test_a_disconnected_project_shows_the_imported_ones_again(
    label_studio: RunningLabelStudio, imported: tuple[int, RunningBackend]
) -> None:
    number, backend = imported
    backend.hrn("connect", "--project", str(number), "--take-over")
    told = backend.hrn("disconnect", "--project", str(number))
    assert "now shows the stored pre-labels 'clip-zeroshot' (3)" in told
    assert shown(label_studio, number) == [("clip-zeroshot", True)]


# --- another password ---


def test_connecting_with_another_password_is_refused_and_changes_nothing(
    label_studio: RunningLabelStudio, backend: RunningBackend
) -> None:
    number = label_studio.create_project("Password", taxonomy_xml(TREE))
    backend.hrn("connect", "--project", str(number))
    client = label_studio.client()
    before = client.webhooks(number), client.known_backends(number)
    done = subprocess.run(
        [HRN, "connect", "--project", str(number)],
        env={**os.environ, **backend.environment, "HRN_PASSWORD": "another"},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 1
    assert backend.url in done.stderr
    assert "HRN_PASSWORD" in done.stderr
    assert (client.webhooks(number), client.known_backends(number)) == before
    name = base64.b64encode(":".join(backend.auth).encode()).decode()
    assert before[0][0]["headers"]["Authorization"] == f"Basic {name}"
    backend.hrn("disconnect", "--project", str(number))
    backend.hrn("forget", "--project", str(number), "--yes")
