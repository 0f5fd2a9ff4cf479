"""Small trees, slow readings of a label, and a problem to learn, for the baselines' tests."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hierarchy import LabelTree
from hierarchy.baselines.base import Baseline

#: Fruit 0, Milk 1, Apple 2, Pear 3; the leaves are Milk, Apple and Pear, in this order.
FRUIT = LabelTree.from_paths([("Fruit", "Apple"), ("Fruit", "Pear"), ("Milk",)])

#: Three root nodes, leaves on every level, a chain.
RAGGED = LabelTree.from_paths(
    [("a", "x", "1"), ("a", "x", "2"), ("a", "y"), ("b",), ("c", "z"), ("c", "w", "3")]
)

Build = Callable[[LabelTree, nn.Module, int], Baseline[Any]]


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


def learn(build: Build, tree: LabelTree, steps: int) -> tuple[Baseline[Any], list[float], Tensor]:
    """Train on one clean signal per leaf, every third image labelled one level above its leaf.

    Returns:
        The baseline in eval mode, the loss of each step, and one new vector per leaf.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        leaves = len(tree.leaves)
        baseline = build(tree, nn.Identity(), leaves)
        leaf = torch.arange(leaves).repeat(12)
        vectors = torch.eye(leaves)[leaf] + 0.1 * torch.randn(12 * leaves, leaves)
        deep = [tree.leaves[i] for i in leaf.tolist()]
        above = [max(tree.parents[node], -1) for node in deep]
        targets = torch.tensor(
            [
                up if i // leaves % 3 == 0 and up >= 0 else node
                for i, (node, up) in enumerate(zip(deep, above, strict=True))
            ]
        )
        optimiser = torch.optim.Adam(baseline.parameters(), lr=0.02)
        losses = []
        for _ in range(steps):
            optimiser.zero_grad()
            loss = baseline.loss(baseline(vectors), targets)
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
    return baseline.eval(), losses, torch.eye(leaves)


def wrong_levels(baseline: Baseline[Any], vectors: Tensor) -> list[tuple[int, int]]:
    """Leaf and level of each answer on a leaf's path that is not the node on that path."""
    tree = baseline.tree
    with torch.no_grad():
        log_p = baseline.log_probability(baseline(vectors))
    wrong = []
    for row, leaf in zip(log_p, tree.leaves, strict=True):
        for level, node in enumerate(tree.ancestors(leaf)):
            nodes = tree.level_nodes(level)
            if nodes[int(row[list(nodes)].argmax())] != node:
                wrong.append((leaf, level))
    return wrong
