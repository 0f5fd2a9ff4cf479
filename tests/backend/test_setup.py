"""POST /setup: a project introduces itself and hears its version."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from inference.store import Project
from studio.errors import ImageError
from tests.backend.conftest import go_live
from tests.published import OTHER, TREE
from tests.studio.configs import choices_xml, taxonomy_xml
from tests.studio.image_server import serving
from worker.parts import Parts
from worker.settings import Settings


def body(**changes: Any) -> dict[str, Any]:
    """What Label Studio sends."""
    known = {
        "project": "1.1795440233",
        "schema": taxonomy_xml(TREE),
        "hostname": "http://localhost:8080",
        "access_token": "secret-of-the-creator",
        "extra_params": None,
    }
    return known | changes


def test_the_recorded_body_is_understood(bare: Callable[..., FlaskClient], shared: Path) -> None:
    recorded = json.loads((shared / "label-studio" / "setup.json").read_text(encoding="utf-8"))
    sent = recorded["request_body"] | {"schema": taxonomy_xml(TREE)}
    reply = bare().post("/setup", json=sent)
    assert reply.status_code == recorded["response_status"]
    assert reply.get_json() == {"model_version": "untrained"}


def test_a_project_is_remembered_with_its_tree_and_without_its_token(
    bare: Callable[..., FlaskClient], tmp_path: Path
) -> None:
    client = bare(label_studio_url="http://studio.example")
    client.post("/setup", json=body())
    record = tmp_path / "models" / "projects" / "studio-example-1-1795440233" / "project.json"
    known = json.loads(record.read_text(encoding="utf-8"))
    assert known["label_config"] == body()["schema"]
    assert known["label_studio"] == "http://studio.example"
    assert "secret" not in record.read_text(encoding="utf-8")


def test_what_label_studio_calls_itself_is_an_address_of_its_images(
    bare: Callable[..., FlaskClient], tmp_path: Path
) -> None:
    """`http://localhost:8080`, as browsers and exports write it, whatever we call it."""
    with serving() as server:
        server.answers["/data/upload/1/cat.jpg"] = b"cat"
        client = bare(label_studio_url=server.url)
        settings = Settings(home=tmp_path, label_studio_url=server.url)
        ref = "http://localhost:8080/data/upload/1/cat.jpg"
        with pytest.raises(ImageError, match="HRN_LABEL_STUDIO_PAGE"):
            Parts(settings).fetcher.fetch(ref)
        assert client.post("/setup", json=body()).status_code == 200
        assert Parts(settings).fetcher.fetch(ref).data == b"cat"
        predict = {"tasks": [], "project": "1.1795440233", "label_config": body()["schema"]}
        assert client.post("/predict", json=predict).status_code == 200  # it says no hostname
        assert Parts(settings).fetcher.fetch(ref).data == b"cat"
        page = replace(settings, home=tmp_path / "other", label_studio_page="http://localhost:8080")
        assert Parts(page).fetcher.fetch(ref).data == b"cat"


def test_a_changed_tree_replaces_the_one_remembered(
    client: FlaskClient, fresh: Callable[..., Project], parts: Parts
) -> None:
    known = fresh()
    client.post("/setup", json=body(project=known.project, schema=taxonomy_xml(OTHER)))
    now = parts.store.project(known.key)
    assert now is not None
    assert now.label_config == taxonomy_xml(OTHER)


def test_setup_and_predict_speak_of_one_project_where_no_address_is_set(
    bare: Callable[..., FlaskClient], tmp_path: Path
) -> None:
    """Only /setup tells a host name: were it part of the key, predictions would find no version."""
    client = bare()
    client.post("/setup", json=body())
    call = {"tasks": [], "project": body()["project"], "label_config": body()["schema"]}
    client.post("/predict", json=call)
    assert len(list((tmp_path / "models" / "projects").iterdir())) == 1


def test_a_new_version_is_told_without_a_restart(
    client: FlaskClient, fresh: Callable[..., Project], parts: Parts
) -> None:
    known = fresh()
    sent = body(project=known.project)
    assert client.post("/setup", json=sent).get_json() == {"model_version": "untrained"}
    for name in ("v1", "v2"):
        assert go_live(parts, known) == name
        assert client.post("/setup", json=sent).get_json() == {"model_version": name}


def test_it_answers_without_redis(
    without_redis: FlaskClient, fresh: Callable[..., Project], parts: Parts
) -> None:
    known = fresh()
    go_live(parts, known)
    sent = body(project=known.project)
    assert without_redis.post("/setup", json=sent).get_json() == {"model_version": "v1"}


def test_it_answers_where_the_store_cannot_be_written(
    bare: Callable[..., FlaskClient], tmp_path: Path
) -> None:
    (tmp_path / "models").write_text("a file where the folder should be", encoding="utf-8")
    reply = bare().post("/setup", json=body())
    assert reply.status_code == 200
    assert reply.get_json() == {"model_version": "untrained"}


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ('<View><Image name="i" value="$image"/></View>', "Taxonomy"),
        ("<View>", "XML"),
        (choices_xml(["A", "B"]).replace("$image", "image"), "image"),
    ],
    ids=["no control", "not XML", "no field"],
)
def test_a_config_without_a_tree_is_told_in_the_status_line(
    bare: Callable[..., FlaskClient], schema: str, words: str
) -> None:
    """Label Studio shows its admin that line and throws the body away."""
    reply = bare().post("/setup", json=body(schema=schema))
    assert reply.status_code == 400
    assert words in reply.status
    assert reply.status.startswith(f"400 {reply.get_json()['detail'][:60].split(chr(10))[0]}")


def test_words_that_no_status_line_can_hold_are_spelt_with_question_marks(
    bare: Callable[..., FlaskClient],
) -> None:
    schema = taxonomy_xml(TREE).replace("$image", "汉\n字")
    reply = bare().post("/setup", json=body(schema=schema))
    assert reply.status_code == 400
    assert reply.status.encode("latin-1").isascii()
    assert "\n" not in reply.status


@pytest.mark.parametrize("field", ["project", "schema"])
def test_a_missing_field_is_named(bare: Callable[..., FlaskClient], field: str) -> None:
    reply = bare().post("/setup", json=body(**{field: None}))
    assert reply.status_code == 400
    assert reply.get_json()["detail"].startswith(f"{field}: expected a string")
