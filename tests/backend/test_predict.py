"""POST /predict on a real version and a real server of pictures: what is asked, what comes back."""

import io
import struct
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from flask.testing import FlaskClient
from PIL import Image

from backend.services import BATCHES, Services
from hierarchy import LabelTree
from inference.answers import FEW
from inference.feature_extractor import Item
from inference.store import Project
from tests.backend.conftest import asking, go_live, jpeg
from tests.published import OTHER, TREE, publish_earlier
from tests.studio.configs import taxonomy_xml
from tests.studio.image_server import Handler, ImageServer, redirect, serving
from worker.asking import FRONT, UNKNOWN, Places
from worker.parts import Parts

UPLOAD = "/data/upload/1"
GOOD = f"{UPLOAD}/0.jpg"

Fresh = Callable[..., Project]


def paths(reply: dict[str, Any]) -> list[list[str] | None]:
    """The path each task is answered with, None where nothing is."""
    return [
        entry["result"][0]["value"]["taxonomy"][0] if entry["result"] else None
        for entry in reply["results"]
    ]


def huge_png() -> bytes:
    """A few bytes that claim to be 30,000 x 30,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


def dawdle(_handler: Handler) -> None:
    time.sleep(2)


# --- answers ---


def test_every_task_is_answered_in_order(client: FlaskClient, fresh: Fresh, parts: Parts) -> None:
    known = fresh()
    version = go_live(parts, known)
    reply = client.post("/predict", json=asking(known, [f"{UPLOAD}/{n}.jpg" for n in (2, 0, 1)]))
    assert reply.status_code == 200
    body = reply.get_json()
    assert len(body["results"]) == 3
    assert body["model_version"] == version
    for entry, path in zip(body["results"], paths(body), strict=True):
        assert path is not None
        assert tuple(path) in TREE.paths
        assert entry["model_version"] == version
        assert 0 < entry["score"] < 1
    again = client.post("/predict", json=asking(known, [GOOD])).get_json()
    assert paths(again) == paths(body)[1:2]
    # Alone or among others the same picture scores the same, up to the order of sums.
    assert again["results"][0]["score"] == pytest.approx(body["results"][1]["score"], abs=1e-6)


def test_a_rule_without_a_price_answers_nothing_but_scores(
    client: FlaskClient, fresh: Fresh, parts: Parts
) -> None:
    known = fresh()
    go_live(parts, known, price=None)
    (entry,) = client.post("/predict", json=asking(known, [GOOD])).get_json()["results"]
    assert entry["result"] == []
    assert entry["score"] > 0


def test_an_untrained_project_gets_empty_answers(client: FlaskClient, fresh: Fresh) -> None:
    body = client.post("/predict", json=asking(fresh(), [GOOD, GOOD])).get_json()
    assert body["model_version"] == "untrained"
    assert paths(body) == [None, None]
    assert {entry["model_version"] for entry in body["results"]} == {"untrained"}


def test_a_version_of_an_earlier_release_gives_empty_answers_in_its_name(
    client: FlaskClient, fresh: Fresh, parts: Parts, caplog: pytest.LogCaptureFixture
) -> None:
    known = fresh()
    publish_earlier(parts.store, known)
    reply = client.post("/predict", json=asking(known, [GOOD, GOOD]))
    assert reply.status_code == 200
    assert reply.get_json()["model_version"] == "v1"
    assert paths(reply.get_json()) == [None, None]
    assert "v1 was trained by an earlier release" in caplog.text


def test_no_tasks_no_answers(client: FlaskClient, fresh: Fresh, parts: Parts) -> None:
    known = fresh()
    go_live(parts, known)
    assert client.post("/predict", json=asking(known, [])).get_json()["results"] == []


def test_two_projects_with_different_trees_live_in_one_server(
    client: FlaskClient, fresh: Fresh, parts: Parts
) -> None:
    fruit, pets = fresh(TREE), fresh(OTHER)
    go_live(parts, fruit, TREE)
    go_live(parts, pets, OTHER)
    for known, tree in ((fruit, TREE), (pets, OTHER), (fruit, TREE)):
        (path,) = paths(client.post("/predict", json=asking(known, [GOOD])).get_json())
        assert path is not None
        assert tuple(path) in tree.paths


def test_a_new_version_answers_without_a_restart(
    client: FlaskClient, fresh: Fresh, parts: Parts
) -> None:
    known = fresh()
    first = go_live(parts, known)
    assert client.post("/predict", json=asking(known, [GOOD])).get_json()["model_version"] == first
    second = go_live(parts, known, price=None)
    body = client.post("/predict", json=asking(known, [GOOD])).get_json()
    assert body["model_version"] == body["results"][0]["model_version"] == second != first
    assert paths(body) == [None]


def test_a_tree_that_changed_since_the_training_is_answered_in_its_own_terms(
    client: FlaskClient, fresh: Fresh, parts: Parts
) -> None:
    known = fresh()
    go_live(parts, known)
    today = LabelTree.from_paths([("Fruit", "Apple", "Green"), ("Bread",), ("Milk",)])
    body = asking(known, [GOOD]) | {"label_config": taxonomy_xml(today)}
    (path,) = paths(client.post("/predict", json=body).get_json())
    assert path is not None
    assert tuple(path) in today.paths


def test_predictions_go_on_without_redis(
    without_redis: FlaskClient, fresh: Fresh, parts: Parts
) -> None:
    known = fresh()
    go_live(parts, known)
    reply = without_redis.post("/predict", json=asking(known, [GOOD]))
    assert reply.status_code == 200
    assert paths(reply.get_json()) != [None]


def test_a_task_is_placed_among_those_that_the_version_has_ordered(
    client: FlaskClient, fresh: Fresh, parts: Parts
) -> None:
    known = fresh()
    version = go_live(parts, known)
    refs = [f"{UPLOAD}/{n}.jpg" for n in (0, 1, 2)]
    (_, alone, _) = client.post("/predict", json=asking(known, refs)).get_json()["results"]
    assert alone["score"] >= FRONT
    order = Places(version, {3: "random", 1: "varied"}, leads=(0.0, 0.0, 1.0))
    parts.store.write_order(known.key, order.to_json())
    first, other, third = client.post("/predict", json=asking(known, refs)).get_json()["results"]
    assert third["score"] == pytest.approx(FRONT / 4)
    assert first["score"] == pytest.approx(3 * FRONT / 4)
    assert other["score"] > max(alone["score"], 0.5)  # half of the tasks have no lead at all
    assert other["result"] == alone["result"]  # how sure it is does not depend on the place


def test_an_image_below_a_path_of_the_data_is_answered(
    client: FlaskClient, fresh: Fresh, parts: Parts
) -> None:
    """As the editor reads `$shots[0].url`, and as a training does."""
    known = fresh()
    go_live(parts, known)
    body = asking(known, [GOOD])
    plain = client.post("/predict", json=body).get_json()["results"]
    body["label_config"] = known.label_config.replace("$image", "$shots[0].url")
    body["tasks"][0]["data"] = {"shots": [{"url": GOOD}]}
    nested = client.post("/predict", json=body).get_json()["results"]
    assert nested[0]["result"]
    assert nested[0]["result"] == plain[0]["result"]


# --- bad pictures ---


def test_one_bad_picture_never_spoils_its_batch(
    client: FlaskClient, fresh: Fresh, parts: Parts, pictures: ImageServer
) -> None:
    known = fresh()
    go_live(parts, known)
    tall = io.BytesIO()
    Image.new("RGB", (4, 4)).save(tall, "PDF")
    with serving() as elsewhere:
        elsewhere.answers["/cat.jpg"] = jpeg(7)
        pictures.answers |= {
            f"{UPLOAD}/a.pdf": tall.getvalue(),
            f"{UPLOAD}/cut.jpg": jpeg(3)[:200],
            f"{UPLOAD}/huge.png": huge_png(),
            f"{UPLOAD}/slow.jpg": dawdle,
            f"{UPLOAD}/away.jpg": redirect(f"{elsewhere.url}/cat.jpg"),
            f"{UPLOAD}/empty.jpg": b"",
        }
        names = ("missing.jpg", "a.pdf", "cut.jpg", "huge.png", "slow.jpg", "away.jpg", "empty.jpg")
        bad: list[Any] = [
            *(f"{UPLOAD}/{name}" for name in names),
            "file:///etc/passwd",
            "",
            None,
            7,
            {},
        ]
        refs = [ref for one in bad for ref in (one, GOOD)]
        reply = client.post("/predict", json=asking(known, refs))
        assert elsewhere.asked == []
    assert reply.status_code == 200
    found = paths(reply.get_json())
    assert found[::2] == [None] * len(bad)
    assert None not in found[1::2]
    assert "Traceback" not in reply.text
    assert str(parts.settings.home) not in reply.text
    assert {entry["score"] for entry in reply.get_json()["results"][::2]} == {UNKNOWN}


def test_few_calls_of_many_pictures_are_at_work_at_once(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What each of them holds in memory adds up."""
    own, lock, busy, most = Services(parts), threading.Lock(), 0, 0
    full = threading.Barrier(BATCHES)

    def answer(_gallery: Any, _predictor: Any, items: Sequence[Item]) -> list[Any]:
        nonlocal busy, most
        with lock:
            busy += 1
            most = max(most, busy)
        full.wait(20)  # not one fewer
        with lock:
            busy -= 1
        return list(items)

    monkeypatch.setattr("backend.services.answers", answer)
    items: Any = [("/data/upload/1/0.jpg", None)] * (FEW + 1)
    with ThreadPoolExecutor(3 * BATCHES) as callers:
        nothing: Any = None
        calls = [callers.submit(own.answers, nothing, nothing, items) for _ in range(3 * BATCHES)]
        assert all(call.result(60) == items for call in calls)
    assert most == BATCHES


