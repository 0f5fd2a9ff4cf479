"""The page of trust: what is told of accuracy, and how settings are tried and kept."""

import json
import re
from collections.abc import Callable

import pytest
from flask.testing import FlaskClient

from backend.console.trust import calibration_data, coverage_data
from models.insight import Bin, LevelCurve
from models.store import Project
from tests.backend.conftest import go_live
from tests.backend.console import trained
from tests.backend.console.conftest import Post
from tests.studio.picture_server import PictureServer
from worker import training
from worker.parts import Parts
from worker.queue import Board


@pytest.fixture(scope="module")
def known(parts: Parts, pictures: PictureServer) -> Project:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "Recipe", lambda: trained.QUICK)
        return trained.train(parts, pictures, 912)


def address(known: Project, query: str = "") -> str:
    return f"/console/projects/{known.key}/trust{query}"


def test_levels_curves_and_thresholds_are_told(admin: FlaskClient, known: Project) -> None:
    page = admin.get(address(known)).text
    assert "In force" in page
    assert 'id="chart-coverage"' in page
    told = re.search(r'id="chart-coverage".*?application/json">(.*?)</script>', page, re.DOTALL)
    assert told is not None
    chart = json.loads(told[1])
    assert len(chart["series"]) == trained.TREE.depth
    assert all(len(one["values"]) == len(chart["x"]) for one in chart["series"])
    assert "No annotator has answered" in page


def test_it_says_what_the_promise_rests_on(
    admin: FlaskClient, parts: Parts, known: Project
) -> None:
    manifest = {**parts.store.manifest(known.key, "v1")}
    counts = {"standing": "certified", "checked": 80, "wrong": 4, "drawn": 6, "drawn_wrong": 1}
    manifest["calibration"] = {**manifest["calibration"], **counts}
    version = parts.store.publish(known.key, manifest, parts.store.weights(known.key, "v1"))
    trust = admin.get(address(known, f"?version={version}")).text
    assert "rests on 80 shown labels that were checked when held out (4 wrong)" in trust
    assert "6 of these images were drawn at random (1 wrong)" in trust
    versions = admin.get(f"/console/projects/{known.key}/versions").text
    assert "4 of 80 were wrong when held out, 1 of the 6 drawn at random." in versions


def test_a_preview_changes_nothing(admin: FlaskClient, parts: Parts, known: Project) -> None:
    before = parts.store.project(known.key)
    page = admin.get(address(known, "?target=60&minimum=1&maximum=1")).text
    assert "What would change" in page
    assert "60.0 %" in page
    assert "Keep these settings" in page
    assert parts.store.project(known.key) == before


def test_what_is_asked_for_already_changes_nothing(
    admin: FlaskClient, parts: Parts, known: Project
) -> None:
    target = 100 * parts.settings.target_accuracy
    page = admin.get(address(known, f"?target={target:g}&minimum=1&maximum=")).text
    assert "nothing would change" in page


def test_settings_are_kept_and_open_tasks_told(
    post: Post, parts: Parts, fresh: Callable[..., Project], board: Board
) -> None:
    own = fresh()
    version = go_live(parts, own)
    page = post(address(own), target="80.5", minimum="1", maximum="2", strict="on").text
    assert "Kept. Pre-labels follow it" in page
    kept = parts.store.project(own.key)
    assert kept is not None
    asked = (kept.target_accuracy, kept.minimum_depth, kept.maximum_depth, kept.strict)
    assert asked == (0.805, 1, 2, True)
    assert board.moved(own.key, version, 0)
    post(address(own), target="80,5", minimum="1", maximum="")
    kept = parts.store.project(own.key)
    assert kept is not None
    assert (kept.maximum_depth, kept.strict) == (None, False)


@pytest.mark.parametrize(
    "form",
    [
        {"target": "100", "minimum": "1", "maximum": ""},
        {"target": "0", "minimum": "1", "maximum": ""},
        {"target": "nan", "minimum": "1", "maximum": ""},
        {"target": "inf", "minimum": "1", "maximum": ""},
        {"target": "<b>", "minimum": "1", "maximum": ""},
        {"target": "90", "minimum": "3", "maximum": "2"},
        {"target": "90", "minimum": "-1", "maximum": ""},
        {"target": "90", "minimum": "1.5", "maximum": ""},
        {"target": "90", "minimum": "1", "maximum": "9" * 5000},
    ],
)
def test_what_cannot_be_is_refused_in_words(
    post: Post, admin: FlaskClient, parts: Parts, known: Project, form: dict[str, str]
) -> None:
    before = parts.store.project(known.key)
    assert "Nothing was changed" in post(address(known), **form).text
    assert parts.store.project(known.key) == before
    page = admin.get(address(known), query_string=form)
    assert page.status_code == 200
    assert "This cannot be" in page.text


def test_without_redis_settings_are_kept_all_the_same(
    admin_without_redis: FlaskClient, parts: Parts, fresh: Callable[..., Project]
) -> None:
    from tests.backend.console.conftest import token

    own = fresh()
    go_live(parts, own)
    data = {"csrf": token(admin_without_redis, "/console"), "target": "75", "minimum": "1"}
    reply = admin_without_redis.post(address(own), data=data, follow_redirects=True)
    assert "Redis is away" in reply.text
    kept = parts.store.project(own.key)
    assert kept is not None
    assert kept.target_accuracy == 0.75


def test_the_running_accuracy_is_told(admin: FlaskClient, parts: Parts, known: Project) -> None:
    rows = [{"depth": 1, "verdict": int(at % 4 > 0)} for at in range(40)]
    level = {"level": 0, "shown": 40, "checked": 40, "right": 30, "accuracy": 0.75}
    told = {"levels": [{**level, "low": 0.6, "high": 0.85}], "grounds": "few so far"}
    parts.store.write_following(known.key, "v1", {"rows": rows, "told": told, "rule": None})
    page = admin.get(address(known)).text
    assert "60 % to 85 %" in page
    assert "Few so far." in page
    assert 'id="chart-running"' in page


def test_an_untrained_project_can_be_given_settings(
    admin: FlaskClient, post: Post, parts: Parts, fresh: Callable[..., Project]
) -> None:
    own = fresh()
    assert "No version yet" in admin.get(address(own)).text
    assert "Keep these settings" in admin.get(address(own, "?target=70&minimum=1")).text
    post(address(own), target="70", minimum="1")
    kept = parts.store.project(own.key)
    assert kept is not None
    assert kept.target_accuracy == 0.7


def test_a_curve_is_read_at_even_steps() -> None:
    told = coverage_data([LevelCurve(1, (0.5, 1.0), (1.0, 0.8)), LevelCurve(2, (), ())], steps=4)
    assert told is not None
    assert told["x"] == [0.25, 0.5, 0.75, 1.0]
    assert [(one["name"], one["values"]) for one in told["series"]] == [
        ("level 1", [1.0, 1.0, 0.8, 0.8])
    ]
    assert coverage_data([]) is None


def test_bins_of_a_few_pictures_are_not_drawn() -> None:
    told = calibration_data([[Bin(2, 0.1, 1.0), Bin(5, 0.5, 0.4)], [Bin(9, 0.7, 0.8)]])
    assert told is not None
    assert told["x"] == [0.0, 0.5, 0.7, 1.0]
    assert told["series"][0]["values"] == [None, 0.4, None, None]
    assert told["series"][-1]["values"] == told["x"]
    assert calibration_data([[Bin(1, 0.1, 1.0)]]) is None
