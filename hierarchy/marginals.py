"""From scores to the log-probability of every node, and the sweeps over the tree that this takes.

The N + 1 legal answers are "nothing" and each node's path from its top; a path's log-weight is the
sum of its scores, and all compete in one softmax. P(node) is the share of the answers that hold
the node. B images, N nodes, H heads: a root above all tops, then every node with children.

Given its parent v, the answer goes on to child c with log-probability L(c) - log(1 + sum exp L),
where L(c) = score(c) + log(1 + sum over c's children of exp L) and the 1 is "stop at v". One
sweep up gives these, one sweep down adds them. Both go level by level with one scale a family, so
no sum mixes scores of different size, and nothing overflows or cancels: memory and time are O(N B).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from hierarchy.errors import HierarchyError, ShapeError
from hierarchy.tree import LabelTree, cached_on_tree


@dataclass(frozen=True)
class Level:
    """One level's part of the rows, and of the heads that its nodes hang under."""

    rows: slice
    heads: slice
    above: Tensor | None
    """``(heads,)`` the rows of those heads, one level up; None for the root, which has none."""
    family: Tensor
    """``(rows,)`` int64: of each row its head, counted from the level's first."""
    members: Tensor
    """``(rows,)`` int64: the rows, family by family, counted from the level's first."""
    starts: Tensor
    """``(heads,)`` int64: where each family begins there."""

    def spread(self, by_head: Tensor, scratch: Tensor) -> Tensor:
        """Give each row its head's value: (heads, B) -> (rows, B), or (1, B) if all hang under one.

        ``scratch``, (N or more, B), takes the values, since new memory costs more than the reading.
        """
        if len(by_head) == 1:
            return by_head
        return torch.index_select(by_head, 0, self.family, out=scratch[self.rows])

    def total(self, by_row: Tensor) -> Tensor:
        """Sum each family: (rows, B) -> (heads, B)."""
        heads = self.heads.stop - self.heads.start
        if heads == 1:  # pairwise, and no thousand writes to one place
            return by_row.sum(0, keepdim=True)
        if by_row.device.type == "cpu":  # index_add sorts the rows each time: 20 times as long
            return torch.embedding_bag(by_row, self.members, self.starts)[0]
        return by_row.new_zeros(heads, by_row.shape[1]).index_add_(0, self.family, by_row)

    def highest(self, by_row: Tensor) -> Tensor:
        """Largest of each family and of 0, the "stop here": (rows, B) -> (heads, B)."""
        heads = self.heads.stop - self.heads.start
        if heads == 1:
            return by_row.amax(0, keepdim=True).clamp_(min=0)
        family = self.family[:, None].expand_as(by_row)
        top = by_row.new_zeros(heads, by_row.shape[1])
        return top.scatter_reduce_(0, family, by_row, "amax", include_self=True)


@dataclass(frozen=True)
class Layout:
    """Order of the nodes in the sweeps: rows level by level, within a level in order of ids.

    So a level is one slice, and a tree numbered level by level needs no reordering. Row N and head
    H stand for "above the top"; their values are 0.
    """

    levels: tuple[Level, ...]
    node: Tensor | None
    """``(N,)`` id of each row; None if rows are ids."""
    row: Tensor
    """``(N,)`` row of each id."""
    up: Tensor
    """``(N + 1,)`` row of each row's parent."""
    head: Tensor
    """``(N + 1,)`` head that each row hangs under."""
    level: Tensor
    """``(N,)`` level of each row."""
    enter: Tensor
    """``(N,)`` place of each id in preorder."""
    leave: Tensor
    """``(N,)`` the place behind its last descendant."""
    heads: int

    def to_rows(self, by_node: Tensor, rows: Tensor, scratch: Tensor) -> None:
        """Write (B, N) in order of ids into the first N rows; images become columns."""
        size = len(self.row)
        turned = (rows if self.node is None else scratch)[:size]
        turned[None].copy_(
            by_node.t()[None]
        )  # torch turns 3-d tensors a third faster than 2-d ones
        if self.node is not None:
            torch.index_select(turned, 0, self.node, out=rows[:size])

    def to_nodes(self, rows: Tensor, scratch: Tensor) -> Tensor:
        """Turn the first N rows back into (B, N) in order of ids, in memory of one of the two."""
        size = len(self.row)
        free, full = scratch, rows[:size]
        if self.node is not None:
            full = torch.index_select(full, 0, self.row, out=scratch[:size])
            free = rows
        return free[:size].view(-1, size).copy_(full.t())


