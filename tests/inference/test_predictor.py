"""A version answers as it was trained to, under the tree and the wishes of today."""

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hierarchy import LabelTree, log_marginals
from hierarchy.calibration import Evidence, fit_rule
from hierarchy.depth_selection import DepthRule, Reason, candidates, choose_depth, corrected
from hierarchy.heads import UNSEEN_SCORE, HRNHead
from inference.errors import ModelStoreError, UnknownVersionError
from inference.predictor import Predictor, Predictors, build_head, load_predictor, read_evidence
from inference.store import ModelStore
from tests.inference.small import CHANNELS, HEAD, head_of, project, publish, seen

TREE = LabelTree.from_paths([("Fruit", "Apple"), ("Fruit", "Pear"), ("Milk",)])
OTHER = LabelTree.from_paths([("Animal", "Cat", "Lion"), ("Animal", "Dog"), ("Plant",)])

#: Each level's best node came true for all of these: the deepest node is always shown.
EASY = Evidence(np.full((300, 2), 0.6), np.ones((300, 2), dtype=np.int64))


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models")


@pytest.fixture(scope="module")
def vectors() -> NDArray[np.float16]:
    draw = np.random.default_rng(0)
    return (draw.normal(size=(70, CHANNELS)) * 4).astype(np.float16)


@pytest.mark.parametrize("network", [HEAD, {**HEAD, "members": 2, "hidden": 5}])
def test_a_loaded_version_scores_what_the_trained_head_scored(
    store: ModelStore, vectors: NDArray[np.float16], network: dict[str, Any]
) -> None:
    head = head_of(TREE, network)
    version = publish(store, project(), TREE, head, network=network)
    predictor = load_predictor(store, project(), version)
    with torch.inference_mode():
        scores = head(torch.from_numpy(vectors).float())
    expected = log_marginals(scores.double(), TREE).numpy()
    np.testing.assert_allclose(predictor.log_probabilities(vectors), expected, atol=1e-5)


def test_answers_follow_the_rule(store: ModelStore, vectors: NDArray[np.float16]) -> None:
    version = publish(store, project(), TREE, head_of(TREE, HEAD), known=EASY)
    predictor = load_predictor(store, project(), version)
    found = candidates(predictor.log_probabilities(vectors), TREE)
    sure = corrected(found.probability, predictor.rule.platt)
    depth = choose_depth(sure, predictor.rule)
    assert len(set(depth.tolist())) > 1
    for row, answer in enumerate(predictor.answer(vectors)):
        level = int(depth[row])
        assert len(answer.path or ()) == level
        if level:
            assert answer.path == TREE.paths[found.nodes[row, level - 1]]
        assert answer.probability == pytest.approx(sure[row, max(level - 1, 0)])
        assert answer.leaf == TREE.paths[found.leaf[row]]
        assert answer.confidence == pytest.approx(found.confidence[row])


def test_without_evidence_nothing_is_answered(
    store: ModelStore, vectors: NDArray[np.float16]
) -> None:
    nothing = Evidence(np.empty((0, 2)), np.empty((0, 2), dtype=np.int64))
    version = publish(store, project(), TREE, head_of(TREE, HEAD), known=nothing)
    answers = load_predictor(store, project(), version).answer(vectors)
    assert {answer.path for answer in answers} == {None}
    assert all(0 < answer.probability < 1 for answer in answers)


def test_no_images_get_no_answers(store: ModelStore) -> None:
    version = publish(store, project(), TREE, head_of(TREE, HEAD))
    predictor = load_predictor(store, project(), version)
    empty = np.empty((0, CHANNELS), np.float16)
    assert predictor.answer(empty) == []
    assert predictor.log_probabilities(empty).shape == (0, len(TREE))


