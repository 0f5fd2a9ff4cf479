"""Answers against what was shown: counted once, followed as they change, killed at any line."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hierarchy import LabelTree
from hierarchy.calibration import Evidence
from hierarchy.depth_selection import DepthRule, candidates, choose_depth, corrected
from hierarchy.online_calibration import Feedback, begin, follow
from inference.answers import answers
from inference.predictor import Answer
from inference.store import Project
from studio.client import LabelStudio
from studio.errors import ImageError, StudioUnavailableError
from tests.inference import small
from tests.published import TREE
from tests.studio.configs import taxonomy_xml
from tests.worker.stand import LEGACY, Stand, publish
from worker import drift_monitor
from worker.dataset import mark
from worker.drift_monitor import Monitored, MonitorState, judge, monitor_drift
from worker.parts import Parts

FRUIT, APPLE, PEAR, MILK = (
    TREE.index(path) for path in (("Fruit",), ("Fruit", "Apple"), ("Fruit", "Pear"), ("Milk",))
)

#: No picture was held out: nothing may be shown.
NOTHING = Evidence(np.empty((0, 2)), np.empty((0, 2), dtype=np.int64))


def result(*paths: Sequence[str], **more: Any) -> list[dict[str, Any]]:
    value = {"taxonomy": [list(path) for path in paths]}
    row = {"from_name": "label", "to_name": "image", "type": "taxonomy", "value": value}
    return [{**row, **more}] if paths else []


class Annotators:
    """People at the stand: they open tasks that show a pre-label, and answer."""

    def __init__(self, stand: Stand) -> None:
        self.stand = stand
        self.minute = 0

    def answer(
        self,
        shown: Sequence[str] | None,
        *said: Sequence[str],
        version: str = "v1",
        origin: str = "prediction-changed",
        picture: str | None = None,
    ) -> int:
        """A new task, its pre-label, and the answer to it; the task's number."""
        number = len(self.stand.tasks) + 1
        data = {"image": picture or f"{number}.png"}
        task: dict[str, Any] = {"id": number, "data": data, "annotations": [], "predictions": []}
        self.stand.tasks.append(task)
        pre_label = result(*([shown] if shown else []))
        parent = self.stand.predict(number, result=pre_label, model_version=version, score=0.5)
        when = self._now()
        task["annotations"] = [
            {
                "id": 1000 + number,
                "result": result(*said, origin=origin),
                "created_at": when,
                "updated_at": when,
                "lead_time": 3.0,
                "parent_prediction": parent,
                "completed_by": 1,
            }
        ]
        task["updated_at"] = when
        return number

    def change(self, task: int, *said: Sequence[str]) -> None:
        """Answer again."""
        row = self.stand.tasks[task - 1]
        (annotation,) = row["annotations"]
        annotation["result"] = result(*said, origin="prediction-changed")
        annotation["updated_at"] = row["updated_at"] = self._now()

    def delete(self, task: int) -> None:
        """Take the answer back."""
        self.stand.tasks[task - 1]["annotations"] = []
        self.stand.tasks[task - 1]["updated_at"] = self._now()

    def _now(self) -> str:
        self.minute += 2
        return f"2026-11-23T{15 + self.minute // 60:02d}:{self.minute % 60:02d}:00.000001Z"


@pytest.fixture
def people(stand: Stand) -> Annotators:
    return Annotators(stand)


def kept(parts: Parts, known: Project, version: str = "v1") -> dict[str, Any]:
    found = parts.store.read_following(known.key, version)
    assert found is not None
    return found


def figures(parts: Parts, known: Project, version: str = "v1") -> dict[int, tuple[int, int]]:
    """Right and checked of each level that was shown."""
    _, *rows = kept(parts, known, version)["told"]["levels"]
    return {row["level"]: (row["right"], row["checked"]) for row in rows if row["shown"]}


def requests_of_tasks(stand: Stand) -> list[dict[str, Any]]:
    assert stand.server is not None
    return [
        json.loads(request.params["query"])
        for request in stand.server.requests
        if request.path == "/api/tasks"
    ]


# --- one answer ---


@pytest.mark.parametrize(
    ("shown", "answer", "verdict"),
    [
        (APPLE, [APPLE], 1),
        (FRUIT, [APPLE], 1),
        (FRUIT, [APPLE, PEAR], 1),
        (APPLE, [PEAR], 0),
        (MILK, [APPLE], 0),
        (MILK, [APPLE, PEAR], 0),
        (APPLE, [FRUIT], -1),
        (APPLE, [APPLE, PEAR], -1),
        (APPLE, [APPLE, MILK], -1),
        (MILK, [MILK, APPLE], -1),
    ],
)
def test_a_pre_label_is_judged_by_what_the_answer_leaves_open(
    shown: int, answer: list[int], verdict: int
) -> None:
    found, why = judge(shown, answer, TREE)
    assert found == verdict
    assert bool(why) == (verdict == -1)


