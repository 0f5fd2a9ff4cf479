"""Connecting a project to a backend, on a real Label Studio with a recording backend."""

from __future__ import annotations

from typing import Any

import pytest
import requests

from studio.client import LabelStudio
from studio.errors import LabelConfigError, StudioRequestError
from studio.project_setup import ACTIONS, announce
from tests.end_to_end.label_studio import RunningLabelStudio
from tests.studio.recording_backend import HEADER, RecordingBackend, join, running_backend
from tests.studio.test_client import CONFIG, fruit

pytestmark = pytest.mark.label_studio


@pytest.fixture
def project(label_studio: RunningLabelStudio) -> int:
    return label_studio.create_project("connection", CONFIG)


def connected(client: LabelStudio, project: int, backend: RecordingBackend) -> tuple[str, ...]:
    """What connecting changed."""
    return join(client, project, backend).changes


def scored_tasks(client: LabelStudio, project: int, *scores: float) -> list[int]:
    """Tasks with a stored prediction of v1 each."""
    rows = [{"data": {"image": f"http://images.invalid/{n}"}} for n in range(len(scores))]
    ids = client.import_tasks(project, rows)
    predictions = [
        {"task": task, "result": [], "score": score, "model_version": "v1"}
        for task, score in zip(ids, scores, strict=True)
    ]
    client.import_predictions(project, predictions)
    return ids


def next_task(studio: RunningLabelStudio, project: int) -> dict[str, Any]:
    """The task that the label stream brings next."""
    with studio.session() as session:
        reply = session.get(f"{studio.url}/api/projects/{project}/next", timeout=60)
    reply.raise_for_status()
    task: dict[str, Any] = reply.json()
    return task


def test_connecting_sets_everything_up(
    client: LabelStudio, project: int, backend: RecordingBackend
) -> None:
    changes = connected(client, project, backend)
    assert any(backend.url in change for change in changes)
    (row,) = client.known_backends(project)
    assert (row["title"], row["state"], row["auth_method"]) == ("untrained", "CO", "BASIC_AUTH")
    (hook,) = client.webhooks(project)
    assert hook["url"] == f"{backend.url}/webhook"
    assert hook["headers"] == {"Authorization": HEADER}
    assert set(hook["actions"]) == set(ACTIONS)
    assert not hook["send_for_all_actions"]
    settings = client.settings(project)
    assert settings["model_version"] == "untrained"
    assert settings["show_collab_predictions"]
    assert settings["sampling"] == "Uncertainty sampling"
    assert [view["data"]["title"] for view in client.views(project)] == [
        "Default",
        "Most useful first",
        "Surest first",
    ]


def test_a_second_run_changes_nothing(
    client: LabelStudio, project: int, backend: RecordingBackend
) -> None:
    assert connected(client, project, backend)
    before = client.webhooks(project), client.views(project), client.settings(project)
    done = join(client, project, backend, slash="/")
    assert done.changes == ()
    assert "nothing changed" in str(done)
    assert (client.webhooks(project), client.views(project), client.settings(project)) == before


def test_events_and_start_training_arrive_with_the_password(
    client: LabelStudio, project: int, backend: RecordingBackend
) -> None:
    connected(client, project, backend)
    ids = client.import_tasks(project, [{"data": {"image": "http://images.invalid/1"}}])
    client.create_annotation(ids[0], fruit("Milk"))
    client.start_training(client.known_backends(project)[0]["id"])
    assert backend.events()[-3:] == ["TASKS_CREATED", "ANNOTATION_CREATED", "START_TRAINING"]
    assert backend.refused() == []


