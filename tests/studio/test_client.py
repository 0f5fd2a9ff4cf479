"""The client's calls: their shapes on a small server, their effects on a real Label Studio."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import requests
from PIL import Image

from studio.client import BasicAuth, LabelStudio
from studio.errors import StudioRefusedError, StudioRequestError, StudioUnavailableError
from studio.http_client import RetryLimits
from tests.end_to_end.label_studio import RunningLabelStudio
from tests.studio.servers import Reply, Request, script, serving

LEGACY = "0123456789abcdef0123456789abcdef01234567"
QUICK = RetryLimits(backoff=0.01)
CONFIG = """<View><Image name="image" value="$image"/><Taxonomy name="label" toName="image">
<Choice value="Fruit"><Choice value="Apple"/><Choice value="Pear"/></Choice><Choice value="Milk"/>
</Taxonomy></View>"""


def fruit(*path: str) -> list[dict[str, Any]]:
    """A result that names one node."""
    value = {"taxonomy": [list(path)]}
    return [{"from_name": "label", "to_name": "image", "type": "taxonomy", "value": value}]


class TaskList:
    """Answers `GET /api/tasks` as Label Studio does, from a list that others change meanwhile."""

    def __init__(self, ids: list[int], between: Callable[[list[int]], None] | None = None) -> None:
        self.ids, self.between, self.queries = ids, between, list[dict[str, Any]]()

    def __call__(self, request: Request) -> Reply:
        assert request.params["page"] == "1"
        items = json.loads(request.params["query"])["filters"]["items"]
        after = next(item["value"] for item in items if item["filter"] == "filter:tasks:id")
        left = [task for task in self.ids if task > after]
        page = left[: min(int(request.params["page_size"]), 3)]  # a server may cap the page
        if self.between:
            self.between(self.ids)
        return Reply({"total": len(left), "tasks": [{"id": task} for task in page]})


def listed(answer: Callable[[Request], Reply]) -> list[int]:
    with serving(answer) as server:
        return [task["id"] for task in LabelStudio(server.url, LEGACY).tasks(1)]


# --- shapes, on a small server ---


def test_tasks_come_page_by_page() -> None:
    assert listed(TaskList(list(range(1, 8)))) == [1, 2, 3, 4, 5, 6, 7]


def test_an_empty_project_has_no_tasks() -> None:
    assert listed(TaskList([])) == []


def test_tasks_deleted_meanwhile_hide_no_others() -> None:
    """With numbered pages, deleting two seen tasks would shift two unseen ones out of sight."""

    def delete(ids: list[int]) -> None:
        for task in (1, 2):
            if task in ids:
                ids.remove(task)

    assert listed(TaskList(list(range(1, 8)), delete)) == [1, 2, 3, 4, 5, 6, 7]


def test_a_server_that_does_not_filter_by_id_is_noticed() -> None:
    page = Reply({"total": 9, "tasks": [{"id": 1}]})
    with pytest.raises(StudioRequestError, match=r"needs version 1\.23"):
        listed(script(page))


def test_both_kinds_of_task_at_once_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="ask for one"):
        LabelStudio("http://studio", LEGACY).tasks(1, annotated_only=True, unlabelled_only=True)


def test_a_time_that_is_none_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="yesterday"):
        LabelStudio("http://studio", LEGACY).tasks(1, updated_after="yesterday")


@pytest.mark.parametrize("reply", [Reply([1]), Reply({"tasks": [1], "total": 1}), Reply("text")])
def test_a_list_of_another_shape_is_reported(reply: Reply) -> None:
    with serving(script(reply)) as server, pytest.raises(StudioRequestError, match="was expected"):
        list(LabelStudio(server.url, LEGACY).tasks(1))


def test_projects_are_read_to_the_last_page() -> None:
    def answer(request: Request) -> Reply:
        page = int(request.params["page"])
        return Reply({"next": "more" if page < 3 else None, "results": [{"id": page}]})

    with serving(answer) as server:
        found = [row["id"] for row in LabelStudio(server.url, LEGACY).projects()]
    assert found == [1, 2, 3]


def test_limits_reach_the_calls() -> None:
    with serving(script(Reply(status=500))) as server:
        client = LabelStudio(server.url, LEGACY, retries=1, limits=QUICK)
        with pytest.raises(StudioUnavailableError, match="2 tries"):
            client.version()


def test_predictions_are_not_sent_twice() -> None:
    with serving(script(Reply(status=502))) as server:
        with pytest.raises(StudioUnavailableError):
            LabelStudio(server.url, LEGACY, limits=QUICK).import_predictions(1, [{"task": 1}])
        assert len(server.requests) == 1


def test_a_prediction_is_changed_in_place() -> None:
    with serving(script(Reply({}))) as server:
        LabelStudio(server.url, LEGACY).update_prediction(7, fruit("Milk"), score=0.5)
    (request,) = server.requests
    assert (request.method, request.path) == ("PATCH", "/api/predictions/7/")
    assert request.json == {"result": fruit("Milk"), "score": 0.5}


def test_a_prediction_that_is_gone_already_is_no_error_to_remove() -> None:
    with serving(script(Reply(b"", 204), Reply({}, 404))) as server:
        client = LabelStudio(server.url, LEGACY)
        client.delete_prediction(7)
        client.delete_prediction(7)
    assert [(one.method, one.path) for one in server.requests] == [
        ("DELETE", "/api/predictions/7/")
    ] * 2


def test_a_removal_that_is_refused_is_reported() -> None:
    with serving(script(Reply({}, 400))) as server, pytest.raises(StudioRequestError):
        LabelStudio(server.url, LEGACY).delete_prediction(7)


def test_no_secret_is_printed() -> None:
    client = LabelStudio("http://studio/", LEGACY)
    assert repr(client) == "LabelStudio('http://studio')"
    assert "open sesame" not in repr(BasicAuth("hrn", "open sesame"))


# --- effects, on a real Label Studio ---


@pytest.fixture(scope="module")
def project(label_studio: RunningLabelStudio) -> int:
    return label_studio.create_project("client", CONFIG)


@pytest.fixture(scope="module")
def tasks(label_studio: RunningLabelStudio, project: int) -> list[int]:
    """Eleven tasks; the first answered, the second skipped, the third both."""
    client = label_studio.client()
    urls = [f"http://images.invalid/{number}.jpg" for number in range(10)]
    ids = label_studio.import_urls(project, [*urls, "s3://bucket/a.jpg"])
    client.create_annotation(ids[0], fruit("Fruit"))
    client.create_annotation(ids[1], [], skipped=True)
    client.create_annotation(ids[2], fruit("Fruit", "Apple"), ground_truth=True)
    client.create_annotation(ids[2], [], skipped=True)
    return ids


@pytest.mark.label_studio
def test_the_server_names_its_version(label_studio: RunningLabelStudio) -> None:
    assert label_studio.client().version() == "1.23.2"


@pytest.mark.label_studio
def test_both_kinds_of_token_sign_in(label_studio: RunningLabelStudio) -> None:
    for token in (label_studio.legacy_token, label_studio.personal_token()):
        assert label_studio.client(token).whoami()["email"] == label_studio.user


@pytest.mark.label_studio
def test_the_personal_token_opens_uploads(label_studio: RunningLabelStudio, tmp_path: Path) -> None:
    """The image fetcher sends the same header."""
    project = label_studio.create_project("uploads", CONFIG)
    paths = [tmp_path / f"{name}.png" for name in ("a", "b")]
    for path in paths:
        Image.new("RGB", (4, 4), "red").save(path)
    ids = label_studio.upload(project, paths)
    client = label_studio.client(label_studio.personal_token())
    address = label_studio.url + client.task(ids[1])["data"]["image"]
    assert requests.get(address, timeout=10).status_code == 401
    reply = requests.get(address, headers=dict(client.authorization()), timeout=10)
    assert reply.content == paths[1].read_bytes()


@pytest.mark.label_studio
def test_legacy_tokens_switched_off_are_distinguished(label_studio: RunningLabelStudio) -> None:
    label_studio.allow_tokens(legacy=False, personal=True)
    try:
        with pytest.raises(StudioRefusedError, match="switch them on under"):
            label_studio.client().whoami()
    finally:
        label_studio.allow_tokens(legacy=True, personal=True)
    assert label_studio.client().whoami()["email"] == label_studio.user


@pytest.mark.label_studio
def test_personal_tokens_switched_off_are_distinguished(label_studio: RunningLabelStudio) -> None:
    """Label Studio goes on trading them, but does not accept what it gave."""
    token = label_studio.personal_token()
    label_studio.allow_tokens(legacy=True, personal=False)
    try:
        with pytest.raises(StudioRefusedError, match="had just issued"):
            label_studio.client(token).whoami()
    finally:
        label_studio.allow_tokens(legacy=True, personal=True)


@pytest.mark.label_studio
def test_unknown_tokens_are_refused(label_studio: RunningLabelStudio) -> None:
    with pytest.raises(StudioRefusedError, match="does not know this legacy token"):
        label_studio.client("f" * 40).whoami()
    with pytest.raises(StudioRefusedError, match="refused the personal access token"):
        label_studio.client("eyJ.eyJ.x").whoami()


@pytest.mark.label_studio
def test_a_project_that_is_not_there(label_studio: RunningLabelStudio) -> None:
    client = label_studio.client()
    for call in (client.project, client.settings):
        with pytest.raises(StudioRequestError) as caught:
            call(10**6)
        assert caught.value.status == 404


@pytest.mark.label_studio
def test_settings_are_part_of_the_project(label_studio: RunningLabelStudio, project: int) -> None:
    client = label_studio.client()
    settings, whole = client.settings(project), client.project(project)
    assert settings == {field: whole[field] for field in settings}
    assert settings["label_config"] == CONFIG
    assert project in [row["id"] for row in client.projects()]


@pytest.mark.label_studio
def test_tasks_all_come_in_order(
    label_studio: RunningLabelStudio, project: int, tasks: list[int]
) -> None:
    found = list(label_studio.client().tasks(project, page_size=4))
    assert [task["id"] for task in found] == tasks
    assert [len(task["annotations"]) for task in found[:4]] == [1, 1, 2, 0]
    assert found[0]["annotations"][0]["result"] == fruit("Fruit")


@pytest.mark.label_studio
def test_task_data_comes_as_stored(
    label_studio: RunningLabelStudio, project: int, tasks: list[int]
) -> None:
    """Without `resolve_uri=false` an `s3://` address may come as a link through Label Studio."""
    last = list(label_studio.client().tasks(project))[-1]
    assert last["data"]["image"] == "s3://bucket/a.jpg"


@pytest.mark.label_studio
def test_the_newest_task(label_studio: RunningLabelStudio, project: int, tasks: list[int]) -> None:
    client = label_studio.client()
    assert client.newest_task(project) == tasks[-1]
    assert client.newest_task(label_studio.create_project("no tasks yet", CONFIG)) == 0


@pytest.mark.label_studio
def test_tasks_by_annotation(
    label_studio: RunningLabelStudio, project: int, tasks: list[int]
) -> None:
    client = label_studio.client()
    done = [task["id"] for task in client.tasks(project, annotated_only=True, page_size=1)]
    rest = [task["id"] for task in client.tasks(project, unlabelled_only=True, page_size=3)]
    assert done == [tasks[0], tasks[2]]
    assert rest == [tasks[1], *tasks[3:]]


@pytest.mark.label_studio
def test_tasks_by_time(label_studio: RunningLabelStudio, tmp_path: Path) -> None:
    """What an annotation's making, change or end brings up, and an imported prediction does not."""
    client = label_studio.client()
    project = label_studio.create_project("times", CONFIG)
    ids = label_studio.import_urls(project, [f"http://images.invalid/{n}" for n in range(4)])
    old = client.create_annotation(ids[0], fruit("Milk"))
    new = client.create_annotation(ids[1], fruit("Milk"))

    def since(moment: str) -> list[int]:
        return [task["id"] for task in client.tasks(project, updated_after=moment)]

    assert since(old["updated_at"]) == [ids[0], ids[1]]
    assert since(new["updated_at"]) == [ids[1]]
    after = client.task(ids[1])["updated_at"]
    assert since(after) == []
    client.import_predictions(project, [{"task": ids[2], "result": [], "model_version": "v1"}])
    assert since(after) == []
    with label_studio.session() as session:
        address = f"{label_studio.url}/api/annotations/{old['id']}/"
        session.delete(address, timeout=30).raise_for_status()
    assert since(after) == [ids[0]]
    assert since(datetime.fromisoformat(after).strftime("%Y-%m-%d")) == ids