def test_every_level_is_judged_as_one_pre_label_is() -> None:
    answers = [[APPLE], [FRUIT], [APPLE, PEAR], [MILK, PEAR], [MILK]]
    draw = np.random.default_rng(0)
    found = candidates(np.log(draw.dirichlet(np.ones(len(TREE)), len(answers))), TREE)
    expected = [
        [judge(int(node), answer, TREE)[0] for node in nodes]
        for nodes, answer in zip(found.nodes, answers, strict=True)
    ]
    assert drift_monitor._seen(found, answers, TREE).right.tolist() == expected


# --- a project ---


def test_right_wrong_and_unknown_pre_labels_are_told_by_level(
    served: Parts, known: Project, people: Annotators
) -> None:
    publish(served, known)
    people.answer(["Fruit", "Apple"], ["Fruit", "Apple"], origin="prediction")
    people.answer(["Fruit", "Apple"], ["Fruit", "Pear"])
    people.answer(["Fruit", "Apple"], ["Fruit"])
    people.answer(["Fruit"], ["Fruit", "Pear"], origin="manual")
    people.answer(["Fruit"], ["Milk"])
    people.answer(["Fruit"], ["Fruit", "Apple"], ["Fruit", "Pear"])
    people.answer(None, ["Milk"], origin="manual")
    assert monitor_drift(known.key, "v1", served).answers == 7
    assert figures(served, known) == {1: (2, 3), 2: (1, 2)}
    told = kept(served, known)["told"]
    assert told["unknown"] == {"the answer is coarser than the pre-label": 1}
    assert (told["nothing_shown"], told["left_out"]) == (1, {})
    together, first, _ = told["levels"]
    assert (together["shown"], together["checked"], together["right"]) == (6, 5, 3)
    assert first["low"] < first["accuracy"] == 2 / 3 < first["high"]


def test_what_holds_now_is_told_and_not_what_held_before(
    served: Parts, known: Project, people: Annotators
) -> None:
    """The rule moves with each answer to a pre-label, long before it is fitted to them alone."""
    publish(served, known)
    for _ in range(3):
        people.answer(None, ["Milk"], origin="manual")
    monitor_drift(known.key, "v1", served)
    own = served.predictors.get(known, "v1").own_rule
    assert kept(served, known)["rule"] == own.to_json()
    grounds = "how deep to answer is fitted to annotators' answers alone from 50 answers on, "
    assert kept(served, known)["told"]["grounds"] == f"{grounds}3 so far"
    people.answer(["Fruit"], ["Milk"])
    monitor_drift(known.key, "v1", served)
    assert kept(served, known)["rule"] != own.to_json()
    moved = "; until then each answer to a pre-label moves it a little"
    assert kept(served, known)["told"]["grounds"] == f"{grounds}4 so far{moved}"


def test_a_root_above_everything_was_no_pre_label(
    served: Parts, known: Project, people: Annotators, stand: Stand
) -> None:
    """Nobody could have found it wrong."""
    rooted = LabelTree.from_paths([("Life", *path) for path in TREE.paths if path != ("Fruit",)])
    stand.label_config = taxonomy_xml(rooted)
    backbone = served.extractors.backbone()
    levels = np.tile([2, 3], (300, 1))
    every = Evidence(np.full((300, 2), 0.6), np.ones((300, 2), dtype=np.int64), levels)
    named = (backbone.name, backbone.fingerprint)
    head = small.head_of(rooted, small.HEAD, 0)
    version = small.publish(served.store, known, rooted, head, backbone=named, known=every)
    served.store.point(known.key, version, reason="test")
    people.answer(["Life"], ["Life", "Milk"])
    people.answer(["Life", "Milk"], ["Life", "Milk"], origin="prediction")
    people.answer(["Life", "Fruit", "Pear"], ["Life", "Milk"])
    monitor_drift(known.key, version, served)
    assert figures(served, known) == {2: (1, 1), 3: (0, 1)}
    assert kept(served, known)["told"]["nothing_shown"] == 1
    assert all(row["levels"] == [2, 3] for row in kept(served, known)["rows"])


