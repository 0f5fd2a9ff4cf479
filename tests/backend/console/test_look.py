"""The page of one picture: what it says agrees with /predict; what cannot be looked at is told."""

import io
import re
from collections.abc import Callable, Iterator
from html import unescape

import pytest
from flask.testing import FlaskClient
from werkzeug.datastructures import FileStorage
from werkzeug.test import TestResponse, encode_multipart

from backend.console.look import MOST_BYTES
from inference.store import Project
from studio.client import LabelStudio
from studio.errors import ImageError
from tests.backend.conftest import asking, go_live, jpeg
from tests.backend.console import trained
from tests.backend.console.conftest import token
from tests.backend.test_predict import huge_png
from tests.studio.image_server import ImageServer
from tests.studio.servers import Reply, Request, serving
from worker.parts import Parts
from worker.training_config import TrainingConfig

LEGACY = "0123456789abcdef0123456789abcdef01234567"
HOSTILE = "<script>alert(1)</script>.jpg"


@pytest.fixture
def known(fresh: Callable[..., Project], parts: Parts) -> Project:
    made = fresh()
    go_live(parts, made)
    return made


@pytest.fixture
def with_tasks(console_parts: Parts, known: Project) -> Iterator[None]:
    """A Label Studio of four tasks: ours, another project's, a lost picture's, one without any."""
    data = {
        "1": (known.number, {"image": "/data/upload/1/0.jpg"}),
        "2": (known.number + 1, {"image": "/data/upload/1/0.jpg"}),
        "3": (known.number, {"image": f"/data/upload/1/{HOSTILE}"}),
        "4": (known.number, {"text": "no picture"}),
    }

    def answer(request: Request) -> Reply:
        number = request.path.rstrip("/").rpartition("/")[2]
        if number not in data:
            return Reply({"detail": "No Task matches the given query."}, 404)
        project, fields = data[number]
        return Reply({"id": int(number), "project": project, "data": fields})

    with serving(answer) as server:
        vars(console_parts)["studio"] = LabelStudio(server.url, LEGACY)
        yield


def address(known: Project, query: str = "") -> str:
    return f"/console/projects/{known.key}/look{query}"


def upload(admin: FlaskClient, known: Project, data: bytes, name: str = "a.jpg") -> TestResponse:
    form = {"csrf": token(admin, "/console"), "picture": FileStorage(io.BytesIO(data), name)}
    boundary, body = encode_multipart(form)
    kind = f"multipart/form-data; boundary={boundary}"
    return admin.post(address(known), data=body, content_type=kind)


def test_an_uploaded_picture_is_answered_as_annotators_see_it(
    admin: FlaskClient, known: Project, parts: Parts
) -> None:
    body = admin.post("/predict", json=asking(known, ["/data/upload/1/0.jpg"])).get_json()
    path = body["results"][0]["result"][0]["value"]["taxonomy"][0]
    page = upload(admin, known, jpeg(0)).text
    assert f'class="said">{" / ".join(path)}<' in page
    assert page.count("data:image/jpeg;base64,") == 3  # the image, and both levels
    predictor = parts.predictors.get(known, "v1")
    (vector,) = parts.extractors.of(predictor).vectors([("/data/upload/1/0.jpg", 1)])
    assert not isinstance(vector, ImageError)
    assert predictor.answer(vector[None])[0].why in unescape(page)
    assert "Down the tree" in page