@dataclass(frozen=True)
class Branching:
    """Weights of the ways on from each head, from one sweep up. Its row N is for scratch."""

    step: Tensor
    """``(N + 1, B)`` by row: log-weight of going on to it, over the largest of its family."""
    weight: Tensor
    """``(N + 1, B)`` exp of that, in [0, 1]."""
    total: Tensor
    """``(H, B)`` sum of the weights of each family and of stopping, >= 1."""
    log_total: Tensor
    """``(H + 1, B)`` log of that; ``step - log_total`` is log P(row | its parent) <= 0."""


def branch(scores: Tensor, layout: Layout, stop: Tensor | None = None) -> Branching:
    """Sweep up: what each node and all below it weigh, against its siblings and stopping.

    Args:
        scores: ``(B, N)`` float32 or float64.
        layout: of the tree.
        stop: ``(H, B)``, if given takes log P(the answer ends at this head | it runs through it).
    """
    batch, size = scores.shape
    step, weight = (scores.new_empty(size + 1, batch) for _ in range(2))
    layout.to_rows(scores, step, scratch=weight)
    step[size] = 0
    total = scores.new_empty(layout.heads, batch)
    log_total = scores.new_empty(layout.heads + 1, batch)
    log_total[layout.heads] = 0
    for level in reversed(layout.levels):
        mass = step[level.rows]
        top = level.highest(mass)
        share = torch.exp(mass.sub_(level.spread(top, scratch=weight)), out=weight[level.rows])
        family = torch.add(level.total(share), top.neg().exp_(), out=total[level.heads])
        rest = torch.log(family, out=log_total[level.heads])
        if stop is not None:
            torch.add(top, rest, out=stop[level.heads]).neg_()
        if level.above is not None:
            step.index_add_(0, level.above, top.add_(rest))
    return Branching(step, weight, total, log_total)


def log_marginals(scores: Tensor, tree: LabelTree) -> Tensor:
    """Log-probability of every node: that the true path runs through it, or ends there.

    Args:
        scores: ``(B, N)`` float, one score per node in order of ids, any finite range; half
            precision is worked out, and answered, in float32.
        tree: the N nodes.

    Returns:
        ``(B, N)`` in nats, <= 0, finite, on the device of ``scores``. Children never sum to more
        than their parent but for rounding. Differentiable once.

    Raises:
        ShapeError: if ``scores`` does not have one column per node, or holds no floats.

    Example:
        >>> tree = LabelTree.from_paths([("Fruit", "Apple"), ("Milk",)])  # Fruit 0, Milk 1, Apple 2
        >>> log_marginals(torch.zeros(1, 3), tree).exp()  # 4 answers: nothing and three nodes
        tensor([[0.5000, 0.2500, 0.2500]])
    """
    checked = check_scores(scores, tree)
    answer: Tensor = _LogMarginals.apply(checked, layout_of(tree, checked.device))
    return answer


def check_scores(scores: Tensor, tree: LabelTree) -> Tensor:
    """Scores as float32 or float64, with one column per node.

    Raises:
        ShapeError: if they are not ``(B, N)`` floats.
    """
    if scores.ndim != 2 or scores.shape[1] != len(tree):
        raise ShapeError(
            f"scores must be (B, {len(tree)}), one column per node, got {tuple(scores.shape)}"
        )
    if not scores.is_floating_point():
        raise ShapeError(f"scores must be floats, got {scores.dtype}")
    return scores if scores.dtype in (torch.float32, torch.float64) else scores.float()


def refuse_second(gradient: Tensor) -> Tensor:
    """Return the same gradient, which refuses to be differentiated again.

    torch's ``once_differentiable`` does not see that ours depends on the scores: a penalty on the
    gradient would be taken for a constant, without a word.
    """
    if not torch.is_grad_enabled():
        return gradient
    marked: Tensor = _Refusal.apply(gradient, gradient.new_empty(0).requires_grad_())
    return marked


