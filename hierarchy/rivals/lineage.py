"""What a label says of every node, and sweeps from the leaves up: what losses on all nodes need.

A picture labelled at node v has v and all above it, lacks all that lies elsewhere, and says nothing
of what lies below v. B pictures, N nodes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from hierarchy.errors import ShapeError
from hierarchy.marginals import Layout, check_scores
from hierarchy.tree import TOP, LabelTree


@dataclass(frozen=True)
class Said:
    """What each picture's label says of each node."""

    holds: Tensor
    """``(B, N)`` bool: the node is the target or lies above it."""
    known: Tensor
    """``(B, N)`` bool: the node does not lie below the target, so the label settles it."""


def said(targets: Tensor, pictures: int, tree: LabelTree) -> Said:
    """Read labels of any level as yes, no or unknown for every node.

    Args:
        targets: ``(B,)`` int64 in ``[0, N)``, of each picture the deepest node known.
        pictures: B.
        tree: the N nodes.

    Raises:
        ShapeError: if the targets are not one node id a picture, or there is no picture.
    """
    check_targets(targets, pictures, tree)
    enter, leave = _spans(tree, targets.device)
    place = enter[targets][:, None]  # (B, 1)
    holds = (enter <= place) & (place < leave)  # (B, N)
    below = (place < enter) & (enter < leave[targets][:, None])  # (B, N)
    return Said(holds, ~below)


def check_targets(targets: Tensor, pictures: int, tree: LabelTree) -> None:
    """Refuse targets that are not one node id a picture, or of no picture at all.

    Raises:
        ShapeError: as said; ids are looked at on the CPU only, where that costs nothing.
    """
    if targets.shape != (pictures,) or targets.dtype != torch.int64 or not pictures:
        raise ShapeError(
            f"targets must be ({max(pictures, 1)},) int64 node ids, one a picture, "
            f"got {tuple(targets.shape)} {targets.dtype}"
        )
    if targets.device.type == "cpu":
        low, high = (int(bound) for bound in targets.aminmax())
        if low < 0 or high >= len(tree):
            raise ShapeError(
                f"targets must be node ids from 0 to {len(tree) - 1}, got {low} to {high}"
            )


def binary_losses(logits: Tensor, label: Said) -> Tensor:
    """Binary cross-entropy of every node in nats, ``(B, N)``, 0 where the label says nothing."""
    truth = label.holds.to(logits)
    losses = binary_cross_entropy_with_logits(logits, truth, reduction="none")
    return losses.masked_fill(~label.known, 0)


def mean_by_level(losses: Tensor, counted: Tensor, tree: LabelTree) -> Tensor:
    """Mean over each level's entries of those that count.

    Args:
        losses: ``(B, N)`` floats.
        counted: ``(B, N)`` bool, which of them count.
        tree: the N nodes.

    Returns:
        ``(L,)``; 0 for a level on which none counts.
    """
    layout = Layout.of(tree, losses.device)
    level = layout.level[layout.row]  # (N,)
    by_node = losses.masked_fill(~counted, 0).sum(0)
    total = losses.new_zeros(tree.depth).index_add(0, level, by_node)
    count = losses.new_zeros(tree.depth).index_add(0, level, counted.to(losses).sum(0))
    return total / count.clamp(min=1)


def join_levels(parts: Sequence[Tensor], tree: LabelTree) -> Tensor:
    """Columns of each level, in order of ids, put in order of all ids: L x (B, nodes) -> (B, N)."""
    joined = torch.cat(tuple(parts), dim=1)
    return joined[:, Layout.of(tree, joined.device).row]


def split_levels(by_node: Tensor, tree: LabelTree) -> tuple[Tensor, ...]:
    """Undo :func:`join_levels`: (B, N) -> L x (B, nodes)."""
    node = Layout.of(tree, by_node.device).node
    ordered = by_node if node is None else by_node[:, node]
    sizes = [len(tree.level_nodes(level)) for level in range(tree.depth)]
    parts: tuple[Tensor, ...] = ordered.split(sizes, dim=1)
    return parts


def highest_below(scores: Tensor, tree: LabelTree) -> Tensor:
    """Of each node the largest score among itself and all below it, ``(B, N)`` -> ``(B, N)``.

    Differentiable; where several are largest they share the gradient.
    """
    layout, rows = _rows(scores, tree)
    lower: Tensor | None = None  # (rows of the level below, B)
    found = []
    where = None
    for level in reversed(layout.levels):
        own = rows[level.rows]
        if lower is not None and where is not None:
            place = (where - level.rows.start)[:, None].expand_as(lower)
            own = own.scatter_reduce(0, place, lower, "amax", include_self=True)
        found.append(own)
        lower = own
        where = None if level.above is None else level.above[level.family]
    return torch.cat(found[::-1])[layout.row].t()


def log_total_below(leaf_scores: Tensor, tree: LabelTree) -> Tensor:
    """Of each node the logsumexp over the leaves that it covers.

    Args:
        leaf_scores: ``(B, leaves)`` finite, in order of ``tree.leaves``.
        tree: the N nodes.

    Returns:
        ``(B, N)``; a leaf's is its own score. Differentiable.
    """
    if leaf_scores.ndim != 2 or leaf_scores.shape[1] != len(tree.leaves):
        raise ShapeError(
            f"scores must be (B, {len(tree.leaves)}), one column a leaf, "
            f"got {tuple(leaf_scores.shape)}"
        )
    leaves = torch.tensor(tree.leaves, device=leaf_scores.device)
    scores = leaf_scores.new_zeros(len(leaf_scores), len(tree)).index_copy(1, leaves, leaf_scores)
    layout, rows = _rows(scores, tree)
    merged: Tensor | None = None  # (heads, B) what the level below comes to under each parent
    found = []
    where: Tensor | None = None
    for level in reversed(layout.levels):
        own = rows[level.rows]
        if merged is not None and where is not None:
            own = own.index_copy(0, where - level.rows.start, merged)
        found.append(own)
        if level.above is not None:
            merged = _log_total(own, level.family, len(level.above))
        where = level.above
    return torch.cat(found[::-1])[layout.row].t()


def _log_total(by_row: Tensor, family: Tensor, heads: int) -> Tensor:
    """Logsumexp of each family, (rows, B) -> (heads, B); every family has a member."""
    shape = (heads, by_row.shape[1])
    place = family[:, None].expand_as(by_row)
    top = by_row.new_zeros(shape).scatter_reduce(
        0, place, by_row.detach(), "amax", include_self=False
    )
    share = (by_row - top[family]).exp()
    return top + by_row.new_zeros(shape).index_add(0, family, share).log()


def _rows(scores: Tensor, tree: LabelTree) -> tuple[Layout, Tensor]:
    """The tree level by level, and the scores in that order: (B, N) -> (N, B)."""
    checked = check_scores(scores, tree)
    layout = Layout.of(tree, checked.device)
    rows = checked.t()
    return layout, rows if layout.node is None else rows[layout.node]


def _spans(tree: LabelTree, device: torch.device) -> tuple[Tensor, Tensor]:
    """Of each node its place in preorder, and the place behind its last descendant: (N,) each."""
    key = (_spans, device)
    if key not in tree.derived:
        size = [1] * len(tree)
        for node in reversed(tree.preorder):
            if (parent := tree.parents[node]) != TOP:
                size[parent] += size[node]
        enter = torch.argsort(torch.tensor(tree.preorder)).to(device)
        tree.derived[key] = (enter, enter + torch.tensor(size, device=device))
    found: tuple[Tensor, Tensor] = tree.derived[key]
    return found
