"""C-HMCNN: the max-constraint module and the max-constraint loss."""

import math

import pytest
import torch
from hypothesis import given
from torch import Tensor, nn
from torch.testing import assert_close

from hierarchy import LabelTree
from hierarchy.errors import ShapeError
from hierarchy.rivals.chmcnn import Chmcnn
from tests.hierarchy.rivals.small import (
    FRUIT,
    RAGGED,
    learn,
    logit,
    says,
    sigmoid,
    unknown,
    wrong_levels,
)
from tests.strategies import batches

Batch = tuple[LabelTree, Tensor, Tensor]


def bare(tree: LabelTree) -> Chmcnn:
    return Chmcnn(tree, nn.Identity(), 1)


def slow_loss(rows: list[list[float]], targets: list[int], tree: LabelTree) -> float:
    """MCLoss node by node, as the paper defines it."""
    found = []
    nodes = range(len(tree))
    for row, target in zip(rows, targets, strict=True):
        h = [sigmoid(score) for score in row]
        y = [says(tree, target, node) for node in nodes]
        for a in nodes:
            below = [b for b in nodes if tree.covers(a, b)]
            if y[a] is None:
                continue
            if y[a]:
                found.append(-math.log(max(h[b] * bool(y[b]) for b in below)))
            else:
                found.append(-math.log(1 - max(h[b] for b in below)))
    return sum(found) / len(found)


@given(batches())
def test_loss_agrees_with_a_loop_over_nodes_and_what_lies_below_them(batch: Batch) -> None:
    tree, scores, targets = batch
    expected = slow_loss(scores.tolist(), targets.tolist(), tree)
    assert_close(bare(tree).loss(scores, targets).item(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("target", "shares"),
    [
        ("Fruit", [0.25, 0.5]),  # Fruit by itself, not Milk; nothing of Apple and Pear
        ("Apple", [0.75, 0.5, 0.75, 0.8]),  # Fruit may lean on Apple
        ("Pear", [0.25, 0.5, 0.25, 0.2]),  # but not on Apple where that is false
        ("Milk", [0.25, 0.5, 0.25, 0.8]),  # not Fruit: nor what Apple makes of it
    ],
)
def test_loss_by_hand(target: str, shares: list[float]) -> None:
    logits = logit(0.25, 0.5, 0.75, 0.2)  # Fruit, Milk, Apple, Pear
    found = bare(FRUIT).loss(logits, torch.tensor([FRUIT.names.index(target)]))
    assert_close(found.item(), sum(-math.log(share) for share in shares) / len(shares))


def test_answer_by_hand() -> None:
    answer = bare(FRUIT).log_probability(logit(0.25, 0.5, 0.75, 0.2)).exp()
    assert_close(answer, torch.tensor([[0.75, 0.5, 0.75, 0.2]], dtype=torch.float64))


@given(batches())
def test_nodes_below_the_label_have_no_influence(batch: Batch) -> None:
    tree, scores, targets = batch
    free = unknown(targets, tree)
    rival = bare(tree)
    before = rival.loss(scores, targets)
    assert rival.loss(scores.masked_fill(free, 50), targets) == before
    rival.loss(scores.requires_grad_(), targets).backward()
    assert scores.grad is not None
    assert not scores.grad[free].any()


def test_loss_has_the_gradient_of_its_value() -> None:
    draw = torch.Generator().manual_seed(0)
    scores = torch.randn(3, len(RAGGED), dtype=torch.float64, generator=draw).requires_grad_()
    targets = torch.tensor([0, RAGGED.leaves[0], RAGGED.leaves[-1]])
    assert torch.autograd.gradcheck(lambda s: bare(RAGGED).loss(s, targets), scores)


@given(batches(bound=1e4))
def test_parents_are_at_least_as_sure_as_their_children(batch: Batch) -> None:
    tree, scores, _ = batch
    found = bare(tree).log_probability(scores)
    assert found.shape == scores.shape
    assert found.isfinite().all()
    for node, parent in enumerate(tree.parents):
        assert parent < 0 or (found[:, parent] >= found[:, node]).all()


@given(batches(bound=1e4))
def test_loss_and_gradient_are_finite_for_huge_scores(batch: Batch) -> None:
    tree, scores, targets = batch
    loss = bare(tree).loss(scores.requires_grad_(), targets)
    loss.backward()
    assert loss.isfinite()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()


def test_learns_a_separable_problem_and_that_a_leaf_ends_early() -> None:
    rival, losses, maps = learn(Chmcnn, RAGGED, 150)
    assert losses[-1] < losses[0] / 4
    assert wrong_levels(rival, maps) == []
    early = RAGGED.leaves.index(RAGGED.index(("b",)))
    deeper = [node for level in (1, 2) for node in RAGGED.level_nodes(level)]
    assert rival.log_probability(rival(maps))[early, deeper].max() < math.log(0.5)


def test_targets_of_another_batch_are_refused() -> None:
    with pytest.raises(ShapeError, match="one a picture"):
        bare(FRUIT).loss(torch.zeros(2, 4), torch.tensor([0]))
