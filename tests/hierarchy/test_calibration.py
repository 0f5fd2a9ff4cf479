"""The certificate keeps its promise, and evidence is read as it is meant."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from hierarchy import LabelTree
from hierarchy.calibration import PRICES, Evidence, Fitted, evidence, fit_platt, fit_rule
from hierarchy.choice import (
    Candidates,
    DepthRule,
    Floats,
    Ints,
    candidates,
    choose_depth,
    corrected,
)
from tests.strategies import trees

TREE = LabelTree.from_paths([("Fruit", "Apple"), ("Fruit", "Pear"), ("Milk",)])
FRUIT, MILK, APPLE, PEAR = (
    TREE.index(path) for path in [("Fruit",), ("Milk",), ("Fruit", "Apple"), ("Fruit", "Pear")]
)


def same(count: int, *, wrong: int = 0, p: float = 0.97) -> Evidence:
    """One level, every picture as sure as the next."""
    right = np.ones((count, 1), dtype=np.int64)
    right[:wrong] = 0
    return Evidence(np.full((count, 1), p), right)


def drawn(draw: np.random.Generator, count: int) -> tuple[Floats, Evidence]:
    """True probabilities of three nested levels, and what calibrated pictures show of them.

    What the network states is off by a factor in logit space, as networks are.
    """
    steps = np.stack([draw.beta(a, 1, count) for a in (20, 6, 3)], axis=1)
    truth = np.asarray(np.cumprod(steps, axis=1), dtype=np.float64)
    reached = (draw.random((count, 3)) < steps).cumprod(axis=1)
    return truth, Evidence(corrected(truth, ((1.6, 0.3),)), reached.astype(np.int64))


def true_accuracy(fitted: Fitted, truth: Floats, stated: Floats) -> float:
    """Of what a rule shows, over a population whose true probabilities are known."""
    depth = choose_depth(corrected(stated, fitted.rule.platt), fitted.rule)
    shown = depth > 0
    return float(truth[shown, depth[shown] - 1].mean())


def test_certified_rules_keep_the_target_on_new_pictures() -> None:
    """200 draws of 1000 pictures, delta 0.1: at least 85 % of certificates must be true ones."""
    truth, population = drawn(np.random.default_rng(10**6), 20_000)
    kept, deep = 0, []
    for seed in range(200):
        _, seen = drawn(np.random.default_rng(seed), 1000)
        fitted = fit_rule(seen, target=0.9)
        assert fitted.standing == "certified"
        kept += true_accuracy(fitted, truth, population.probability) >= 0.9
        deep.append(fitted.mean_depth)
    assert kept >= 170
    assert np.mean(deep) > 1.5  # not by showing little


def test_a_certificate_is_not_bought_by_showing_nothing() -> None:
    _, seen = drawn(np.random.default_rng(1), 1000)
    fitted = fit_rule(seen, target=0.9)
    assert fitted.given > 0.8
    assert fitted.checked > 800


def test_the_certificate_is_strict_at_the_edge() -> None:
    """0.9 ** 21 = 0.109 is not yet below delta = 0.1, 0.9 ** 22 = 0.098 is."""
    assert fit_rule(same(21), target=0.9).standing == "estimated"
    assert fit_rule(same(22), target=0.9).standing == "certified"


def test_one_error_more_than_the_binomial_bears_is_refused() -> None:
    worst = max(k for k in range(50) if binom.cdf(k, 200, 0.1) <= 0.1)
    assert fit_rule(same(200, wrong=worst, p=0.95), target=0.9).standing == "certified"
    assert fit_rule(same(200, wrong=worst + 1, p=0.95), target=0.9).standing == "estimated"


def test_the_cautious_estimate_has_an_edge_of_its_own() -> None:
    """One error is assumed: (0 + 1) / (9 + 1) is just 10 %."""
    assert fit_rule(same(8), target=0.9).standing == "none"
    assert fit_rule(same(9), target=0.9).standing == "estimated"


def test_without_pictures_nothing_is_shown() -> None:
    fitted = fit_rule(Evidence(np.empty((0, 2)), np.empty((0, 2), dtype=np.int64)), target=0.9)
    assert fitted.standing == "none"
    assert fitted.rule.price is None
    assert fitted.rule.platt == ((1.0, 0.0), (1.0, 0.0))


def test_a_network_that_is_wrong_is_not_shown() -> None:
    fitted = fit_rule(same(100, wrong=60), target=0.9)
    assert (fitted.standing, fitted.rule.price) == ("none", None)
    assert (fitted.checked, fitted.wrong, fitted.given) == (0, 0, 0.0)


def test_a_network_that_is_right_is_answered_as_deep_as_can_be() -> None:
    seen = Evidence(np.full((100, 3), 0.99), np.ones((100, 3), dtype=np.int64))
    fitted = fit_rule(seen, target=0.9)
    assert (fitted.mean_depth, fitted.given, fitted.wrong) == (3, 1, 0)
    assert fitted.rule.price == pytest.approx(PRICES[-1])


def test_what_coarse_labels_cannot_judge_is_no_evidence() -> None:
    """Fifty pictures labelled on level 1 say nothing of level 2, neither for nor against it."""
    right = np.ones((60, 2), dtype=np.int64)
    right[:50, 1] = -1
    sure = np.full((60, 2), 0.99)
    fitted = fit_rule(Evidence(sure, right), target=0.9, minimum=2)
    assert (fitted.standing, fitted.checked) == ("estimated", 10)
    assert fit_platt(Evidence(sure, right))[1] == fit_platt(Evidence(sure[50:], right[50:]))[1]


def test_limits_are_part_of_the_fit() -> None:
    _, seen = drawn(np.random.default_rng(2), 500)
    fitted = fit_rule(seen, target=0.9, minimum=2, maximum=2)
    assert (fitted.rule.minimum, fitted.rule.maximum) == (2, 2)
    assert fitted.mean_depth == pytest.approx(2 * fitted.given)


@settings(max_examples=40)
@given(st.integers(0, 1000), st.sampled_from([20, 60, 200]), st.sampled_from([0.7, 0.9, 0.95]))
def test_what_is_claimed_holds_on_the_evidence_itself(seed: int, count: int, target: float) -> None:
    _, seen = drawn(np.random.default_rng(seed), count)
    fitted = fit_rule(seen, target=target)
    depth = choose_depth(corrected(seen.probability, fitted.rule.platt), fitted.rule)
    right = seen.right[np.arange(count), depth - 1][depth > 0]
    assert fitted.given == pytest.approx((depth > 0).mean())
    assert (fitted.checked, fitted.wrong) == (len(right), int((right == 0).sum()))
    if fitted.standing == "certified":
        assert binom.cdf(fitted.wrong, fitted.checked, 1 - target) <= 0.1
    elif fitted.standing == "estimated":
        assert (fitted.wrong + 1) / (fitted.checked + 1) <= 1 - target + 1e-9


@pytest.mark.parametrize(("target", "delta"), [(0, 0.1), (1, 0.1), (0.9, 0), (0.9, 1), (90, 0.1)])
def test_shares_are_expected_not_percents(target: float, delta: float) -> None:
    with pytest.raises(ValueError, match=r"must lie in \(0, 1\)"):
        fit_rule(same(50), target=target, delta=delta)


def test_platt_leaves_a_level_without_evidence_alone() -> None:
    unknown = Evidence(np.full((30, 1), 0.8), np.full((30, 1), -1, dtype=np.int64))
    assert fit_platt(unknown) == ((1.0, 0.0),)


def test_platt_finds_the_distortion_it_should_undo() -> None:
    draw = np.random.default_rng(0)
    truth = draw.beta(3, 2, (20_000, 1))
    right = (draw.random(truth.shape) < truth).astype(np.int64)
    slope, offset = fit_platt(Evidence(corrected(truth, ((2.0, 1.0),)), right))[0]
    assert slope == pytest.approx(0.5, abs=0.03)
    assert offset == pytest.approx(-0.5, abs=0.06)


def test_platt_hardly_moves_for_two_pictures() -> None:
    slope, offset = fit_platt(same(2, wrong=1, p=0.7))[0]
    assert slope == pytest.approx(1, abs=0.15)
    assert offset == pytest.approx(0, abs=0.15)


@given(
    st.lists(st.tuples(st.floats(0, 1), st.integers(-1, 1)), min_size=1, max_size=40),
    st.lists(st.floats(0.001, 0.999), min_size=2, max_size=20),
)
def test_platt_never_turns_the_order_of_pictures_around(
    pairs: list[tuple[float, int]], probes: list[float]
) -> None:
    seen = Evidence(np.array([[p] for p, _ in pairs]), np.array([[r] for _, r in pairs]))
    found = corrected(np.array(sorted(probes))[:, None], fit_platt(seen))[:, 0]
    assert np.isfinite(found).all()
    assert (np.diff(found) >= 0).all()


def found(nodes: list[list[int]]) -> Candidates:
    ids: Ints = np.array(nodes)
    return Candidates(ids, np.full(ids.shape, 0.5), ids[:, -1], np.full(len(ids), 0.5))


def test_a_node_is_right_above_the_answer_and_unknown_below_it() -> None:
    guess = [FRUIT, APPLE]
    seen = evidence(found([guess] * 4), np.array([APPLE, PEAR, FRUIT, MILK]), TREE)
    assert seen.right.tolist() == [[1, 1], [1, 0], [1, -1], [0, 0]]


@given(trees(), st.integers(0, 1000))
def test_evidence_matches_paths_compared_word_by_word(tree: LabelTree, seed: int) -> None:
    draw = np.random.default_rng(seed)
    best = candidates(-draw.exponential(size=(5, len(tree))), tree)
    targets = draw.integers(0, len(tree), 5)
    seen = evidence(best, targets, tree)
    for row, target in enumerate(targets.tolist()):
        for level, node in enumerate(best.nodes[row].tolist()):
            mine, theirs = tree.paths[node], tree.paths[target]
            short = min(len(mine), len(theirs))
            agree = mine[:short] == theirs[:short]
            expected = 0 if not agree else 1 if len(mine) <= len(theirs) else -1
            assert seen.right[row, level] == expected


def test_a_fit_can_be_written_to_a_manifest() -> None:
    fitted = fit_rule(same(50, wrong=1), target=0.9)
    told = json.loads(json.dumps(fitted.to_json()))
    assert DepthRule.from_json(told["rule"]) == fitted.rule
    assert (told["standing"], told["checked"], told["wrong"]) == (
        fitted.standing,
        fitted.checked,
        fitted.wrong,
    )


def test_more_pictures_of_the_same_kind_never_cost_the_standing() -> None:
    """A larger sample of equal quality certifies what a smaller one only estimated."""
    rank = {"none": 0, "estimated": 1, "certified": 2}
    standings = [rank[fit_rule(same(n), target=0.9).standing] for n in (4, 12, 40, 400)]
    assert standings == sorted(standings) == [0, 1, 2, 2]
