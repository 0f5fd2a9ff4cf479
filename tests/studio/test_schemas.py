"""Bodies recorded from Label Studio 1.23.2 are read; of others the bad field is named."""

import copy
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from studio.errors import ContractError
from studio.schemas import Event, PredictCall, SetupCall, TaskRef, WebhookCall, project_key

KEY = "1.1795440233"
PREDICT: dict[str, Any] = {
    "tasks": [{"id": 1, "data": {"image": "/a.jpg"}}],
    "project": KEY,
    "label_config": "<View/>",
    "params": {"login": None, "password": None, "context": None},
}
SETUP: dict[str, Any] = {"project": KEY, "schema": "<View/>", "hostname": "http://ls"}
WEBHOOK: dict[str, Any] = {
    "action": "ANNOTATION_CREATED",
    "project": {"id": 1, "created_at": "2026-11-23T13:23:53.513743Z", "label_config": "<View/>"},
    "annotation": {"id": 7, "task": 3},
    "task": {"id": 3},
}


@pytest.fixture
def body(shared: Path) -> Callable[[str], Any]:
    """A recorded request body by the name of its file."""

    def load(name: str) -> Any:
        text = (shared / "label-studio" / f"{name}.json").read_text()
        return json.loads(text)["request_body"]

    return load


# Predict


def test_recorded_predict_keeps_the_order_of_tasks(body: Callable[[str], Any]) -> None:
    call = PredictCall.from_json(body("predict_batch"))
    assert [task.id for task in call.tasks] == [1, 2, 3]
    assert call.tasks[0] == TaskRef(1, {"image": "/data/upload/1/9609eab5-Anjou_012.jpg"})
    assert call.project == KEY
    assert call.label_config.startswith("<View>")


def test_recorded_history_is_dropped(body: Callable[[str], Any]) -> None:
    call = PredictCall.from_json(body("predict_one_with_history"))
    assert "prediction" not in repr(call)


def test_one_task_may_stand_without_a_list_and_without_data() -> None:
    """So does the upstream library's own test call it."""
    call = PredictCall.from_json({**PREDICT, "tasks": {"id": 1}})
    assert call.tasks == (TaskRef(1, {}),)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": None}, "tasks: expected a list, got nothing"),
        ({"tasks": "x"}, "tasks: expected a list, got a string"),
        ({"tasks": [1]}, "tasks[0]: expected an object, got a number"),
        ({"tasks": [{"id": 1}, {}]}, "tasks[1].id: expected an integer, got nothing"),
        ({"tasks": [{"id": True}]}, "tasks[0].id: expected an integer, got a boolean"),
        ({"tasks": [{"id": 1, "data": "x"}]}, "tasks[0].data: expected an object, got a string"),
        ({"project": None}, "project: expected a string, got nothing"),
        ({"project": 1}, "project: expected a string, got a number"),
        ({"project": "1"}, "project: expected \"<id>.<creation time>\", got '1'"),
        ({"project": "../1.2"}, "project: expected \"<id>.<creation time>\", got '../1.2'"),
        ({"project": "1.2\n"}, "project: expected \"<id>.<creation time>\", got '1.2\\n'"),
        ({"label_config": []}, "label_config: expected a string, got a list"),
    ],
)
def test_predict_names_the_first_bad_field(change: dict[str, object], message: str) -> None:
    with pytest.raises(ContractError) as caught:
        PredictCall.from_json({**PREDICT, **change})
    assert str(caught.value) == message


# Setup


def test_recorded_setup_is_read_without_its_token(body: Callable[[str], Any]) -> None:
    sent = {**body("setup"), "access_token": "very-secret"}
    call = SetupCall.from_json(sent)
    assert (call.project, call.hostname) == (KEY, "http://localhost:8080")
    assert call.schema.startswith("<View>")
    assert "very-secret" not in repr(call)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"project": ""}, "project: expected"),
        ({"schema": None}, "schema: expected a string, got nothing"),
    ],
)
def test_setup_names_the_first_bad_field(change: dict[str, object], message: str) -> None:
    with pytest.raises(ContractError) as caught:
        SetupCall.from_json({**SETUP, **change})
    assert str(caught.value).startswith(message)


# Webhook


