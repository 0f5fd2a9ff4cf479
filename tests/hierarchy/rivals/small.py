"""What the rivals' tests share: small trees, slow readings of a label, and a problem to learn."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hierarchy import LabelTree
from hierarchy.rivals.base import Rival

FRUIT = LabelTree.from_paths([("Fruit", "Apple"), ("Fruit", "Pear"), ("Milk",)])
"""Fruit 0, Milk 1, Apple 2, Pear 3."""

RAGGED = LabelTree.from_paths(
    [("a", "x", "1"), ("a", "x", "2"), ("a", "y"), ("b",), ("c", "z"), ("c", "w", "3")]
)
"""Three tops, leaves on every level, a chain."""

Build = Callable[[LabelTree, nn.Module, int], Rival[Any]]


def pool() -> nn.Module:
    """A trunk with nothing to learn: the mean over the grid."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())


def logit(*probabilities: float) -> Tensor:
    """One row of logits, (1, N) float64."""
    return torch.tensor([probabilities], dtype=torch.float64).logit()


def sigmoid(score: float) -> float:
    return 1 / (1 + math.exp(-score))


def says(tree: LabelTree, target: int, node: int) -> bool | None:
    """What a label says of a node, read off the definition: yes, no, or nothing."""
    if tree.covers(node, target):
        return True
    return None if tree.covers(target, node) else False


def surprise(score: float, truth: bool) -> float:  # noqa: FBT001 - it is what is measured
    """-log of what a sigmoid says of the truth."""
    return -math.log(sigmoid(score if truth else -score))


def slow_level_losses(
    rows: Sequence[Sequence[float]], targets: list[int], tree: LabelTree
) -> float:
    """Binary cross-entropy, averaged on each level over the settled nodes, summed over levels."""
    total = 0.0
    for level in range(tree.depth):
        found = [
            surprise(row[node], truth)
            for row, target in zip(rows, targets, strict=True)
            for node in tree.level_nodes(level)
            if (truth := says(tree, target, node)) is not None
        ]
        total += sum(found) / len(found) if found else 0
    return total


def unknown(targets: Tensor, tree: LabelTree) -> Tensor:
    """Where the labels say nothing, (B, N)."""
    nodes = range(len(tree))
    return torch.tensor([[says(tree, t, n) is None for n in nodes] for t in targets.tolist()])


def trained(weight: Tensor) -> bool:
    """Say whether a loss that was sent back would change this weight."""
    return weight.grad is not None and bool(weight.grad.any())


def learn(build: Build, tree: LabelTree, steps: int) -> tuple[Rival[Any], list[float], Tensor]:
    """Train on one clean signal a leaf, every third picture labelled a level above its leaf.

    Returns:
        The rival in eval mode, the loss of each step, and the maps of one new picture a leaf.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        leaves = len(tree.leaves)
        rival = build(tree, pool(), leaves)
        leaf = torch.arange(leaves).repeat(12)
        maps = torch.eye(leaves)[leaf][:, :, None, None] + 0.1 * torch.randn(
            12 * leaves, leaves, 2, 2
        )
        deep = [tree.leaves[i] for i in leaf.tolist()]
        above = [max(tree.parents[node], -1) for node in deep]
        targets = torch.tensor(
            [
                up if i // leaves % 3 == 0 and up >= 0 else node
                for i, (node, up) in enumerate(zip(deep, above, strict=True))
            ]
        )
        optimiser = torch.optim.Adam(rival.parameters(), lr=0.02)
        losses = []
        for _ in range(steps):
            optimiser.zero_grad()
            loss = rival.loss(rival(maps), targets)
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
    return rival.eval(), losses, torch.eye(leaves)[:, :, None, None].expand(-1, -1, 2, 2)


def wrong_levels(rival: Rival[Any], maps: Tensor) -> list[tuple[int, int]]:
    """Leaf and level of each answer on a leaf's path that is not the node on that path."""
    tree = rival.tree
    with torch.no_grad():
        log_p = rival.log_probability(rival(maps))
    wrong = []
    for row, leaf in zip(log_p, tree.leaves, strict=True):
        for level, node in enumerate(tree.ancestors(leaf)):
            nodes = tree.level_nodes(level)
            if nodes[int(row[list(nodes)].argmax())] != node:
                wrong.append((leaf, level))
    return wrong
