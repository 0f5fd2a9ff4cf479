"""Each loss agrees with its paper's formula, read slowly, on any tree and at any depth."""

import math
from collections.abc import Callable
from statistics import fmean

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from hierarchy import LabelTree
from hierarchy.baselines.losses import (
    LOSSES,
    WithLoss,
    hierarchical_cross_entropy,
    leaves_only,
    level_cross_entropy,
    marginal,
    soft_labels,
    soft_targets,
)
from hierarchy.baselines.tree_ops import leaf_log_marginals, level_log_softmax
from hierarchy.errors import ShapeError
from tests.hierarchy.baselines.small import FRUIT as SHOP
from tests.hierarchy.baselines.small import RAGGED, learn, wrong_levels
from tests.strategies import batches

Batch = tuple[LabelTree, Tensor, Tensor]
Loss = Callable[[Tensor, Tensor, LabelTree], Tensor]

FRUIT, MILK, APPLE, PEAR = range(4)
LEAF_LOSSES: dict[str, Loss] = {name: loss for name, loss in LOSSES.items() if name != "level-ce"}


def leaf_part(batch: Batch) -> Batch:
    """The same batch with the columns of leaves only."""
    tree, scores, targets = batch
    return tree, scores[:, list(tree.leaves)], targets


def slow_p(row: list[float], tree: LabelTree) -> list[float]:
    """P of each node, leaf by leaf."""
    weights = {leaf: math.exp(x) for leaf, x in zip(tree.leaves, row, strict=True)}
    whole = sum(weights.values())
    return [
        sum(w for leaf, w in weights.items() if tree.covers(node, leaf)) / whole
        for node in range(len(tree))
    ]


def slow_level_ce(rows: list[list[float]], targets: list[int], tree: LabelTree) -> float:
    total = 0.0
    for level in range(tree.depth):
        nodes = tree.level_nodes(level)
        each = []
        for row, target in zip(rows, targets, strict=True):
            if tree.levels[target] < level:
                continue
            true = tree.ancestors(target)[level]
            each.append(math.log(sum(math.exp(row[node]) for node in nodes)) - row[true])
        total += fmean(each) if each else 0.0
    return total


def slow_height(tree: LabelTree, node: int | None) -> int:
    """Steps down to the deepest leaf; None is the root above all tops."""
    if node is None:
        return tree.depth
    below = [slow_height(tree, child) + 1 for child in tree.children[node]]
    return max(below, default=0)


def slow_soft_target(tree: LabelTree, leaf: int, beta: float) -> list[float]:
    pairs = [(a, b) for a in tree.leaves for b in tree.leaves]
    largest = max(slow_height(tree, tree.common_ancestor(pair)) for pair in pairs) or 1
    far = [slow_height(tree, tree.common_ancestor((leaf, other))) for other in tree.leaves]
    weights = [math.exp(-beta * d / largest) for d in far]
    return [w / sum(weights) for w in weights]


def slow_soft(row: list[float], target: int, tree: LabelTree, beta: float) -> float:
    p = slow_p(row, tree)
    under = [leaf for leaf in tree.leaves if tree.covers(target, leaf)]
    losses = []
    for leaf in under:
        weights = slow_soft_target(tree, leaf, beta)
        losses.append(-sum(w * math.log(p[a]) for w, a in zip(weights, tree.leaves, strict=True)))
    return fmean(losses)


def slow_hxe(row: list[float], target: int, tree: LabelTree, alpha: float) -> float:
    p, above, loss = slow_p(row, tree), 1.0, 0.0
    for level, node in enumerate(tree.ancestors(target)):
        loss -= math.exp(-alpha * level) * math.log(p[node] / above)
        above = p[node]
    return loss


@given(batches())
def test_level_cross_entropy_agrees_with_a_loop(batch: Batch) -> None:
    tree, scores, targets = batch
    slow = slow_level_ce(scores.tolist(), targets.tolist(), tree)
    ours = level_cross_entropy(scores, targets, tree)
    assert_close(ours.item(), slow, rtol=1e-10, atol=1e-12)


