"""GET /versions: a project's versions, oldest first."""

from collections.abc import Callable

from flask.testing import FlaskClient

from inference.store import Project
from tests.backend.conftest import go_live
from worker.parts import Parts


def test_versions_are_listed_in_order_of_their_numbers(
    client: FlaskClient, fresh: Callable[..., Project], parts: Parts
) -> None:
    known = fresh()
    names = [go_live(parts, known) for _ in range(11)]
    reply = client.get("/versions", query_string={"project": known.project})
    assert reply.get_json() == {"versions": names}
    assert names[-1] == "v11"


def test_an_unknown_project_has_none(client: FlaskClient) -> None:
    assert client.get("/versions?project=77.1").get_json() == {"versions": []}
    assert client.get("/versions?project=../../../etc").get_json() == {"versions": []}


def test_a_call_without_a_project_is_refused(client: FlaskClient) -> None:
    reply = client.get("/versions")
    assert reply.status_code == 400
    assert reply.get_json()["detail"].startswith("project: expected")


def test_they_are_listed_without_redis(
    without_redis: FlaskClient, fresh: Callable[..., Project], parts: Parts
) -> None:
    known = fresh()
    go_live(parts, known)
    reply = without_redis.get("/versions", query_string={"project": known.project})
    assert reply.get_json() == {"versions": ["v1"]}


def test_how_right_shown_labels_were_is_told_beside_the_names(
    client: FlaskClient, fresh: Callable[..., Project], parts: Parts
) -> None:
    known = fresh()
    names = [go_live(parts, known) for _ in range(3)]
    told = {"levels": [], "grounds": "40 answers"}
    parts.store.write_following(known.key, "v2", {"told": told})
    parts.store.write_following(known.key, "v3", {"told": {"grounds": "lost"}})
    file = parts.store.root / "projects" / known.key / "following" / "v3.json"
    file.write_text("{}", encoding="utf-8")  # damaged: the names are told all the same
    reply = client.get("/versions", query_string={"project": known.project})
    assert reply.get_json() == {"versions": names, "shown": {"v2": told}}
