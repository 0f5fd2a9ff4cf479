"""The operations along paths agree with loops over the tree's definition."""

import math

import pytest
import torch
from hypothesis import given
from torch import Tensor
from torch.testing import assert_close

from hierarchy import LabelTree
from hierarchy.baselines.base import check_targets
from hierarchy.baselines.tree_ops import (
    highest_below,
    join_levels,
    known,
    leaf_log_marginals,
    level_log_softmax,
    mean_by_level,
    split_levels,
)
from hierarchy.errors import ShapeError
from tests.hierarchy.baselines.small import FRUIT, RAGGED, says
from tests.strategies import batches, trees

Batch = tuple[LabelTree, Tensor, Tensor]


@given(trees())
def test_a_label_says_yes_no_or_nothing_of_each_node(tree: LabelTree) -> None:
    nodes = range(len(tree))
    label = known(torch.arange(len(tree)), len(tree), tree)
    for target in nodes:
        truth = [says(tree, target, node) for node in nodes]
        assert label.holds[target].tolist() == [bool(one) for one in truth]
        assert label.settled[target].tolist() == [one is not None for one in truth]


@given(batches())
def test_highest_below_is_the_largest_score_of_a_node_and_all_under_it(batch: Batch) -> None:
    tree, scores, _ = batch
    nodes = range(len(tree))
    slow = [[max(row[d] for d in nodes if tree.covers(n, d)) for n in nodes] for row in scores]
    assert_close(highest_below(scores, tree), torch.tensor(slow, dtype=torch.float64))


@given(batches(bound=1e3))
def test_leaf_log_marginals_add_the_leaves_that_a_node_covers(batch: Batch) -> None:
    tree, scores, _ = batch
    leaf_scores = scores[:, list(tree.leaves)]
    found = leaf_log_marginals(leaf_scores, tree)
    for node in range(len(tree)):
        under = [i for i, leaf in enumerate(tree.leaves) if tree.covers(node, leaf)]
        expected = leaf_scores[:, under].logsumexp(1) - leaf_scores.logsumexp(1)
        assert_close(found[:, node], expected, rtol=1e-9, atol=1e-9)


def test_leaf_log_marginals_keep_small_shares_beside_huge_ones() -> None:
    found = leaf_log_marginals(torch.tensor([[1e4, -1e4, -1e4]], dtype=torch.float64), FRUIT)
    assert_close(found[0, 0].item(), -2e4 + math.log(2))


def test_operations_have_the_gradients_of_their_values() -> None:
    draw = torch.Generator().manual_seed(0)
    scores = torch.randn(2, len(RAGGED), dtype=torch.float64, generator=draw).requires_grad_()
    leaves = torch.randn(2, len(RAGGED.leaves), dtype=torch.float64, generator=draw)
    assert torch.autograd.gradcheck(lambda s: highest_below(s, RAGGED), scores)
    assert torch.autograd.gradcheck(
        lambda s: leaf_log_marginals(s, RAGGED), leaves.requires_grad_()
    )


@given(batches())
def test_splitting_by_level_gives_each_level_in_order_of_ids(batch: Batch) -> None:
    tree, scores, _ = batch
    parts = split_levels(scores, tree)
    for level, part in enumerate(parts):
        assert_close(part, scores[:, list(tree.level_nodes(level))])
    assert_close(join_levels(parts, tree), scores)


@given(batches())
def test_level_log_softmax_sums_to_1_at_each_level(batch: Batch) -> None:
    tree, scores, _ = batch
    for part in split_levels(level_log_softmax(scores, tree).exp(), tree):
        assert_close(part.sum(1), torch.ones(len(scores), dtype=torch.float64))


def test_mean_by_level_counts_what_counts_and_gives_0_where_nothing_does() -> None:
    losses = torch.tensor([[1.0, 2.0, 5.0, 7.0], [6.0, 9.0, math.inf, math.inf]])
    counted = torch.tensor([[True, True, False, False], [True, False, False, False]])
    assert mean_by_level(losses, counted, FRUIT).tolist() == [3.0, 0.0]


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.tensor([0]), r"targets must be \(2,\) int64 node ids, one per image, got \(1,\)"),
        (torch.tensor([0.0, 1.0]), r"int64 node ids, one per image, got \(2,\) torch.float32"),
        (torch.tensor([0, 4]), "targets must be node ids from 0 to 3, got 0 to 4"),
        (torch.tensor([-1, 2]), "targets must be node ids from 0 to 3, got -1 to 2"),
    ],
)
def test_targets_that_are_not_one_node_per_image_are_refused(targets: Tensor, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        check_targets(targets, 2, FRUIT)


def test_a_batch_of_no_image_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"got \(0,\)"):
        known(torch.empty(0, dtype=torch.int64), 0, FRUIT)


@pytest.mark.parametrize("scores", [torch.zeros(2, 4), torch.zeros(1, 3, dtype=torch.int64)])
def test_leaf_scores_of_another_form_are_refused(scores: Tensor) -> None:
    with pytest.raises(ShapeError, match=r"\(B, 3\) floats, one column per leaf, got"):
        leaf_log_marginals(scores, FRUIT)


def test_what_was_worked_out_in_inference_mode_can_be_trained_with() -> None:
    tree = LabelTree.from_paths([("new", "b"), ("new", "c")])
    with torch.inference_mode():
        leaf_log_marginals(torch.zeros(1, 2), tree)
    logits = torch.zeros(1, 2, requires_grad=True)
    leaf_log_marginals(logits, tree)[0, 1].backward()
    assert logits.grad is not None
    assert logits.grad.ne(0).all()
