"""Sessions: they hold for every process, end by themselves, and survive a disk that is full."""

import os
from pathlib import Path

import pytest
from flask import Flask, session
from flask.testing import FlaskClient

from backend.console.layout import MOST_NOTES, NOTE_LENGTH, tell
from backend.console.sessions import COOKIE, IDLE, LONGEST, Sessions
from worker.settings import Secret

PASSWORD = Secret("password")


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 1_795_440_233.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def serve(folder: Path, clock: Clock, password: Secret = PASSWORD) -> FlaskClient:
    """An application with sessions and a page for each thing that may be done with one."""
    app, sessions = Flask(__name__), Sessions(folder, password, clock)
    sessions.register(app)

    @app.get("/console/<act>")
    def act(act: str) -> str:
        if act == "begin":
            sessions.begin()
        elif act == "end":
            sessions.end()
        elif act == "tell":
            for number in range(MOST_NOTES + 2):
                tell(f"{number}" * NOTE_LENGTH * 2)
        return str(sessions.is_signed_in(by_person=act != "live"))

    return app.test_client()


@pytest.fixture
def client(tmp_path: Path, clock: Clock) -> FlaskClient:
    found = serve(tmp_path / "console", clock)
    assert found.get("/console/begin").text == "True"
    return found


def copied(client: FlaskClient, other: FlaskClient) -> FlaskClient:
    cookie = client.get_cookie(COOKIE, path="/console")
    assert cookie is not None
    other.set_cookie(COOKIE, cookie.value, path="/console")
    return other


@pytest.mark.parametrize("text", ["", "x", "../x", "x" * 4000, "e30.aSwp9w.x"])
def test_a_cookie_that_we_have_not_signed_is_no_session(client: FlaskClient, text: str) -> None:
    client.set_cookie(COOKIE, text, path="/console")
    assert client.get("/console/page").text == "False"


def test_another_process_knows_it_and_its_end(
    client: FlaskClient, tmp_path: Path, clock: Clock
) -> None:
    other = copied(client, serve(tmp_path / "console", clock))
    assert other.get("/console/page").text == "True"
    client.get("/console/end")
    assert other.get("/console/page").text == "False"


def test_a_new_password_ends_all(client: FlaskClient, tmp_path: Path, clock: Clock) -> None:
    other = copied(client, serve(tmp_path / "console", clock, Secret("another")))
    assert other.get("/console/page").text == "False"


def test_it_ends_when_nobody_asks_for_anything(client: FlaskClient, clock: Clock) -> None:
    for _ in range(2):
        clock.now += IDLE - 1
        assert client.get("/console/page").text == "True"
    clock.now += IDLE + 1
    assert client.get("/console/page").text == "False"


def test_a_page_that_keeps_itself_up_to_date_keeps_nobody_signed_in(
    client: FlaskClient, clock: Clock
) -> None:
    for _ in range(3):
        clock.now += IDLE / 3
        assert client.get("/console/live").text == "True"
    clock.now += 1
    assert client.get("/console/live").text == "False"


def test_it_ends_at_last_however_busy(client: FlaskClient, clock: Clock) -> None:
    for _ in range(int(LONGEST / (IDLE / 2))):
        clock.now += IDLE / 2
        assert client.get("/console/page").text == "True"
    clock.now += 1
    assert client.get("/console/page").text == "False"


def test_the_key_is_its_owner_s_and_no_password_can_be_guessed_from_it(
    client: FlaskClient, tmp_path: Path
) -> None:
    (file,) = (tmp_path / "console").iterdir()
    assert file.stat().st_mode & 0o077 == 0
    assert len(file.read_bytes()) == 32
    assert PASSWORD.reveal().encode() not in file.read_bytes()


def test_messages_are_bounded_for_the_cookie_holds_them(client: FlaskClient) -> None:
    client.get("/console/tell")
    cookie = client.get_cookie(COOKIE, path="/console")
    assert cookie is not None
    assert len(cookie.value) < 4000
    with client:
        client.get("/console/page")
        assert len(session["_flashes"]) == MOST_NOTES


def test_without_a_disk_it_holds_in_the_process(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "console").write_text("a file where the folder should be", encoding="utf-8")
    client = serve(tmp_path / "console", clock)
    client.get("/console/begin")
    other = copied(client, client.application.test_client())
    assert client.get("/console/page").text == "True"
    client.get("/console/end")
    assert other.get("/console/page").text == "False"


def test_names_of_ended_sessions_are_forgotten_once_they_would_have_ended(
    client: FlaskClient, tmp_path: Path, clock: Clock
) -> None:
    client.get("/console/end")
    (old,) = {path for path in (tmp_path / "console").iterdir() if path.name != "key"}
    os.utime(old, (1, 1))
    client.get("/console/begin")
    client.get("/console/end")
    assert not old.exists()
