"""HMC-LMLP: a chain of perceptrons, each trained for its own level."""

import math

import pytest
import torch
from hypothesis import given
from torch import Tensor, nn
from torch.testing import assert_close

from hierarchy import LabelTree
from hierarchy.errors import ShapeError
from hierarchy.rivals.lmlp import Lmlp
from tests.hierarchy.rivals.small import (
    FRUIT,
    RAGGED,
    learn,
    logit,
    pool,
    slow_level_losses,
    trained,
    unknown,
    wrong_levels,
)
from tests.strategies import batches

Batch = tuple[LabelTree, Tensor, Tensor]


def bare(tree: LabelTree) -> Lmlp:
    return Lmlp(tree, nn.Identity(), 1, hidden=2)


@given(batches())
def test_loss_agrees_with_a_loop_over_levels_pictures_and_nodes(batch: Batch) -> None:
    tree, scores, targets = batch
    expected = slow_level_losses(scores.tolist(), targets.tolist(), tree)
    assert_close(bare(tree).loss(scores, targets).item(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("Fruit", (math.log(1 / 0.75) + math.log(2)) / 2),  # nothing of Apple and Pear
        ("Apple", (math.log(1 / 0.75) + math.log(2)) / 2 + (math.log(4) + math.log(1.25)) / 2),
        ("Milk", (math.log(4) + math.log(2)) / 2 + (math.log(1 / 0.75) + math.log(1.25)) / 2),
    ],
)
def test_loss_by_hand(target: str, expected: float) -> None:
    logits = logit(0.75, 0.5, 0.25, 0.2)  # Fruit, Milk, Apple, Pear
    found = bare(FRUIT).loss(logits, torch.tensor([FRUIT.names.index(target)]))
    assert_close(found.item(), expected)


@given(batches())
def test_nodes_below_the_label_get_no_gradient(batch: Batch) -> None:
    tree, scores, targets = batch
    bare(tree).loss(scores.requires_grad_(), targets).backward()
    assert scores.grad is not None
    free = unknown(targets, tree)
    assert not scores.grad[free].any()
    assert scores.grad[~free].all()  # and all others do


def test_loss_has_the_gradient_of_its_value() -> None:
    draw = torch.Generator().manual_seed(0)
    scores = torch.randn(3, len(RAGGED), dtype=torch.float64, generator=draw).requires_grad_()
    targets = torch.tensor([0, RAGGED.leaves[0], RAGGED.leaves[-1]])
    assert torch.autograd.gradcheck(lambda s: bare(RAGGED).loss(s, targets), scores)


def test_a_level_reads_the_answers_above_it_but_sends_them_no_gradient() -> None:
    torch.manual_seed(0)
    rival = Lmlp(FRUIT, pool(), 5)
    maps = torch.randn(2, 5, 3, 3)
    first, second = rival.perceptrons
    before = rival(maps)
    before[:, [2, 3]].sum().backward()
    assert not any(trained(weight) for weight in first.parameters())
    assert all(trained(weight) for weight in second.parameters())
    with torch.no_grad():
        for weight in first.parameters():
            weight.add_(1)
    assert not torch.equal(rival(maps)[:, [2, 3]], before[:, [2, 3]])


def test_every_level_reads_the_features() -> None:
    torch.manual_seed(0)
    rival = Lmlp(RAGGED, pool(), 5)
    with torch.no_grad():
        for weight in rival.perceptrons[0].parameters():  # the answers above say nothing
            weight.zero_()
    found = rival(torch.randn(2, 5, 3, 3))
    assert not torch.equal(
        found[0, list(RAGGED.level_nodes(1))], found[1, list(RAGGED.level_nodes(1))]
    )


@given(batches(bound=1e4))
def test_log_probability_is_finite_and_the_log_of_the_sigmoid(batch: Batch) -> None:
    tree, scores, _ = batch
    found = bare(tree).log_probability(scores)
    assert found.shape == scores.shape
    assert found.isfinite().all()
    assert_close(found.exp(), scores.sigmoid())


def test_learns_a_separable_problem_and_that_a_leaf_ends_early() -> None:
    rival, losses, maps = learn(Lmlp, RAGGED, 60)
    assert losses[-1] < losses[0] / 10
    assert wrong_levels(rival, maps) == []
    early = RAGGED.leaves.index(RAGGED.index(("b",)))
    deeper = [node for level in (1, 2) for node in RAGGED.level_nodes(level)]
    assert rival.log_probability(rival(maps))[early, deeper].max() < math.log(0.5)


def test_targets_of_another_batch_are_refused() -> None:
    with pytest.raises(ShapeError, match="one a picture"):
        bare(FRUIT).loss(torch.zeros(2, 4), torch.tensor([0]))
