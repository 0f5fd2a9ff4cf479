"""Annotations -> targets at any depth, and a reason for each annotation that teaches nothing."""

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hierarchy.tree import LabelTree
from studio.annotations import EMPTY, NOTHING_THERE, Ignored, Label, TaskLabels, read_task
from studio.errors import AnnotationError
from studio.label_config import LabelConfig, parse_label_config
from tests.studio.configs import (
    GROCERY,
    cascade_xml,
    choice,
    choices_xml,
    taxonomy_xml,
    tree_of,
    trees,
    view,
)

TREE = tree_of(GROCERY)
TAXONOMY = parse_label_config(taxonomy_xml(TREE))
FLAT = parse_label_config(choices_xml(["Milk", "Juice"]))
WHEN = 'visibleWhen="choice-selected" whenTagName="l1" whenChoiceValue='


def level(name: str, *names: str, more: str = "") -> str:
    return f'<Choices name="{name}" toName="image" {more}>{"".join(map(choice, names))}</Choices>'


#: The names that the recorded cascade uses.
CASCADE = parse_label_config(
    view(
        level("l1", "Fruit", "Vegetables"),
        level("l2_Fruit", "Apple", "Avocado", more=f'{WHEN}"Fruit"'),
        level("l2_Vegetables", "Onion", "Avocado", more=f'{WHEN}"Vegetables"'),
    )
)
SHARED = parse_label_config(
    view(
        level("l1", "Fruit", "Vegetables"),
        level("l2", "Fresh", "Frozen", more=f'prelabel="true" {WHEN}"Fruit,Vegetables"'),
    )
)


def taxonomy(*paths: object, **more: object) -> dict[str, object]:
    """A result of the Taxonomy."""
    return {
        "from_name": "label",
        "to_name": "image",
        "type": "taxonomy",
        "value": {"taxonomy": list(paths)},
        **more,
    }


def ticked(control: str, *names: object, **more: object) -> dict[str, object]:
    """A result of one Choices."""
    return {
        "from_name": control,
        "to_name": "image",
        "type": "choices",
        "value": {"choices": list(names)},
        **more,
    }


def annotation(*results: object, number: int = 5, **more: object) -> dict[str, object]:
    return {"id": number, "result": list(results), **more}


def read(config: LabelConfig, *annotations: object) -> TaskLabels:
    task = {"id": 1, "data": {"image": "/a.jpg"}, "annotations": list(annotations)}
    return read_task(task, config)


def label(config: LabelConfig, *results: object, **more: Any) -> Label:
    """The label of a task with one annotation that counts."""
    found = read(config, annotation(*results, **more))
    assert found.ignored == ()
    assert len(found.labels) == 1
    return found.labels[0]


def reason(config: LabelConfig, *results: object, **more: Any) -> str:
    """Why a task's only annotation does not count."""
    found = read(config, annotation(*results, **more))
    assert found.labels == ()
    assert len(found.ignored) == 1
    return found.ignored[0].reason


def path_of(found: Label, config: LabelConfig = TAXONOMY) -> tuple[str, ...]:
    assert found.target is not None
    return config.tree.path(found.target)


def target(config: LabelConfig, *results: object) -> tuple[str, ...]:
    return path_of(label(config, *results), config)


# What was recorded


@pytest.fixture
def recorded(shared: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        (shared / "label-studio" / "annotation_results.json").read_text()
    )
    return found


@pytest.mark.parametrize(
    ("name", "config", "path", "origin"),
    [
        ("taxonomy: pre-label accepted as is (coarse)", TAXONOMY, "Fruit", "prediction"),
        (
            "taxonomy: annotator changed coarse pre-label to leaf",
            TAXONOMY,
            "Fruit/Apple/Granny-Smith",
            "prediction-changed",
        ),
        (
            "cascade: level 2 changed Apple->Avocado",
            CASCADE,
            "Fruit/Avocado",
            "prediction-changed",
        ),
        (
            "cascade: level 1 changed Fruit->Vegetables (hidden lower levels are dropped)",
            CASCADE,
            "Vegetables",
            "prediction-changed",
        ),
    ],
)
def test_recorded_labels_are_read(
    recorded: dict[str, Any], name: str, config: LabelConfig, path: str, origin: str
) -> None:
    body = recorded[name]
    (found,) = read(config, {"id": 1, **body}).labels
    assert path_of(found, config) == tuple(path.split("/"))
    assert found.origin == origin
    assert found.parent_prediction == body.get("parent_prediction")


