"""How deep to answer: the price rule worked out on paper, and what holds for all of it."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hierarchy import LabelTree
from hierarchy.depth_selection import (
    LEAST_PROBABILITY,
    REASONS,
    DepthRule,
    Floats,
    Reason,
    candidates,
    choose_depth,
    corrected,
    corrected_nodes,
    explain_depth,
    reason_text,
)
from tests.strategies import trees

PLAIN = ((1.0, 0.0),)
RULE = DepthRule(target=0.9, price=10.0, platt=PLAIN)


def depths(*rows: list[float], rule: DepthRule = RULE) -> list[int]:
    found: list[int] = choose_depth(np.array(rows), rule).tolist()
    return found


def falling(seed: int, count: int = 200, levels: int = 4) -> Floats:
    """Probabilities of nested nodes: never more below than above."""
    steps = np.random.default_rng(seed).beta(4, 1, (count, levels))
    return np.asarray(np.cumprod(steps, axis=1), dtype=np.float64)


def test_a_level_is_bought_when_its_risk_is_worth_it() -> None:
    """Price 10: worth(d) = d - 10 (0.9 - P). (.99, .95): 1.9 and 2.5. (.99, .85): 1.9 and 1.5."""
    assert depths([0.99, 0.95], [0.99, 0.85]) == [2, 1]


def test_nothing_is_shown_when_every_level_costs_more_than_it_brings() -> None:
    """(.79, .6): 1 - 1.1 and 2 - 3 are both below zero; at P = .81 the top is worth 0.1."""
    assert depths([0.79, 0.6], [0.81, 0.6]) == [0, 1]


def test_a_skipped_middle_level_may_lead_to_a_deeper_one() -> None:
    """(.95, .8, .8): 1.5, 1.0 and 2.0."""
    assert depths([0.95, 0.8, 0.8]) == [3]


def test_no_price_shows_nothing() -> None:
    assert depths([1.0, 1.0], rule=replace(RULE, price=None)) == [0]


def test_the_shallowest_depth_is_obeyed() -> None:
    rule = replace(RULE, minimum=2)
    assert depths([0.99, 0.95], [0.99, 0.85], [0.99, 0.6], rule=rule) == [2, 2, 0]


def test_the_deepest_depth_is_obeyed() -> None:
    assert depths([0.99, 0.98, 0.97], rule=replace(RULE, maximum=2)) == [2]


def test_limits_beyond_the_tree_show_nothing() -> None:
    assert depths([0.99, 0.98], rule=replace(RULE, minimum=3)) == [0]


def test_a_bare_guess_is_never_shown_however_cheap_errors_are() -> None:
    """An image of a leaf on level 1 gets no node of level 2."""
    cheap = replace(RULE, price=0.5)
    assert depths([0.99, 0.002], [0.99, LEAST_PROBABILITY], rule=cheap) == [1, 2]


def test_a_lower_target_than_that_still_decides() -> None:
    assert depths([0.15, 0.01], rule=replace(RULE, target=0.1)) == [1]


def test_no_pictures_get_no_answers() -> None:
    assert choose_depth(np.empty((0, 3)), RULE).shape == (0,)


@given(st.integers(0, 10_000), st.floats(0.5, 3000), st.floats(1, 100), st.floats(0.5, 0.99))
def test_a_higher_price_is_never_deeper(
    seed: int, price: float, factor: float, target: float
) -> None:
    sure = falling(seed)
    cheap = choose_depth(sure, replace(RULE, target=target, price=price))
    dear = choose_depth(sure, replace(RULE, target=target, price=price * factor))
    assert (dear <= cheap).all()


@given(st.integers(0, 10_000), st.floats(0.5, 3000), st.floats(0.5, 0.9), st.floats(0, 0.09))
def test_a_higher_target_shows_no_more(seed: int, price: float, target: float, more: float) -> None:
    sure = falling(seed)
    easy = choose_depth(sure, replace(RULE, target=target, price=price))
    hard = choose_depth(sure, replace(RULE, target=target + more, price=price))
    assert ((hard > 0) <= (easy > 0)).all()


def test_candidates_are_the_best_of_each_level_of_a_ragged_tree() -> None:
    tree = LabelTree.from_parents([2, -1, -1, 2], ["Apple", "Milk", "Fruit", "Pear"])
    log_p = np.log([[0.2, 0.6, 0.3, 0.05], [0.3, 0.02, 0.9, 0.5]])
    found = candidates(log_p, tree)
    assert found.nodes.tolist() == [[1, 0], [2, 3]]
    np.testing.assert_allclose(found.probability, [[0.6, 0.2], [0.9, 0.5]])
    assert found.leaf.tolist() == [1, 3]  # Milk is a leaf though it is on level 1
    np.testing.assert_allclose(found.confidence, [0.6, 0.5])


@given(trees(), st.integers(0, 10_000))
def test_candidates_match_a_search_node_by_node(tree: LabelTree, seed: int) -> None:
    log_p = -np.random.default_rng(seed).exponential(size=(3, len(tree)))
    found = candidates(log_p, tree)
    for row, log in enumerate(log_p.tolist()):
        best = [max(tree.level_nodes(k), key=log.__getitem__) for k in range(tree.depth)]
        assert found.nodes[row].tolist() == best
        assert found.leaf[row] == max(tree.leaves, key=log.__getitem__)


def test_slope_one_and_offset_zero_leave_probabilities_alone() -> None:
    sure = falling(0)
    np.testing.assert_allclose(corrected(sure, PLAIN * 4), sure, rtol=1e-9)


def test_correction_by_hand() -> None:
    """Logit of 0.8 is log 4; halved it is log 2, plus log 3 it is log 6."""
    found = corrected(np.array([[0.8]]), ((0.5, float(np.log(3))),))
    np.testing.assert_allclose(found, [[6 / 7]])


def test_certainty_survives_the_correction() -> None:
    found = corrected(np.array([[0.0, 1.0]]), ((2.0, 1.0), (0.5, -1.0)))
    assert np.isfinite(found).all()
    assert found[0, 0] < 1e-6
    assert found[0, 1] > 0.99


def test_levels_deeper_than_the_fit_use_its_last_numbers() -> None:
    sure = np.full((1, 4), 0.7)
    found = corrected(sure, ((1.0, 0.0), (1.0, 2.0)))
    assert found[0, 0] == pytest.approx(0.7)
    assert found[0, 1] == found[0, 2] == found[0, 3]


def test_a_label_is_worth_its_bonus_beside_its_depth() -> None:
    """(.79, .6): 1 - 1.1 is below zero; with a bonus of 0.5 it is 0.4. It moves nothing deeper."""
    generous = replace(RULE, bonus=0.5)
    assert depths([0.79, 0.6], [0.99, 0.85], [0.74, 0.6], rule=generous) == [1, 1, 0]


STRICT = replace(RULE, price=0.0, thresholds=(0.8, 0.9, 0.7))


def test_a_strict_rule_shows_the_deepest_level_that_is_sure_enough_for_itself() -> None:
    rows = [0.99, 0.95, 0.69], [0.99, 0.89, 0.69], [0.79, 0.6, 0.6], [0.99, 0.7, 0.7]
    assert depths(*rows, rule=STRICT) == [2, 1, 0, 3]


def test_a_strict_rule_never_shows_a_closed_level() -> None:
    rule = replace(STRICT, thresholds=(0.8, None, 0.9))
    assert depths([1.0, 1.0, 0.8], [1.0, 1.0, 1.0], rule=rule) == [1, 3]


def test_a_strict_rule_keeps_to_the_projects_limits() -> None:
    assert depths([1, 1, 1], rule=replace(STRICT, maximum=2)) == [2]
    assert depths([1, 0.5, 0.3], rule=replace(STRICT, minimum=2)) == [0]
    assert depths([1, 1, 1], rule=replace(STRICT, price=None)) == [0]


def test_levels_that_a_strict_rule_does_not_know_are_closed() -> None:
    assert depths([1, 1, 1, 1], rule=STRICT) == [3]


def test_other_levels_speak_with_their_weight() -> None:
    """Logits of (.8, .5) are (log 4, 0): halved, doubled for the other level, and log 2 added."""
    platt = ((0.5, 0.0, 0.0), (2.0, 1.0, float(np.log(2))))
    found = corrected(np.array([[0.8, 0.5]]), platt)
    np.testing.assert_allclose(found, [[2 / 3, 32 / 33]])


def test_a_deeper_tree_reads_the_last_weights_as_its_own_levels() -> None:
    """On level 3, what the fit knows as level 2's own weight is level 3's own."""
    platt = ((1.0, 0.0, 0.0), (0.5, 1.0, 0.0))
    found = corrected(np.array([[0.8, 0.9, 0.5]]), platt)
    assert found[0, 2] == pytest.approx(2 / 3)  # half of log 4 from the top, nothing from its own


def test_a_shallower_tree_lets_its_last_level_speak_for_those_it_lost() -> None:
    platt = ((0.25, 0.5, 0.25, 0.0),) * 3
    assert corrected(np.array([[0.8]]), platt)[0, 0] == pytest.approx(0.8)


def test_a_correction_of_another_shape_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"level 1 has 3 weights: expected 1, of its own logit, or 2"
    ):
        corrected(np.array([[0.8, 0.7]]), ((1.0, 0.0, 0.0, 0.0),) * 2)


@given(st.integers(0, 10_000))
def test_any_node_is_corrected_as_the_best_of_its_level_would_be(seed: int) -> None:
    draw = np.random.default_rng(seed)
    platt = tuple(tuple(row) for row in draw.normal(size=(4, 5)).tolist())
    best, other = falling(seed, 6), falling(seed + 1, 6)
    levels = draw.integers(0, 4, (6, 3))
    probability = np.take_along_axis(other, levels, axis=1)
    found = corrected_nodes(best, probability, levels, platt)
    for row in range(6):
        for k, level in enumerate(levels[row].tolist()):
            replaced = best[row : row + 1].copy()
            replaced[0, level] = probability[row, k]
            expected = corrected(replaced, platt)[0, level]
            assert found[row, k] == pytest.approx(expected, rel=1e-6, abs=1e-12)


# --- why there ---


def why(
    *rows: list[float], rule: DepthRule = RULE, ends: list[list[bool]] | None = None
) -> list[str]:
    shown = explain_depth(np.array(rows), rule, None if ends is None else np.array(ends))
    return [reason.value for reason in shown.reasons()]


def test_each_reason_for_stopping() -> None:
    assert why([0.99, 0.95], [0.97, 0.4], [0.5, 0.3]) == ["deepest", "risk", "unsure"]
    assert why([0.99, 0.95], [0.97, 0.4], rule=replace(RULE, maximum=1)) == ["limit", "risk"]
    assert why([0.97, 0.4], [0.5, 0.3], rule=replace(RULE, minimum=2)) == ["minimum", "unsure"]
    assert why([0.99, 0.95], rule=replace(RULE, price=None)) == ["nothing"]
    assert why([0.99, 0.95, 0.9], [0.99, 0.3, 0.3], rule=STRICT) == ["deepest", "risk"]


def test_a_leaf_above_the_last_level_is_the_deepest_there_is() -> None:
    rows = [0.99, 0.01], [0.99, 0.4]
    assert why(*rows, ends=[[True, True], [False, True]]) == ["deepest", "risk"]


def test_what_was_refused_is_told() -> None:
    shown = explain_depth(np.array([[0.97, 0.4], [0.5, 0.3], [0.99, 0.95]]), RULE)
    np.testing.assert_array_equal(shown.deeper, [0.4, 0.5, np.nan])


@given(
    st.integers(0, 10_000), st.floats(0.5, 3000), st.integers(1, 5), st.none() | st.integers(1, 5)
)
def test_explanations_go_with_the_depths(
    seed: int, price: float, minimum: int, maximum: int | None
) -> None:
    rule = replace(RULE, price=price, minimum=minimum, maximum=maximum)
    sure = falling(seed)
    shown = explain_depth(sure, rule)
    np.testing.assert_array_equal(shown.depth, choose_depth(sure, rule))
    for depth, reason in zip(shown.depth.tolist(), shown.reasons(), strict=True):
        nothing = reason in {Reason.UNSURE, Reason.MINIMUM, Reason.NOTHING}
        assert nothing == (depth == 0)
        assert (reason is Reason.DEEPEST) == (depth == sure.shape[1])
        assert reason is not Reason.LIMIT or depth <= (maximum or 0)
        assert reason is not Reason.MINIMUM or minimum > 1


def test_no_pictures_need_no_reasons() -> None:
    assert explain_depth(np.empty((0, 3)), RULE).reasons() == []


@pytest.mark.parametrize("reason", REASONS)
def test_every_reason_has_words_of_its_own(reason: Reason) -> None:
    texts = [reason_text(one, deeper="Gala", probability=0.62, target=0.95) for one in REASONS]
    assert texts.count(reason_text(reason, deeper="Gala", probability=0.62, target=0.95)) == 1
    assert reason_text(reason).endswith(".")


def test_what_is_not_known_is_left_out_of_the_words() -> None:
    assert reason_text(Reason.UNSURE) == (
        "Nothing is shown: the best guess would be right too rarely."
    )


def test_a_rule_of_an_earlier_release_can_be_read() -> None:
    old = {"target": 0.9, "price": 10.0, "platt": [[1.0, 0.0]], "minimum": 1, "maximum": None}
    assert DepthRule.from_json(old) == RULE
    assert not DepthRule.from_json(old).strict


MIXED = replace(RULE, platt=((1.0, 0.5, 0.1), (0.2, 1.0, 0.0)), bonus=0.5)


@pytest.mark.parametrize(
    "rule",
    [
        RULE,
        MIXED,
        replace(RULE, price=None, minimum=2, maximum=3),
        replace(RULE, price=0.0, thresholds=(0.5, None)),
    ],
)
def test_a_rule_survives_its_manifest(rule: DepthRule) -> None:
    assert DepthRule.from_json(json.loads(json.dumps(rule.to_json()))) == rule


# --- images unlike the labelled ones ---


def test_an_unlike_image_is_shown_nothing_and_the_reason_says_so() -> None:
    rule = replace(RULE, least_like=0.02)
    probability, like = np.array([[0.99, 0.95]] * 3), np.array([0.5, 0.02, 0.019])
    assert choose_depth(probability, rule, like=like).tolist() == [2, 2, 0]
    told = explain_depth(probability, rule, like=like)
    assert told.depth.tolist() == [2, 2, 0]
    assert told.reasons() == [Reason.DEEPEST, Reason.DEEPEST, Reason.UNLIKE]
    assert "unlike those that were labelled" in reason_text(Reason.UNLIKE)


def test_without_a_likeness_nothing_is_held_back() -> None:
    rule = replace(RULE, least_like=1.0)
    assert depths([0.99, 0.95], rule=rule) == [2]
    assert DepthRule.from_json(json.loads(json.dumps(rule.to_json()))) == rule


def test_a_rule_of_an_earlier_release_holds_nothing_back() -> None:
    kept = RULE.to_json()
    del kept["least_like"]
    assert DepthRule.from_json(kept).least_like == 0