def test_rows_hold_the_probabilities_of_the_version(
    served: Parts, known: Project, people: Annotators
) -> None:
    publish(served, known)
    people.answer(["Fruit"], ["Fruit", "Pear"])
    monitor_drift(known.key, "v1", served)
    (row,) = kept(served, known)["rows"]
    predictor = served.predictors.get(known, "v1", TREE)
    (vector,) = served.extractors.of(predictor).vectors([("1.png", 1)])
    assert not isinstance(vector, ImageError)
    found = candidates(predictor.log_probabilities(vector[None]), TREE)
    assert row["probability"] == pytest.approx(found.probability[0].tolist(), abs=1e-5)
    nodes = found.nodes[0].tolist()
    assert row["right"] == [judge(node, [PEAR], TREE)[0] for node in nodes]


def test_only_new_answers_are_scored_and_nothing_counts_twice(
    served: Parts, known: Project, people: Annotators, stand: Stand
) -> None:
    publish(served, known)
    people.answer(["Fruit"], ["Fruit", "Pear"])
    assert monitor_drift(known.key, "v1", served).new == 1
    before = kept(served, known)
    assert monitor_drift(known.key, "v1", served).new == 0
    assert kept(served, known) == before
    people.answer(["Milk"], ["Fruit", "Pear"])
    ended = monitor_drift(known.key, "v1", served)
    assert (ended.state, ended.answers, ended.new) == (MonitorState.DONE, 2, 1)
    assert figures(served, known) == {1: (1, 2)}
    asked = requests_of_tasks(stand)
    told = [{item["filter"] for item in query["filters"]["items"]} for query in asked]
    assert "filter:tasks:updated_at" not in told[0]
    assert all("filter:tasks:updated_at" in query for query in told[1:])


def test_an_answer_that_is_changed_replaces_what_it_said(
    served: Parts, known: Project, people: Annotators
) -> None:
    publish(served, known)
    task = people.answer(["Fruit"], ["Milk"])
    monitor_drift(known.key, "v1", served)
    assert figures(served, known) == {1: (0, 1)}
    people.change(task, ["Fruit", "Pear"])
    assert monitor_drift(known.key, "v1", served).new == 1
    assert figures(served, known) == {1: (1, 1)}


def test_an_answer_that_is_deleted_drops_out(
    served: Parts, known: Project, people: Annotators
) -> None:
    publish(served, known)
    task = people.answer(["Fruit"], ["Milk"])
    people.answer(["Fruit"], ["Fruit"])
    monitor_drift(known.key, "v1", served)
    people.delete(task)
    assert monitor_drift(known.key, "v1", served).answers == 1
    assert figures(served, known) == {1: (1, 1)}