@pytest.mark.label_studio
def test_predictions_are_stored_and_returned(label_studio: RunningLabelStudio) -> None:
    client = label_studio.client()
    project = label_studio.create_project("predictions", CONFIG)
    ids = label_studio.import_urls(project, [f"http://images.invalid/{n}" for n in range(3)])
    rows = [
        {"task": task, "result": fruit("Fruit"), "score": 0.25, "model_version": version}
        for task in ids
        for version in ("v1", "v2")
    ]
    assert client.import_predictions(project, rows) == 6
    found = client.predictions_of(ids[1])
    assert {(row["model_version"], row["score"]) for row in found} == {("v1", 0.25), ("v2", 0.25)}
    assert client.prediction_counts(project) == {"v1": 3, "v2": 3}


@pytest.mark.label_studio
def test_a_changed_prediction_keeps_its_id_for_who_has_it_open(
    label_studio: RunningLabelStudio,
) -> None:
    client = label_studio.client()
    project = label_studio.create_project("changed", CONFIG)
    (task,) = label_studio.import_urls(project, ["http://images.invalid/1"])
    row = {"task": task, "result": fruit("Fruit"), "score": 0.25, "model_version": "v1"}
    client.import_predictions(project, [row])
    (before,) = client.predictions_of(task)
    client.update_prediction(before["id"], fruit("Milk"), score=0.5)
    (after,) = client.predictions_of(task)
    assert (after["id"], after["model_version"]) == (before["id"], "v1")
    assert (after["result"], after["score"]) == (fruit("Milk"), 0.5)
    assert after["created_at"] == before["created_at"] < after["updated_at"]
    answer = client.create_annotation(task, fruit("Milk"), parent_prediction=before["id"])
    assert answer["parent_prediction"] == before["id"]