def test_stream_and_tabs_begin_with_the_least_sure(
    label_studio: RunningLabelStudio, client: LabelStudio, project: int, backend: RecordingBackend
) -> None:
    """A skipped task stays open; the sync gives it the highest score."""
    backend.version = "v1"
    connected(client, project, backend)
    ids = scored_tasks(client, project, 0.9, 0.6, 0.2, 0.7, 1.0)
    backend.scores = dict(zip(ids, (0.9, 0.6, 0.2, 0.7, 1.0), strict=True))
    assert next_task(label_studio, project)["id"] == ids[2]
    client.create_annotation(ids[1], fruit("Milk"))
    client.create_annotation(ids[4], [], skipped=True)
    found = {task["id"]: task for task in client.tasks(project, unlabelled_only=True)}
    assert set(found) == {*ids} - {ids[1]}
    assert [one["was_cancelled"] for one in found[ids[4]]["annotations"]] == [True]
    tabs = {row["data"]["title"]: row["id"] for row in client.views(project)}
    assert tabbed(client, tabs["Most useful first"]) == [ids[2], ids[3], ids[0], ids[4]]
    assert tabbed(client, tabs["Surest first"]) == [ids[0], ids[3], ids[2]]


def tabbed(client: LabelStudio, tab: int) -> list[int]:
    """The tasks a tab of the Data Manager lists."""
    address = f"{client.url}/api/tasks"
    headers = dict(client.authorization())
    reply = requests.get(address, params={"view": tab}, headers=headers, timeout=30)
    return [task["id"] for task in reply.json()["tasks"]]


def test_a_webhook_without_password_is_repaired(
    client: LabelStudio, project: int, backend: RecordingBackend
) -> None:
    """And only that: other headers of an admin stay."""
    connected(client, project, backend)
    (hook,) = client.webhooks(project)
    client.update_webhook(
        hook["id"], url=hook["url"], actions=["PROJECT_UPDATED"], headers={"X-Mine": "1"}
    )
    (change,) = connected(client, project, backend)
    assert "carries no password" in change
    assert "ANNOTATION_CREATED" in change
    (hook,) = client.webhooks(project)
    assert hook["headers"] == {"Authorization": HEADER, "X-Mine": "1"}
    assert set(hook["actions"]) == set(ACTIONS)


def test_a_webhook_that_is_gone_is_made_again_and_double_ones_are_removed(
    client: LabelStudio, project: int, backend: RecordingBackend
) -> None:
    """Deleting a backend leaves its webhook behind; adding it again makes another."""
    connected(client, project, backend)
    client.delete_webhook(client.webhooks(project)[0]["id"])
    assert connected(client, project, backend) == (
        "Events now go to the backend (a webhook, with its password).",
    )
    assert client.webhooks(project)[0]["headers"] == {"Authorization": HEADER}
    url = f"{backend.url}/webhook"
    client.create_webhook(project, url=url, actions=ACTIONS, headers={})
    other = client.create_webhook(project, url="http://other.invalid/", actions=[], headers={})
    assert connected(client, project, backend) == (
        "A second webhook to the same address is removed.",
    )
    assert [row["id"] for row in client.webhooks(project) if row["url"] != url] == [other["id"]]


def test_a_version_that_came_meanwhile_becomes_the_title(
    client: LabelStudio, project: int, backend: RecordingBackend
) -> None:
    connected(client, project, backend)
    backend.version = "v1"
    (change,) = connected(client, project, backend)
    assert "it was called 'untrained'" in change
    assert client.settings(project)["model_version"] == "v1"


def test_a_new_password_is_taken_over(
    client: LabelStudio, project: int, backend: RecordingBackend
) -> None:
    """Label Studio does not tell the password it has: that its calls fail must do."""
    connected(client, project, backend)
    backend.password = "Basic aHJuOm5ldw=="  # hrn:new
    done = join(client, project, backend, "new")
    assert len(done.changes) == 2
    assert client.backends(project)[0]["state"] == "CO"
    assert client.webhooks(project)[0]["headers"] == {"Authorization": backend.password}


def test_pre_labels_switched_off_are_switched_on(
    client: LabelStudio, project: int, backend: RecordingBackend
) -> None:
    connected(client, project, backend)
    client.update_project(project, {"show_collab_predictions": False})
    assert not client.settings(project)["model_version"]
    assert len(connected(client, project, backend)) == 2
    assert client.settings(project)["show_collab_predictions"]
    assert client.settings(project)["model_version"] == "untrained"


