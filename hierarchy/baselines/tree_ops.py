"""Operations along a tree's paths that several baselines need: ``(B, N)`` tensors in, one out.

Letters: B images, N nodes, K leaves, L levels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from hierarchy.baselines.base import check_targets, precise
from hierarchy.errors import ShapeError
from hierarchy.metrics.ancestors import ancestor_paths
from hierarchy.tree import LabelTree, cached_on_tree


@dataclass(frozen=True)
class Paths:
    """A tree's paths as index tensors.

    Attributes:
        path: ``(N, L)`` each node's ancestor on each level, itself on its own, N below that.
        above, below: ``(E,)`` each pair of a node and a node that it covers, itself included.
        covers_leaf: ``(F,)`` which of those pairs have a leaf below.
        column: ``(F,)`` that leaf's place in ``tree.leaves``.
        order: ``(N,)`` where each node stands when the nodes are listed level by level.
    """

    path: Tensor
    above: Tensor
    below: Tensor
    covers_leaf: Tensor
    column: Tensor
    order: Tensor


@cached_on_tree
def paths(tree: LabelTree, device: torch.device) -> Paths:
    """Return the paths of a tree on a device."""
    with torch.inference_mode(mode=False):  # tensors made in inference mode cannot be trained with
        path = torch.from_numpy(np.asarray(ancestor_paths(np.arange(len(tree)), tree)))
        below, level = (path >= 0).nonzero(as_tuple=True)
        column = torch.full((len(tree),), -1)
        column[list(tree.leaves)] = torch.arange(len(tree.leaves))
        covers_leaf = (column[below] >= 0).nonzero().squeeze(1)
        by_level = [node for at in range(tree.depth) for node in tree.level_nodes(at)]
        found = (
            torch.where(path >= 0, path, len(tree)),
            path[below, level],
            below,
            covers_leaf,
            column[below[covers_leaf]],
            torch.argsort(torch.tensor(by_level)),
        )
        return Paths(*(one.to(device) for one in found))


@dataclass(frozen=True)
class Known:
    """Labels read as facts about every node.

    Attributes:
        holds: ``(B, N)`` bool: the node is the target or lies above it.
        settled: ``(B, N)`` bool: the node does not lie below the target, so the label settles it.
    """

    holds: Tensor
    settled: Tensor


def known(targets: Tensor, images: int, tree: LabelTree) -> Known:
    """Read labels of any level as yes, no or unknown for every node.

    Args:
        targets: ``(B,)`` int64 in ``[0, N)``: the deepest node known of each image.
        images: B.
        tree: the N nodes.

    Raises:
        ShapeError: the targets are not one node id per image, or there is no image.
    """
    check_targets(targets, images, tree)
    path = paths(tree, targets.device).path
    holds = torch.zeros(images, len(tree) + 1, dtype=torch.bool, device=targets.device)
    holds = holds.scatter(1, path[targets], value=True)[:, :-1]
    inside = (path == targets[:, None, None]).any(2)  # (B, N): the node is the target or below it
    return Known(holds, ~inside | holds)


def binary_losses(logits: Tensor, label: Known) -> Tensor:
    """Return every node's binary cross-entropy in nats, ``(B, N)``, 0 where it is not settled."""
    truth = label.holds.to(logits)
    losses = binary_cross_entropy_with_logits(logits, truth, reduction="none")
    return losses.masked_fill(~label.settled, 0)


def mean_by_level(losses: Tensor, counted: Tensor, tree: LabelTree) -> Tensor:
    """Average each level's entries that count.

    Args:
        losses: ``(B, N)`` floats.
        counted: ``(B, N)`` bool, which of them count.
        tree: the N nodes.

    Returns:
        ``(L,)``; 0 for a level on which none counts.
    """
    totals = split_levels(losses.masked_fill(~counted, 0), tree)
    counts = split_levels(counted.to(losses), tree)
    pairs = zip(totals, counts, strict=True)
    return torch.stack([total.sum() / count.sum().clamp(min=1) for total, count in pairs])


def join_levels(parts: Sequence[Tensor], tree: LabelTree) -> Tensor:
    """Put the columns of all levels in order of ids: L x (B, nodes) -> (B, N)."""
    joined = torch.cat(tuple(parts), dim=1)
    return joined[:, paths(tree, joined.device).order]


def split_levels(by_node: Tensor, tree: LabelTree) -> list[Tensor]:
    """Undo :func:`join_levels`: (B, N) -> L x (B, nodes)."""
    return [by_node[:, list(tree.level_nodes(level))] for level in range(tree.depth)]


def level_log_softmax(logits: Tensor, tree: LabelTree) -> Tensor:
    """Take the log-softmax of each level by itself, ``(B, N)`` -> ``(B, N)``."""
    check_columns(logits, len(tree), "node")
    parts = split_levels(precise(logits), tree)
    return join_levels([part.log_softmax(1) for part in parts], tree)


def highest_below(scores: Tensor, tree: LabelTree) -> Tensor:
    """Return each node's largest score among itself and all nodes below it, ``(B, N)``.

    Differentiable; where several are largest they share the gradient.
    """
    of = paths(tree, scores.device)
    lowest = torch.full_like(scores, -math.inf)
    return lowest.scatter_reduce(1, of.above.expand(len(scores), -1), scores[:, of.below], "amax")


def leaf_log_marginals(leaf_logits: Tensor, tree: LabelTree) -> Tensor:
    """Return every node's log-probability: the log of its leaves' share of one softmax.

    Args:
        leaf_logits: ``(B, K)`` float, one column per leaf.
        tree: the N nodes.

    Returns:
        ``(B, N)``, finite for finite logits. Differentiable. Memory is B times the sum of the
        leaves' depths.

    Raises:
        ShapeError: ``leaf_logits`` is not ``(B, K)`` floats.
    """
    check_columns(leaf_logits, len(tree.leaves), "leaf")
    log_p = precise(leaf_logits).log_softmax(1)
    of = paths(tree, log_p.device)
    each = log_p[:, of.column]  # (B, F)
    node = of.above[of.covers_leaf].expand_as(each)
    highest = log_p.new_full((len(log_p), len(tree)), -math.inf)
    highest.scatter_reduce_(1, node, each.detach(), "amax")  # only a scale: nothing flows back
    total = torch.zeros_like(highest).scatter_add(1, node, (each - highest.gather(1, node)).exp())
    return total.log() + highest


def along_path(by_node: Tensor, targets: Tensor, tree: LabelTree) -> tuple[Tensor, Tensor]:
    """Return the values on each target's path, 0 below it, and where the path has a node.

    Both are ``(B, L)``; ``by_node`` is ``(B, N)``.
    """
    path = paths(tree, by_node.device).path[targets]
    return torch.nn.functional.pad(by_node, (0, 1)).gather(1, path), path < len(tree)


def check_columns(scores: Tensor, columns: int, per: str) -> None:
    """Check that scores are ``(B, columns)`` floats.

    Raises:
        ShapeError: they are not; the message says what a column stands for.
    """
    if scores.ndim != 2 or scores.shape[1] != columns or not scores.is_floating_point():
        raise ShapeError(
            f"scores must be (B, {columns}) floats, one column per {per}, "
            f"got {tuple(scores.shape)} {scores.dtype}"
        )