@pytest.mark.parametrize(
    ("name", "config", "words"),
    [
        ("taxonomy: path not in the tree, submitted as is", TAXONOMY, '"Nope / X" is not in the'),
        (
            "taxonomy: malformed flat list, submitted as is",
            TAXONOMY,
            "expected a list of paths, got a string",
        ),
        ("nested choices: annotator ticks Fruit", FLAT, "expected a list of strings, got a list"),
        ("rectangle + perRegion taxonomy", TAXONOMY, "region of the image"),
    ],
)
def test_what_was_recorded_of_another_shape_is_ignored(
    recorded: dict[str, Any], name: str, config: LabelConfig, words: str
) -> None:
    assert words in reason(config, *recorded[name]["result"])


def test_recorded_webhook_annotation_is_read(shared: Path) -> None:
    text = (shared / "label-studio" / "webhook_ANNOTATION_CREATED.json").read_text()
    body = json.loads(text)["request_body"]
    found = read_task({**body["task"], "annotations": [body["annotation"]]}, TAXONOMY)
    assert found.image == "/data/upload/1/9609eab5-Anjou_012.jpg"
    assert found.labels == (
        Label(
            task_id=1,
            annotation_id=1,
            target=TREE.index(("Fruit",)),
            nodes=(TREE.index(("Fruit",)),),
            annotator=1,
            updated_at="2026-11-23T13:33:22.003558Z",
            ground_truth=False,
            origin=None,
            parent_prediction=None,
        ),
    )


def test_recorded_skip_is_ignored(shared: Path) -> None:
    text = (shared / "label-studio" / "webhook_ANNOTATION_CREATED_skipped_task.json").read_text()
    body = json.loads(text)["request_body"]
    assert read(TAXONOMY, body["annotation"]).ignored == (Ignored(2, "skipped by the annotator"),)


# Taxonomy


def test_an_ancestor_beside_its_descendant_means_the_descendant() -> None:
    found = label(
        TAXONOMY, taxonomy(["Fruit"], ["Fruit", "Apple", "Granny-Smith"], ["Fruit", "Apple"])
    )
    assert found.nodes == (TREE.index(("Fruit", "Apple", "Granny-Smith")),)
    assert found.target == found.nodes[0]
    assert found.note == ""


def test_several_answers_count_for_what_is_above_all_of_them() -> None:
    found = label(TAXONOMY, taxonomy(["Fruit", "Avocado"], ["Fruit", "Apple", "Granny-Smith"]))
    assert path_of(found) == ("Fruit",)
    assert {TREE.path(node) for node in found.nodes} == {
        ("Fruit", "Avocado"),
        ("Fruit", "Apple", "Granny-Smith"),
    }


def test_several_answers_with_nothing_above_them_say_one_of_these() -> None:
    found = label(TAXONOMY, taxonomy(["Vegetables"], ["Fruit"]))
    assert found.target is None
    assert {TREE.path(node) for node in found.nodes} == {("Fruit",), ("Vegetables",)}


def test_a_vanished_path_counts_for_its_nearest_ancestor_and_says_so() -> None:
    found = label(TAXONOMY, taxonomy(["Fruit", "Apple", "Gala", "Royal"]))
    assert path_of(found) == ("Fruit", "Apple")
    assert (
        found.note
        == '"Fruit / Apple / Gala / Royal" is not in the label tree; counts for "Fruit / Apple"'
    )


def test_one_bad_path_does_not_spoil_a_good_one() -> None:
    found = label(TAXONOMY, taxonomy(["Fruit"], 7, ["Nope"]))
    assert path_of(found) == ("Fruit",)
    assert "got a number" in found.note
    assert '"Nope" is not in the label tree' in found.note


def test_an_alias_is_the_answer_and_the_shown_words_are_understood_too() -> None:
    config = parse_label_config(taxonomy_xml(TREE, aliased=True))
    shown = [config.titles[node] for node in TREE.ancestors(TREE.index(("Fruit", "Avocado")))]
    assert target(config, taxonomy(["Fruit", "Avocado"])) == ("Fruit", "Avocado")
    assert target(config, taxonomy(shown)) == ("Fruit", "Avocado")
    assert target(config, taxonomy([shown[0], "Avocado"])) == ("Fruit", "Avocado")


