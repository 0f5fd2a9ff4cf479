"""Tree loss: how surprised the network is by what is known of a picture.

A picture labelled at node v costs -log P(v) nats, with P as in ``hierarchy.marginals``; v need not
be a leaf. An answer that names several nodes says "one of these", one that rejects nodes says "not
these": it allows a set of the N + 1 legal answers, and costs -log of what they weigh together.

B pictures, N nodes, L levels, H heads, K nodes named and J rejected at most.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from hierarchy import unscaled
from hierarchy.errors import ShapeError
from hierarchy.marginals import Branching, Layout, Level, branch, check_scores, refuse_second
from hierarchy.tree import LabelTree


def tree_loss(
    scores: Tensor,
    targets: Tensor,
    tree: LabelTree,
    *,
    weights: Tensor | None = None,
    excluded: Tensor | None = None,
) -> Tensor:
    """Mean negative log-probability of what the labels allow.

    Args:
        scores: ``(B, N)`` float, one score a node in order of ids, any finite range; half
            precision is worked out, and answered, in float32.
        targets: ``(B,)`` int64 in ``[0, N)``, the deepest node known, which need not be a leaf; or
            ``(B, K)`` padded with -1, the true path runs through one of these. Their subtrees are
            united: naming a node twice, or one below another, adds nothing.
        tree: the N nodes.
        weights: ``(B,)`` >= 0, how much each picture counts; the mean is over their sum. Several
            annotators of one picture are several rows.
        excluded: ``(B, J)`` int64 padded with -1, nodes that the true path does not run through;
            see ``hierarchy.labels`` for what may be put here. A row that names no node and rejects
            some says "anything but these", "nothing" included.

    Returns:
        Scalar in nats, >= 0. Differentiable once.

    Raises:
        ShapeError: if a shape or kind is not as above, the batch is empty, or (on the CPU, where
            looking costs nothing) an id is not a node's, or a row says nothing or allows nothing.

    Example:
        >>> tree = LabelTree.from_paths([("Fruit", "Apple"), ("Fruit", "Pear")])
        >>> tree_loss(torch.zeros(1, 3), torch.tensor([0]), tree)  # 3 answers of 4 hold Fruit
        tensor(0.2877)
        >>> tree_loss(torch.zeros(1, 3), torch.tensor([[1, 2]]), tree)  # 2 hold Apple or Pear
        tensor(0.6931)
    """
    checked = check_scores(scores, tree)
    _check_ids(targets, checked, len(tree))
    if excluded is not None:
        _check_excluded(excluded, checked, len(tree))
    losses: Tensor
    if excluded is None and (one := _one_each(targets)) is not None:
        losses = _TreeLoss.apply(checked, one, tree)
    else:
        layout = Layout.of(tree, checked.device)
        named = targets if targets.ndim == 2 else targets[:, None]
        rejected = named.new_empty(len(named), 0) if excluded is None else excluded
        _check_says_something(named, rejected)
        losses = _SetLoss.apply(checked, named, rejected, layout)
    if weights is None:
        return losses.mean()
    if weights.shape != losses.shape:
        raise ShapeError(f"weights must be ({len(losses)},), got {tuple(weights.shape)}")
    weights = weights.to(losses)
    return losses.mul(weights).sum() / weights.sum()


def _check_ids(targets: Tensor, scores: Tensor, nodes: int) -> None:
    batch = len(scores)
    if targets.ndim not in (1, 2) or len(targets) != batch:
        form = f"({batch}, K)" if targets.ndim == 2 else f"({batch},)"
        raise ShapeError(f"targets must be {form}, got {tuple(targets.shape)}")
    if not batch:
        raise ShapeError(
            "a batch needs at least one picture, got none: there is no mean of nothing"
        )
    _check_range("targets", targets, nodes)


def _check_excluded(excluded: Tensor, scores: Tensor, nodes: int) -> None:
    if excluded.ndim != 2 or len(excluded) != len(scores):
        raise ShapeError(f"excluded must be ({len(scores)}, J), got {tuple(excluded.shape)}")
    _check_range("excluded", excluded, nodes)


def _check_range(what: str, ids: Tensor, nodes: int) -> None:
    if ids.dtype != torch.int64:
        raise ShapeError(f"{what} must be int64 node ids, got {ids.dtype}")
    if ids.device.type == "cpu" and ids.numel():  # a GPU would have to be waited for; it checks
        low, high = (int(bound) for bound in ids.aminmax())
        if low < (-1 if ids.ndim == 2 else 0) or high >= nodes:
            padding = ", or -1 for none" if ids.ndim == 2 else ""
            raise ShapeError(
                f"{what} must be node ids from 0 to {nodes - 1}{padding}, got {low} to {high}"
            )


def _one_each(targets: Tensor) -> Tensor | None:
    """The one node that each row names, (B,); None where a row names none or several.

    So the rare union costs only the batches it is in. On a GPU a look would cost a wait, and only
    the shape is asked.
    """
    if targets.ndim == 1:
        return targets
    if targets.device.type != "cpu":
        return None
    first, others = targets[:, :1], targets[:, 1:]
    one = first.numel() and (first >= 0).all() and ((others < 0) | (others == first)).all()
    return first[:, 0] if one else None


def _check_says_something(named: Tensor, rejected: Tensor) -> None:
    if named.device.type != "cpu":
        return
    silent = ~((named >= 0).any(1) | (rejected >= 0).any(1))
    if silent.any():
        raise ShapeError(
            f"row {int(silent.nonzero()[0])} names no node and excludes none: "
            "every row needs at least one of these, leave it out if nothing is known"
        )


def _check_allows_something(allowed: Tensor) -> None:
    if allowed.device.type != "cpu":
        return
    empty = ~allowed.any(0)
    if empty.any():
        raise ShapeError(
            f"row {int(empty.nonzero()[0])} allows no answer: each node it names is excluded, "
            "itself or by one above it; drop one or the other"
        )


class _TreeLoss(Function):
    """Loss of each picture, (B,), and its gradient in closed form: P(i) - P(i | target).

    P(i | target) is 1 for the target and what is above it, P(i) / P(target) for what is below it,
    and 0 elsewhere. Below the target the difference is P(i | target) (P(target) - 1), so one sweep
    down gives both terms if it goes on from P(target) - 1 there; that never divides by P(target),
    which may be too small to write down.

    The gradient is worked out at once, in the memory that the loss needed: on a CPU new memory
    would cost more than the arithmetic. There, scores that are not extreme go a shorter way
    (``hierarchy.unscaled``).
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor, targets: Tensor, tree: LabelTree) -> Tensor:  # noqa: ANN401  (torch's own contract)
        plan = unscaled.Plan.of(tree) if scores.device.type == "cpu" else None
        swept = None if plan is None else unscaled.sweep(scores, plan)
        if plan is not None and swept is not None:
            path, log_p = unscaled.path_log_probabilities(scores, targets, swept, plan)
            if ctx.needs_input_grad[0]:
                by_row = unscaled.gradient(path, log_p, targets, swept, plan)
                ctx.save_for_backward(swept.weight.view_as(scores).copy_(by_row.t()))
            return log_p[-1].neg()
        layout = Layout.of(tree, scores.device)
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


