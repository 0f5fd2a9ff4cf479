"""One softmax over leaves: coarse labels as sums of leaves, or dropped."""

import math
from statistics import fmean

import pytest
import torch
from hypothesis import given
from torch import Tensor, nn
from torch.testing import assert_close

from hierarchy import LabelTree
from hierarchy.errors import ShapeError
from hierarchy.rivals.flat import Flat, Marginal
from tests.hierarchy.rivals.small import FRUIT, RAGGED, learn, wrong_levels
from tests.strategies import batches

Batch = tuple[LabelTree, Tensor, Tensor]

BOTH = pytest.mark.parametrize("kind", [Marginal, Flat])

#: Softmax over Milk, Apple and Pear, in order of ids: 0.5, 0.4 and 0.1.
LOGITS = torch.tensor([[5.0, 4.0, 1.0]], dtype=torch.float64).log()


def bare(kind: type[Marginal], tree: LabelTree) -> Marginal:
    return kind(tree, nn.Identity(), 1)


def leaf_scores(batch: Batch) -> tuple[LabelTree, Tensor, Tensor]:
    tree, scores, targets = batch
    return tree, scores[:, list(tree.leaves)].clone(), targets


def slow_losses(rows: list[list[float]], targets: list[int], tree: LabelTree) -> list[float]:
    """-log of the share of the leaves under each target, leaf by leaf."""
    found = []
    for row, target in zip(rows, targets, strict=True):
        weights = {leaf: math.exp(score) for leaf, score in zip(tree.leaves, row, strict=True)}
        held = sum(weight for leaf, weight in weights.items() if tree.covers(target, leaf))
        found.append(-math.log(held / sum(weights.values())))
    return found


@given(batches())
def test_marginal_loss_agrees_with_a_loop_over_leaves(batch: Batch) -> None:
    tree, scores, targets = leaf_scores(batch)
    expected = fmean(slow_losses(scores.tolist(), targets.tolist(), tree))
    found = bare(Marginal, tree).loss(scores, targets).item()
    assert_close(found, expected, rtol=1e-9, atol=1e-12)


@given(batches())
def test_flat_loss_is_that_of_the_leaf_labels_alone(batch: Batch) -> None:
    tree, scores, targets = leaf_scores(batch)
    losses = slow_losses(scores.tolist(), targets.tolist(), tree)
    kept = [
        loss for loss, target in zip(losses, targets.tolist(), strict=True) if target in tree.leaves
    ]
    found = bare(Flat, tree).loss(scores, targets).item()
    assert_close(found, fmean(kept) if kept else 0.0, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "target", "expected"),
    [
        (Marginal, "Fruit", math.log(2)),
        (Marginal, "Apple", math.log(2.5)),
        (Flat, "Apple", math.log(2.5)),
        (Flat, "Milk", math.log(2)),
        (Flat, "Fruit", 0.0),
    ],
)
def test_loss_by_hand(kind: type[Marginal], target: str, expected: float) -> None:
    found = bare(kind, FRUIT).loss(LOGITS, torch.tensor([FRUIT.names.index(target)]))
    assert_close(found.item(), expected)


@BOTH
def test_answer_by_hand(kind: type[Marginal]) -> None:
    answer = bare(kind, FRUIT).log_probability(LOGITS).exp()
    assert_close(answer, torch.tensor([[0.5, 0.5, 0.4, 0.1]], dtype=torch.float64))


def test_a_coarse_label_only_scales_the_leaves_under_it() -> None:
    """It says nothing of Apple against Pear: their gradients are in the ratio of their shares."""
    scores = LOGITS.clone().requires_grad_()
    bare(Marginal, FRUIT).loss(scores, torch.tensor([0])).backward()
    assert_close(scores.grad, torch.tensor([[0.5, -0.4, -0.1]], dtype=torch.float64))


def test_a_batch_without_leaf_labels_gives_flat_a_zero_that_can_be_stepped_on() -> None:
    scores = torch.randn(2, 3, requires_grad=True)
    loss = bare(Flat, FRUIT).loss(scores, torch.tensor([0, 0]))
    loss.backward()
    assert loss.item() == 0
    assert scores.grad is not None
    assert not scores.grad.any()


@BOTH
def test_loss_has_the_gradient_of_its_value(kind: type[Marginal]) -> None:
    draw = torch.Generator().manual_seed(0)
    size = (3, len(RAGGED.leaves))
    scores = torch.randn(size, dtype=torch.float64, generator=draw).requires_grad_()
    targets = torch.tensor([0, RAGGED.leaves[0], RAGGED.leaves[-1]])
    assert torch.autograd.gradcheck(lambda s: bare(kind, RAGGED).loss(s, targets), scores)


@given(batches(bound=1e4))
def test_parents_are_worth_their_children_together(batch: Batch) -> None:
    tree, scores, _ = leaf_scores(batch)
    found = bare(Marginal, tree).log_probability(scores)
    assert found.shape == (len(scores), len(tree))
    assert found.isfinite().all()
    for node, below in enumerate(tree.children):
        if below:
            together = found[:, list(below)].logsumexp(1)
            assert_close(found[:, node], together, rtol=1e-9, atol=1e-9)


@BOTH
def test_learns_a_separable_problem(kind: type[Marginal]) -> None:
    rival, losses, maps = learn(kind, RAGGED, 150)
    assert losses[-1] < losses[0] / 2
    assert wrong_levels(rival, maps) == []


@BOTH
def test_targets_of_another_batch_are_refused(kind: type[Marginal]) -> None:
    with pytest.raises(ShapeError, match="one a picture"):
        bare(kind, FRUIT).loss(torch.zeros(2, 3), torch.tensor([0]))
