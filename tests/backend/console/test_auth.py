"""Before every page: tokens, headers, sizes, and errors in words."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from flask.testing import FlaskClient

from backend.console import auth
from inference.store import Project
from tests.backend.console.conftest import PASSWORD, sign_in, token
from worker.parts import Parts
from worker.queue import Board
from worker.settings import Secret

WRONG = ["", "0" * 64, "пароль", "\x00"]


def test_a_prefix_that_anyone_may_send_leads_nowhere(
    visitor: FlaskClient,
) -> None:
    """The page says that the console has a host of its own."""
    headers = {"X-Forwarded-Prefix": "/evil"}
    asked = visitor.get("/console", headers=headers)
    assert asked.headers["Location"].startswith("/console/sign-in")
    assert "/evil" not in visitor.get("/console/sign-in", headers=headers).text
    page = Path("docs/console.md").read_text(encoding="utf-8")
    assert "`X-Forwarded-Prefix` is not read" in page
    assert "needs a host or port of its own" in page


@pytest.mark.parametrize("given", [None, *WRONG])
def test_nothing_is_done_without_the_token_of_the_session(
    admin: FlaskClient, fresh: Callable[..., Project], board: Board, given: str | None
) -> None:
    known = fresh()
    path = f"/console/projects/{known.key}/training/start"
    reply = admin.post(path, data={} if given is None else {"csrf": given})
    assert reply.status_code == 400
    assert "Nothing was changed" in reply.text
    assert board.wishes(known.key) == []


def test_the_token_of_another_session_is_worth_nothing(
    admin: FlaskClient, console_parts: Parts, visitor: FlaskClient
) -> None:
    other = token(admin, "/console")
    visitor.post("/console/sign-out", data={"csrf": other})
    sign_in(visitor)
    assert visitor.post("/console/checkup", data={"csrf": other}).status_code == 400


@pytest.mark.parametrize("given", [None, *WRONG])
def test_signing_in_takes_a_token_too(visitor: FlaskClient, given: str | None) -> None:
    """Otherwise another site could sign somebody in to a console of its choice."""
    token(visitor)
    form = {"password": PASSWORD} | ({} if given is None else {"csrf": given})
    assert visitor.post("/console/sign-in", data=form).status_code == 400


def routes(client: FlaskClient, method: str) -> list[str]:
    """Paths of the console that take a method, but for sign-in and files."""
    rules = [
        rule.rule.replace("<key>", "x").replace("<version>", "v1")
        for rule in client.application.url_map.iter_rules()
        if rule.endpoint.startswith("console.") and method in (rule.methods or ())
    ]
    return [path for path in rules if "<" not in path and path != "/console/sign-in"]


def test_every_action_is_a_post_that_takes_a_token(admin: FlaskClient) -> None:
    actions = routes(admin, "POST")
    assert len(actions) >= 4
    for path in actions:
        assert admin.post(path).status_code == 400, path


def test_every_page_and_action_takes_a_session(visitor: FlaskClient) -> None:
    for method in ("GET", "POST"):
        for path in routes(visitor, method):
            reply = visitor.open(path, method=method)
            assert reply.status_code == (401 if path.endswith("/state") else 303), path
            assert reply.status_code == 401 or reply.location.startswith("/console/sign-in")


@pytest.mark.parametrize(
    "page", ["/console", "/console/sign-in", "/console/nowhere", "/console/static/console.css"]
)
def test_each_answer_forbids_what_no_page_needs(admin: FlaskClient, page: str) -> None:
    with admin.get(page) as reply:
        headers = reply.headers
    for name, value in auth.HEADERS.items():
        assert headers[name] == value
    assert "unsafe" not in headers["Content-Security-Policy"]


@pytest.mark.parametrize("page", ["/console", "/console/sign-in"])
def test_no_page_has_script_or_style_of_its_own(visitor: FlaskClient, page: str) -> None:
    sign_in(visitor)
    text = visitor.get(page, follow_redirects=True).text
    assert "<style" not in text
    assert " style=" not in text
    assert " onclick" not in text
    assert "http" not in text.split("<body>")[0]


def test_pages_are_not_kept_by_caches(admin: FlaskClient) -> None:
    assert admin.get("/console").headers["Cache-Control"] == "no-store"


def test_contract_routes_have_none_of_it(client: FlaskClient) -> None:
    assert "Content-Security-Policy" not in client.get("/health").headers


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/console/nowhere", 404),
        ("GET", "/console/projects/unknown/training", 404),
        ("GET", "/console/projects/..%2f..%2fetc/training", 404),
        ("GET", "/console/projects/%2e%2e/training", 404),
        ("PUT", "/console", 405),
        ("GET", "/console/sign-out", 405),
    ],
)
def test_what_is_not_there_is_told_on_a_page(
    admin: FlaskClient, method: str, path: str, status: int
) -> None:
    reply = admin.open(path, method=method)
    assert reply.status_code == status
    assert reply.mimetype == "text/html"


def test_other_addresses_are_still_answered_in_json(client: FlaskClient) -> None:
    assert client.get("/nowhere").get_json()["detail"]
    assert client.get("/consoles").status_code == 404
    assert client.get("/consoles").is_json


def test_a_form_may_not_be_large(admin: FlaskClient) -> None:
    reply = admin.post("/console/checkup", data={"csrf": "x" * (auth.FORM_BYTES + 1)})
    assert reply.status_code == 413
    assert "larger" in reply.text


def test_an_action_without_redis_is_told_in_words(
    admin_without_redis: FlaskClient, fresh: Callable[..., Project]
) -> None:
    known = fresh()
    path = f"/console/projects/{known.key}/training/start"
    form = {"csrf": token(admin_without_redis, "/console")}
    reply = admin_without_redis.post(path, data=form)
    assert reply.status_code == 503
    assert "Redis cannot be reached" in reply.text


def test_a_fault_of_ours_is_a_number_and_nothing_else(
    bare: Callable[..., FlaskClient], tmp_path: Path
) -> None:
    client = bare(console_password=Secret(PASSWORD))
    sign_in(client)
    record = tmp_path / "models" / "projects" / "a" / "project.json"
    record.parent.mkdir(parents=True)
    known = {"key": "a", "number": 1, "project": "1.1", "label_studio": "", "label_config": ""}
    record.write_text(json.dumps({**known, "title": 5}), "utf-8")
    reply = client.get("/console")
    assert reply.status_code == 500
    assert "the server&#39;s log has it as" in reply.text
    assert str(tmp_path) not in reply.text
    assert "Traceback" not in reply.text