class _SetLoss(Function):
    """Loss of each picture, (B,), whatever set its label allows: gradient P(i) - P(i | allowed).

    Let q(v) be the chance that an answer through v is allowed: P(ends at v | v), if v is, plus the
    sum over children of P(c | v) q(c). One sweep up gives log q, the root's being the loss. Given
    that the answer is allowed, it goes on from v to c with P(c | v) q(c) / q(v): every family is
    scaled by its largest term, so its sum is at least 1 and nothing small is divided by.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        scores: Tensor,
        named: Tensor,
        rejected: Tensor,
        layout: Layout,
    ) -> Tensor:
        stop = scores.new_empty(layout.heads, len(scores))
        found = branch(scores, layout, stop)
        allowed = _allowed(named, rejected, layout)
        _check_allows_something(allowed)
        within = _restrict(found, stop, allowed, layout)
        if ctx.needs_input_grad[0]:
            scratch = found.step  # used up
            _spread_down(found.weight, found.total, layout, scratch)
            _spread_down(within.weight, within.total, layout, scratch)
            ctx.save_for_backward(layout.to_nodes(found.weight.sub_(within.weight), scratch))
        return within.log_p.neg()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:  # noqa: ANN401
        with torch.no_grad():
            (by_node,) = ctx.saved_tensors
            gradient = by_node * grad[:, None]
        return refuse_second(gradient), None, None, None


@dataclass(frozen=True)
class _Within:
    """The branching of an answer that is known to be allowed."""

    weight: Tensor
    """``(N + 1, B)`` by row, over the largest of its family, in [0, 1]."""
    total: Tensor
    """``(H, B)`` sum of each family's weights, >= 1, and 1 where nothing is allowed."""
    log_p: Tensor
    """``(B,)`` log-probability that the answer is allowed; -inf if none is."""


