"""Chang et al.: a softmax a level, and coarse labels that cannot touch finer features."""

import math
from statistics import fmean

import pytest
import torch
from hypothesis import given
from torch import Tensor, nn
from torch.testing import assert_close

from hierarchy import LabelTree
from hierarchy.errors import ShapeError
from hierarchy.rivals.chang import Chang
from tests.hierarchy.rivals.small import FRUIT, RAGGED, learn, pool, wrong_levels
from tests.strategies import batches

Batch = tuple[LabelTree, Tensor, Tensor]

PART = 7


def bare(tree: LabelTree) -> Chang:
    return Chang(tree, nn.Identity(), 1, part=1)


def slow_loss(rows: list[list[float]], targets: list[int], tree: LabelTree) -> float:
    """Cross-entropy of each level, over the pictures whose label has a node there."""
    total = 0.0
    for level in range(tree.depth):
        found = []
        for row, target in zip(rows, targets, strict=True):
            path = tree.ancestors(target)
            if level < len(path):
                whole = sum(math.exp(row[node]) for node in tree.level_nodes(level))
                found.append(math.log(whole) - row[path[level]])
        total += fmean(found) if found else 0
    return total


@given(batches())
def test_loss_agrees_with_a_loop_over_levels_and_pictures(batch: Batch) -> None:
    tree, scores, targets = batch
    expected = slow_loss(scores.tolist(), targets.tolist(), tree)
    assert_close(bare(tree).loss(scores, targets).item(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (["Fruit"], -math.log(0.75)),
        (["Apple"], -math.log(0.75) - math.log(0.8)),
        (["Milk"], -math.log(0.25)),
        (["Apple", "Milk"], -(math.log(0.75) + math.log(0.25)) / 2 - math.log(0.8)),
    ],
)
def test_loss_by_hand(targets: list[str], expected: float) -> None:
    """Softmax of Fruit and Milk is 0.75 and 0.25, of Apple and Pear 0.8 and 0.2."""
    logits = torch.tensor([[3.0, 1.0, 4.0, 1.0]] * len(targets), dtype=torch.float64).log()
    nodes = torch.tensor([FRUIT.names.index(target) for target in targets])
    assert_close(bare(FRUIT).loss(logits, nodes).item(), expected)


@given(batches())
def test_levels_below_the_label_get_no_gradient(batch: Batch) -> None:
    tree, scores, targets = batch
    bare(tree).loss(scores.requires_grad_(), targets).backward()
    assert scores.grad is not None
    for row, target in zip(scores.grad, targets.tolist(), strict=True):
        deeper = [node for node in range(len(tree)) if tree.levels[node] > tree.levels[target]]
        assert not row[deeper].any()


def test_loss_has_the_gradient_of_its_value() -> None:
    draw = torch.Generator().manual_seed(0)
    scores = torch.randn(3, len(RAGGED), dtype=torch.float64, generator=draw).requires_grad_()
    targets = torch.tensor([0, RAGGED.leaves[0], RAGGED.leaves[-1]])
    assert torch.autograd.gradcheck(lambda s: bare(RAGGED).loss(s, targets), scores)


@pytest.mark.parametrize("level", range(RAGGED.depth))
def test_a_level_reads_finer_parts_and_trains_its_own_alone(level: int) -> None:
    """The paper's gradient controller; coarser parts are not even read."""
    torch.manual_seed(0)
    rival = Chang(RAGGED, pool(), 5, part=PART)
    maps = torch.randn(6, 5, 3, 3)
    nodes = list(RAGGED.level_nodes(level))
    before = rival(maps)
    before[:, nodes].square().sum().backward()
    linear = rival.features[1]
    assert isinstance(linear, nn.Linear)
    assert linear.weight.grad is not None
    trained = linear.weight.grad.reshape(RAGGED.depth, -1).any(1).tolist()
    assert trained == [other == level for other in range(RAGGED.depth)]
    for other in range(RAGGED.depth):
        with torch.no_grad():
            linear.weight[other * PART : (other + 1) * PART].add_(torch.randn(PART, 5))
        after = rival(maps)
        assert torch.equal(after[:, nodes], before[:, nodes]) == (other < level)
        before = after


@given(batches(bound=1e4))
def test_each_level_of_the_answer_sums_to_one(batch: Batch) -> None:
    tree, scores, _ = batch
    found = bare(tree).log_probability(scores)
    assert found.shape == scores.shape
    assert found.isfinite().all()
    for level in range(tree.depth):
        whole = found[:, list(tree.level_nodes(level))].logsumexp(1)
        assert_close(whole, torch.zeros_like(whole), rtol=0, atol=1e-9)


def test_learns_a_separable_problem() -> None:
    rival, losses, maps = learn(Chang, RAGGED, 40)
    assert losses[-1] < losses[0] / 10
    assert wrong_levels(rival, maps) == []


def test_targets_of_another_batch_are_refused() -> None:
    with pytest.raises(ShapeError, match="one a picture"):
        bare(FRUIT).loss(torch.zeros(2, 4), torch.tensor([0]))
