"""Risk against coverage: on paper, and by trying every threshold one at a time."""

import math
from itertools import pairwise
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hierarchy import LabelTree
from hierarchy.metrics.ancestors import Ints
from hierarchy.metrics.selective import (
    Curve,
    area_under_climbing,
    area_under_risk,
    climbing_curve,
    risk_coverage,
)
from tests.hierarchy.metrics.cases import (
    APPLE,
    FRUIT,
    FUJI,
    GALA,
    PAPER,
    Case,
    best,
    path,
    probable,
    raw,
)

outcomes = st.lists(
    st.tuples(st.floats(0, 1) | st.sampled_from([0.2, 0.5]), st.booleans()), min_size=1, max_size=30
)


@given(outcomes)
def test_each_point_is_the_risk_of_what_passes_its_threshold(
    pairs: list[tuple[float, bool]],
) -> None:
    found = risk_coverage(np.array([p for p, _ in pairs]), np.array([r for _, r in pairs]))
    assert found.threshold.tolist() == sorted({p for p, _ in pairs}, reverse=True)
    for threshold, coverage, risk in zip(found.threshold, found.coverage, found.risk, strict=True):
        passing = [right for stated, right in pairs if stated >= threshold]
        assert coverage == pytest.approx(len(passing) / len(pairs))
        assert risk == pytest.approx(1 - fmean(passing))


@given(outcomes)
def test_area_is_the_mean_risk_over_pictures(pairs: list[tuple[float, bool]]) -> None:
    found = risk_coverage(np.array([p for p, _ in pairs]), np.array([r for _, r in pairs]))
    slow = fmean(1 - fmean(r for p, r in pairs if p >= mine) for mine, _ in pairs)
    assert area_under_risk(found) == pytest.approx(slow)


def test_area_by_hand() -> None:
    """Risks 0, 1/2, 1/3 and 2/4 at one image more each."""
    found = risk_coverage(np.array([0.7, 0.9, 0.8, 0.1]), np.array([True, True, False, False]))
    assert found.risk.tolist() == pytest.approx([0, 1 / 2, 1 / 3, 1 / 2])
    assert area_under_risk(found) == pytest.approx(1 / 3)


def climb(tree: LabelTree, row: list[float], threshold: float) -> int:
    """From the best leaf up to the first node that is likely enough, else nothing."""
    node = best(tree, row, tree.leaves)
    while node >= 0 and row[node] < threshold:
        node = tree.parents[node]
    return node


def slow_curve(case: Case) -> list[tuple[float, float]]:
    """Coverage and risk at every threshold that any node's score sets, strictest first."""
    tree, scores, targets = case
    images = [
        (row, target)
        for row, target in zip(scores.tolist(), targets.tolist(), strict=True)
        if not tree.children[target]
    ]
    points = []
    for threshold in sorted({s for row, _ in images for s in row} | {math.inf}, reverse=True):
        said = [climb(tree, row, threshold) for row, _ in images]
        told = [
            1 - math.log(leaves_below(tree, node)) / math.log(len(tree.leaves))
            if node >= 0 and len(tree.leaves) > 1
            else float(node >= 0)
            for node in said
        ]
        wrong = [a not in path(tree, b) and a >= 0 for a, (_, b) in zip(said, images, strict=True)]
        points.append((fmean(told), fmean(wrong)))
    return points


def leaves_below(tree: LabelTree, node: int) -> int:
    return sum(tree.covers(node, leaf) for leaf in tree.leaves)


def check_climbing(case: Case) -> None:
    tree, scores, targets = case
    found = climbing_curve(scores, targets, tree)
    if all(tree.children[target] for target in targets):
        assert area_under_climbing(found) is None
        return
    slow = slow_curve(case)
    area = sum((c2 - c1) * (r1 + r2) / 2 for (c1, r1), (c2, r2) in pairwise(slow))
    assert area_under_climbing(found) == pytest.approx(area, abs=1e-9)
    ours = list(zip(found.coverage.tolist(), found.risk.tolist(), strict=True))
    for point in ours:
        assert any(point == pytest.approx(one, abs=1e-9) for one in slow)
    for one in slow:
        assert any(one == pytest.approx(point, abs=1e-9) for point in ours)


@given(probable())
def test_climbing_with_probabilities_is_trying_every_threshold(case: Case) -> None:
    check_climbing(case)


@given(raw())
def test_climbing_with_any_scores_is_trying_every_threshold(case: Case) -> None:
    check_climbing(case)


@given(probable())
def test_the_curve_runs_from_nothing_to_the_leaf(case: Case) -> None:
    tree, scores, targets = case
    found = climbing_curve(scores, targets, tree)
    rows = [i for i, target in enumerate(targets.tolist()) if not tree.children[target]]
    if rows:
        leaf = [best(tree, scores[i].tolist(), tree.leaves) for i in rows]
        assert (found.coverage[0], found.risk[0]) == (0, 0)
        assert found.coverage[-1] == pytest.approx(1)
        assert found.risk[-1] == pytest.approx((np.array(leaf) != targets[rows]).mean())
        assert (np.diff(found.coverage) >= -1e-12).all()
        assert (np.diff(found.risk) >= -1e-12).all()


def test_climbing_by_hand() -> None:
    """Gala, guessed Fuji: Fruit at 0.9, Apple at 0.8, both right; the wrong leaf at 0.6.

    Fruit tells 1 - log 3 / log 4, Apple 1/2, a leaf 1: one trapezoid of width 1/2 up to risk 1.
    """
    chance = np.full((1, len(PAPER)), 0.01)
    chance[0, [FRUIT, APPLE, FUJI]] = [0.9, 0.8, 0.6]
    found = climbing_curve(np.log(chance), np.array([GALA]), PAPER)
    assert np.exp(found.threshold).tolist() == pytest.approx([math.inf, 0.9, 0.8, 0.6])
    told = 1 - math.log(3) / math.log(4)
    assert found.coverage.tolist() == pytest.approx([0, told, 0.5, 1])
    assert found.risk.tolist() == [0, 0, 0, 1]
    assert area_under_climbing(found) == pytest.approx(0.25)


def test_a_perfect_classifier_has_no_area() -> None:
    targets = np.array(PAPER.leaves)
    chance = np.full((len(targets), len(PAPER)), -9.0)
    for row, leaf in enumerate(targets.tolist()):
        chance[row, list(path(PAPER, leaf))] = 0
    assert area_under_climbing(climbing_curve(chance, targets, PAPER)) == 0


def test_nothing_to_judge_is_not_zero() -> None:
    none: Ints = np.empty(0, dtype=np.int64)
    empty = risk_coverage(np.empty(0), np.empty(0, dtype=np.bool_))
    assert isinstance(empty, Curve)
    assert area_under_risk(empty) is None
    assert area_under_climbing(climbing_curve(np.empty((0, 8)), none, PAPER)) is None
