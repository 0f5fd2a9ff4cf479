"""What is compared, without a server."""

from __future__ import annotations

import pytest
import requests
from requests.auth import HTTPBasicAuth

from studio.client import BasicAuth, Object
from studio.project_setup import (
    ACTIONS,
    DEFAULT_TAB,
    OPEN_TABS,
    at_address,
    authorization,
    backend_faults,
    missing_tabs,
    remarks,
    switches,
    webhook_faults,
    webhook_url,
)

RIGHT = {
    "headers": {"Authorization": "Basic x"},
    "send_for_all_actions": False,
    "actions": list(ACTIONS),
    "is_active": True,
    "send_payload": True,
}
CALLED = {
    "auth_method": "BASIC_AUTH",
    "basic_auth_pass_is_set": True,
    "basic_auth_user": "hrn",
    "state": "CO",
}


def test_the_webhook_is_below_the_backend_s_path() -> None:
    assert webhook_url("http://Host:9090/b/") == "http://host:9090/b/webhook"


def test_addresses_are_compared_without_slash_and_case() -> None:
    rows: list[Object] = [{"url": "http://HOST/b/"}, {"url": "http://host/B"}, {"url": None}, {}]
    assert at_address(rows, "http://host/b") == rows[:1]


@pytest.mark.parametrize("password", ["open sesame", "caf\xe9", "a:b"])
def test_the_header_is_what_label_studio_itself_would_send(password: str) -> None:
    request = requests.Request("GET", "http://host", auth=HTTPBasicAuth("hrn", password))
    assert authorization(BasicAuth("hrn", password)) == request.prepare().headers["Authorization"]


def test_a_password_that_label_studio_cannot_send_is_refused() -> None:
    with pytest.raises(ValueError, match="Latin-1") as caught:
        authorization(BasicAuth("hrn", "пароль"))
    assert "пароль" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"auth_method": "NONE"}, "no password"),
        ({"basic_auth_pass_is_set": False}, "no password"),
        ({"basic_auth_user": "eve"}, "as 'eve', not as 'hrn'"),
        ({"state": "DI"}, "the health check failed"),
        ({"state": "ER", "error_message": "no tree"}, "no tree"),
    ],
)
def test_each_fault_of_a_backend_is_named(change: dict[str, object], words: str) -> None:
    (fault,) = backend_faults({**CALLED, **change}, "hrn")
    assert words in fault


def test_what_is_right_has_no_faults() -> None:
    assert backend_faults(CALLED, "hrn") == []
    assert webhook_faults(RIGHT, "Basic x") == webhook_faults(RIGHT, None) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"headers": {}}, "no password"),
        ({"headers": None}, "no password"),
        ({"headers": {"Authorization": "Basic y"}}, "another password"),
        ({"send_for_all_actions": True}, "all events"),
        ({"actions": list(ACTIONS[1:])}, "not sent for ANNOTATION_CREATED"),
        ({"is_active": False}, "switched off"),
        ({"send_payload": False}, "without its content"),
    ],
)
def test_each_fault_of_a_webhook_is_named(change: dict[str, object], words: str) -> None:
    (fault,) = webhook_faults({**RIGHT, **change}, "Basic x")
    assert words in fault


def test_only_wrong_switches_are_set() -> None:
    settings = {
        "show_collab_predictions": True,
        "sampling": "Sequential sampling",
        "model_version": "v1",
    }
    assert switches(settings, "v1") == {"sampling": "Uncertainty sampling"}
    assert switches({}, "v1") == {
        "show_collab_predictions": True,
        "sampling": "Uncertainty sampling",
        "model_version": "v1",
    }


def test_tabs_are_made_once_and_the_default_one_stays() -> None:
    assert missing_tabs([]) == [DEFAULT_TAB, *OPEN_TABS]
    assert missing_tabs([{"data": {"title": "Mine"}}, {"data": None}]) == list(OPEN_TABS)
    assert missing_tabs([{"data": dict(OPEN_TABS[0])}]) == [OPEN_TABS[1]]
    assert missing_tabs([{"data": dict(tab)} for tab in OPEN_TABS]) == []


def test_a_backend_before_ours_is_remarked() -> None:
    ((what, fix),) = remarks({}, [{"id": 1, "url": "http://other"}, {"id": 2}], 2)
    assert "http://other" in what
    assert "Remove" in fix
    assert remarks({}, [{"id": 1}, {"id": 2}], 1) == remarks({}, [], 1) == []