def test_projects_with_other_trees_share_a_server(
    store: ModelStore, vectors: NDArray[np.float16]
) -> None:
    first, second = project("one-1-1"), project("two-2-2")
    publish(store, first, TREE, head_of(TREE, HEAD))
    publish(store, second, OTHER, head_of(OTHER, HEAD))
    predictors = Predictors(store)
    assert predictors.get(first, "v1").log_probabilities(vectors).shape == (len(vectors), len(TREE))
    assert predictors.get(second, "v1").log_probabilities(vectors).shape == (
        len(vectors),
        len(OTHER),
    )
    assert {answer.leaf for answer in predictors.get(second, "v1").answer(vectors)} <= set(
        OTHER.paths
    )


# Nodes that cannot be wrong

LIFE = LabelTree.from_paths(
    [("Life", "Bird", "Owl"), ("Life", "Fish", "Cod"), ("Life", "Fish", "Ray")]
)


def below_life(store: ModelStore, **asked: Any) -> Predictor:
    """A version below one root that shows what it is told, and its rule on choices."""
    right = np.ones((300, 2), dtype=np.int64)
    known = Evidence(np.full((300, 2), 0.9), right, np.tile([2, 3], (300, 1)))
    version = publish(store, project(), LIFE, head_of(LIFE, HEAD), known=known)
    predictor = load_predictor(store, project(**asked), version)
    return predictor.under(replace(predictor.rule, price=20.0, platt=((1.0, 0.0),) * 2))


def log_p(**probability: float) -> NDArray[np.float64]:
    """One image's; nodes that are not named have next to none."""
    image = np.array([[probability.get(name, 1e-6) for name in LIFE.names]])
    return np.asarray(np.log(image))


def test_a_root_above_everything_is_never_the_answer(store: ModelStore) -> None:
    """As sure as can be that it is alive, and of nothing else: nothing is shown."""
    predictor = below_life(store)
    (answer,) = predictor.told(log_p(Life=0.9999, Bird=0.4, Owl=0.3, Fish=0.5, Cod=0.3))
    assert (answer.path, answer.reason) == (None, Reason.UNSURE)
    assert "'Fish' would be right in about 50 %" in answer.why
    (sure,) = predictor.told(log_p(Life=0.9999, Fish=0.99, Cod=0.6, Ray=0.3))
    assert sure.path == ("Life", "Fish")
    assert sure.probability == pytest.approx(0.99)


def test_an_only_child_is_shown_where_the_version_is_sure_of_it(store: ModelStore) -> None:
    """`Bird` holds `Owl` alone: whether it is an owl too is not a choice among the labels."""
    predictor = below_life(store)
    (sure,) = predictor.told(log_p(Life=0.999, Bird=0.98, Owl=0.97))
    assert (sure.path, sure.reason) == (("Life", "Bird", "Owl"), Reason.DEEPEST)
    assert sure.probability == pytest.approx(0.97)
    (unsure,) = predictor.told(log_p(Life=0.999, Bird=0.98, Owl=0.6))
    assert (unsure.path, unsure.reason) == (("Life", "Bird"), Reason.RISK)
    assert "'Owl' would be right in about 60 %" in unsure.why
    assert unsure.probability == pytest.approx(0.98)
    # It does not make its parent any more likely to be shown.
    (none,) = predictor.told(log_p(Life=0.999, Bird=0.7, Owl=0.69))
    assert none.path is None


def test_an_only_child_deeper_than_is_wanted_stays_away(store: ModelStore) -> None:
    predictor = below_life(store, maximum_depth=2)
    (answer,) = predictor.told(log_p(Life=0.999, Bird=0.98, Owl=0.97))
    assert (answer.path, answer.reason) == (("Life", "Bird"), Reason.LIMIT)
    (fish,) = predictor.told(log_p(Life=0.999, Fish=0.98, Cod=0.97))
    assert fish.path == ("Life", "Fish")


