"""How deep to answer: the price rule worked out on paper, and what holds for all of it."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hierarchy import LabelTree
from hierarchy.choice import (
    LEAST_PROBABILITY,
    DepthRule,
    Floats,
    candidates,
    choose_depth,
    corrected,
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
    """A picture of a leaf on level 1 gets no node of level 2."""
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


@pytest.mark.parametrize("rule", [RULE, replace(RULE, price=None, minimum=2, maximum=3)])
def test_a_rule_survives_its_manifest(rule: DepthRule) -> None:
    assert DepthRule.from_json(json.loads(json.dumps(rule.to_json()))) == rule
