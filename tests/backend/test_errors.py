"""What callers hear when something is wrong: JSON, a status, and no secret of ours."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from flask.testing import FlaskClient

from backend.app import MAX_BODY, create_app
from tests.published import TREE
from tests.studio.configs import taxonomy_xml
from worker.parts import Parts
from worker.settings import Settings


@pytest.mark.parametrize("path", ["/nowhere", "/predict/", "/../etc/passwd", "/static/x.js"])
def test_an_unknown_route_is_a_404_in_json(bare: Callable[..., FlaskClient], path: str) -> None:
    reply = bare().get(path)
    assert reply.status_code == 404
    assert reply.get_json()["detail"]


def test_another_method_is_a_405_that_names_the_right_one(
    bare: Callable[..., FlaskClient],
) -> None:
    reply = bare().get("/predict")
    assert reply.status_code == 405
    assert "POST" in reply.headers["Allow"]
    assert reply.get_json()["detail"]


@pytest.mark.parametrize("path", ["/predict", "/setup", "/webhook"])
def test_a_body_that_is_too_large_is_a_413_before_it_is_read(
    bare: Callable[..., FlaskClient], path: str
) -> None:
    told = {"CONTENT_LENGTH": str(MAX_BODY + 1)}
    kind = "application/json"
    reply = bare().post(path, data=b"{}", content_type=kind, environ_overrides=told)
    assert reply.status_code == 413
    assert reply.get_json()["detail"]


def test_an_unexpected_error_keeps_its_cause_to_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    app = create_app(Parts(Settings(home=tmp_path)))

    @app.get("/fault")
    def fault() -> str:
        raise KeyError("a secret of ours")

    with caplog.at_level(logging.ERROR):
        reply = app.test_client().get("/fault")
    assert reply.status_code == 500
    assert "secret" not in reply.text + reply.status
    number = reply.get_json()["detail"].split()[-1]
    assert number in caplog.text
    assert "a secret of ours" in caplog.text


def test_a_store_that_cannot_be_read_is_told_without_its_path(
    bare: Callable[..., FlaskClient], tmp_path: Path
) -> None:
    """A folder where the pointer's file should be: reading it fails for every user, root too."""
    client = bare()
    body = {"project": "1.5", "schema": taxonomy_xml(TREE), "hostname": ""}
    client.post("/setup", json=body)
    (folder,) = (tmp_path / "models" / "projects").iterdir()
    (folder / "current.json").mkdir()
    reply = client.post("/setup", json=body)
    assert reply.status_code == 503
    assert "current.json" in reply.get_json()["detail"]
    assert str(tmp_path) not in reply.text + reply.status
