"""GET /ready and /metrics: what operators look at."""

from collections.abc import Callable
from pathlib import Path

from flask.testing import FlaskClient
from rq import Worker

from inference.store import Project
from tests.backend.conftest import go_live
from worker.order import Order
from worker.parts import Parts
from worker.queue import Board


def test_ready_when_store_redis_and_a_worker_are_there(client: FlaskClient, board: Board) -> None:
    worker = Worker([board.queue], connection=board.redis, serializer="json")
    worker.register_birth()
    reply = client.get("/ready")
    assert reply.status_code == 200
    told = {"ready": True, "store": "writable", "redis": "reachable", "workers": "1"}
    assert reply.get_json() == told


def test_not_ready_without_a_worker(client: FlaskClient, board: Board) -> None:
    reply = client.get("/ready")
    assert reply.status_code == 503
    assert "hrn work" in reply.get_json()["workers"]


def test_not_ready_without_redis(without_redis: FlaskClient) -> None:
    reply = without_redis.get("/ready")
    assert reply.status_code == 503
    assert reply.get_json()["redis"] == "not reachable"
    assert reply.get_json()["store"] == "writable"


def test_not_ready_where_the_store_cannot_be_written(
    bare: Callable[..., FlaskClient], tmp_path: Path
) -> None:
    (tmp_path / "models").write_text("a file where the folder should be", encoding="utf-8")
    reply = bare().get("/ready")
    assert reply.status_code == 503
    assert reply.get_json()["store"] == "not writable: File exists"
    assert str(tmp_path) not in reply.text


def test_metrics_count_requests_and_what_waits(client: FlaskClient, board: Board) -> None:
    board.ask(Order("studio-1-1"))
    client.get("/nowhere")
    text = client.get("/metrics").text
    assert "hrn_queue_depth 1.0" in text
    assert "hrn_workers 0.0" in text
    assert 'hrn_request_seconds_count{route="unknown",status="404"}' in text


def test_metrics_tell_how_right_the_live_version_was(
    client: FlaskClient, fresh: Callable[..., Project], parts: Parts
) -> None:
    known = fresh()
    row = {"level": 1, "shown": 9, "checked": 8, "right": 6, "accuracy": 0.75}
    unknown = {"level": 2, "shown": 3, "checked": 0, "right": 0, "accuracy": None}
    for version in (go_live(parts, known), go_live(parts, known)):
        told = {"levels": [row, unknown], "grounds": ""}
        parts.store.write_following(known.key, version, {"told": told})
    text = client.get("/metrics").text
    of = f'project="{known.key}",version="v2"'
    assert f'hrn_shown_accuracy{{level="1",{of}}} 0.75' in text
    assert f'hrn_shown_checked{{level="1",{of}}} 8.0' in text
    assert f'hrn_shown_checked{{level="2",{of}}} 0.0' in text
    assert f'hrn_shown_accuracy{{level="2",{of}}}' not in text
    assert f'project="{known.key}",version="v1"' not in text
    pointer = parts.store.root / "projects" / known.key / "current.json"
    pointer.write_text("{", encoding="utf-8")
    reply = client.get("/metrics")
    assert reply.status_code == 200
    assert known.key not in reply.text


def test_metrics_say_that_nothing_is_known_while_redis_is_away(without_redis: FlaskClient) -> None:
    reply = without_redis.get("/metrics")
    assert reply.status_code == 200
    assert "hrn_queue_depth NaN" in reply.text


def test_metrics_tell_how_many_open_images_are_unlike_the_labelled_ones(
    client: FlaskClient, fresh: Callable[..., Project], parts: Parts, board: Board
) -> None:
    known = fresh()
    version = go_live(parts, known)
    of = f'{{project="{known.key}",version="{version}"}}'
    assert f"hrn_open_images{of}" not in client.get("/metrics").text
    board.note_unlike(known.key, version, {"told": {"open": 200, "unlike": 62}})
    text = client.get("/metrics").text
    assert f"hrn_open_images{of} 200.0" in text
    assert f"hrn_open_images_unlike{of} 62.0" in text