@given(batches(), st.sampled_from([0.0, 0.5, 4.0, 30.0]))
def test_soft_labels_agree_with_a_loop(batch: Batch, beta: float) -> None:
    tree, logits, targets = leaf_part(batch)
    rows = zip(logits.tolist(), targets.tolist(), strict=True)
    slow = fmean(slow_soft(row, target, tree, beta) for row, target in rows)
    ours = soft_labels(logits, targets, tree, beta=beta)
    assert_close(ours.item(), slow, rtol=1e-9, atol=1e-12)


@given(batches(), st.sampled_from([0.0, 0.1, 0.9, -0.5]))
def test_hierarchical_cross_entropy_agrees_with_a_loop(batch: Batch, alpha: float) -> None:
    tree, logits, targets = leaf_part(batch)
    rows = zip(logits.tolist(), targets.tolist(), strict=True)
    slow = fmean(slow_hxe(row, target, tree, alpha) for row, target in rows)
    ours = hierarchical_cross_entropy(logits, targets, tree, alpha=alpha)
    assert_close(ours.item(), slow, rtol=1e-9, atol=1e-12)


@given(batches())
def test_marginal_agrees_with_a_loop(batch: Batch) -> None:
    tree, logits, targets = leaf_part(batch)
    rows = zip(logits.tolist(), targets.tolist(), strict=True)
    slow = fmean(-math.log(slow_p(row, tree)[target]) for row, target in rows)
    assert_close(marginal(logits, targets, tree).item(), slow, rtol=1e-9, atol=1e-12)


@given(batches(bound=1e4))
def test_leaf_log_marginals_stay_finite_for_huge_logits(batch: Batch) -> None:
    tree, logits, targets = leaf_part(batch)
    leaf = logits.float().requires_grad_()
    losses = [leaf_log_marginals(leaf, tree).sum()]
    losses += [loss(leaf, targets, tree) for loss in LEAF_LOSSES.values()]
    for loss in losses:
        (slope,) = torch.autograd.grad(loss, leaf)
        assert loss.isfinite()
        assert slope.isfinite().all()


def test_level_cross_entropy_on_paper() -> None:
    """Tops: log 1 + e - 1 for Fruit, log 1 + e for Milk. Leaves: Apple alone knows, log 1 + e^2."""
    logits = torch.tensor([[1.0, 0.0, 0.0, 2.0], [1.0, 0.0, 9.0, 9.0]])
    tops = (math.log(1 + math.e) - 1 + math.log(1 + math.e)) / 2
    found = level_cross_entropy(logits, torch.tensor([APPLE, MILK]), SHOP)
    assert_close(found.item(), tops + math.log(1 + math.exp(2)), rtol=1e-6, atol=0)


def test_a_level_that_nobody_knows_teaches_nothing() -> None:
    logits = torch.randn(2, 4, requires_grad=True)
    loss = level_cross_entropy(logits, torch.tensor([FRUIT, MILK]), SHOP)
    (slope,) = torch.autograd.grad(loss, logits)
    assert slope[:, [APPLE, PEAR]].eq(0).all()
    assert slope[:, [FRUIT, MILK]].ne(0).all()


def test_soft_targets_on_paper() -> None:
    """Apple and Pear meet at height 1 of 2, Milk and either at 2 of 2; beta 2 gives e^-1, e^-2."""
    table = soft_targets(SHOP, 2)
    near, far = math.exp(-1), math.exp(-2)
    fruit, milk = 1 + near + far, 1 + 2 * far
    apple = [far / fruit, 1 / fruit, near / fruit]
    pear = [far / fruit, near / fruit, 1 / fruit]
    either = [far / fruit, (1 + near) / 2 / fruit, (1 + near) / 2 / fruit]
    expected = [either, [1 / milk, far / milk, far / milk], apple, pear]
    assert_close(table, torch.tensor(expected, dtype=torch.float64))


