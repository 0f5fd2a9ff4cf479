"""HMCN-F: features fed in again at each level, local and global answers, violations punished."""

import math

import pytest
import torch
from hypothesis import given
from torch import Tensor, nn
from torch.testing import assert_close

from hierarchy import LabelTree
from hierarchy.errors import ShapeError
from hierarchy.rivals.hmcn import Hmcn, HmcnOutputs
from tests.hierarchy.rivals.small import (
    FRUIT,
    RAGGED,
    learn,
    logit,
    pool,
    says,
    sigmoid,
    slow_level_losses,
    surprise,
    trained,
    unknown,
    wrong_levels,
)
from tests.strategies import batches

Batch = tuple[LabelTree, Tensor, Tensor]


def bare(tree: LabelTree, **settings: float) -> Hmcn:
    return Hmcn(tree, nn.Identity(), 1, hidden=2, **settings)


def both(scores: Tensor) -> HmcnOutputs:
    """Two answers that differ, made of one."""
    return HmcnOutputs(scores, scores.flip(1) * 0.7)


def slow_loss(outputs: HmcnOutputs, targets: list[int], tree: LabelTree) -> float:
    """The three losses by loops over pictures, nodes and edges."""
    local: list[list[float]] = outputs.local.tolist()
    overall: list[list[float]] = outputs.overall.tolist()
    settled = [
        surprise(row[node], truth)
        for row, target in zip(overall, targets, strict=True)
        for node in range(len(tree))
        if (truth := says(tree, target, node)) is not None
    ]
    violation = 0.0
    for one, other in zip(local, overall, strict=True):
        answer = [(sigmoid(p) + sigmoid(q)) / 2 for p, q in zip(one, other, strict=True)]
        for node, parent in enumerate(tree.parents):
            if parent >= 0:
                violation += max(0, answer[node] - answer[parent]) ** 2 / len(targets)
    by_level = slow_level_losses(local, targets, tree)
    return by_level + sum(settled) / len(settled) + 0.1 * violation


@given(batches())
def test_loss_agrees_with_a_loop_over_levels_nodes_and_edges(batch: Batch) -> None:
    tree, scores, targets = batch
    outputs = both(scores)
    expected = slow_loss(outputs, targets.tolist(), tree)
    assert_close(bare(tree).loss(outputs, targets).item(), expected, rtol=1e-9, atol=1e-12)


def test_loss_by_hand() -> None:
    """The answer is Fruit 0.375, Apple 0.625, Pear 0.35: Apple claims 0.25 too much."""
    outputs = HmcnOutputs(logit(0.25, 0.5, 0.75, 0.2), logit(0.5, 0.5, 0.5, 0.5))
    found = bare(FRUIT).loss(outputs, torch.tensor([0]))
    local, overall = (math.log(4) + math.log(2)) / 2, math.log(2)
    assert_close(found.item(), local + overall + 0.1 * 0.25**2)


def test_answer_by_hand() -> None:
    outputs = HmcnOutputs(logit(0.25, 0.5, 0.75, 0.2), logit(0.5, 0.5, 0.5, 0.5))
    answer = bare(FRUIT).log_probability(outputs).exp()
    assert_close(answer, torch.tensor([[0.375, 0.5, 0.625, 0.35]], dtype=torch.float64))
    leaning = bare(FRUIT, beta=0.25).log_probability(outputs).exp()
    assert_close(leaning[0, 2].item(), 0.25 * 0.75 + 0.75 * 0.5)


@pytest.mark.parametrize(("beta", "expected"), [(1.0, 0.75), (0.0, 0.5)])
def test_one_answer_alone_can_be_read(beta: float, expected: float) -> None:
    outputs = HmcnOutputs(logit(0.25, 0.5, 0.75, 0.2), logit(0.5, 0.5, 0.5, 0.5))
    answer = bare(FRUIT, beta=beta).log_probability(outputs).exp()
    assert_close(answer[0, 2].item(), expected)


@given(batches())
def test_without_penalty_nodes_below_the_label_get_no_gradient(batch: Batch) -> None:
    tree, scores, targets = batch
    local, overall = (part.clone().requires_grad_() for part in (scores, scores * 0.7))
    bare(tree, penalty=0).loss(HmcnOutputs(local, overall), targets).backward()
    free = unknown(targets, tree)
    for part in (local, overall):
        assert part.grad is not None
        assert not part.grad[free].any()
        assert part.grad[~free].all()


def test_loss_has_the_gradient_of_its_value() -> None:
    draw = torch.Generator().manual_seed(0)
    size = (3, len(RAGGED))
    local, overall = (torch.randn(size, dtype=torch.float64, generator=draw) for _ in range(2))
    targets = torch.tensor([0, RAGGED.leaves[0], RAGGED.leaves[-1]])
    rival = bare(RAGGED)
    assert rival.violation(HmcnOutputs(local, overall)) > 0  # it takes part

    def loss(one: Tensor, other: Tensor) -> Tensor:
        return rival.loss(HmcnOutputs(one, other), targets)

    assert torch.autograd.gradcheck(loss, (local.requires_grad_(), overall.requires_grad_()))


def test_features_are_fed_in_again_at_every_level() -> None:
    torch.manual_seed(0)
    rival = Hmcn(RAGGED, pool(), 5, hidden=16).eval()
    with torch.no_grad():
        for weight in rival.path[0].parameters():  # the first layer says nothing
            weight.zero_()
    found = rival(torch.randn(2, 5, 3, 3))
    first, second = (list(RAGGED.level_nodes(level)) for level in (0, 1))
    assert torch.equal(found.local[0, first], found.local[1, first])
    assert not torch.equal(found.local[0, second], found.local[1, second])


def test_local_losses_reach_the_global_path_down_to_their_level_and_no_further() -> None:
    torch.manual_seed(0)
    rival = Hmcn(RAGGED, pool(), 5, hidden=16)
    rival(torch.randn(4, 5, 3, 3)).local[:, list(RAGGED.level_nodes(1))].sum().backward()
    reached = [any(map(trained, part.parameters())) for part in rival.path]
    assert reached == [True, True, False]


@given(batches(bound=1e4))
def test_log_probability_is_finite(batch: Batch) -> None:
    tree, scores, _ = batch
    found = bare(tree).log_probability(both(scores))
    assert found.shape == scores.shape
    assert found.isfinite().all()


def test_learns_a_separable_problem_and_that_a_leaf_ends_early() -> None:
    rival, losses, maps = learn(Hmcn, RAGGED, 60)
    assert losses[-1] < losses[0] / 5
    assert wrong_levels(rival, maps) == []
    early = RAGGED.leaves.index(RAGGED.index(("b",)))
    deeper = [node for level in (1, 2) for node in RAGGED.level_nodes(level)]
    assert rival.log_probability(rival(maps))[early, deeper].max() < math.log(0.5)


def test_targets_of_another_batch_are_refused() -> None:
    with pytest.raises(ShapeError, match="one a picture"):
        bare(FRUIT).loss(both(torch.zeros(2, 4)), torch.tensor([0]))
