"""What the commands do to one project."""

import re
from pathlib import Path

import numpy as np
import pytest

from cli import projects
from cli.projects import UsageError
from hierarchy.calibration import Evidence
from inference.insight import as_tensors
from inference.predictor import evidence_tensors
from inference.store import Project
from tests.inference.small import HEAD, head_of, seen
from tests.inference.small import publish as publish_with_evidence
from tests.published import TREE, manifest, project, publish
from worker import choosing
from worker.choosing import ChoiceError
from worker.order import Order
from worker.parts import Parts
from worker.queue import Board
from worker.reading import Read
from worker.settings import Settings


@pytest.fixture
def parts(settings: Settings) -> Parts:
    return Parts(settings)


@pytest.fixture
def known(parts: Parts) -> Project:
    return parts.store.register(project("http://studio:8080"))


# --- which one ---


def test_the_only_project_is_meant_where_none_is_named(parts: Parts, known: Project) -> None:
    assert projects.find(parts, None) == known


@pytest.mark.parametrize("wanted", ["1", "1.1795440233", "studio-8080-1-1795440233"])
def test_a_project_is_found_by_all_its_names(parts: Parts, known: Project, wanted: str) -> None:
    parts.store.register(project("http://studio:8080", "2.5"))
    assert projects.find(parts, wanted) == known


def test_a_project_that_is_not_there_is_answered_with_those_that_are(
    parts: Parts, known: Project
) -> None:
    with pytest.raises(UsageError, match=re.escape("no project fits '7': give --project")) as told:
        projects.find(parts, "7")
    assert str(told.value).endswith("with one of: 1")


def test_several_that_fit_are_named(parts: Parts, known: Project) -> None:
    parts.store.register(project("http://other", "1.5"))
    with pytest.raises(UsageError, match="more than one project fits") as told:
        projects.find(parts, "1")
    assert known.key in str(told.value)  # the number is that of two


def test_where_there_is_none_that_is_said(parts: Parts) -> None:
    with pytest.raises(UsageError, match=r"no project has called yet in .*set HRN_HOME"):
        projects.find(parts, None)


# --- status ---


def test_the_status_of_an_untrained_project(parts: Parts, known: Project) -> None:
    told = projects.status(parts)
    assert (told["workers"], told["waiting_jobs"]) == ([], 0)
    (row,) = told["projects"]
    assert (row["project"], row["version"], row["training"]) == (1, None, "idle")
    assert "untrained" in projects.describe(row)


def test_the_status_of_a_project_in_training(parts: Parts, known: Project, board: Board) -> None:
    publish(parts.store, known)
    board.log_run(known.key, {"job": "a", "state": "refused", "why": "worse than v1"})
    board.note_event(known.key)
    asked = projects.ask_training(parts, known, Order(known.key))
    told = projects.project_status(parts, known)
    assert (told["version"], told["training"], told["job"]) == ("v1", "queued", asked["job"])
    words = projects.describe(told)
    assert "shown labels are 90% right by estimate" in words
    assert "1 of 20 shown labels were wrong" in words
    assert "whose label reaches it, right on level 1 90% of 10, level 2 90% of 10" in words
    assert "training: queued" in words
    assert "1 newer answers, which v1 has not learnt" in words
    assert "last training: refused" in words
    board.report(known.key, {"stage": "fitting", "done": 3, "total": 9, "seconds_left": 6.2})
    running = projects.describe(projects.project_status(parts, known))
    assert "training: fitting 3/9, 6 s left in this stage" in running


def test_the_status_says_what_was_not_learnt_from_and_why(parts: Parts, known: Project) -> None:
    publish(parts.store, known)
    told = projects.project_status(parts, known)
    assert "passed over" not in projects.describe(told)
    told["labels"] |= {"ignored": {"holds no result of label": 20}, "skipped": {"404 Not Found": 3}}
    assert "passed over: 20 (holds no result of label), 3 (404 Not Found)" in (
        projects.describe(told)
    )


def test_the_status_says_where_open_images_are_unlike_the_labelled_ones(
    parts: Parts, known: Project, board: Board
) -> None:
    publish(parts.store, known)
    assert projects.project_status(parts, known)["unlike"] is None
    words = "31% of the open images look unlike those that were labelled (5% would be usual)"
    board.note_unlike(known.key, "v1", {"told": {"open": 200, "unlike": 62, "words": words}})
    told = projects.project_status(parts, known)
    assert told["unlike"]["unlike"] == 62
    assert f"  {words}" in projects.describe(told).splitlines()
    board.note_unlike(known.key, "v0", {"told": {"words": words}})  # of another version
    assert words not in projects.describe(projects.project_status(parts, known))


def test_the_status_without_redis_is_still_told(settings: Settings, known: Project) -> None:
    lame = Parts(Settings(home=settings.home))
    told = projects.status(lame)
    assert "REDIS_URL is not set" in told["problem"]
    assert told["waiting_jobs"] is None
    assert "unknown" in projects.describe(told["projects"][0])