@pytest.mark.parametrize("data", [{}, {"photo": GOOD}, None], ids=["empty", "another", "null"])
def test_a_task_without_the_picture_field_is_answered_empty(
    client: FlaskClient, fresh: Fresh, parts: Parts, data: object
) -> None:
    known = fresh()
    go_live(parts, known)
    body = asking(known, [GOOD])
    body["tasks"].append({"id": 9, "data": data})
    found = paths(client.post("/predict", json=body).get_json())
    assert found[0] is not None
    assert found[1] is None


# --- bad calls ---


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"tasks": None}, "tasks: expected a list"),
        ({"tasks": "all"}, "tasks: expected a list"),
        ({"tasks": {"data": {}}}, "tasks[0].id"),
        ({"tasks": [{"id": 1, "data": {}}, 5]}, "tasks[1]: expected an object"),
        ({"project": None}, "project: expected a string"),
        ({"project": "../../etc"}, "project: expected"),
        ({"label_config": None}, "label_config: expected a string"),
    ],
)
def test_a_broken_body_is_refused_by_the_name_of_its_field(
    client: FlaskClient, fresh: Fresh, change: dict[str, Any], named: str
) -> None:
    reply = client.post("/predict", json=asking(fresh(), [GOOD]) | change)
    assert reply.status_code == 400
    assert reply.get_json()["detail"].startswith(named)