@pytest.mark.label_studio
def test_a_removed_prediction_is_forgotten_by_the_answer_that_started_from_it(
    label_studio: RunningLabelStudio,
) -> None:
    """Why rows of answered tasks are never removed."""
    client = label_studio.client()
    project = label_studio.create_project("removed", CONFIG)
    (task,) = label_studio.import_urls(project, ["http://images.invalid/1"])
    row = {"task": task, "result": fruit("Fruit"), "score": 0.25, "model_version": "v1"}
    client.import_predictions(project, [row])
    (before,) = client.predictions_of(task)
    client.create_annotation(task, fruit("Milk"), parent_prediction=before["id"])
    client.delete_prediction(before["id"])
    (answer,) = client.task(task)["annotations"]
    assert answer["parent_prediction"] is None
    with pytest.raises(StudioRequestError):  # as of an editor that has it open
        client.create_annotation(task, fruit("Milk"), parent_prediction=before["id"])


@pytest.mark.label_studio
def test_a_prediction_of_an_unknown_task_refuses_all(
    label_studio: RunningLabelStudio, project: int, tasks: list[int]
) -> None:
    client = label_studio.client()
    rows = [{"task": task, "result": [], "model_version": "v9"} for task in (tasks[0], 10**6)]
    with pytest.raises(StudioRequestError) as caught:
        client.import_predictions(project, rows)
    assert caught.value.status == 400
    assert client.predictions_of(tasks[0]) == []