def test_a_task_that_is_deleted_drops_out_when_everything_is_read_again(
    served: Parts, known: Project, people: Annotators, stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(served, known)
    people.answer(["Fruit"], ["Fruit"])
    people.answer(["Fruit"], ["Milk"])
    monitor_drift(known.key, "v1", served)
    stand.tasks.pop()
    assert monitor_drift(known.key, "v1", served).answers == 2  # nobody told
    monkeypatch.setattr(drift_monitor, "FULL_AFTER", 0.0)
    assert monitor_drift(known.key, "v1", served) == Monitored(MonitorState.DONE, 1, 0, 0.0)


def test_a_new_version_starts_afresh(served: Parts, known: Project, people: Annotators) -> None:
    publish(served, known)
    people.answer(["Fruit"], ["Milk"])
    monitor_drift(known.key, "v1", served)
    assert publish(served, known, seed=1) == "v2"
    assert monitor_drift(known.key, "v1", served) == Monitored(MonitorState.OUTDATED)
    people.answer(["Fruit"], ["Fruit"], version="v2")
    assert monitor_drift(known.key, "v2", served).answers == 1
    assert figures(served, known, "v2") == {1: (1, 1)}
    assert figures(served, known, "v1") == {1: (0, 1)}  # kept, should it come back


def test_a_project_without_pre_labels_needs_no_model(
    parts: Parts, known: Project, stand: Stand
) -> None:
    """The version's backbone is none that this server has: it would fail if it were loaded."""
    head = small.head_of(TREE, small.HEAD)
    parts.store.point(known.key, small.publish(parts.store, known, TREE, head), reason="test")
    stand.label(3, minute=0)
    ended = monitor_drift(known.key, "v1", parts)
    assert ended == Monitored(MonitorState.DONE, 0, 0, 0.0)
    assert kept(parts, known)["rule"] is None
    predictor = parts.predictors.get(known, "v1")
    assert predictor.rule == predictor.own_rule


def test_an_untrained_project_does_nothing(parts: Parts, known: Project) -> None:
    assert monitor_drift(known.key, "v1", parts) == Monitored(MonitorState.OUTDATED)
    assert monitor_drift("studio-9-9", "v1", parts) == Monitored(MonitorState.OUTDATED)


def test_what_says_nothing_is_left_out_with_its_reason(
    served: Parts, known: Project, people: Annotators, stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(served, known)
    people.answer(["Fruit"], ["Milk"], picture="nowhere")
    task = people.answer(["Nope"], ["Milk"])
    people.answer(["Fruit"], ["Milk"])
    ended = monitor_drift(known.key, "v1", served)
    assert (ended.answers, ended.new) == (1, 2)
    told = kept(served, known)["told"]
    assert told["left_out"] == {
        "its image: HTTP 404: not found": 1,
        "the pre-label is not one node of the label tree of today": 1,
    }
    people.delete(task)
    stand.tasks[0]["data"]["image"] = "77.png"  # the picture can be had again
    monkeypatch.setattr(drift_monitor, "FULL_AFTER", 0.0)
    assert monitor_drift(known.key, "v1", served).answers == 2
    assert kept(served, known)["told"]["left_out"] == {}


def test_pictures_that_the_version_learnt_from_are_left_out(
    served: Parts, known: Project, people: Annotators, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(served, known)
    people.answer(["Fruit"], ["Fruit"])
    people.answer(["Fruit"], ["Fruit"])
    whole = served.store.weights

    def with_marks(key: str, version: str) -> dict[str, Any]:
        return {**whole(key, version), "evidence.pictures": torch.tensor([mark("2.png")])}

    monkeypatch.setattr(served.store, "weights", with_marks)
    assert monitor_drift(known.key, "v1", served).answers == 1
    told = kept(served, known)["told"]
    assert told["left_out"] == {"the version has learnt from this image": 1}


def test_a_tree_that_changed_has_everything_judged_anew(
    served: Parts, known: Project, people: Annotators, stand: Stand
) -> None:
    publish(served, known)
    people.answer(["Fruit"], ["Fruit", "Pear"])
    people.answer(["Milk"], ["Milk"])
    monitor_drift(known.key, "v1", served)
    today = LabelTree.from_paths([("Bread",), ("Fruit", "Pear", "Conference")])
    stand.label_config = taxonomy_xml(today)
    assert monitor_drift(known.key, "v1", served).answers == 1
    (row,) = kept(served, known)["rows"]
    assert (row["levels"], len(row["probability"])) == ([1, 2], 2)  # what the version has learnt
    assert figures(served, known) == {1: (1, 1)}


# --- the rule ---


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_a_rule_means_the_same_when_written_down_for_another_number_of_levels(levels: int) -> None:
    own = DepthRule(0.9, 20.0, ((2.0, 0.5, -0.1), (0.25, 1.5, 0.3)), bonus=0.5)
    strict = replace(own, thresholds=(0.8, 0.95))
    probability = np.random.default_rng(0).random((50, levels))
    for rule in (own, strict):
        same = drift_monitor._of_levels(rule, levels)
        assert len(same.platt) == levels
        sure = corrected(probability, rule.platt)
        np.testing.assert_allclose(corrected(probability, same.platt), sure)
        assert choose_depth(sure, same).tolist() == choose_depth(sure, rule).tolist()


def test_the_rule_follows_from_the_answers_as_the_science_says(
    served: Parts, known: Project, people: Annotators
) -> None:
    """Job by job it comes to what one walk through all answers comes to."""
    publish(served, known)
    for size in (7, 30, 1, 26):
        for number in range(size):
            said = ["Fruit", "Pear"] if number % 3 else ["Milk"]
            people.answer(["Fruit", "Apple"] if number % 2 else ["Fruit"], said)
        monitor_drift(known.key, "v1", served)
    found = kept(served, known)
    answers = [
        Feedback(
            row["annotation"],
            tuple(row["probability"]),
            tuple(row["right"]),
            row["depth"],
            row["verdict"],
        )
        for row in found["rows"]
    ]
    own = served.predictors.get(known, "v1", TREE).own_rule
    expected = follow(begin(own), answers)
    assert len(answers) == 64
    assert expected.refitted is not None
    assert found["rule"] == expected.rule.to_json() != own.to_json()
    assert served.predictors.get(known, "v1", TREE).rule == expected.rule
    assert "newest 64 answers" in found["told"]["grounds"]


def test_an_answer_that_is_gone_leaves_no_trace_in_the_rule(
    served: Parts, known: Project, people: Annotators
) -> None:
    publish(served, known)
    people.answer(["Fruit"], ["Fruit"])
    monitor_drift(known.key, "v1", served)
    before = kept(served, known)["state"]
    task = people.answer(["Fruit"], ["Milk"])
    monitor_drift(known.key, "v1", served)
    assert kept(served, known)["state"]["offset"] > before["offset"]
    people.delete(task)
    monitor_drift(known.key, "v1", served)
    assert kept(served, known)["state"] == before


def test_another_target_has_the_answers_gone_through_again(
    served: Parts, known: Project, people: Annotators
) -> None:
    publish(served, known)
    people.answer(["Fruit"], ["Milk"])
    monitor_drift(known.key, "v1", served)
    lower = replace(known, target_accuracy=0.7)
    served.store.save_project(lower)
    assert served.predictors.get(lower, "v1", TREE).rule.target == 0.7  # at once, its own
    monitor_drift(known.key, "v1", served)
    state = kept(served, known)["state"]
    assert (state["own"]["target"], state["ids"]) == (0.7, [1001])
    assert state["offset"] == pytest.approx(0.25 * 0.7)
    assert served.predictors.get(lower, "v1", TREE).rule.to_json() == kept(served, known)["rule"]


def test_a_refresh_is_wished_for_when_open_tasks_would_be_answered_otherwise(
    served: Parts, known: Project, people: Annotators
) -> None:
    """A version that may show nothing turns out to be right of every picture."""
    publish(served, known, seen=NOTHING)
    predictor, board = served.predictors.get(known, "v1", TREE), served.board
    extractor = served.extractors.of(predictor)
    for answer in answers(
        extractor, predictor, [(f"{number}.png", None) for number in range(1, 61)]
    ):
        assert isinstance(answer, Answer)
        assert answer.path is None
        people.answer(None, answer.leaf, origin="manual")
    assert monitor_drift(known.key, "v1", served).moved > 0.5
    assert board.moved(known.key, "v1", 600)
    rule = served.predictors.get(known, "v1", TREE).rule
    board.drop_moved(known.key)
    board.note_shown(known.key, "v1", rule.to_json())  # as a refresh does
    assert monitor_drift(known.key, "v1", served).moved == 0
    assert not board.moved(known.key, "v1", 0)


# --- killed, damaged, away ---


@pytest.mark.parametrize("line", ["reading", "scoring", "writing"])
def test_a_job_that_is_killed_is_repeated_without_counting_twice(
    served: Parts,
    known: Project,
    people: Annotators,
    monkeypatch: pytest.MonkeyPatch,
    line: str,
) -> None:
    class Killed(BaseException):
        """Nothing of ours handles it, as nothing handles SIGKILL."""

    def killed(*_: object, **__: object) -> None:
        raise Killed

    publish(served, known)
    people.answer(["Fruit"], ["Fruit"])
    monitor_drift(known.key, "v1", served)
    before = kept(served, known)
    people.answer(["Fruit"], ["Milk"])
    people.change(1, ["Milk"])
    with monkeypatch.context() as patched:
        places = {
            "reading": (served.studio, "tasks"),
            "scoring": (served.extractors.of(served.predictors.get(known, "v1", TREE)), "vectors"),
            "writing": (Path, "replace"),
        }
        patched.setattr(*places[line], killed)
        with pytest.raises(Killed):
            monitor_drift(known.key, "v1", served)
    assert kept(served, known) == before
    assert monitor_drift(known.key, "v1", served).answers == 2
    assert figures(served, known) == {1: (0, 2)}


def test_a_damaged_file_is_made_anew_from_label_studio(
    served: Parts, known: Project, people: Annotators
) -> None:
    publish(served, known)
    people.answer(["Fruit"], ["Milk"])
    monitor_drift(known.key, "v1", served)
    before = kept(served, known)
    file = served.store.root / "projects" / known.key / "following" / "v1.json"
    file.write_bytes(file.read_bytes().replace(b"Z", b"X"))
    assert monitor_drift(known.key, "v1", served).answers == 1
    after = kept(served, known)
    assert {**after, "read_all_at": 0} == {**before, "read_all_at": 0}


def test_a_label_studio_that_is_away_changes_nothing(
    served: Parts, known: Project, people: Annotators, stand: Stand
) -> None:
    publish(served, known)
    people.answer(["Fruit"], ["Milk"])
    monitor_drift(known.key, "v1", served)
    before = kept(served, known)
    stand.away = True
    vars(served)["studio"] = LabelStudio(stand.url, LEGACY, retries=0)
    with pytest.raises(StudioUnavailableError):
        monitor_drift(known.key, "v1", served)
    assert kept(served, known) == before
