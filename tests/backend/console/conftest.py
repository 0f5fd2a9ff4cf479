"""The console over real parts: Redis, a store with real versions; and who is signed in to it."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from backend.app import create_app
from worker.parts import Parts
from worker.settings import Secret

PASSWORD = "correct-horse"


@pytest.fixture(autouse=True)
def _empty_redis(board: object) -> None:
    """Tries to sign in and wishes of earlier tests are gone."""


@pytest.fixture
def console_parts(parts: Parts) -> Parts:
    """The run's parts, with a console."""
    made = Parts(replace(parts.settings, console_password=Secret(PASSWORD)))
    for name in ("fetcher", "extractors", "board", "store"):
        vars(made)[name] = getattr(parts, name)
    return made


@pytest.fixture
def visitor(console_parts: Parts) -> FlaskClient:
    """Who is not signed in."""
    return create_app(console_parts).test_client()


@pytest.fixture
def admin(visitor: FlaskClient) -> FlaskClient:
    """Who is."""
    assert sign_in(visitor).status_code == 303
    return visitor


@pytest.fixture
def admin_without_redis(console_parts: Parts) -> FlaskClient:
    """Signed in, while nothing listens where Redis should be."""
    lame = Parts(replace(console_parts.settings, redis_url="redis://127.0.0.1:1/0"))
    vars(lame)["extractors"] = console_parts.extractors
    client = create_app(lame).test_client()
    assert sign_in(client).status_code == 303
    return client


def token(client: FlaskClient, page: str = "/console/sign-in") -> str:
    """The token of a page's first form."""
    found = re.search(r'name="csrf" value="([0-9a-f]{64})"', client.get(page).text)
    assert found is not None
    return found[1]


def sign_in(client: FlaskClient, password: str = PASSWORD, **more: Any) -> TestResponse:
    """Fill the form in and send it."""
    form = {"csrf": token(client), "password": password, **more.pop("form", {})}
    return client.post("/console/sign-in", data=form, **more)


Post = Callable[..., TestResponse]


@pytest.fixture
def post(admin: FlaskClient) -> Post:
    """Sends a form as its page would, and follows to the page that comes then."""

    def send(path: str, **form: str) -> TestResponse:
        data = {"csrf": token(admin, "/console"), **form}
        return admin.post(path, data=data, follow_redirects=True)

    return send