def test_a_path_cut_at_a_separator_inside_a_name_is_put_together() -> None:
    xml = taxonomy_xml(tree_of([("Bread / Rolls", "Rye"), ("Milk",)]))
    config = parse_label_config(xml)
    assert target(config, taxonomy(["Bread", "Rolls", "Rye"])) == ("Bread / Rolls", "Rye")
    assert target(config, taxonomy(["Bread / Rolls", "Rye"])) == ("Bread / Rolls", "Rye")
    assert reason(config, taxonomy(["Bread", "Rye"])) == '"Bread / Rye" is not in the label tree'


@pytest.mark.parametrize("bad", [None, 3, "Fruit", {"taxonomy": 1}, {"taxonomy": None}, {}])
def test_a_value_of_another_shape_is_ignored(bad: object) -> None:
    assert "expected a list" in reason(TAXONOMY, {"from_name": "label", "value": bad})


@pytest.mark.parametrize("bad", [[], [""], [None], ["Fruit", 3], {"a": 1}])
def test_a_path_of_another_shape_is_ignored(bad: object) -> None:
    assert "expected a list of paths" in reason(TAXONOMY, taxonomy(bad))


def test_results_of_other_controls_are_left_out() -> None:
    other = {"from_name": "blurred", "type": "choices", "value": {"choices": ["yes"]}}
    assert target(TAXONOMY, other, taxonomy(["Fruit"]), "junk") == ("Fruit",)
    assert reason(TAXONOMY, other) == "holds no result of label"


# Flat Choices and cascades


def test_flat_choices_are_their_nodes() -> None:
    assert target(FLAT, ticked("label", "Juice")) == ("Juice",)
    assert reason(FLAT, ticked("label", "Beer")) == '"Beer" is no choice of "label"'
    both = label(FLAT, ticked("label", "Juice", "Milk"))
    assert (both.target, len(both.nodes)) == (None, 2)


def test_an_aliased_choice_is_known_by_alias_and_by_value() -> None:
    inner = choice("M", title="Milk") + choice("J", title="Juice")
    config = parse_label_config(view(f'<Choices name="label" toName="image">{inner}</Choices>'))
    assert target(config, ticked("label", "J")) == ("J",)
    assert target(config, ticked("label", "Juice")) == ("J",)


@pytest.mark.parametrize("control", ["Taxonomy", "Choices"])
def test_an_alias_goes_before_the_same_word_shown_elsewhere(control: str) -> None:
    inner = choice("x", title="M") + choice("M", title="Q")
    config = parse_label_config(view(f'<{control} name="label" toName="image">{inner}</{control}>'))
    result = taxonomy(["M"]) if control == "Taxonomy" else ticked("label", "M")
    assert label(config, result).nodes == (config.tree.index(("M",)),)


def test_the_levels_of_a_cascade_make_one_path_in_any_order() -> None:
    found = [ticked("l2_Vegetables", "Avocado"), ticked("l1", "Vegetables")]
    assert target(CASCADE, *found) == ("Vegetables", "Avocado")
    assert target(CASCADE, *reversed(found)) == ("Vegetables", "Avocado")


def test_a_level_alone_is_enough_where_it_tells() -> None:
    assert target(CASCADE, ticked("l1", "Fruit")) == ("Fruit",)
    assert target(CASCADE, ticked("l2_Fruit", "Avocado")) == ("Fruit", "Avocado")


def test_a_shared_level_without_the_one_above_it_says_one_of_these() -> None:
    found = label(SHARED, ticked("l2", "Fresh"))
    fresh = {("Fruit", "Fresh"), ("Vegetables", "Fresh")}
    assert {SHARED.tree.path(node) for node in found.nodes} == fresh
    assert target(SHARED, ticked("l1", "Fruit"), ticked("l2", "Fresh")) == ("Fruit", "Fresh")