def test_hierarchical_cross_entropy_on_paper() -> None:
    """Milk 1/6, Apple 2/6, Pear 3/6: Fruit 5/6, Apple given Fruit 2/5 at half the weight."""
    logits = torch.tensor([[1.0, 2.0, 3.0]]).log()
    loss = [
        hierarchical_cross_entropy(logits, torch.tensor([node]), SHOP, alpha=math.log(2)).item()
        for node in (APPLE, FRUIT, MILK)
    ]
    fruit = -math.log(5 / 6)
    expected = [fruit - math.log(2 / 5) / 2, fruit, -math.log(1 / 6)]
    assert_close(loss, expected, rtol=1e-6, atol=0)


def test_marginal_on_paper() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0]]).log()
    loss = marginal(logits.expand(2, 3), torch.tensor([FRUIT, PEAR]), SHOP)
    assert_close(loss.item(), -(math.log(5 / 6) + math.log(3 / 6)) / 2, rtol=1e-6, atol=0)


@pytest.mark.parametrize("loss", LEAF_LOSSES.values(), ids=LEAF_LOSSES)
def test_gradient_of_leaf_losses_passes_torchs_own_check(loss: Loss) -> None:
    logits = torch.linspace(-2, 3, 12, dtype=torch.float64).reshape(4, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, torch.arange(4), SHOP), (logits,))


def test_gradient_of_level_cross_entropy_passes_torchs_own_check() -> None:
    logits = torch.linspace(-2, 3, 16, dtype=torch.float64).reshape(4, 4).requires_grad_()
    every = torch.arange(4)
    assert torch.autograd.gradcheck(lambda x: level_cross_entropy(x, every, SHOP), (logits,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("loss", LEAF_LOSSES.values(), ids=LEAF_LOSSES)
def test_half_precision_is_worked_out_in_float32(loss: Loss, dtype: torch.dtype) -> None:
    logits, targets = torch.tensor([[1.5, -2.0, 0.25]], dtype=dtype), torch.tensor([APPLE])
    assert_close(loss(logits, targets, SHOP), loss(logits.float(), targets, SHOP))


@given(batches())
def test_leaves_only_is_cross_entropy_of_the_leaf_labels(batch: Batch) -> None:
    tree, logits, targets = leaf_part(batch)
    kept = [i for i, target in enumerate(targets.tolist()) if target in tree.leaves]
    columns = torch.tensor([tree.leaves.index(targets[i]) for i in kept], dtype=torch.int64)
    found = leaves_only(logits, targets, tree)
    expected = nn.functional.cross_entropy(logits[kept], columns) if kept else torch.tensor(0.0)
    assert_close(found, expected.double(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_wrong_shapes_and_targets_are_named(name: str) -> None:
    columns = 4 if name == "level-ce" else 3
    with pytest.raises(ShapeError, match=rf"\(B, {columns}\) floats"):
        LOSSES[name](torch.zeros(1, 5), torch.tensor([0]), SHOP)
    with pytest.raises(ShapeError, match="from 0 to 3, got 0 to 4"):
        LOSSES[name](torch.zeros(2, columns), torch.tensor([0, 4]), SHOP)


@pytest.mark.parametrize("name", LOSSES)
def test_the_classifier_has_its_loss_and_learns_what_it_is_shown(name: str) -> None:
    baseline, losses, vectors = learn(
        lambda tree, trunk, width: WithLoss(tree, trunk, width, name), RAGGED, 150
    )
    assert losses[-1] < losses[0]
    wrong = wrong_levels(baseline, vectors)
    assert wrong == []
    outputs, every = baseline(vectors), torch.tensor(RAGGED.leaves)
    assert_close(baseline.loss(outputs, every), LOSSES[name](outputs, every, RAGGED))
    read = level_log_softmax if name == "level-ce" else leaf_log_marginals
    assert_close(baseline.log_probability(outputs), read(outputs, RAGGED))


def test_an_unknown_loss_is_named() -> None:
    with pytest.raises(ValueError, match=r"one of marginal, flat, .*, got 'margin'"):
        WithLoss(SHOP, nn.Identity(), 4, "margin")
