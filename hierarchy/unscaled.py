"""The tree loss of scores that are not extreme, on a CPU: the same, in a third of the work.

``hierarchy.marginals`` puts each family of siblings over its largest weight, so that no score is
too large. Where exp of no path's sum overflows, weights can stay as they are. With
W(v) = exp(score(v)), the answers at and below v weigh, against stopping above it, W(v) T(v), where
T(v) = 1 + the sum of W(c) T(c) over the children c. So P(v) = W(v) T(v) S(parent of v), where
S(v) = P(v) / T(v) = W(v) S(parent of v) and S(root) = 1 / T(root). Only nodes with children have a
T and an S: leaves, most of a large tree, are met once on the way up and once on the way down, in
whatever order they are numbered. Log P is a difference of logs here: of a P near 1 the last digits
are lost (5e-6 in float32 at the worst), which a training does not feel; answers are read the
careful way.

B pictures, N nodes, L levels; I nodes with children, level by level; H = I + 1 heads, of which the
first is the root above all tops.
"""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from hierarchy.tree import LabelTree

#: Numbers in a tree's table of all paths, at most: 32 MB.
_PATHS: Final = 1 << 22


@dataclass(frozen=True)
class _Level:
    """The nodes with children of one level."""

    inner: slice
    """Their places among the I."""
    above: Tensor | None
    """``(nodes,)`` the heads that they hang under; None for tops, which hang under the root."""


@dataclass(frozen=True)
class Plan:
    """A tree, laid out for the sweeps."""

    tops: Tensor
    """``(tops,)`` the leaves that hang under the root."""
    leaves: Tensor
    """``(others,)`` the other leaves, head by head."""
    starts: Tensor
    """``(I,)`` where those of each head but the root begin there."""
    inner: Tensor
    """``(I,)`` the nodes with children, level by level."""
    levels: tuple[_Level, ...]
    above: Tensor
    """``(N,)`` the head that each node hangs under."""
    head: Tensor
    """``(N,)`` the head that each node is; H for leaves."""
    level: Tensor
    """``(N,)`` the level of each node."""
    paths: Tensor
    """``(L, N)`` each node's ancestor on each level, itself from its own level on."""

    @classmethod
    def of(cls, tree: LabelTree) -> "Plan | None":
        """Lay a tree out, or find what was laid out before; None for trees that are too deep."""
        if len(tree) * tree.depth > _PATHS:
            return None
        key = (cls, "cpu")
        if key not in tree.derived:
            with torch.inference_mode(mode=False):  # or it would be no good in training later
                tree.derived[key] = _plan(tree)
        found: Plan = tree.derived[key]
        return found


@dataclass(frozen=True)
class Swept:
    """What the way up leaves behind."""

    weight: Tensor
    """``(N, B)`` W."""
    own: Tensor
    """``(I, B)`` W of the nodes with children."""
    total: Tensor
    """``(H + 1, B)`` T; the last row, for leaves, is 1."""


def sweep(scores: Tensor, plan: Plan) -> Swept | None:
    """Go up: ``(B, N)`` scores -> W and T; None where a weight is too large for this way."""
    batch, size = scores.shape
    weight = scores.new_empty(size, batch)
    weight[None].copy_(scores.t()[None])  # torch turns 3-d tensors this way in half the time
    weight.exp_()
    total = scores.new_ones(len(plan.inner) + 2, batch)
    inner = total[1:-1]
    total[0] += weight.index_select(0, plan.tops).sum(0)  # pairwise: there may be many thousands
    if len(inner):
        inner += torch.embedding_bag(weight, plan.leaves, plan.starts)[0]
    own = weight.index_select(0, plan.inner)
    for level in reversed(plan.levels):
        mass = own[level.inner] * inner[level.inner]
        if level.above is None:
            total[0] += mass.sum(0)
        else:
            total.index_add_(0, level.above, mass)
    # NaN, as of scores that are not finite, is not below it either.
    return Swept(weight, own, total) if total.amax() < torch.finfo(total.dtype).max / 16 else None


def path_log_probabilities(
    scores: Tensor, targets: Tensor, swept: Swept, plan: Plan
) -> tuple[Tensor, Tensor]:
    """Of ``(B,)`` targets the paths and their nodes' log P, ``(L, B)`` each; see `Plan.paths`."""
    path = plan.paths.index_select(1, targets)
    steps = scores.t().gather(0, path)
    levels = torch.arange(len(path))[:, None]
    steps.masked_fill_(levels > plan.level[targets], 0)
    totals = swept.total.gather(0, plan.head[path]).div_(swept.total[0]).log_()
    return path, steps.cumsum(0).add_(totals).clamp_(max=0)


def gradient(path: Tensor, log_p: Tensor, targets: Tensor, swept: Swept, plan: Plan) -> Tensor:
    """P(i) - P(i | target) as ``(N, B)``; see ``hierarchy.loss``. ``swept`` is used up."""
    weight, own, total = swept.weight, swept.own, swept.total
    surplus = log_p.expm1()  # P - 1 along the path
    share = torch.empty_like(total)  # S
    torch.reciprocal(total[0], out=share[0])
    inner = share[1:-1]
    ends = plan.head[targets]  # below a target it goes on from P(target) - 1
    begun = surplus[-1:] / total.gather(0, ends[None]) if (ends < len(share) - 1).any() else None
    for number, level in enumerate(plan.levels):
        above = share[:1] if level.above is None else share.index_select(0, level.above)
        torch.mul(own[level.inner], above, out=inner[level.inner])
        if begun is not None:
            here = torch.where(plan.level[targets] == number, ends, len(share) - 1)
            share.scatter_(0, here[None], begun)
    answer = share.index_select(0, plan.above).mul_(weight)
    answer.index_copy_(0, plan.inner, inner.mul_(total[1:-1]))
    return answer.scatter_(0, path, surplus)


def _plan(tree: LabelTree) -> Plan:
    size = len(tree)
    level, parent = torch.tensor(tree.levels), torch.tensor(tree.parents)
    children = torch.bincount(parent.clamp_min(0) + (parent < 0) * size, minlength=size)[:size]
    order = torch.argsort(level, stable=True)
    inner = order[children[order] > 0]
    heads = len(inner) + 1
    head = torch.full((size,), heads)
    head[inner] = torch.arange(1, heads)
    above = torch.where(parent < 0, 0, head[parent])
    leaves = torch.nonzero(children == 0)[:, 0]
    tops, leaves = leaves[above[leaves] == 0], leaves[above[leaves] > 0]
    leaves = leaves[torch.argsort(above[leaves], stable=True)]
    sizes = torch.bincount(above[leaves] - 1, minlength=len(inner))
    paths = [torch.arange(size)]
    for number in range(tree.depth - 1, 0, -1):
        last = paths[-1]
        paths.append(torch.where(level[last] < number, last, parent[last].clamp_min(0)))
    levels: list[_Level] = []
    ends: list[int] = torch.bincount(level[inner]).cumsum(0).tolist()
    start = 0
    for end in ends:
        levels.append(_Level(slice(start, end), above[inner[start:end]] if start else None))
        start = end
    return Plan(
        tops=tops,
        leaves=leaves,
        starts=sizes.cumsum(0) - sizes,
        inner=inner,
        levels=tuple(levels),
        above=above,
        head=head,
        level=level,
        paths=torch.stack(paths[::-1]),
    )
