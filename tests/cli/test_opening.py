"""A server is up before its application is: health at once, everything else in its time."""

import threading

import pytest
from flask import Flask
from werkzeug.test import Client

from cli.opening import Opening


@pytest.fixture
def opening() -> tuple[Client, threading.Event]:
    """A client of an application that is loaded once the event is set."""
    loaded = threading.Event()

    def make() -> Flask:
        assert loaded.wait(30)
        app = Flask("loaded")
        app.add_url_rule("/health", "health", view_func=lambda: {"from": "the application"})
        app.add_url_rule("/other", "other", view_func=lambda: {"from": "the application"})
        return app

    return Client(Opening(make)), loaded


def test_health_is_answered_before_the_application_is_there(
    opening: tuple[Client, threading.Event],
) -> None:
    client, loaded = opening
    answer = client.get("/health")
    assert (answer.status_code, answer.json) == (200, {"status": "UP", "model_class": "HRN"})
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    loaded.set()


@pytest.mark.parametrize(
    ("path", "headers"), [("/other", {}), ("/health", {"Authorization": "Basic eDp5"})]
)
def test_everything_else_waits_for_it(
    opening: tuple[Client, threading.Event], path: str, headers: dict[str, str]
) -> None:
    client, loaded = opening
    told: list[object] = []
    asking = threading.Thread(target=lambda: told.append(client.get(path, headers=headers).json))
    asking.start()
    asking.join(0.05)
    assert told == []
    loaded.set()
    asking.join(30)
    assert told == [{"from": "the application"}]


def test_what_goes_wrong_is_told_on_health_too() -> None:
    begun = threading.Event()

    def fail() -> Flask:
        begun.set()
        raise OSError("no such disk")

    opening = Opening(fail)
    assert begun.wait(30)
    with pytest.raises(OSError, match="no such disk"):
        Client(opening).get("/other")
    with pytest.raises(OSError, match="no such disk"):
        Client(opening).get("/health")
