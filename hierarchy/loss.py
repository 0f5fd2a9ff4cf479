"""Tree loss: how surprised the network is by the deepest node known for a picture.

A picture labelled at node v costs -log P(v) nats, with P as in ``hierarchy.marginals``; v need not
be a leaf. B pictures, N nodes, L levels.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from hierarchy.errors import ShapeError
from hierarchy.marginals import Branching, Layout, branch, check_scores, refuse_second
from hierarchy.tree import LabelTree


def tree_loss(
    scores: Tensor, targets: Tensor, tree: LabelTree, *, weights: Tensor | None = None
) -> Tensor:
    """Mean negative log-probability that the true path runs through the target.

    Args:
        scores: ``(B, N)`` float, one score a node in order of ids, any finite range; half
            precision is worked out, and answered, in float32.
        targets: ``(B,)`` int64 in ``[0, N)``, the deepest node known; need not be a leaf.
        tree: the N nodes.
        weights: ``(B,)`` >= 0, how much each picture counts; the mean is over their sum.

    Returns:
        Scalar in nats, >= 0. Differentiable once.

    Raises:
        ShapeError: if a shape or kind is not as above, the batch is empty, or (on the CPU, where
            looking costs nothing) a target is not a node's id.

    Example:
        >>> tree = LabelTree.from_paths([("Fruit", "Apple")])
        >>> tree_loss(torch.zeros(1, 2), torch.tensor([0]), tree)  # 2 answers of 3 hold Fruit
        tensor(0.4055)
    """
    checked = check_scores(scores, tree)
    _check_targets(checked, targets, len(tree))
    layout = Layout.of(tree, checked.device)
    losses: Tensor = _TreeLoss.apply(checked, targets, layout)
    if weights is None:
        return losses.mean()
    if weights.shape != losses.shape:
        raise ShapeError(f"weights must be ({len(losses)},), got {tuple(weights.shape)}")
    weights = weights.to(losses)
    return losses.mul(weights).sum() / weights.sum()


def _check_targets(scores: Tensor, targets: Tensor, nodes: int) -> None:
    if targets.shape != scores.shape[:1]:
        raise ShapeError(f"targets must be ({len(scores)},), got {tuple(targets.shape)}")
    if targets.dtype != torch.int64:
        raise ShapeError(f"targets must be int64 node ids, got {targets.dtype}")
    if not len(targets):
        raise ShapeError(
            "a batch needs at least one picture, got none: there is no mean of nothing"
        )
    if targets.device.type == "cpu":  # a GPU would have to be waited for; its kernels check
        low, high = (int(bound) for bound in targets.aminmax())
        if low < 0 or high >= nodes:
            raise ShapeError(f"targets must be node ids from 0 to {nodes - 1}, got {low} to {high}")


class _TreeLoss(Function):
    """Loss of each picture, (B,), and its gradient in closed form: P(i) - P(i | target).

    P(i | target) is 1 for the target and what is above it, P(i) / P(target) for what is below it,
    and 0 elsewhere. Below the target the difference is P(i | target) (P(target) - 1), so one sweep
    down gives both terms if it goes on from P(target) - 1 there; that never divides by P(target),
    which may be too small to write down.

    The gradient is worked out at once, in the memory that the loss needed: on a CPU new memory
    would cost more than all the arithmetic.
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
    """P(i) - P(i | target) as (B, N), in the memory of ``found``, which is used up."""
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
    """Rows from each target up to its top, then N: (B,) ids -> (L, B)."""
    steps = [layout.row.index_select(0, targets)]
    for _ in layout.levels[1:]:
        steps.append(layout.up.index_select(0, steps[-1]))
    return torch.stack(steps)


def _target_by_level(rows: Tensor, layout: Layout) -> Tensor:
    """Of each level the rows that are targets there, else N: (B,) -> (L, B)."""
    levels = torch.arange(len(layout.levels), device=rows.device)[:, None]
    return torch.where(layout.level[rows] == levels, rows, len(layout.row))