def test_depths_are_those_of_the_tree(store: ModelStore) -> None:
    predictor = below_life(store, minimum_depth=3)
    (fish,) = predictor.told(log_p(Life=0.999, Fish=0.99, Cod=0.6, Ray=0.3))
    assert (fish.path, fish.reason) == (None, Reason.MINIMUM)
    (cod,) = predictor.told(log_p(Life=0.999, Fish=0.99, Cod=0.97))
    assert cod.path == ("Life", "Fish", "Cod")


def test_any_node_has_the_probability_that_answers_state(store: ModelStore) -> None:
    predictor = below_life(store)
    predictor = predictor.under(replace(predictor.rule, platt=((2.0, 0.1), (0.5, -0.1))))
    image = log_p(Life=0.999, Bird=0.98, Owl=0.97, Fish=0.01)
    nodes = np.array([[LIFE.index(path) for path in LIFE.paths]])
    by_path = dict(zip(LIFE.paths, predictor.sure(image, nodes)[0].tolist(), strict=True))
    (answer,) = predictor.told(image)
    assert answer.path == ("Life", "Bird", "Owl")
    assert by_path[answer.path] == pytest.approx(answer.probability)
    assert by_path[("Life",)] == pytest.approx(0.999)  # no correction is about it
    assert by_path[answer.path] < by_path[("Life", "Bird")]


def test_a_tree_without_a_choice_answers_nothing(store: ModelStore) -> None:
    tree = LabelTree.from_paths([("Life", "Animal")])
    nothing = np.empty((9, 0), dtype=np.int64)
    none = Evidence(np.empty((9, 0)), nothing, nothing)
    version = publish(store, project(), tree, head_of(tree, HEAD), known=none)
    predictor = load_predictor(store, project(), version)
    (answer,) = predictor.told(np.log([[0.99, 0.98]]))
    assert (answer.path, answer.reason, answer.leaf) == (None, Reason.NOTHING, ("Life", "Animal"))


# The tree changed since training

TODAY = LabelTree.from_paths(
    [("Bread", "Rye"), ("Milk",), ("Fruit", "Pear"), ("Fruit", "Apple", "Gala"), ("Fruit", "Kiwi")]
)


def test_nodes_that_stay_are_scored_as_before(
    store: ModelStore, vectors: NDArray[np.float16]
) -> None:
    version = publish(store, project(), TREE, head_of(TREE, HEAD))
    before = load_predictor(store, project(), version)
    after = load_predictor(store, project(), version, tree=TODAY)
    same = [TODAY.index(path) for path in TREE.paths]
    np.testing.assert_allclose(
        after.log_probabilities(vectors)[:, same], before.log_probabilities(vectors), atol=1e-4
    )


def test_answers_with_nodes_that_stay_are_unchanged(
    store: ModelStore, vectors: NDArray[np.float16]
) -> None:
    version = publish(store, project(), TREE, head_of(TREE, HEAD), known=EASY)
    before = load_predictor(store, project(), version).answer(vectors)
    after = load_predictor(store, project(), version, tree=TODAY).answer(vectors)
    assert {answer.path for answer in before} >= {("Milk",), ("Fruit", "Apple"), None}
    assert [answer.path for answer in after] == [answer.path for answer in before]


def test_what_is_not_learnt_is_never_shown(store: ModelStore, vectors: NDArray[np.float16]) -> None:
    """Even by a rule that shows the deepest level whatever its probability is.

    Its correction turns everything into certainty, the e^-15 of a new node as well.
    """
    version = publish(store, project(), TREE, head_of(TREE, HEAD), known=EASY)
    predictor = load_predictor(store, project(), version, tree=TODAY)
    predictor.rule = replace(predictor.rule, price=0.5, platt=((0.05, 9.0),))
    shown = {answer.path for answer in predictor.answer(vectors)}
    assert shown
    assert shown <= set(TREE.paths)


def test_a_tree_without_a_common_node_answers_nothing(
    store: ModelStore, vectors: NDArray[np.float16]
) -> None:
    version = publish(store, project(), TREE, head_of(TREE, HEAD), known=EASY)
    predictor = load_predictor(store, project(), version, tree=OTHER)
    assert (predictor.log_probabilities(vectors) < UNSEEN_SCORE).all()
    answers = predictor.answer(vectors)
    assert {answer.path for answer in answers} == {None}
    assert {answer.probability for answer in answers} == {0.0}


