"""Accuracy by level, whole paths and consistency: on paper and against slow counting."""

import numpy as np
import pytest
from hypothesis import given

from hierarchy.depth_selection import candidates
from hierarchy.metrics.accuracy import (
    accuracy_by_level,
    consistent,
    right_by_level,
    share,
    whole_path,
)
from tests.hierarchy.metrics.cases import (
    APPLE,
    FRUIT,
    FUJI,
    GALA,
    MILK,
    PAPER,
    PEAR,
    PLAIN,
    Case,
    best,
    path,
    raw,
)


@given(raw())
def test_accuracy_on_a_level_is_over_the_images_whose_label_reaches_it(case: Case) -> None:
    """An image counts where its label names a node with siblings, on no deeper level."""
    tree, scores, targets = case
    nodes = candidates(scores, tree).nodes
    expected = {}
    for level in range(tree.depth):
        hits = []
        for row, target in enumerate(targets.tolist()):
            above = tree.ancestors(target)
            if len(above) > level:
                siblings = [
                    n for n, p in enumerate(tree.parents) if p == tree.parents[above[level]]
                ]
                hits += [nodes[row, level] == above[level]] if len(siblings) > 1 else []
        if hits:
            expected[level + 1] = (sum(hits), len(hits))
    figures = accuracy_by_level(nodes, targets, tree)
    assert {row["level"]: (row["right"], row["checked"]) for row in figures} == expected
    for one in figures:
        assert one["accuracy"] == pytest.approx(one["right"] / one["checked"], abs=1e-4)


@given(raw())
def test_levels_are_judged_down_to_the_target(case: Case) -> None:
    tree, scores, targets = case
    found = right_by_level(candidates(scores, tree).nodes, targets, tree)
    for row, target, told in zip(scores.tolist(), targets.tolist(), found.tolist(), strict=True):
        truth = path(tree, target)
        for level in range(tree.depth):
            answer = best(tree, row, tree.level_nodes(level))
            assert told[level] == (answer == truth[level] if level < len(truth) else -1)


@given(raw())
def test_a_whole_path_has_every_level_right(case: Case) -> None:
    tree, scores, targets = case
    answers = candidates(scores, tree).nodes
    slow = [
        tuple(row[: tree.levels[target] + 1]) == path(tree, target)
        for row, target in zip(answers.tolist(), targets.tolist(), strict=True)
    ]
    assert whole_path(answers, targets, tree).tolist() == slow


@given(raw())
def test_levels_agree_when_they_are_the_best_leafs_path(case: Case) -> None:
    tree, scores, _ = case
    found = candidates(scores, tree)
    slow = []
    for row in scores.tolist():
        leaf = best(tree, row, tree.leaves)
        above = [best(tree, row, tree.level_nodes(i)) for i in range(tree.levels[leaf] + 1)]
        slow.append(tuple(above) == path(tree, leaf))
    assert consistent(found.nodes, found.leaf, tree).tolist() == slow


def test_by_hand() -> None:
    """Right; right but for the leaf; a coarse target; a leaf on level 2 whose level 3 is free."""
    answers = np.array([[0, 2, 5], [0, 2, 6], [1, 2, 5], [0, 3, 7]])
    targets = np.array([GALA, GALA, FRUIT, PEAR])
    right = right_by_level(answers, targets, PAPER)
    assert right.tolist() == [[1, 1, 1], [1, 1, 0], [0, -1, -1], [1, 1, -1]]
    assert share(whole_path(answers, targets, PAPER)) == 0.5
    leaf = np.array([GALA, FUJI, GALA, PEAR])
    assert consistent(answers, leaf, PAPER).tolist() == [True, True, False, True]


def test_the_likelier_top_need_not_hold_the_best_leaf() -> None:
    """Fruit is likelier than Milk, yet Milk's one leaf beats each of Fruit's."""
    scores = np.zeros((1, len(PAPER)))
    scores[0, [FRUIT, MILK, APPLE, PLAIN]] = [6, 4, 3, 2]
    found = candidates(scores, PAPER)
    assert not consistent(found.nodes, found.leaf, PAPER).any()


def test_nothing_to_judge_is_not_zero() -> None:
    assert share(np.empty(0, dtype=np.bool_)) is None
