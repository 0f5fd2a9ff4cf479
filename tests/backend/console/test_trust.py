"""The page of trust: what is told of accuracy, and how settings are tried and kept."""

import json
import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from flask.testing import FlaskClient

from backend.console.trust import calibration_data, coverage_data
from cli import projects
from inference.answers import answers
from inference.insight import Bin, LevelCurve
from inference.predictor import Answer
from inference.store import Project
from tests.backend.conftest import go_live
from tests.backend.console import trained
from tests.backend.console.conftest import Post
from tests.inference.small import head_of, seen
from tests.inference.small import publish as publish_with_evidence
from tests.published import TREE
from tests.studio.configs import tree_of
from tests.studio.image_server import ImageServer
from worker.parts import Parts
from worker.queue import Board
from worker.training_config import TrainingConfig


@pytest.fixture(scope="module")
def known(parts: Parts, pictures: ImageServer) -> Project:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingConfig, "for_networks", lambda *_, **__: trained.QUICK)
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
    manifest = parts.store.manifest(known.key, "v1")
    counts = {"standing": "certified", "checked": 80, "wrong": 4, "drawn": 6, "drawn_wrong": 1}
    manifest = replace(manifest, calibration={**manifest.calibration, **counts})
    version = parts.store.publish(known.key, manifest, parts.store.weights(known.key, "v1"))
    trust = admin.get(address(known, f"?version={version}")).text
    assert "rests on 80 shown labels that were checked when held out (4 wrong)" in trust
    assert "6 of these images were drawn at random (1 wrong)" in trust
    versions = admin.get(f"/console/projects/{known.key}/versions").text
    assert "4 of 80 were wrong when held out, 1 of the 6 drawn at random." in versions


def test_the_grounds_are_those_of_the_settings_in_force(
    admin: FlaskClient, parts: Parts, fresh: Callable[..., Project]
) -> None:
    """Not those that the version was published with; images drawn at random are among them."""
    known, evidence = fresh(), seen(400)
    evidence = replace(evidence, drawn=np.arange(400) % 5 == 0)
    version = publish_with_evidence(
        parts.store, known, TREE, head_of(TREE), known=evidence, target=0.95
    )
    parts.store.point(known.key, version, reason="test")
    modest = replace(known, target_accuracy=0.75)
    parts.store.save_project(modest)
    published = parts.store.manifest(known.key, version).calibration
    in_force = parts.records.calibration(modest, version)
    assert in_force["checked"] > published["checked"] > 0
    assert in_force["drawn"] > 0
    page = admin.get(address(known)).text
    assert "fitted to these settings: " in page
    assert (
        f"rests on {in_force['checked']} shown labels that were checked when held out "
        f"({in_force['wrong']} wrong); {in_force['drawn']} of these images were drawn at random "
        f"({in_force['drawn_wrong']} wrong)"
    ) in page


def test_open_images_unlike_the_labelled_ones_are_told(
    admin: FlaskClient, known: Project, board: Board
) -> None:
    heading = "Open images unlike the labelled ones"
    assert heading not in admin.get(address(known)).text
    node = {"path": ["Fruit", "Apple"], "open": 100, "unlike": 60}
    told = {"open": 200, "unlike": 62, "words": "31% look unlike", "nodes": [node]}
    board.note_unlike(known.key, "v1", {"told": told})
    page = admin.get(address(known)).text
    assert heading in page
    assert "<strong>31% look unlike.</strong>" in page
    assert re.search(r"Fruit &gt; Apple.*?100.*?60 ?%", page, re.DOTALL)
    assert "31% look unlike." in admin.get("/console").text
    fine = {"open": 200, "unlike": 9, "words": "", "nodes": []}
    board.note_unlike(known.key, "v1", {"told": fine})
    assert "9 of 200 open images look unlike" in admin.get(address(known)).text
    assert "look unlike" not in admin.get("/console").text


# --- a tree below one root ---

#: The same tree below one root, with a label that has no sibling.
ROOTED = tree_of(
    [("Life", *path) for path in trained.TREE.paths if len(path) > 1] + [("Life", "Milk", "Cow")]
)


@pytest.fixture(scope="module")
def rooted(parts: Parts, pictures: ImageServer) -> Project:
    """A version that was trained below one root, with a coarse answer for each leaf."""
    named = [("Life", *path) for path in trained.NAMED]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingConfig, "for_networks", lambda *_, **__: trained.QUICK)
        return trained.train(parts, pictures, 913, tree=ROOTED, named=[*named, ("Life",)])


def table(page: str, caption: str) -> list[list[str]]:
    """A table's rows, each cell in words."""
    inside = re.search(rf"<caption[^>]*>{caption}</caption>(.*?)</table>", page, re.DOTALL)
    assert inside is not None
    rows = re.findall(r"<tr>(.*?)</tr>", inside[1], re.DOTALL)
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]
    return [[" ".join(re.sub(r"<[^>]+>", " ", cell).split()) for cell in row] for row in cells]