def test_a_level_that_went_is_not_answered(store: ModelStore, vectors: NDArray[np.float16]) -> None:
    flat = LabelTree.from_paths([("Milk",), ("Fruit",)])
    version = publish(store, project(), TREE, head_of(TREE, HEAD, seed=5), known=EASY)
    answers = load_predictor(store, project(), version, tree=flat).answer(vectors)
    assert {answer.path for answer in answers} <= {("Milk",), ("Fruit",), None}
    assert ("Fruit",) in {answer.leaf for answer in answers}


# What the project asks for


def test_the_rule_of_the_version_is_used_as_it_is(store: ModelStore) -> None:
    known = seen()
    version = publish(store, project(), TREE, head_of(TREE, HEAD), known=known)
    for owner in (project(), project(target_accuracy=0.9)):
        predictor = load_predictor(store, owner, version)
        assert predictor.rule == fit_rule(known, target=0.9).rule


@pytest.mark.parametrize("target", [0.7, 0.85, 0.95])
def test_another_target_is_fitted_anew_from_the_evidence(store: ModelStore, target: float) -> None:
    known = seen(2000)
    version = publish(store, project(), TREE, head_of(TREE, HEAD), known=known)
    rule = load_predictor(store, project(target_accuracy=target), version).rule
    expected = fit_rule(known, target=target).rule
    assert rule.target == target
    assert rule.price == pytest.approx(expected.price)  # the evidence is kept as float32
    np.testing.assert_allclose(rule.platt, expected.platt, atol=1e-4)
    assert rule.price != fit_rule(known, target=0.9).rule.price


def test_a_target_beyond_the_evidence_shows_nothing(
    store: ModelStore, vectors: NDArray[np.float16]
) -> None:
    version = publish(store, project(), TREE, head_of(TREE, HEAD), known=seen(50))
    predictor = load_predictor(store, project(target_accuracy=0.999), version)
    assert predictor.rule.price is None
    assert {answer.path for answer in predictor.answer(vectors)} == {None}


def test_other_limits_are_fitted_anew_too(store: ModelStore) -> None:
    """What is right on the whole need not be on level 2 alone."""
    known = seen(500)
    version = publish(store, project(), TREE, head_of(TREE, HEAD), known=known)
    rule = load_predictor(store, project(minimum_depth=2, maximum_depth=2), version).rule
    assert (rule.minimum, rule.maximum) == (2, 2)
    assert rule.price == pytest.approx(fit_rule(known, target=0.9, minimum=2, maximum=2).rule.price)


def test_without_evidence_a_higher_target_is_not_promised(store: ModelStore) -> None:
    version = publish(store, project(), TREE, head_of(TREE, HEAD), known=None)
    lower = load_predictor(store, project(target_accuracy=0.8), version).rule
    assert lower.price == load_predictor(store, project(), version).rule.price is not None
    assert load_predictor(store, project(target_accuracy=0.95), version).rule.price is None


# Not whole


def test_an_unknown_version_is_told_as_such(store: ModelStore) -> None:
    with pytest.raises(UnknownVersionError):
        load_predictor(store, project(), "v1")


def test_damaged_weights_are_refused(store: ModelStore) -> None:
    version = publish(store, project(), TREE, head_of(TREE, HEAD))
    file = store.root / "projects" / project().key / "versions" / version / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(ModelStoreError, match="not those published"):
        load_predictor(store, project(), version)


def test_weights_of_another_tree_are_refused(store: ModelStore) -> None:
    version = publish(store, project(), TREE, head_of(OTHER, HEAD))
    with pytest.raises(ModelStoreError, match="weights of v1 do not fit its manifest"):
        load_predictor(store, project(), version)


