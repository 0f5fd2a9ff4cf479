"""Who may call: Basic auth on every route, in the bytes that Label Studio sends."""

import base64
from collections.abc import Callable

import pytest
from flask.testing import FlaskClient

from worker.settings import Secret

PASSWORD = "pässwörd-é"
CLOSED = (
    ("POST", "/setup"),
    ("POST", "/predict"),
    ("POST", "/webhook"),
    ("GET", "/versions"),
    ("GET", "/metrics"),
    ("GET", "/nowhere"),
)
OPEN = (("GET", "/"), ("GET", "/health"), ("GET", "/ready"))


@pytest.fixture
def guarded(bare: Callable[..., FlaskClient]) -> FlaskClient:
    return bare(password=Secret(PASSWORD), user="label-studio")


def basic(text: str, encoding: str = "latin-1") -> dict[str, str]:
    """The header that sends ``user:password``."""
    return {"Authorization": f"Basic {base64.b64encode(text.encode(encoding)).decode()}"}


WRONG = {
    "wrong password": basic("label-studio:password"),
    "wrong user": basic(f"admin:{PASSWORD}"),
    "no colon": basic("label-studio"),
    "not ASCII": basic("label-studio:пароль", "utf-8"),
    "empty password": basic("label-studio:"),
    "bearer": {"Authorization": f"Bearer {PASSWORD}".encode().decode("latin-1")},
    "not base64": {"Authorization": "Basic !!!"},
    "base64 of nothing that is text": {"Authorization": "Basic /////w=="},
    "empty": {"Authorization": ""},
}


@pytest.mark.parametrize(("method", "path"), CLOSED)
@pytest.mark.parametrize("given", [None, *WRONG])
def test_without_the_right_credentials_nothing_is_answered(
    guarded: FlaskClient, method: str, path: str, given: str | None
) -> None:
    reply = guarded.open(path, method=method, headers=WRONG[given] if given else {})
    assert reply.status_code == 401
    assert reply.headers["WWW-Authenticate"] == 'Basic realm="label-studio-hrn"'
    assert "hrn connect" in reply.get_json()["detail"]


@pytest.mark.parametrize(("method", "path"), CLOSED)
@pytest.mark.parametrize("encoding", ["latin-1", "utf-8"])
def test_the_right_credentials_open_every_route(
    guarded: FlaskClient, method: str, path: str, encoding: str
) -> None:
    """Label Studio writes them in Latin-1, curl in UTF-8."""
    headers = basic(f"label-studio:{PASSWORD}", encoding)
    assert guarded.open(path, method=method, headers=headers).status_code != 401


@pytest.mark.parametrize(("method", "path"), OPEN)
def test_probes_need_no_credentials(guarded: FlaskClient, method: str, path: str) -> None:
    assert guarded.open(path, method=method).status_code in (200, 503)


@pytest.mark.parametrize("given", WRONG)
@pytest.mark.parametrize(("method", "path"), OPEN)
def test_probes_with_wrong_credentials_are_refused(
    guarded: FlaskClient, method: str, path: str, given: str
) -> None:
    """So that Label Studio can tell its admin that the password is wrong."""
    assert guarded.open(path, method=method, headers=WRONG[given]).status_code == 401


def test_a_password_of_any_letters_can_be_used(bare: Callable[..., FlaskClient]) -> None:
    client = bare(password=Secret("пароль"))
    assert client.get("/metrics", headers=basic("label-studio:пароль", "utf-8")).status_code == 200
    assert client.get("/metrics", headers=basic("label-studio:??????")).status_code == 401


def test_without_a_password_all_is_open(bare: Callable[..., FlaskClient]) -> None:
    assert bare().get("/metrics").status_code == 200


def test_answers_are_not_kept_or_guessed_at(bare: Callable[..., FlaskClient]) -> None:
    headers = bare().get("/health").headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"