def _allowed(named: Tensor, rejected: Tensor, layout: Layout) -> Tensor:
    """Which answers a label allows, (N + 1, B) by the row that they end at, row N for "nothing"."""
    inside, outside = _marked(named, layout), _marked(rejected, layout)
    inside[-1] = (named < 0).all(1)  # who names no node allows all that is not rejected
    outside[-1] = False
    for level in layout.levels:
        up = layout.up[level.rows]
        for marks in (inside, outside):
            marks[level.rows] |= marks.index_select(0, up)
    return inside & ~outside


def _marked(ids: Tensor, layout: Layout) -> Tensor:
    """The rows of these nodes, (B, K) -> (N + 1, B); padding falls on row N."""
    size = len(layout.row)
    rows = torch.where(ids < 0, size, layout.row[ids.clamp_min(0)])
    marks = torch.zeros(size + 1, len(ids), dtype=torch.bool, device=ids.device)
    return marks.scatter_(0, rows.t(), value=True)


def _restrict(found: Branching, stop: Tensor, allowed: Tensor, layout: Layout) -> _Within:
    """Sweep up once more: the chance that the answer is allowed, given that it comes by."""
    log_q = torch.zeros_like(found.step).masked_fill_(~allowed, -math.inf)  # right for the leaves
    weight, total = torch.empty_like(found.step), torch.empty_like(stop)
    for level in reversed(layout.levels):
        end = allowed[-1:] if level.above is None else allowed.index_select(0, level.above)
        ends = stop[level.heads].masked_fill(~end, -math.inf)
        mass = found.step[level.rows] - level.spread(found.log_total[level.heads], weight)
        mass.add_(log_q[level.rows])
        top = _highest(level, mass, ends)
        share = torch.exp(mass.sub_(level.spread(top, weight)), out=weight[level.rows])
        family = torch.add(level.total(share), ends.sub_(top).exp_(), out=total[level.heads])
        chance = top.add_(family.log()).clamp_(max=0)
        if level.above is not None:
            log_q.index_copy_(0, level.above, chance)
    total.clamp_(min=1)  # only a family of which nothing is allowed sums to less, to 0
    return _Within(weight, total, chance[0])


def _highest(level: Level, by_row: Tensor, ends: Tensor) -> Tensor:
    """Largest of each family and of ending there, (heads, B); 0 where nothing is allowed."""
    if len(ends) == 1:
        top = torch.maximum(by_row.amax(0, keepdim=True), ends)
    else:
        family = level.family[:, None].expand_as(by_row)
        top = ends.scatter_reduce(0, family, by_row, "amax", include_self=True)
    return top.masked_fill_(top.isneginf(), 0)


def _spread_down(weight: Tensor, total: Tensor, layout: Layout, scratch: Tensor) -> None:
    """Sweep down: from each family's weights, (N + 1, B), to P(row), in place."""
    for level in layout.levels:
        share = total[level.heads].reciprocal()
        if level.above is not None:
            share.mul_(weight.index_select(0, level.above))
        weight[level.rows].mul_(level.spread(share, scratch))