def test_a_kind_of_network_of_another_release_is_refused() -> None:
    with pytest.raises(ModelStoreError, match="'quantum' is not known to this release"):
        build_head(TREE, {"kind": "quantum", "channels": 3})


def test_evidence_survives_the_file(store: ModelStore) -> None:
    known = seen(100)
    version = publish(store, project(), TREE, head_of(TREE, HEAD), known=known)
    found = read_evidence(store.weights(project().key, version))
    assert found is not None
    assert found.right.tolist() == known.right.tolist()
    np.testing.assert_allclose(found.probability, known.probability, atol=1e-7)


# In memory


def test_a_version_is_read_once(store: ModelStore) -> None:
    publish(store, project(), TREE, head_of(TREE, HEAD))
    predictors = Predictors(store)
    found: list[HRNHead] = []
    threads = [
        threading.Thread(target=lambda: found.append(predictors.get(project(), "v1").head))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 8
    assert len({id(head) for head in found}) == 1


def test_another_tree_or_wish_is_another_predictor(store: ModelStore) -> None:
    publish(store, project(), TREE, head_of(TREE, HEAD))
    predictors = Predictors(store)
    asks = [
        predictors.get(project(), "v1"),
        predictors.get(project(), "v1", TODAY),
        predictors.get(project(target_accuracy=0.8), "v1"),
        predictors.get(project(minimum_depth=2), "v1"),
    ]
    assert len({id(predictor) for predictor in asks}) == 4


def test_the_least_recently_used_makes_room(store: ModelStore) -> None:
    for _ in range(3):
        publish(store, project(), TREE, head_of(TREE, HEAD))
    predictors = Predictors(store, keep=2)
    for name in ("v1", "v2", "v1", "v3"):
        predictors.get(project(), name)
    assert predictors.loaded() == ["somewhere-1-17/v1", "somewhere-1-17/v3"]


def test_a_failed_load_is_tried_again(store: ModelStore) -> None:
    predictors = Predictors(store)
    with pytest.raises(UnknownVersionError):
        predictors.get(project(), "v1")
    publish(store, project(), TREE, head_of(TREE, HEAD))
    assert predictors.get(project(), "v1").version == "v1"


# Why it stops


def test_every_answer_says_why_it_goes_no_deeper(
    store: ModelStore, vectors: NDArray[np.float16]
) -> None:
    version = publish(store, project(), TREE, head_of(TREE, HEAD), known=EASY)
    loose = load_predictor(store, project(), version)
    for own in (loose, loose.under(replace(loose.rule, price=300.0))):
        for answer in own.answer(vectors):
            ends = answer.path in {TREE.paths[leaf] for leaf in TREE.leaves}
            assert (answer.reason == Reason.DEEPEST) == ends
            assert answer.why.startswith("There is nothing below") == ends
    strict = {a.reason for a in loose.under(replace(loose.rule, price=300.0)).answer(vectors)}
    assert Reason.RISK in strict


def test_the_refused_label_and_its_probability_are_named(
    store: ModelStore, vectors: NDArray[np.float16]
) -> None:
    version = publish(store, project(), TREE, head_of(TREE, HEAD), known=EASY)
    own = load_predictor(store, project(), version)
    own = own.under(replace(own.rule, price=300.0))
    found = own.guesses(vectors)
    sure = corrected(found.probability, own.rule.platt)
    refused = [
        (row, answer)
        for row, answer in enumerate(own.answer(vectors))
        if answer.reason == Reason.RISK
    ]
    assert refused
    for row, answer in refused:
        level = len(answer.path or ())
        assert f"'{TREE.names[found.nodes[row, level]]}'" in answer.why
        assert f"about {100 * sure[row, level]:.0f} %" in answer.why
        assert "target 90 %" in answer.why


def test_nothing_shown_says_why(store: ModelStore, vectors: NDArray[np.float16]) -> None:
    nothing = Evidence(np.empty((0, 2)), np.empty((0, 2), dtype=np.int64))
    version = publish(store, project(), TREE, head_of(TREE, HEAD), known=nothing)
    answers = load_predictor(store, project(), version).answer(vectors)
    assert {answer.reason for answer in answers} == {Reason.NOTHING}


# The rule that feedback led to


def following(store: ModelStore, version: str, rule: DepthRule) -> None:
    store.write_following(project().key, version, {"rule": rule.to_json()})


def test_a_rule_that_feedback_led_to_is_used_without_a_restart(
    store: ModelStore, vectors: NDArray[np.float16]
) -> None:
    version = publish(store, project(), TREE, head_of(TREE, HEAD), known=EASY)
    predictors = Predictors(store)
    before = predictors.get(project(), version)
    assert max(len(answer.path or ()) for answer in before.answer(vectors)) == 2
    following(store, version, replace(before.rule, price=1e6))
    after = predictors.get(project(), version)
    assert (after.rule.price, after.own_rule) == (1e6, before.rule)
    assert after.head is before.head
    assert predictors.get(project(), version) is after
    expected = replace(before.rule, price=1e6)
    found = candidates(before.log_probabilities(vectors), TREE)
    depth = choose_depth(corrected(found.probability, expected.platt), expected)
    assert [len(answer.path or ()) for answer in after.answer(vectors)] == depth.tolist()
    following(store, version, replace(before.rule, price=2e6))
    assert predictors.get(project(), version).rule.price == 2e6
    assert Predictors(store).get(project(), version).rule.price == 2e6


def test_feedback_under_another_target_or_depth_is_no_promise(store: ModelStore) -> None:
    version = publish(store, project(), TREE, head_of(TREE, HEAD), known=EASY)
    predictors = Predictors(store)
    own = predictors.get(project(), version).rule
    following(store, version, replace(own, price=7.0))
    assert predictors.get(project(), version).rule.price == 7.0
    for wish in ({"target_accuracy": 0.8}, {"maximum_depth": 1}, {"minimum_depth": 2}):
        asked = predictors.get(project(**wish), version)
        assert asked.rule == asked.own_rule
        assert asked.rule.price != 7.0


@pytest.mark.parametrize("kept", [{"rule": None}, {}, {"rule": {"price": 3}}, {"rule": "cheap"}])
def test_the_own_rule_holds_where_feedback_left_none(
    store: ModelStore, kept: dict[str, Any]
) -> None:
    version = publish(store, project(), TREE, head_of(TREE, HEAD), known=EASY)
    store.write_following(project().key, version, kept)
    predictor = Predictors(store).get(project(), version)
    assert predictor.rule == predictor.own_rule


def test_the_own_rule_holds_where_what_feedback_left_is_damaged(
    store: ModelStore, caplog: pytest.LogCaptureFixture
) -> None:
    version = publish(store, project(), TREE, head_of(TREE, HEAD), known=EASY)
    store.write_following(project().key, version, {"rule": None})
    file = store.root / "projects" / project().key / "following" / f"{version}.json"
    file.write_text("{", encoding="utf-8")
    predictors = Predictors(store)
    assert predictors.get(project(), version).rule == predictors.get(project(), version).own_rule
    assert caplog.text.count("own rule holds") == 1


def test_a_strict_project_gets_a_strict_rule(store: ModelStore) -> None:
    version = publish(store, project(), TREE, head_of(TREE, HEAD), known=EASY)
    assert not load_predictor(store, project(), version).rule.strict
    assert load_predictor(store, project(strict=True), version).rule.strict
    predictors = Predictors(store)
    loose, strict = (predictors.get(project(strict=one), version) for one in (False, True))
    assert (loose.rule.strict, strict.rule.strict) == (False, True)


def test_without_evidence_strictness_is_not_promised(store: ModelStore) -> None:
    version = publish(store, project(), TREE, head_of(TREE, HEAD))
    assert load_predictor(store, project(strict=True), version).rule.price is None