def test_maps_and_bars_are_of_the_way_down_and_of_nothing_else(
    admin: FlaskClient, parts: Parts, pictures: ImageServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A leaf on level 1 has one map; what fits no label has a bar, and bars make up the whole."""
    monkeypatch.setattr(TrainingConfig, "for_networks", lambda *_, **__: trained.QUICK)
    known = trained.train(parts, pictures, 914, named=[("Milk",), ("Fruit", "Apple")])
    ways = set()
    for seed in range(12):
        page = upload(admin, known, jpeg(seed)).text
        said = unescape(page.split('class="said">')[1].split("<")[0]).split(" / ")
        said = [] if said == ["Nothing is shown"] else said
        page = unescape(page)
        maps = re.findall(r'<figcaption><span class="break">(.*?)</span> <small>', page)
        steps = re.findall(r"<h3>Level \d</h3>(.*?)</ul>", page, re.DOTALL)
        on = r'class="on"><span class="twig break">(.*?)<span class="visually'
        on_path = [re.findall(on, step)[0] for step in steps]
        assert maps == on_path
        assert maps[: len(said)] == said
        assert parts.predictors.get(known, "v1").tree.index(maps) >= 0  # one path, down to a leaf
        ways.add(len(maps))
        assert ">none of these<" in steps[0]
        whole = sum(map(float, re.findall(r'class="part" width="([\d.]+)"', steps[0])))
        assert whole == pytest.approx(100, abs=0.05)
    assert ways == {1, 2}


@pytest.mark.usefixtures("with_tasks")
def test_a_task_is_looked_at(admin: FlaskClient, known: Project) -> None:
    by_task = admin.get(address(known, "?task=1")).text
    by_file = upload(admin, known, jpeg(0)).text
    said = 'class="said">'
    assert by_task.split(said)[1].split("<")[0] == by_file.split(said)[1].split("<")[0]
    assert "Open the task in Label Studio" in by_task


@pytest.mark.usefixtures("with_tasks")
@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("2", "belongs to another project"),
        ("3", "404"),
        ("4", "names no image in"),
        ("99", "No Task matches"),
        ("x", "a whole number"),
        ("1/../2", "a whole number"),
        ("٣", "a whole number"),
    ],
)
def test_a_task_that_cannot_be_looked_at_is_told(
    admin: FlaskClient, known: Project, task: str, words: str
) -> None:
    reply = admin.get(address(known), query_string={"task": task})
    assert reply.status_code == 422
    assert words in unescape(reply.text)
    assert "<script>alert" not in reply.text


@pytest.mark.parametrize("data", [b"", b"no picture", huge_png(), jpeg(0)[:200]])
def test_a_file_that_is_no_picture_is_told(admin: FlaskClient, known: Project, data: bytes) -> None:
    reply = upload(admin, known, data, HOSTILE)
    assert reply.status_code == 422
    assert 'role="alert"' in reply.text
    assert "<script>alert" not in reply.text


def test_a_hostile_file_name_is_text(admin: FlaskClient, known: Project) -> None:
    page = upload(admin, known, jpeg(1), HOSTILE).text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;.jpg" in page
    assert "<script>alert" not in page


def test_a_file_that_is_too_large_is_refused(admin: FlaskClient, known: Project) -> None:
    assert upload(admin, known, b"\xff\xd8\xff" + bytes(MOST_BYTES)).status_code == 422
    assert upload(admin, known, bytes(MOST_BYTES + 100_000)).status_code == 413


def test_a_look_that_finds_no_turn_says_so(
    admin: FlaskClient, known: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backend.console.look.PATIENCE", 0.01)
    looks = admin.application.extensions["services"].looks
    with looks, looks:
        assert "Too many images" in upload(admin, known, jpeg(0)).text
    assert upload(admin, known, jpeg(0)).status_code == 200


def test_an_untrained_project_cannot_look(
    admin: FlaskClient, fresh: Callable[..., Project]
) -> None:
    assert "No version yet" in admin.get(address(fresh(), "?task=1")).text


@pytest.mark.usefixtures("with_tasks")
def test_an_older_version_can_be_asked(
    admin: FlaskClient, known: Project, parts: Parts, pictures: ImageServer
) -> None:
    go_live(parts, known)
    assert "· v1</p>" in admin.get(address(known, "?task=1&version=v1")).text
    assert admin.get(address(known, "?task=1&version=v9")).status_code == 404