def test_the_key_of_webhooks_is_the_key_of_setup(body: Callable[[str], Any]) -> None:
    """Webhooks carry the id and creation time from which /setup's key is made."""
    setup = SetupCall.from_json(body("setup"))
    webhook = WebhookCall.from_json(body("webhook_START_TRAINING"))
    assert webhook.project_key == setup.project == KEY


@pytest.mark.parametrize(
    "name",
    [*(event for event in Event if event != Event.OTHER), "ANNOTATION_CREATED_skipped_task"],
)
def test_recorded_webhooks_are_read(body: Callable[[str], Any], name: str) -> None:
    sent = body(f"webhook_{name}")
    call = WebhookCall.from_json(sent)
    assert call.action == sent["action"]
    assert call.kind == Event(sent["action"])
    assert call.project_key == KEY
    assert call.skipped == name.endswith("skipped_task")
    assert call.label_config == sent["project"]["label_config"]


def test_events_that_change_labels_are_distinguished_from_the_others() -> None:
    silent = {event for event in Event if not event.changes_labels}
    assert silent == {Event.START_TRAINING, Event.PROJECT_UPDATED, Event.OTHER}


@pytest.mark.parametrize("action", ["ANNOTATION_DELETED", "REVIEW_CREATED", "other", ""])
def test_an_unknown_action_is_accepted_as_other(action: str) -> None:
    call = WebhookCall.from_json({**WEBHOOK, "action": action})
    assert (call.action, call.kind) == (action, Event.OTHER)


def test_the_project_may_come_in_part() -> None:
    """So does the upstream library's own test call it."""
    sent = {"action": "ANNOTATION_CREATED", "project": {"id": 1, "label_config": "<View></View>"}}
    call = WebhookCall.from_json(sent)
    assert (call.project_key, call.label_config) == (None, "<View></View>")
    assert WebhookCall.from_json({"action": "TASKS_CREATED"}).project_key is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"action": None}, "action: expected a string, got nothing"),
        ({"project": 3}, "project: expected an object, got a number"),
        ({"project": {"id": "1"}}, "project.id: expected an integer, got a string"),
        ({"project": {"id": 2**63}}, "project.id: expected an integer, got a number"),
        (
            {"project": {"id": 1, "label_config": 1}},
            "project.label_config: expected a string, got a number",
        ),
        ({"project": {"id": 1, "created_at": 5}}, "project.created_at: expected a string"),
        ({"project": {"id": 1, "created_at": "now"}}, "project.created_at: expected a time"),
        ({"annotation": [{}, 1]}, "annotation[1]: expected an object, got a number"),
        ({"annotations": "all"}, "annotations: expected an object, got a string"),
    ],
)
def test_webhook_names_the_first_bad_field(change: dict[str, object], message: str) -> None:
    with pytest.raises(ContractError) as caught:
        WebhookCall.from_json({**WEBHOOK, **change})
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("created_at", "key"),
    [
        ("1970-01-01T00:00:01.999999Z", "4.1"),
        ("1970-01-01T02:00:01+02:00", "4.1"),
        ("1970-01-01T00:00:01", "4.1"),
        ("2026-11-23T13:23:53.999999Z", "4.1795440233"),
    ],
)
def test_the_key_drops_fractions_of_a_second_and_minds_the_offset(
    created_at: str, key: str
) -> None:
    assert project_key(4, created_at) == key


def test_a_time_without_an_offset_is_utc_wherever_the_backend_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        assert project_key(4, "1970-01-01T00:00:01") == "4.1"
    finally:
        monkeypatch.undo()
        time.tzset()


# Properties

_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=10,
)


@given(_json, st.sampled_from([PREDICT, SETUP, WEBHOOK]), st.data())
def test_any_json_in_any_place_is_read_or_refused(
    junk: object, template: dict[str, Any], data: st.DataObject
) -> None:
    sent: Any = copy.deepcopy(template)
    place = sent
    while data.draw(st.booleans()):
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        below = [key for key in keys if isinstance(place[key], dict | list) and place[key]]
        if not below:
            break
        place = place[data.draw(st.sampled_from(below))]
    keys = list(place) if isinstance(place, dict) else list(range(len(place)))
    place[data.draw(st.sampled_from(keys))] = junk
    for call in (PredictCall, SetupCall, WebhookCall):
        for value in (sent, junk):
            try:
                call.from_json(value)
            except ContractError as error:
                assert "expected" in str(error)  # noqa: PT017 (either outcome is right)