def test_tabs_of_others_stay(client: LabelStudio, project: int, backend: RecordingBackend) -> None:
    client.create_view(project, {"title": "Mine", "type": "list", "target": "tasks"})
    connected(client, project, backend)
    assert [view["data"]["title"] for view in client.views(project)] == [
        "Mine",
        "Most useful first",
        "Surest first",
    ]


def test_what_an_admin_should_know_is_reported(
    client: LabelStudio, project: int, backend: RecordingBackend
) -> None:
    """A first backend that is not ours is the only one Label Studio asks."""
    with running_backend() as first:
        connected(client, project, first)
        client.update_project(project, {"start_training_on_annotation_update": True})
        done = join(client, project, backend)
    notes = "\n".join(done.remarks)
    assert first.url in notes
    assert "every Submit" in notes


def test_labels_that_are_no_tree_change_nothing(
    label_studio: RunningLabelStudio, client: LabelStudio, backend: RecordingBackend
) -> None:
    config = '<View><Image name="image" value="$image"/><TextArea name="t" toName="image"/></View>'
    project = label_studio.create_project("no tree", config)
    with pytest.raises(LabelConfigError):
        connected(client, project, backend)
    assert client.known_backends(project) == []


def test_a_backend_that_is_not_there_is_reported(client: LabelStudio, project: int) -> None:
    with running_backend() as backend:
        pass
    with pytest.raises(StudioRequestError, match="health check failed"):
        connected(client, project, backend)


def test_a_wrong_password_does_not_take_the_place_of_the_right_one(
    client: LabelStudio, project: int, backend: RecordingBackend
) -> None:
    """Label Studio tries it on the backend before the webhook is changed."""
    connected(client, project, backend)
    before = client.webhooks(project)
    with pytest.raises(
        StudioRequestError, match=r"turns away the user and password .*HRN_PASSWORD"
    ):
        join(client, project, backend, "another")
    assert client.webhooks(project) == before


# --- announce ---


def test_a_new_version_becomes_the_title_once_and_the_password_stays(
    client: LabelStudio, project: int, backend: RecordingBackend
) -> None:
    connected(client, project, backend)
    assert backend.server is not None
    before = len(backend.server.requests)
    assert announce(client, project, backend.url, "untrained") == ()
    assert len(backend.server.requests) == before  # nobody is called
    backend.version = "v1"
    assert len(announce(client, project, backend.url, "v1")) == 1
    (row,) = client.known_backends(project)
    assert (row["title"], row["model_version"], row["state"]) == ("v1", "v1", "CO")
    assert client.settings(project)["model_version"] == "v1"
    client.backends(project)
    assert backend.refused() == []


def test_an_earlier_version_of_ours_is_replaced_and_that_of_others_stays(
    client: LabelStudio, project: int, backend: RecordingBackend
) -> None:
    connected(client, project, backend)
    (task,) = client.import_tasks(project, [{"data": {"image": "http://images.invalid/1"}}])
    row = {"task": task, "result": [], "score": 0.5, "model_version": "v0"}
    client.import_predictions(project, [row])
    client.update_project(project, {"model_version": "v0"})
    assert announce(client, project, backend.url, "untrained") == ()
    assert client.settings(project)["model_version"] == "v0"
    assert announce(client, project, backend.url, "untrained", {"v0"})
    assert client.settings(project)["model_version"] == "untrained"


def test_pre_labels_switched_off_by_an_admin_stay_off(
    client: LabelStudio, project: int, backend: RecordingBackend
) -> None:
    connected(client, project, backend)
    client.update_project(project, {"show_collab_predictions": False})
    backend.version = "v1"
    announce(client, project, backend.url, "v1")
    settings = client.settings(project)
    assert not settings["show_collab_predictions"]
    assert not settings["model_version"]


def test_a_backend_that_is_not_connected_cannot_be_announced(
    client: LabelStudio, project: int
) -> None:
    with pytest.raises(StudioRequestError, match="connect it first") as caught:
        announce(client, project, "http://backend.invalid", "v1")
    assert caught.value.status == 404
