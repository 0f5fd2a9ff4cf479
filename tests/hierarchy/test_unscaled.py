"""The short way gives what the careful one gives, and steps back where it could not."""

import math

import pytest
import torch
from hypothesis import given
from torch import Tensor
from torch.testing import assert_close

from hierarchy import LabelTree, tree_loss, unscaled
from hierarchy.unscaled import Plan, sweep
from tests.strategies import batches

FRUIT = LabelTree.from_paths([("Fruit", "Apple"), ("Fruit", "Pear"), ("Milk",)])


def both(scores: Tensor, targets: Tensor, tree: LabelTree) -> tuple[Tensor, Tensor]:
    """The mean loss and its gradient."""
    leaf = scores.detach().requires_grad_()
    loss = tree_loss(leaf, targets, tree)
    (slope,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), slope


def carefully(scores: Tensor, targets: Tensor, tree: LabelTree) -> tuple[Tensor, Tensor]:
    """The same with every family over its largest weight."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unscaled.Plan, "of", lambda _tree: None)
        return both(scores, targets, tree)


@given(batches())
def test_both_ways_agree(batch: tuple[LabelTree, Tensor, Tensor]) -> None:
    tree, scores, targets = batch
    plan = Plan.of(tree)
    assert plan is not None
    assert sweep(scores, plan) is not None
    careful = carefully(scores, targets, tree)
    assert_close(both(scores, targets, tree), careful, rtol=1e-12, atol=1e-14)
    assert_close(
        both(scores.float(), targets, tree),
        carefully(scores.float(), targets, tree),
        rtol=1e-5,
        atol=1e-5,
    )


@given(batches(bound=40))
def test_what_is_let_through_is_right_to_five_digits(
    batch: tuple[LabelTree, Tensor, Tensor],
) -> None:
    """Scores of up to 40 either way: some overflow on their path, some underflow to nothing."""
    tree, scores, targets = batch
    loss, slope = both(scores.float(), targets, tree)
    exact, right = carefully(scores, targets, tree)
    assert loss >= 0
    assert_close(loss.double(), exact, rtol=1e-5, atol=5e-5)
    assert_close(slope.double(), right, rtol=1e-5, atol=5e-5)


@pytest.mark.parametrize("score", [100.0, math.inf, math.nan])
def test_scores_that_could_overflow_are_left_to_the_careful_way(score: float) -> None:
    plan = Plan.of(FRUIT)
    assert plan is not None
    for node in range(len(FRUIT)):
        scores = torch.zeros(2, len(FRUIT))
        scores[1, node] = score
        assert sweep(scores, plan) is None


def test_the_sum_of_a_path_decides_not_its_largest_score() -> None:
    chain = LabelTree.from_parents(range(-1, 3), ["x"] * 4)
    plan = Plan.of(chain)
    assert plan is not None
    assert sweep(torch.full((1, 4), 20.0), plan) is not None  # e^80
    assert sweep(torch.full((1, 4), 22.0), plan) is None  # e^88


def test_a_tree_too_deep_for_a_table_of_paths_is_left_to_it_too() -> None:
    assert Plan.of(LabelTree.from_parents(range(-1, 4999), ["x"] * 5000)) is None


def test_tiny_scores_give_no_gradient_that_is_not_a_number() -> None:
    """The target's path weighs nothing that a float can hold."""
    scores = torch.tensor([[-200.0, 3.0, -200.0, -200.0]])
    for target in range(len(FRUIT)):
        loss, slope = both(scores, torch.tensor([target]), FRUIT)
        assert loss.isfinite()
        assert_close((loss, slope), carefully(scores, torch.tensor([target]), FRUIT))


def test_a_family_of_many_thousands_loses_no_digits() -> None:
    """Nearly equal scores: added up one by one, each would be rounded the same way."""
    flat = LabelTree.from_paths([(str(number),) for number in range(50_000)])
    scores = torch.full((2, len(flat)), 1e-3) * torch.rand(2, len(flat))
    targets = torch.tensor([0, 49_999])
    loss, slope = both(scores, targets, flat)
    exact, right = both(scores.double(), targets, flat)
    assert_close(loss.double(), exact, rtol=1e-6, atol=1e-6)
    assert_close(slope.double(), right, rtol=1e-5, atol=1e-9)