def test_answers_that_the_live_version_has_not_learnt_are_counted(
    parts: Parts, known: Project, board: Board
) -> None:
    """As after going back: a training has read them, the version that is live has not."""
    publish(parts.store, known, trained_through="2026-11-23T14:00:00.000000Z")
    board.note_attempt(known.key, Read("2026-11-23T15:00:00.000000Z", {}))
    words = projects.describe(projects.project_status(parts, known))
    assert "newer answers that v1 has not learnt are being counted" in words
    board.note_behind(known.key, "v1", 15)
    words = projects.describe(projects.project_status(parts, known))
    assert "15 newer answers, which v1 has not learnt, 15 of them read by a training" in words
    board.note_behind(known.key, "v2", 15)  # of another version: not yet counted for this one
    assert projects.project_status(parts, known)["behind"] is None


def test_a_version_that_shows_nothing_says_what_is_missing(parts: Parts, known: Project) -> None:
    six = np.linspace(0.95, 0.99, 6)
    few = Evidence(np.column_stack([six, six]), np.ones((6, 2), dtype=np.int64))
    tensors = {
        **evidence_tensors(few),
        **as_tensors(
            truth=np.zeros(6, dtype=np.int64),
            nodes=np.zeros((6, 2), dtype=np.int64),
            labels=np.zeros(len(TREE), dtype=np.int64),
        ),
    }
    version = parts.store.publish(known.key, manifest(TREE, None, "fingerprint"), tensors)
    parts.store.point(known.key, version, reason="test")
    told = projects.project_status(parts, known)
    assert told["missing"]["checked"] == 6
    words = projects.describe(told)
    assert f"shows nothing yet: {told['missing']['words']}" in words
    assert "too little evidence; about" in words


def test_an_answer_without_a_label_does_not_state_a_probability() -> None:
    row = {"answer": None, "probability": 1.0, "best_leaf": ["Fruit", "Pear"], "confidence": 0.94}
    told = projects.describe_answer({**row, "reason": "too few checked labels"})
    assert told == "no label is shown (too few checked labels); best leaf Fruit > Pear (94%)"
    shown = {**row, "answer": ["Fruit"], "reason": "the next level is a guess"}
    assert projects.describe_answer(shown) == "Fruit (100%); best leaf Fruit > Pear (94%)"


def test_what_annotators_answers_say_is_told(parts: Parts, known: Project, board: Board) -> None:
    version = publish(parts.store, known)
    assert projects.project_status(parts, known)["following"] is None
    rows = [
        {"level": level, "checked": checked, "accuracy": accuracy, "low": 0.8, "high": 0.97}
        for level, checked, accuracy in [(0, 50, 0.92), (1, 40, 0.95), (2, 10, None)]
    ]
    told = {"levels": rows, "grounds": "from the newest 60 answers"}
    parts.store.write_following(known.key, version, {"told": told})
    words = projects.describe(projects.project_status(parts, known))
    assert (
        "shown since, by annotators' answers: all 92% of 50 (80% to 97%), level 1 95% of 40 "
        "(80% to 97%) right; from the newest 60 answers" in words
    )
    (row,) = projects.versions(parts, known)
    assert row["following"] == told
    none = {**told, "levels": rows[2:]}
    assert "none could be checked yet" in projects.seen_since(none)


def test_what_annotators_answers_said_may_be_damaged(
    parts: Parts, known: Project, board: Board
) -> None:
    version = publish(parts.store, known)
    parts.store.write_following(known.key, version, {"told": None})
    file = parts.store.root / "projects" / known.key / "following" / f"{version}.json"
    file.write_text("{", encoding="utf-8")
    words = projects.describe(projects.project_status(parts, known))
    assert "answers to pre-labels: cannot read following/v1.json" in words


@pytest.mark.parametrize(
    ("standing", "words"), [("certified", "90% right, certified"), ("none", "no label is shown")]
)
def test_what_is_promised_is_told_with_its_grounds(standing: str, words: str) -> None:
    calibration = dict(manifest(TREE, 1.0, "x").calibration) | {"standing": standing}
    assert words in projects.promise(calibration)


# --- versions ---


def test_versions_are_listed_and_the_live_one_marked(parts: Parts, known: Project) -> None:
    publish(parts.store, known)
    publish(parts.store, known)
    first, second = projects.versions(parts, known)
    assert (first["version"], first["live"], second["live"]) == ("v1", False, True)
    assert projects.describe_version(second).startswith("* v2")
    assert "20 labels" in projects.describe_version(first)


def test_a_version_that_cannot_be_read_is_listed_with_its_problem(
    parts: Parts, known: Project
) -> None:
    publish(parts.store, known)
    folder = parts.settings.store / "projects" / known.key / "versions" / "v1"
    (folder / "manifest.json").write_text("{", encoding="utf-8")
    (row,) = projects.versions(parts, known)
    assert "cannot read v1/manifest.json" in projects.describe_version(row)
    assert "cannot read" in projects.describe(projects.project_status(parts, known))


