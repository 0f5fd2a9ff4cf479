"""Which pre-label an annotator saw: in the recorded shapes, and where it cannot be known."""

from typing import Any

import pytest

from hierarchy import LabelTree
from studio.errors import AnnotationError
from studio.label_config import parse_label_config
from studio.predictions import LeftOut, Submission, stored_node, submissions
from tests.studio.configs import taxonomy_xml

TREE = LabelTree.from_paths([("Fruit", "Apple"), ("Fruit", "Pear"), ("Milk",)])
CONFIG = parse_label_config(taxonomy_xml(TREE))

FRUIT, APPLE, MILK = (TREE.index(path) for path in (("Fruit",), ("Fruit", "Apple"), ("Milk",)))


def result(*paths: list[str], **more: Any) -> list[dict[str, Any]]:
    value = {"taxonomy": list(paths)}
    row = {"from_name": "label", "to_name": "image", "type": "taxonomy", "value": value}
    return [{**row, **more}] if paths else []


def stored(number: int, *paths: list[str], **more: Any) -> dict[str, Any]:
    """A prediction, stored at 14:00."""
    return {
        "id": number,
        "result": result(*paths),
        "model_version": "v2",
        "created_at": "2026-11-23T14:00:00.000010Z",
        "updated_at": "2026-11-23T14:00:00.000030Z",
        **more,
    }


def answered(*paths: list[str], origin: str | None = "prediction", **more: Any) -> dict[str, Any]:
    """An annotation, opened at 14:10 and submitted 10 seconds later."""
    return {
        "id": 5,
        "result": result(*paths, **({"origin": origin} if origin else {})),
        "created_at": "2026-11-23T14:10:10Z",
        "updated_at": "2026-11-23T14:10:10Z",
        "lead_time": 10.0,
        "parent_prediction": 7,
        **more,
    }


def read(annotation: dict[str, Any], *predictions: dict[str, Any]) -> list[Submission | LeftOut]:
    task = {
        "id": 1,
        "data": {"image": "a.jpg"},
        "annotations": [annotation],
        "predictions": list(predictions),
    }
    return submissions(task, CONFIG, "v2")


def only(annotation: dict[str, Any], *predictions: dict[str, Any]) -> Submission:
    (found,) = read(annotation, *predictions)
    assert isinstance(found, Submission)
    return found


def reason(annotation: dict[str, Any], *predictions: dict[str, Any]) -> str:
    (found,) = read(annotation, *predictions)
    assert isinstance(found, LeftOut)
    assert found.annotation_id == 5
    return found.reason


@pytest.mark.parametrize("origin", ["prediction", "prediction-changed", "manual"])
def test_the_pre_label_is_the_prediction_that_the_answer_started_from(origin: str) -> None:
    """Also where all ticks were removed and set again, which makes the origin manual."""
    other = stored(6, ["Milk"])
    found = only(answered(["Fruit", "Apple"], origin=origin), other, stored(7, ["Fruit"]))
    assert (found.shown, found.label.target, found.image) == (FRUIT, APPLE, "a.jpg")
    assert found.submitted == "2026-11-23T14:10:10Z"


def test_an_empty_pre_label_showed_nothing() -> None:
    assert only(answered(["Milk"], origin="manual"), stored(7)).shown is None


def test_an_answer_that_names_no_prediction_was_given_to_the_empty_one_that_was_there() -> None:
    answer = answered(["Milk"], origin="manual", parent_prediction=None)
    assert only(answer, stored(7)).shown is None
    older = stored(6, ["Milk"], created_at="2026-11-23T13:00:00Z", model_version="v1")
    assert only(answer, older, stored(7)).shown is None
    later = stored(8, created_at="2026-11-23T15:00:00Z")
    assert read(answer, later) == []


def test_an_answer_that_did_not_start_from_the_pre_label_is_passed_over() -> None:
    answer = answered(["Milk"], origin="manual", parent_prediction=None)
    assert read(answer, stored(7, ["Fruit"])) == []
    assert read(answer) == []


def test_pre_labels_of_other_versions_and_deleted_ones_are_passed_over() -> None:
    assert read(answered(["Milk"]), stored(7, ["Milk"], model_version="v1")) == []
    assert read(answered(["Milk"]), stored(6, ["Milk"])) == []


def test_skips_are_passed_over() -> None:
    assert read(answered(was_cancelled=True), stored(7, ["Milk"])) == []


def test_annotations_created_from_predictions_say_nothing() -> None:
    """As the action of that name does in Label Studio: nobody looked at them."""
    bulk = answered(["Milk"], origin=None, lead_time=None)
    assert "program" in reason(bulk, stored(7, ["Milk"]))


def test_a_pre_label_changed_while_it_was_open_is_what_was_submitted_unchanged() -> None:
    changed = stored(7, ["Fruit"], updated_at="2026-11-23T14:10:05Z")
    assert only(answered(["Fruit", "Apple"]), changed).shown == APPLE
    why = reason(answered(["Fruit", "Apple"], origin="prediction-changed"), changed)
    assert "changed while the task was open" in why


def test_a_pre_label_changed_before_the_task_was_opened_is_what_was_shown() -> None:
    changed = stored(7, ["Fruit"], updated_at="2026-11-23T14:09:55Z")
    assert only(answered(["Milk"], origin="prediction-changed"), changed).shown == FRUIT


def test_a_pre_label_changed_after_the_answer_is_not_what_was_shown() -> None:
    changed = stored(7, ["Fruit"], updated_at="2026-11-23T14:11:00Z")
    assert only(answered(["Milk"]), changed).shown == MILK


@pytest.mark.parametrize(
    "paths", [(["Nope"],), (["Fruit", "Apple"], ["Milk"]), (["Fruit", "Fig"],)]
)
def test_a_pre_label_that_is_not_one_node_of_the_tree_is_left_out(paths: tuple[list[str]]) -> None:
    assert "label tree of today" in reason(answered(["Milk"]), stored(7, *paths))
    with pytest.raises(AnnotationError):
        stored_node(stored(7, *paths), CONFIG)


def test_a_task_without_an_image_is_left_out() -> None:
    task = {"id": 1, "data": {}, "annotations": [answered(["Milk"])]}
    (found,) = submissions({**task, "predictions": [stored(7, ["Milk"])]}, CONFIG, "v2")
    assert isinstance(found, LeftOut)


def test_nothing_that_can_be_stored_stops_the_reading() -> None:
    odd = [None, 3, {"id": "x"}, {"id": 7, "result": "?", "model_version": "v2"}]
    task = {"id": 1, "data": {"image": "a"}, "annotations": [answered(["Milk"])]}
    (found,) = submissions({**task, "predictions": odd}, CONFIG, "v2")
    assert isinstance(found, LeftOut)
    assert submissions({**task, "predictions": None}, CONFIG, "v2") == []
    stampless = answered(["Milk"], created_at="yesterday", updated_at="2026-11-23T14:10:10Z")
    assert only(stampless, stored(7, ["Milk"])).shown == MILK


def test_an_answer_of_several_keeps_its_nodes() -> None:
    found = only(answered(["Fruit", "Apple"], ["Fruit", "Pear"]), stored(7, ["Fruit"]))
    assert len(found.label.nodes) == 2
