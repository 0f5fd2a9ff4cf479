"""Area under the precision-recall curve: scikit-learn's micro average precision."""

import numpy as np
import pytest
from hypothesis import given
from sklearn.metrics import average_precision_score

from hierarchy.errors import ShapeError
from hierarchy.metrics.ranking import area_under_prc
from tests.hierarchy.metrics.cases import APPLE, FRUIT, PAPER, PLAIN, Case, path, probable, raw


def theirs(case: Case) -> float:
    """Every known pair in one list, for scikit-learn."""
    tree, scores, targets = case
    said, true = [], []
    for row, target in zip(scores.tolist(), targets.tolist(), strict=True):
        for node in range(len(tree)):
            if node == target or not tree.covers(target, node):
                said.append(row[node])
                true.append(node in path(tree, target))
    return float(average_precision_score(true, said))


@given(raw())
def test_agrees_with_scikit_learn_on_scores_with_ties(case: Case) -> None:
    tree, scores, targets = case
    assert area_under_prc(scores, targets, tree) == pytest.approx(theirs(case), abs=1e-12)


@given(probable())
def test_agrees_with_scikit_learn_on_probabilities(case: Case) -> None:
    tree, scores, targets = case
    assert area_under_prc(scores, targets, tree) == pytest.approx(theirs(case), abs=1e-12)


def test_leaf_targets_are_the_published_matrix() -> None:
    """All pairs, as in the paper's own evaluation: micro average over a 0/1 matrix."""
    random = np.random.default_rng(0)
    scores = random.normal(size=(50, len(PAPER)))
    targets = random.choice(PAPER.leaves, 50)
    truth = np.array([[node in path(PAPER, t) for node in range(len(PAPER))] for t in targets])
    published = average_precision_score(truth, scores, average="micro")
    assert area_under_prc(scores, targets, PAPER) == pytest.approx(published, abs=1e-12)


def test_what_lies_below_a_coarse_target_does_not_count() -> None:
    scores = np.full((1, len(PAPER)), 0.1)
    scores[0, [FRUIT, APPLE]] = [0.8, 0.7]
    before = area_under_prc(scores, np.array([APPLE]), PAPER)
    scores[0, [5, 6]] = 0.9  # its children, ahead of everything
    assert area_under_prc(scores, np.array([APPLE]), PAPER) == before == 1
    assert area_under_prc(scores, np.array([PLAIN]), PAPER) != 1


def test_no_picture_has_no_area() -> None:
    assert area_under_prc(np.empty((0, 8)), np.empty(0, dtype=np.int64), PAPER) is None


def test_another_trees_scores_are_refused() -> None:
    with pytest.raises(ShapeError):
        area_under_prc(np.zeros((1, 7)), np.array([0]), PAPER)