@pytest.mark.parametrize(
    ("top", "below", "note"),
    [
        ("Vegetables", "Apple", '"Apple" of "l2_Fruit" does not belong to the label above it'),
        ("Fruit", "Kiwi", '"Kiwi" is no choice of "l2_Fruit"'),
    ],
)
def test_a_lower_level_that_cannot_be_leaves_the_label_above(
    top: str, below: str, note: str
) -> None:
    found = label(CASCADE, ticked("l1", top), ticked("l2_Fruit", below))
    assert path_of(found, CASCADE) == (top,)
    assert found.note == note


def test_a_mixture_of_origins_has_changed_the_pre_label() -> None:
    one = ticked("l1", "Fruit", origin="prediction")
    two = ticked("l2_Fruit", "Apple", origin="manual")
    assert label(CASCADE, one, two).origin == "prediction-changed"
    assert label(CASCADE, one).origin == "prediction"


# Annotations of a task


def test_several_annotators_are_several_labels() -> None:
    found = read(
        TAXONOMY,
        annotation(taxonomy(["Fruit"]), number=1, completed_by=7),
        annotation(taxonomy(["Vegetables"]), number=2, completed_by={"id": 8, "email": "a@b.c"}),
        annotation(taxonomy(["Fruit"]), number=3, completed_by="somebody"),
    )
    assert [one.annotator for one in found.labels] == [7, 8, None]


def test_only_the_ground_truth_counts_where_there_is_one() -> None:
    found = read(
        TAXONOMY,
        annotation(taxonomy(["Vegetables"]), number=1),
        annotation(taxonomy(["Fruit"]), number=2, ground_truth=True),
        annotation(number=3),
    )
    assert [(one.annotation_id, one.ground_truth) for one in found.labels] == [(2, True)]
    assert found.ignored == (
        Ignored(1, "another annotation is marked as ground truth"),
        Ignored(3, "submitted without a label"),
    )


def test_a_skipped_ground_truth_decides_nothing() -> None:
    found = read(
        TAXONOMY,
        annotation(taxonomy(["Vegetables"]), number=1),
        annotation(number=2, ground_truth=True, was_cancelled=True),
    )
    assert [one.annotation_id for one in found.labels] == [1]


@pytest.mark.parametrize(
    ("results", "more", "words"),
    [
        ([taxonomy(["Fruit"])], {"was_cancelled": True}, "skipped by the annotator"),
        ([taxonomy(["Fruit"])], {"deleted": True}, "deleted"),
        ([], {}, "submitted without a label"),
        ([taxonomy()], {}, "submitted without a label"),
    ],
)
def test_withdrawn_and_empty_annotations_are_ignored(
    results: list[object], more: dict[str, object], words: str
) -> None:
    assert reason(TAXONOMY, *results, **more) == words


def test_the_time_falls_back_on_the_creation() -> None:
    assert (
        label(TAXONOMY, taxonomy(["Fruit"]), created_at="then", updated_at=None).updated_at
        == "then"
    )
    assert label(TAXONOMY, taxonomy(["Fruit"])).updated_at == ""


@pytest.mark.parametrize("entry", [None, 3, "x", [], {}, {"id": "5"}, {"id": True}, {"id": -1}])
def test_an_annotation_of_another_shape_is_ignored(entry: object) -> None:
    found = read(TAXONOMY, entry)
    assert found.labels == ()
    assert found.ignored[0].annotation_id is None
    assert "expected" in found.ignored[0].reason


def test_a_result_of_another_shape_is_ignored() -> None:
    assert read(TAXONOMY, {"id": 5, "result": "x"}).ignored == (
        Ignored(5, "result: expected a list, got a string"),
    )


@pytest.mark.parametrize("annotations", [None, []])
def test_a_task_without_annotations_has_no_labels(annotations: object) -> None:
    found = read_task({"id": 1, "data": {"image": "a"}, "annotations": annotations}, TAXONOMY)
    assert (found.labels, found.ignored, found.image) == ((), (), "a")
    assert read_task({"id": 1}, TAXONOMY) == TaskLabels(1, None, (), (), {})


def test_drafts_and_predictions_are_not_labels() -> None:
    answer = annotation(taxonomy(["Fruit"]))
    found = read_task({"id": 1, "drafts": [answer], "predictions": [answer]}, TAXONOMY)
    assert (found.labels, found.ignored) == ((), ())