def test_a_root_above_everything_has_no_figures(
    admin: FlaskClient, parts: Parts, rooted: Project
) -> None:
    """Not on this page, nor on Versions, Tree, the card, nor in what the commands say."""
    page = admin.get(address(rooted)).text
    rows = table(page, "Levels")[1:]
    assert [row[0] for row in rows] == ["2", "3"]
    assert "Level 1 names every image alike and is not counted." in page
    assert "A label without a sibling" in page
    manifest = parts.store.manifest(rooted.key, "v1")
    by_level = {row["level"]: row for row in manifest.metrics["by_level"]}
    assert by_level.keys() == {2, 3}
    assert manifest.metrics["held_out"] == 24  # every fifth says "Life" alone, no level's
    assert by_level[2]["checked"] == 20
    for row in rows:
        figures = by_level[int(row[0])]
        share = f"{100 * figures['right'] / figures['checked']:.0f} %"
        assert row[2] == f"{share} of {figures['checked']}"
    version = table(admin.get(f"/console/projects/{rooted.key}/versions").text, "All versions.*?")
    assert version[0][2:4] == ["Accuracy on level Level 2", "Accuracy on level 3"]
    assert version[1][2:4] == [row[2] for row in rows]
    tree = table(admin.get(f"/console/projects/{rooted.key}/tree?show=all").text, "Labels")[1:]
    recognised = {row[0].split(" / ")[-1].split(" ")[0]: row[3] for row in tree}
    assert (recognised["Life"], recognised["Cow"]) == ("–", "–")  # noqa: RUF001 - a dash
    deepest = by_level[3]
    assert recognised["Apple"].endswith(" of 5")
    cards = admin.get("/console").text
    (own,) = re.findall(rf'id="p-{rooted.key}".*?</article>', cards, re.DOTALL)
    words = " ".join(re.sub(r"<[^>]+>", " ", own).split())
    share = f"{100 * deepest['right'] / deepest['checked']:.0f} %"
    assert f"Right on level 3 {share} of {deepest['checked']}" in words
    said = projects.describe(projects.project_status(parts, rooted))
    assert f"level 3 {deepest['accuracy']:.0%} of {deepest['checked']}" in said
    assert "level 1" not in said
    shares = projects.limit_depth(parts, rooted, None, None, None, None)
    assert shares["levels"] == [2, 3]
    assert re.findall(r"depth (\d) \d+%", projects.depth_text(shares)) == ["2", "3"]


def test_no_pre_label_of_a_trained_version_is_the_root(parts: Parts, rooted: Project) -> None:
    predictor = parts.predictors.get(rooted, "v1")
    bold = predictor.under(replace(predictor.rule, price=0.5))
    items = [(f"/data/upload/9/{at}.jpg", at) for at in range(12)]
    found = answers(parts.extractors.of(predictor), bold, items)
    paths = {one.path for one in found if isinstance(one, Answer)}
    assert ("Life",) not in paths
    assert any(len(path) > 1 for path in paths if path)


# --- which rule is in force ---


def test_what_is_in_force_says_where_it_comes_from(
    admin: FlaskClient, parts: Parts, known: Project
) -> None:
    """Neither settings made by hand nor a version that certifies nothing are "as certified"."""
    own = parts.store.manifest(known.key, "v1").calibration["standing"]
    words = {
        "certified": "certified on held-out images",
        "estimated": "an estimate from held-out images",
        "none": "too little evidence: nothing is shown",
    }
    page = admin.get(address(known)).text
    assert f">{words[own]}<" in page
    before = parts.store.project(known.key)
    assert before is not None
    try:
        asked = replace(before, target_accuracy=0.25, maximum_depth=1)
        parts.store.save_project(asked)
        page = admin.get(address(known)).text
        standing = parts.records.calibration(asked, "v1")["standing"]
        assert f">fitted to these settings: {words[standing]}<" in page
        first, second = table(page, "Levels")[1:]
        assert standing != "none"
        assert first[5] != "never"
        assert (second[3], second[5]) == ("0 %", "never")  # one rule in all columns
    finally:
        parts.store.save_project(before)


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
    told = coverage_data(
        [LevelCurve("1", (0.5, 1.0), (1.0, 0.8)), LevelCurve("2", (), ())], steps=4
    )
    assert told is not None
    assert told["x"] == [0.25, 0.5, 0.75, 1.0]
    assert [(one["name"], one["values"]) for one in told["series"]] == [
        ("level 1", [1.0, 1.0, 0.8, 0.8])
    ]
    assert coverage_data([]) is None


def test_bins_of_a_few_pictures_are_not_drawn() -> None:
    told = calibration_data([[Bin(2, 0.1, 1.0), Bin(5, 0.5, 0.4)], [Bin(9, 0.7, 0.8)]], ["2", "3"])
    assert told is not None
    assert told["x"] == [0.0, 0.5, 0.7, 1.0]
    assert told["series"][0]["values"] == [None, 0.4, None, None]
    assert told["series"][-1]["values"] == told["x"]
    assert [one["name"] for one in told["series"]] == ["level 2", "level 3", "as promised"]
    assert calibration_data([[Bin(1, 0.1, 1.0)]], ["1"]) is None