def test_a_live_version_whose_weights_are_damaged_is_a_problem_not_an_error(
    parts: Parts, known: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whether it shows anything is asked of the evidence that lies beside its weights."""
    version = publish(parts.store, known, price=None)
    folder = parts.settings.store / "projects" / known.key / "versions" / version
    (folder / "weights.safetensors").write_bytes(b"half")
    told = projects.project_status(parts, known)
    assert told["version"] == version
    assert f"the weights of {version} are not those published" in told["problem"]
    assert f"problem: {told['problem']}" in projects.describe(told)


def test_a_version_chosen_by_hand_is_told(parts: Parts, known: Project) -> None:
    publish(parts.store, known)
    publish(parts.store, known)
    choosing.rollback(parts, known)
    told = projects.project_status(parts, projects.find(parts, None))
    assert "chosen by hand" in projects.describe(told)


# --- predicting files ---


def test_an_untrained_project_predicts_nothing(parts: Parts, known: Project) -> None:
    with pytest.raises(UsageError, match="untrained"):
        projects.predict(parts, known, [Path("cat.jpg")])


@pytest.mark.slow
def test_files_are_answered_and_a_missing_one_is_told(
    settings: Settings, known: Project, tmp_path: Path
) -> None:
    from dataclasses import replace

    from tests.backend.conftest import jpeg

    parts = Parts(replace(settings, backbone=Settings.backbone))
    publish(parts.store, known, fingerprint=parts.extractors.base().fingerprint)
    (tmp_path / "cat?1.jpg").write_bytes(jpeg())
    (tmp_path / "text.jpg").write_bytes(b"no picture")
    names = ("cat?1.jpg", "text.jpg", "missing.jpg")
    good, text, missing = projects.predict(parts, known, [tmp_path / name for name in names])
    assert tuple(good["answer"]) in TREE.paths
    assert good["version"] == "v1"
    assert 0 < good["confidence"] < 1
    assert text["problem"]
    assert "No such file" in missing["problem"]


# --- how deep ---


def test_depth_and_target_are_kept_and_told(parts: Parts, known: Project) -> None:
    told = projects.limit_depth(parts, known, 0.95, 1, 2, True)  # noqa: FBT003
    kept = parts.store.project(known.key)
    assert kept is not None
    assert (kept.target_accuracy, kept.minimum_depth, kept.maximum_depth) == (0.95, 1, 2)
    assert kept.strict
    assert projects.depth_text(told).splitlines() == [
        "target 95% on each level, from depth 1 to depth 2",
        "  no version is live yet",
    ]


def test_what_is_not_named_stays(parts: Parts, known: Project) -> None:
    first = projects.limit_depth(parts, known, 0.95, None, 2, None)
    kept = parts.store.project(known.key)
    assert kept is not None
    again = projects.limit_depth(parts, kept, None, None, None, None)
    assert again == first
    lifted = projects.limit_depth(parts, kept, None, None, 0, None)
    assert (lifted["target"], lifted["maximum"]) == (0.95, None)


def test_the_live_version_says_what_it_would_show(
    parts: Parts, known: Project, board: Board
) -> None:
    tree = TREE
    held = seen(levels=tree.depth)
    version = publish_with_evidence(parts.store, known, tree, head_of(tree, HEAD), known=held)
    parts.store.point(known.key, version, reason="test")
    told = projects.limit_depth(parts, known, 0.8, None, None, None)
    assert (told["version"], told["standing"]) == (version, "certified")
    assert sum(told["shares"]) == pytest.approx(1, abs=1e-3)
    assert f"{version} would show, of the images it was checked on: depth 1 " in (
        projects.depth_text(told)
    )
    assert board.moved(known.key, version, pause=0)  # open tasks will get the new answers
    harder = projects.limit_depth(parts, known, 0.99, None, None, None)
    depths = [sum(n * share for n, share in enumerate(t["shares"])) for t in (told, harder)]
    assert depths[1] < depths[0]


@pytest.mark.parametrize(
    ("target", "minimum", "maximum"),
    [(1.0, None, None), (0.0, None, None), (None, 0, 2), (0.9, 3, 2)],
)
def test_limits_out_of_range_are_refused(
    parts: Parts, known: Project, target: float | None, minimum: int | None, maximum: int | None
) -> None:
    with pytest.raises(ChoiceError, match=r"between 0 and 1|1 <= minimum <= maximum"):
        projects.limit_depth(parts, known, target, minimum, maximum, None)
    assert parts.store.project(known.key) == known


def test_a_promise_says_how_much_of_it_was_drawn_at_random() -> None:
    rule = {"target": 0.9}
    shares = {"given": 0.58, "mean_depth": 1.3}
    counts = {"checked": 80, "wrong": 4, "drawn": 6, "drawn_wrong": 1}
    words = projects.promise({"rule": rule, "standing": "certified", **shares, **counts})
    assert "(4 of 80 shown labels were wrong when held out, 1 of the 6 drawn at random)" in words