@pytest.mark.parametrize("data", [b"", b"tasks=1", b"{", b"\xff\xfe"])
def test_a_body_that_is_no_json_is_refused(client: FlaskClient, data: bytes) -> None:
    reply = client.post("/predict", data=data, content_type="application/json")
    assert reply.status_code == 400
    assert reply.get_json()["detail"].startswith("body: expected an object")


def test_one_task_may_stand_without_its_list(
    client: FlaskClient, fresh: Fresh, parts: Parts
) -> None:
    known = fresh()
    go_live(parts, known)
    body = asking(known, [GOOD])
    body["tasks"] = body["tasks"][0]
    assert len(client.post("/predict", json=body).get_json()["results"]) == 1


@pytest.mark.parametrize(
    "xml", ['<View><Image name="i" value="$image"/></View>', "<View>", "", "nothing"]
)
def test_a_label_config_without_a_tree_is_refused(
    client: FlaskClient, fresh: Fresh, xml: str
) -> None:
    reply = client.post("/predict", json=asking(fresh(), [GOOD]) | {"label_config": xml})
    assert reply.status_code == 400
    assert len(reply.get_json()["detail"]) > 20


def test_a_version_whose_weights_were_changed_is_not_served(
    client: FlaskClient, fresh: Fresh, parts: Parts
) -> None:
    known = fresh()
    version = go_live(parts, known)
    folder = parts.settings.store / "projects" / known.key / "versions" / version
    weights = folder / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"evil")
    reply = client.post("/predict", json=asking(known, [GOOD]))
    assert reply.status_code == 503
    assert "not those published" in reply.get_json()["detail"]
    assert str(parts.settings.home) not in reply.text
