"""What a label says of each node, and the sweeps, agree with loops over the tree's definition."""

import math
import re

import pytest
import torch
from hypothesis import given
from torch import Tensor
from torch.testing import assert_close

from hierarchy import LabelTree
from hierarchy.errors import ShapeError
from hierarchy.rivals.lineage import (
    check_targets,
    highest_below,
    join_levels,
    log_total_below,
    mean_by_level,
    said,
    split_levels,
)
from tests.hierarchy.rivals.small import FRUIT, RAGGED, says
from tests.strategies import batches, trees

Batch = tuple[LabelTree, Tensor, Tensor]


@given(trees())
def test_a_label_says_yes_no_or_nothing_of_each_node(tree: LabelTree) -> None:
    nodes = range(len(tree))
    label = said(torch.arange(len(tree)), len(tree), tree)
    for target in nodes:
        truth = [says(tree, target, node) for node in nodes]
        assert label.holds[target].tolist() == [bool(one) for one in truth]
        assert label.known[target].tolist() == [one is not None for one in truth]


@given(batches())
def test_highest_below_is_the_largest_score_of_a_node_and_all_under_it(batch: Batch) -> None:
    tree, scores, _ = batch
    nodes = range(len(tree))
    slow = [[max(row[d] for d in nodes if tree.covers(n, d)) for n in nodes] for row in scores]
    assert_close(highest_below(scores, tree), torch.tensor(slow, dtype=torch.float64))


@given(batches(bound=1e3))
def test_log_total_below_adds_the_leaves_that_a_node_covers(batch: Batch) -> None:
    tree, scores, _ = batch
    leaf_scores = scores[:, list(tree.leaves)]
    found = log_total_below(leaf_scores, tree)
    for node in range(len(tree)):
        under = [i for i, leaf in enumerate(tree.leaves) if tree.covers(node, leaf)]
        expected = leaf_scores[:, under].logsumexp(1)
        assert_close(found[:, node], expected, rtol=1e-12, atol=1e-12)


def test_log_total_below_keeps_small_shares_beside_huge_ones() -> None:
    found = log_total_below(torch.tensor([[1e4, -1e4, -1e4]], dtype=torch.float64), FRUIT)
    assert_close(found[0, 0].item(), -1e4 + math.log(2))


def test_sweeps_have_the_gradients_of_their_values() -> None:
    draw = torch.Generator().manual_seed(0)
    scores = torch.randn(2, len(RAGGED), dtype=torch.float64, generator=draw).requires_grad_()
    leaves = torch.randn(2, len(RAGGED.leaves), dtype=torch.float64, generator=draw)
    assert torch.autograd.gradcheck(lambda s: highest_below(s, RAGGED), scores)
    assert torch.autograd.gradcheck(lambda s: log_total_below(s, RAGGED), leaves.requires_grad_())


@given(batches())
def test_splitting_by_level_gives_each_level_in_order_of_ids(batch: Batch) -> None:
    tree, scores, _ = batch
    parts = split_levels(scores, tree)
    for level, part in enumerate(parts):
        assert_close(part, scores[:, list(tree.level_nodes(level))])
    assert_close(join_levels(parts, tree), scores)


def test_mean_by_level_counts_what_counts_and_gives_0_where_nothing_does() -> None:
    losses = torch.tensor([[1.0, 2.0, 5.0, 7.0], [6.0, 9.0, math.inf, math.inf]])
    counted = torch.tensor([[True, True, False, False], [True, False, False, False]])
    assert mean_by_level(losses, counted, FRUIT).tolist() == [3.0, 0.0]


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.tensor([0]), "targets must be (2,) int64 node ids, one a picture, got (1,)"),
        (torch.tensor([0.0, 1.0]), "int64 node ids, one a picture, got (2,) torch.float32"),
        (torch.tensor([0, 4]), "targets must be node ids from 0 to 3, got 0 to 4"),
        (torch.tensor([-1, 2]), "targets must be node ids from 0 to 3, got -1 to 2"),
    ],
)
def test_targets_that_are_not_one_node_a_picture_are_refused(targets: Tensor, message: str) -> None:
    with pytest.raises(ShapeError, match=re.escape(message)):
        check_targets(targets, 2, FRUIT)


def test_a_batch_of_no_picture_is_refused() -> None:
    with pytest.raises(ShapeError, match=re.escape("got (0,)")):
        said(torch.empty(0, dtype=torch.int64), 0, FRUIT)


def test_leaf_scores_of_the_wrong_width_are_refused() -> None:
    with pytest.raises(
        ShapeError, match=re.escape("must be (B, 3), one column a leaf, got (2, 4)")
    ):
        log_total_below(torch.zeros(2, 4), FRUIT)