class _Refusal(Function):
    """Passes a gradient on, and fails if the next derivative comes by."""

    @staticmethod
    def forward(_ctx: Any, gradient: Tensor, _mark: Tensor) -> Tensor:  # noqa: ANN401  (torch's own contract)
        return gradient.view_as(gradient)

    @staticmethod
    def backward(_ctx: Any, _grad: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ANN401  (torch's own contract)
        raise HierarchyError(
            "tree_loss and log_marginals have a first derivative only: "
            "keep their gradient out of what you differentiate, with detach()"
        )


class _LogMarginals(Function):
    """The sweep down adds the branches' logs; its gradient is two more sweeps.

    With U(j) the incoming gradient summed over j and all below it, and T(c) =
    P(c | parent) (T(parent) + G(parent)) where the root's G is minus the sum of all, the gradient
    is U + T: d log P(i) / d score(j) is 1 if j is i or above it, P(j | i) if below, less P(j).
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor, layout: Layout) -> Tensor:  # noqa: ANN401  (torch's own contract)
        found = branch(scores, layout)
        ctx.save_for_backward(found.weight, found.total)
        ctx.layout = layout
        log_p, scratch = found.step, torch.empty_like(found.step)
        for level in layout.levels:
            rest = found.log_total[level.heads].neg()
            if level.above is not None:
                rest.add_(log_p.index_select(0, level.above))
            log_p[level.rows].add_(level.spread(rest, scratch))
        return layout.to_nodes(log_p, scratch)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401  (torch's own contract)
        weight, total = ctx.saved_tensors
        with torch.no_grad():
            gradient = _pull_back(grad, weight, total, ctx.layout)
        return refuse_second(gradient), None


def _pull_back(grad: Tensor, weight: Tensor, total: Tensor, layout: Layout) -> Tensor:
    """U + T of :class:`_LogMarginals`, (B, N) -> (B, N)."""
    given, below, through = (torch.empty_like(weight) for _ in range(3))
    layout.to_rows(grad, given, scratch=through)
    below.copy_(given)
    for level in reversed(layout.levels):
        if level.above is not None:
            below.index_add_(0, level.above, level.total(below[level.rows]))
    for level in layout.levels:
        if level.above is None:
            head = given[: len(layout.row)].sum(0, keepdim=True).neg_()
        else:
            head = through.index_select(0, level.above)
            head.add_(given.index_select(0, level.above))
        share = head.div_(total[level.heads])
        rows = through[level.rows]
        torch.mul(weight[level.rows], level.spread(share, scratch=through), out=rows)
    return layout.to_nodes(below.add_(through), scratch=given)


@cached_on_tree
def layout_of(tree: LabelTree, device: torch.device) -> Layout:
    """Lay out a tree for the sweeps on a device."""
    with torch.inference_mode(mode=False):  # tensors made in inference mode cannot be trained with
        return _lay_out(tree, device)


def _lay_out(tree: LabelTree, device: torch.device) -> Layout:
    size, index = len(tree), tree.arrays
    depth_of, parent = torch.from_numpy(index.levels), torch.from_numpy(index.parents)
    node = torch.argsort(depth_of, stable=True)  # (N,)
    row = torch.empty_like(node)
    row[node] = torch.arange(size)
    up = torch.cat([parent[node], torch.tensor([-1])])
    up = torch.where(up < 0, size, row[up])  # (N + 1,)
    inner = torch.bincount(up, minlength=size)[:size] > 0  # (N,) rows with children
    as_head = torch.cat([inner.cumsum(0), torch.tensor([0])])  # (N + 1,) the root is head 0
    head = as_head[up]
    heads = 1 + int(inner.sum())
    head[size] = heads
    return Layout(
        levels=_slice_levels(depth_of[node], inner, head, device),
        node=None if torch.equal(node, torch.arange(size)) else node.to(device),
        row=row.to(device),
        up=up.to(device),
        head=head.to(device),
        level=depth_of[node].to(device),
        enter=torch.from_numpy(index.enter).to(device),
        leave=torch.from_numpy(index.leave).to(device),
        heads=heads,
    )


def _slice_levels(
    depth_of: Tensor, inner: Tensor, head: Tensor, device: torch.device
) -> tuple[Level, ...]:
    """Cut the rows, sorted by level, into levels; a level's heads are the inner rows above it."""
    ends: list[int] = torch.bincount(depth_of).cumsum(0).tolist()
    local = head.to(device)
    levels: list[Level] = []
    start, heads, above = 0, slice(0, 1), None
    for end in ends:
        family = local[start:end] - heads.start
        sizes = torch.bincount(family, minlength=heads.stop - heads.start)
        starts = sizes.cumsum(0) - sizes
        members = torch.argsort(family, stable=True)
        levels.append(Level(slice(start, end), heads, above, family, members, starts))
        above = inner[start:end].nonzero()[:, 0].add_(start).to(device)
        heads = slice(heads.stop, heads.stop + len(above))
        start = end
    return tuple(levels)
