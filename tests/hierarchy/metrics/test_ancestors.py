"""What is asked of a tree for many nodes at once agrees with asking the tree node by node."""

import math

import numpy as np
import pytest
from hypothesis import given

from hierarchy import LabelTree
from hierarchy.errors import ShapeError, UnknownLabelError
from hierarchy.metrics import on_siblings, sibling_leaves
from hierarchy.metrics.ancestors import (
    ancestor_paths,
    checked,
    covers,
    information,
    judged,
    known,
    on_leaves,
    shared,
)
from tests.hierarchy.metrics.cases import (
    APPLE,
    FRUIT,
    GALA,
    MILK,
    NOTHING,
    PAPER,
    PEAR,
    PLAIN,
    Answers,
    answers,
    path,
)
from tests.strategies import trees


@given(answers())
def test_a_line_is_the_path_and_then_nothing(case: Answers) -> None:
    tree, nodes, _ = case
    for line, node in zip(ancestor_paths(nodes, tree).tolist(), nodes.tolist(), strict=True):
        above = path(tree, node)
        assert line == [*above, *[-1] * (tree.depth - len(above))]


@given(answers())
def test_shared_counts_common_ancestors(case: Answers) -> None:
    tree, one, other = case
    slow = [
        len(set(path(tree, a)) & set(path(tree, b)))
        for a, b in zip(one.tolist(), other.tolist(), strict=True)
    ]
    assert shared(ancestor_paths(one, tree), ancestor_paths(other, tree)).tolist() == slow


@given(answers())
def test_answers_are_judged_by_who_lies_above_whom(case: Answers) -> None:
    tree, said, targets = case
    for a, b, found in zip(said, targets, judged(said, targets, tree).tolist(), strict=True):
        line, truth = path(tree, a), path(tree, b)
        slow = 1 if line == truth[: len(line)] else -1 if truth == line[: len(truth)] else 0
        assert found == slow


@given(trees())
def test_covers_agrees_with_the_tree(tree: LabelTree) -> None:
    nodes = np.arange(len(tree))
    slow = [[tree.covers(a, b) for b in nodes.tolist()] for a in nodes.tolist()]
    assert covers(nodes[:, None], nodes, tree).tolist() == slow


@given(trees())
def test_heights_and_leaves_below_are_counted(tree: LabelTree) -> None:
    for node in range(len(tree)):
        below = [leaf for leaf in tree.leaves if tree.covers(node, leaf)]
        far = max(tree.levels[leaf] for leaf in below) - tree.levels[node]
        assert (tree.arrays.leaves[node], tree.arrays.height[node]) == (len(below), far)


@given(trees())
def test_information_grows_downward_from_0_to_1(tree: LabelTree) -> None:
    told = information(np.arange(len(tree)), tree)
    assert ((told >= 0) & (told <= 1)).all()
    assert (told[list(tree.leaves)] == 1).all()
    for node, parent in enumerate(tree.parents):
        assert parent == NOTHING or told[node] >= told[parent]
    assert information(np.array([NOTHING]), tree).tolist() == [0]


def test_information_by_hand() -> None:
    """Four leaves: Fruit holds three, Apple two, Milk one."""
    told = information(np.array([NOTHING, FRUIT, APPLE, MILK, GALA]), PAPER)
    assert told.tolist() == pytest.approx([0, 1 - math.log(3) / math.log(4), 0.5, 1, 1])


def test_only_children_are_no_siblings() -> None:
    """Pear's sibling is no leaf, yet Pear must be told from it; Plain is Oat's only child."""
    assert sibling_leaves(PAPER) == (PEAR, 5, 6)
    assert on_siblings(np.array([GALA, PLAIN, APPLE]), PAPER).tolist() == [True, False, False]
    assert on_leaves(np.array([GALA, PLAIN, APPLE]), PAPER).tolist() == [True, True, False]


def test_several_tops_are_siblings_and_one_top_is_not() -> None:
    assert sibling_leaves(LabelTree.from_paths([("A",), ("B",)])) == (0, 1)
    assert sibling_leaves(LabelTree.from_paths([("A",)])) == ()


@pytest.mark.parametrize("shape", [(2, 7), (3, 8), (8,)])
def test_scores_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"\(n, 8\) and \(n,\)"):
        checked(np.zeros(shape), np.zeros(2, dtype=np.int64), PAPER)


def test_nan_is_named_with_its_place() -> None:
    scores = np.zeros((2, len(PAPER)))
    scores[1, 3] = np.nan
    with pytest.raises(ShapeError, match="nan for image 1, node 3"):
        checked(scores, np.array([0, 0]), PAPER)


@pytest.mark.parametrize("node", [-1, 8])
def test_a_target_that_the_tree_lacks_is_refused(node: int) -> None:
    with pytest.raises(UnknownLabelError, match=f"0 to 7, got {node} to {node}"):
        known(np.array([node]), PAPER)


def test_nothing_is_an_answer_but_minus_two_is_not() -> None:
    assert known(np.array([-1, 7]), PAPER, least=-1).tolist() == [-1, 7]
    with pytest.raises(UnknownLabelError, match="-1 to 7"):
        known(np.array([-2]), PAPER, least=-1)
