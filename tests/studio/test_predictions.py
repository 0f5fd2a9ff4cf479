"""Predictions say what Label Studio accepts, and come back as the same node when submitted."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hierarchy.errors import UnknownLabelError
from hierarchy.tree import LabelTree
from studio.annotations import read_task
from studio.label_config import LabelConfig, parse_label_config
from studio.predictions import prediction
from tests.studio.configs import (
    GROCERY,
    cascade_xml,
    choices_xml,
    taxonomy_xml,
    tree_of,
    trees,
)

TAXONOMY = parse_label_config(taxonomy_xml(tree_of(GROCERY)))
CASCADE = parse_label_config(cascade_xml(tree_of(GROCERY)))


def read_back(config: LabelConfig, entry: dict[str, object]) -> int:
    """Target of the annotation that results from submitting a prediction as it is."""
    task = {"id": 1, "annotations": [{"id": 2, "result": entry["result"]}]}
    labels = read_task(task, config).labels
    assert len(labels) == 1
    assert labels[0].note == ""
    assert labels[0].target is not None
    return labels[0].target


def config_of(kind: str, tree: LabelTree) -> LabelConfig:
    match kind:
        case "taxonomy":
            xml = taxonomy_xml(tree)
        case "aliased":
            xml = taxonomy_xml(tree, aliased=True)
        case "cascade":
            xml = cascade_xml(tree)
        case _:
            xml = choices_xml([tree.names[node] for node in tree.level_nodes(0)])
    return parse_label_config(xml)


@given(st.sampled_from(["taxonomy", "aliased", "cascade", "choices"]), trees(), st.data())
def test_a_prediction_submitted_as_it_is_comes_back_as_its_node(
    kind: str, tree: LabelTree, data: st.DataObject
) -> None:
    config = config_of(kind, tree)
    node = data.draw(st.sampled_from(range(len(config.tree))))
    entry = prediction(config, config.tree.path(node), score=0.5, version="v1")
    assert read_back(config, json.loads(json.dumps(entry))) == node


def test_the_shape_is_the_one_label_studio_was_seen_to_store(shared: Path) -> None:
    text = (shared / "label-studio" / "predict_response_minimal.json").read_text()
    first, second = json.loads(text)["results"]
    assert prediction(TAXONOMY, ("Fruit", "Apple"), score=0.37, version="v3") == first
    assert prediction(TAXONOMY, None, score=0.0, version="v3") == second


def test_the_place_of_a_task_is_apart_from_how_sure_its_label_is() -> None:
    entry = prediction(TAXONOMY, ("Fruit",), score=0.05, version="v1", confidence=0.97)
    assert entry["score"] == 0.05
    assert [item["score"] for item in entry["result"]] == [0.97]  # type: ignore[attr-defined]


def test_the_empty_path_answers_nothing() -> None:
    assert prediction(TAXONOMY, (), score=0.1, version="v1")["result"] == []


def test_a_cascade_gives_one_result_a_level() -> None:
    path = ("Packages", "Juice", "Apple")
    results = prediction(CASCADE, path, score=0.5, version="v1")["result"]
    assert isinstance(results, list)
    assert [one["value"] for one in results] == [{"choices": [name]} for name in path]
    assert len({one["from_name"] for one in results}) == 3
    assert {(one["to_name"], one["type"]) for one in results} == {("image", "choices")}


def test_an_alias_is_written_and_not_the_shown_value() -> None:
    config = parse_label_config(taxonomy_xml(tree_of(GROCERY), aliased=True))
    results = prediction(config, ("Fruit",), score=0.5, version="v1")["result"]
    assert isinstance(results, list)
    assert results[0]["value"] == {"taxonomy": [["Fruit"]]}


def test_a_path_that_is_not_in_the_tree_is_refused() -> None:
    with pytest.raises(UnknownLabelError, match="Fruit"):
        prediction(TAXONOMY, ("Fruit", "Kiwi"), score=0.5, version="v1")


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_refused(score: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        prediction(TAXONOMY, None, score=score, version="v1")


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_scores_are_clipped_to_the_unit_interval(score: float) -> None:
    entry = prediction(TAXONOMY, ("Fruit",), score=score, version="v1")
    assert entry["score"] == sorted([0.0, score, 1.0])[1]
    results = entry["result"]
    assert isinstance(results, list)
    assert results[0]["score"] == entry["score"]


def test_a_numpy_score_becomes_plain_json() -> None:
    entry = prediction(TAXONOMY, ("Fruit",), score=float(np.float32(0.25)), version="v1")
    assert type(entry["score"]) is float
    direct = prediction(TAXONOMY, None, score=np.float32(0.25), version="v1")  # type: ignore[arg-type]
    assert json.dumps(direct["score"]) == "0.25"


@pytest.mark.parametrize("version", ["", "v 1", "v1\n", "../v1", "v1/2", "vé"])
def test_a_version_that_is_no_name_is_refused(version: str) -> None:
    with pytest.raises(ValueError, match="version"):
        prediction(TAXONOMY, None, score=0.5, version=version)
