"""The tree loss: how surprised the network is by what is known of an image.

An image labelled at node v costs -log P(v) nats, with P as in ``hierarchy.marginals``; v need not
be a leaf. A label that names several nodes says "one of these": it costs -log of what their
subtrees weigh together.

B images, N nodes, L levels, K nodes named at most.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from hierarchy.errors import ShapeError
from hierarchy.marginals import (
    Branching,
    Layout,
    branch,
    check_scores,
    layout_of,
    log_marginals,
    refuse_second,
)
from hierarchy.tree import LabelTree


def tree_loss(
    scores: Tensor, targets: Tensor, tree: LabelTree, *, weights: Tensor | None = None
) -> Tensor:
    """Return the mean negative log-probability of what the labels name.

    Args:
        scores: ``(B, N)`` float, one score per node in order of ids, any finite range; half
            precision is computed, and returned, in float32.
        targets: ``(B,)`` int64 in ``[0, N)``, the deepest node known, which need not be a leaf; or
            ``(B, K)`` padded with -1, the true path runs through one of these. Their subtrees are
            united: naming a node twice, or one below another, adds nothing.
        tree: the N nodes.
        weights: ``(B,)`` >= 0, how much each image counts; the mean is over their sum. Several
            annotators of one image are several rows.

    Returns:
        Scalar in nats, >= 0. Differentiable once.

    Raises:
        ShapeError: if a shape or kind is not as above, the batch is empty, or (on the CPU, where
            looking costs nothing) an id is not a node's, or a row names no node.

    Example:
        >>> tree = LabelTree.from_paths([("Fruit", "Apple"), ("Fruit", "Pear")])
        >>> tree_loss(torch.zeros(1, 3), torch.tensor([0]), tree)  # 3 answers of 4 hold Fruit
        tensor(0.2877)
        >>> tree_loss(torch.zeros(1, 3), torch.tensor([[1, 2]]), tree)  # 2 hold Apple or Pear
        tensor(0.6931)
    """
    checked = check_scores(scores, tree)
    _check_targets(targets, checked, len(tree))
    one = _one_each(targets)
    losses: Tensor
    if one is not None:
        losses = _TreeLoss.apply(checked, one, layout_of(tree, checked.device))
    else:
        losses = _union_loss(checked, targets, tree)
    if weights is None:
        return losses.mean()
    if weights.shape != losses.shape:
        raise ShapeError(f"weights must be ({len(losses)},), got {tuple(weights.shape)}")
    weights = weights.to(losses)
    return losses.mul(weights).sum() / weights.sum()


def _check_targets(targets: Tensor, scores: Tensor, nodes: int) -> None:
    batch = len(scores)
    several = targets.ndim == 2
    if targets.ndim not in (1, 2) or len(targets) != batch:
        form = f"({batch}, K)" if several else f"({batch},)"
        raise ShapeError(f"targets must be {form}, got {tuple(targets.shape)}")
    if not batch:
        raise ShapeError("a batch needs at least one image, got none: there is no mean of nothing")
    if targets.dtype != torch.int64:
        raise ShapeError(f"targets must be int64 node ids, got {targets.dtype}")
    if targets.device.type != "cpu":  # a GPU would have to be waited for; it checks ids itself
        return
    if several and (silent := ~(targets >= 0).any(1)).any():
        raise ShapeError(
            f"row {int(silent.nonzero()[0])} names no node: leave it out if nothing is known"
        )
    low, high = (int(bound) for bound in targets.aminmax())
    if low < (-1 if several else 0) or high >= nodes:
        padding = ", or -1 for none" if several else ""
        raise ShapeError(
            f"targets must be node ids from 0 to {nodes - 1}{padding}, got {low} to {high}"
        )


def _one_each(targets: Tensor) -> Tensor | None:
    """Return the one node that each row names, (B,); None where a row names several.

    So the rare union costs only the batches it is in. On a GPU a look would cost a wait, and only
    the shape is asked.
    """
    if targets.ndim == 1:
        return targets
    if targets.device.type != "cpu":
        return None
    first, others = targets[:, :1], targets[:, 1:]
    one = (first >= 0).all() and ((others < 0) | (others == first)).all()
    return first[:, 0] if one else None


def _union_loss(scores: Tensor, named: Tensor, tree: LabelTree) -> Tensor:
    """Return -log P(one of the named nodes), (B,): subtrees that are disjoint add up."""
    layout = layout_of(tree, scores.device)
    enter, leave = (ends[named.clamp_min(0)] for ends in (layout.enter, layout.leave))
    # [b, i, j]: node i of the row is above node j, or the same and named before it.
    within = (enter[:, :, None] <= enter[:, None, :]) & (enter[:, None, :] < leave[:, :, None])
    same = named[:, :, None] == named[:, None, :]
    earlier = torch.ones_like(same[0]).triu(1)
    named_above = (within & (~same | earlier) & (named >= 0)[:, :, None]).any(1)
    counts = (named >= 0) & ~named_above
    log_p = log_marginals(scores, tree).gather(1, named.clamp_min(0))
    return log_p.masked_fill(~counts, -math.inf).logsumexp(1).clamp(max=0).neg()


class _TreeLoss(Function):
    """Loss of each image, (B,), and its gradient in closed form: P(i) - P(i | target).

    P(i | target) is 1 for the target and what is above it, P(i) / P(target) for what is below it,
    and 0 elsewhere. Below the target the difference is P(i | target) (P(target) - 1), so one sweep
    down gives both terms if it goes on from P(target) - 1 there; that never divides by P(target),
    which may be too small to write down.

    The gradient is computed at once, in the memory that the loss needed: on a CPU new memory would
    cost more than the arithmetic.
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor, targets: Tensor, layout: Layout) -> Tensor:  # noqa: ANN401  (torch's own contract)
        found = branch(scores, layout)
        path = _paths_up(targets, layout)  # (L, B) rows, the target's first
        log_p = found.step.gather(0, path).sub_(found.log_total.gather(0, layout.head[path]))
        log_p = log_p.flip(0).cumsum(0).flip(0)  # (L, B) log P of each row on the path
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(_gradient(found, path, log_p, layout))
        return log_p[0].neg()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401  (torch's own contract)
        with torch.no_grad():
            (by_node,) = ctx.saved_tensors
            gradient = by_node * grad[:, None]
        return refuse_second(gradient), None, None


def _gradient(found: Branching, path: Tensor, log_p: Tensor, layout: Layout) -> Tensor:
    """Return P(i) - P(i | target) as (B, N), in the memory of ``found``, which is used up."""
    answer, scratch = found.weight, found.step
    surplus = log_p.expm1()  # (L, B) P - 1 along the path, precise where P is near 1
    targets = _target_by_level(path[0], layout)  # (L, B); row N takes what is meant for no row
    for number, level in enumerate(layout.levels):
        share = found.total[level.heads].reciprocal_()  # (heads, B)
        if level.above is not None:
            share.mul_(answer.index_select(0, level.above))
        answer[level.rows].mul_(level.spread(share, scratch))
        answer.scatter_(0, targets[number : number + 1], surplus[:1])
    answer.scatter_(0, path, surplus)
    return layout.to_nodes(answer, scratch)


def _paths_up(targets: Tensor, layout: Layout) -> Tensor:
    """Return rows from each target up to its root node, then N: (B,) ids -> (L, B)."""
    steps = [layout.row.index_select(0, targets)]
    for _ in layout.levels[1:]:
        steps.append(layout.up.index_select(0, steps[-1]))
    return torch.stack(steps)


def _target_by_level(rows: Tensor, layout: Layout) -> Tensor:
    """Return for each level the rows that are targets there, else N: (B,) -> (L, B)."""
    levels = torch.arange(len(layout.levels), device=rows.device)[:, None]
    return torch.where(layout.level[rows] == levels, rows, len(layout.row))