@pytest.mark.parametrize("task", [None, [], "x", {}, {"id": None}, {"id": "1"}, {"id": 2**63}])
def test_what_is_no_task_is_refused(task: object) -> None:
    with pytest.raises(AnnotationError, match="integer id"):
        read_task(task, TAXONOMY)


# Properties

_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=12,
)
_names = st.sampled_from(["label", "l1", "l2_Fruit", "Fruit", "Apple", "Milk", "Avocado", ""])
_values = st.dictionaries(
    st.sampled_from(["taxonomy", "choices", "x"]),
    st.lists(_names | st.lists(_names, max_size=3) | _json, max_size=3) | _json,
    max_size=2,
)
_results = st.fixed_dictionaries(
    {"from_name": _names}, optional={"value": _values | _json, "origin": _json}
)
_annotations = st.fixed_dictionaries(
    {"id": st.integers(0, 9) | _json},
    optional={
        "result": st.lists(_results | _json, max_size=3) | _json,
        **dict.fromkeys(("was_cancelled", "ground_truth", "completed_by", "updated_at"), _json),
    },
)
_tasks = st.fixed_dictionaries(
    {"id": st.integers(0, 9) | _json},
    optional={"data": _json, "annotations": st.lists(_annotations | _json, max_size=3) | _json},
)


@given(_tasks | _json, st.sampled_from([TAXONOMY, CASCADE, FLAT, SHARED]))
def test_any_json_is_read_or_refused_as_a_task(task: object, config: LabelConfig) -> None:
    try:
        found = read_task(task, config)
    except AnnotationError:
        return
    for one in found.labels:
        assert one.nodes
        assert one.target == config.tree.common_ancestor(one.nodes)
    assert isinstance(task, dict)
    entries = task.get("annotations")
    if isinstance(entries, list):
        assert len(found.labels) + len(found.ignored) == len(entries)


@given(trees(), st.data())
def test_any_set_of_paths_is_read_as_their_deepest_and_what_covers_these(
    tree: LabelTree, data: st.DataObject
) -> None:
    config = parse_label_config(taxonomy_xml(tree))
    nodes = data.draw(st.sets(st.sampled_from(range(len(tree))), min_size=1))
    found = read(config, annotation(taxonomy(*(list(tree.path(node)) for node in nodes))))
    deepest = {n for n in nodes if not any(n != m and tree.covers(n, m) for m in nodes)}
    assert found.labels[0].target == tree.common_ancestor(deepest)
    assert found.labels[0].nodes == tuple(sorted(deepest))


@given(trees(), st.data())
def test_any_path_of_a_cascade_is_read_from_its_lowest_level_alone(
    tree: LabelTree, data: st.DataObject
) -> None:
    """With one control a parent, each control's answer tells the whole path."""
    config = parse_label_config(cascade_xml(tree))
    node = data.draw(st.sampled_from(range(len(tree))))
    assert label(config, ticked(config.controls[node], tree.names[node])).target == node


def test_names_are_compared_in_one_unicode_form() -> None:
    decomposed = unicodedata.normalize("NFD", "École")
    for known, written in (("École", decomposed), (decomposed, "École")):
        nested = parse_label_config(
            view(f'<Taxonomy name="label" toName="image">{choice(known)}</Taxonomy>')
        )
        found = label(nested, taxonomy([written]))
        assert (path_of(found, nested), found.note) == ((known,), "")
        flat = parse_label_config(choices_xml([known]))
        assert target(flat, ticked("label", written)) == (known,)


def test_an_answer_that_hides_the_labels_says_that_nothing_is_there() -> None:
    when = 'visibleWhen="choice-selected" whenTagName="present" whenChoiceValue="Animal"'
    config = parse_label_config(
        view(
            level("present", "Animal", "Empty"),
            f'<Taxonomy name="label" toName="image" {when}>{choice("Fox")}</Taxonomy>',
        )
    )

    def reason(*results: object) -> str:
        entry = {"id": 1, "result": list(results)}
        (found,) = read_task({"id": 1, "data": {}, "annotations": [entry]}, config).ignored
        return found.reason

    assert reason(ticked("present", "Empty")) == NOTHING_THERE
    assert reason(ticked("present", "Animal")) == "holds no result of label"
    assert reason() == EMPTY
