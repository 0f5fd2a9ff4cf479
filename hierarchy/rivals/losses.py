"""The usual hierarchical losses that the tree loss is compared with, and a classifier to try them.

Targets are node ids at any level: what lies below one is unknown, and is left out of the loss.
B pictures, N nodes, K leaves, L levels; a column a leaf means in the order of ``tree.leaves``.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from hierarchy.errors import ShapeError
from hierarchy.marginals import check_scores
from hierarchy.rivals.base import Rival, check_targets, precise
from hierarchy.tree import TOP, LabelTree

LossName = Literal["level-ce", "soft", "hxe"]
"""Cross-entropy at every level, soft labels, hierarchical cross-entropy."""


def level_cross_entropy(level_logits: Tensor, targets: Tensor, tree: LabelTree) -> Tensor:
    """Cross-entropy at every level: a softmax over each level's nodes, the levels' means added.

    A level's mean is over the pictures whose class there is known, so a target that ends above it,
    for being coarse or for being a leaf of a shorter branch, has no part in it; a level that no
    picture of the batch knows counts nothing.

    Args:
        level_logits: ``(B, N)`` float, column i for node i.
        targets: ``(B,)`` int64 node ids, any level.
        tree: the N nodes.

    Returns:
        Scalar in nats, >= 0.

    Raises:
        ShapeError: if a shape or kind is not as above, or a target is no node's id.

    Example:
        >>> tree = LabelTree.from_paths([("Fruit", "Apple"), ("Fruit", "Pear"), ("Milk",)])
        >>> level_cross_entropy(torch.zeros(1, 4), torch.tensor([2]), tree)  # log 2 at both levels
        tensor(1.3863)
    """
    log_p = level_log_softmax(level_logits, tree)
    check_targets(targets, len(log_p), tree)
    along, known = _along(log_p, targets, tree)
    by_level = (along * known).sum(0) / known.sum(0).clamp(min=1)  # (L,)
    return by_level.sum().neg()


def soft_labels(
    leaf_logits: Tensor, targets: Tensor, tree: LabelTree, *, beta: float = 10.0
) -> Tensor:
    """Cross-entropy to targets that leave some weight on leaves near the true one.

    Bertinetto et al., "Making Better Mistakes" (CVPR 2020), section 3.2; :func:`soft_targets` has
    the formula. A coarse target asks for the mean over the leaves under it.

    Args:
        leaf_logits: ``(B, K)`` float, a column a leaf.
        targets: ``(B,)`` int64 node ids, any level.
        tree: the nodes.
        beta: how hard the targets are: at infinity one-hot, at 0 uniform (the paper: 4 to 30).

    Returns:
        Scalar in nats, >= 0; it is the targets' entropy at best, not 0.

    Raises:
        ShapeError: if a shape or kind is not as above, or a target is no node's id.

    Example:
        >>> tree = LabelTree.from_paths([("Fruit", "Apple"), ("Fruit", "Pear"), ("Milk",)])
        >>> soft_labels(torch.zeros(1, 3), torch.tensor([0]), tree)
        tensor(1.0986)
    """
    log_p = _leaf_log_softmax(leaf_logits, tree)
    check_targets(targets, len(log_p), tree)
    wanted = soft_targets(tree, beta, log_p)[targets]  # (B, K)
    return (wanted * log_p).sum(1).mean().neg()


def hierarchical_cross_entropy(
    leaf_logits: Tensor, targets: Tensor, tree: LabelTree, *, alpha: float = 0.1
) -> Tensor:
    """HXE: the log of each step down the true path, given the node above, discounted by level.

    Bertinetto et al., "Making Better Mistakes" (CVPR 2020), section 3.1: the loss is minus the sum
    over the path of ``w(C) log p(C | parent of C)``, with ``p(C)`` the sum of the softmax over the
    leaves under C and ``w = exp(-alpha distance)``. Distance is from the first level down, as in
    the authors' code but for their constant factor: at ``alpha`` 0 this is cross-entropy. A coarse
    target has the steps that are known.

    Args:
        leaf_logits: ``(B, K)`` float, a column a leaf.
        targets: ``(B,)`` int64 node ids, any level.
        tree: the nodes.
        alpha: how fast finer levels lose weight (the paper: 0.1 to 0.9).

    Returns:
        Scalar in nats, >= 0.

    Raises:
        ShapeError: if a shape or kind is not as above, or a target is no node's id.

    Example:
        >>> tree = LabelTree.from_paths([("Fruit", "Apple"), ("Fruit", "Pear"), ("Milk",)])
        >>> apple, halved = torch.tensor([2]), math.log(2)  # log 3/2 for Fruit, then log 2 / 2
        >>> hierarchical_cross_entropy(torch.zeros(1, 3), apple, tree, alpha=halved)
        tensor(0.7520)
    """
    log_p = leaf_log_marginals(leaf_logits, tree)
    check_targets(targets, len(log_p), tree)
    along, known = _along(log_p, targets, tree)
    above = nn.functional.pad(along[:, :-1], (1, 0))  # the root's log-probability is 0
    level = torch.arange(tree.depth, dtype=log_p.dtype, device=log_p.device)
    weights = torch.exp(-alpha * level) * known  # (B, L)
    return ((along - above) * weights).sum(1).mean().neg()


def marginal(leaf_logits: Tensor, targets: Tensor, tree: LabelTree) -> Tensor:
    """Cross-entropy of a softmax over leaves, where a coarse target has the sum of its leaves.

    Args:
        leaf_logits: ``(B, K)`` float, a column a leaf.
        targets: ``(B,)`` int64 node ids, any level.
        tree: the nodes.

    Returns:
        Scalar in nats, >= 0 but for rounding.

    Raises:
        ShapeError: if a shape or kind is not as above, or a target is no node's id.

    Example:
        >>> tree = LabelTree.from_paths([("Fruit", "Apple"), ("Fruit", "Pear"), ("Milk",)])
        >>> marginal(torch.zeros(1, 3), torch.tensor([0]), tree)  # 2 leaves of 3 are Fruit
        tensor(0.4055)
    """
    log_p = leaf_log_marginals(leaf_logits, tree)
    check_targets(targets, len(log_p), tree)
    return log_p.gather(1, targets[:, None]).mean().neg()


def level_log_softmax(level_logits: Tensor, tree: LabelTree) -> Tensor:
    """Log-softmax over the nodes of each level, ``(B, N)`` -> ``(B, N)``, columns in order of ids.

    Raises:
        ShapeError: if ``level_logits`` is not ``(B, N)`` floats.
    """
    checked = check_scores(level_logits, tree)
    answer = torch.empty_like(checked)
    for nodes in _Places.of(tree, checked.device).levels:
        answer[:, nodes] = checked[:, nodes].log_softmax(1)
    return answer


def leaf_log_marginals(leaf_logits: Tensor, tree: LabelTree) -> Tensor:
    """Log-probability of every node: the log of the sum of the softmax over the leaves under it.

    Args:
        leaf_logits: ``(B, K)`` float, a column a leaf.
        tree: the N nodes.

    Returns:
        ``(B, N)``, <= 0 but for rounding, finite for finite logits. Memory is B times the sum of
        the leaves' depths.

    Raises:
        ShapeError: if ``leaf_logits`` is not ``(B, K)`` floats.
    """
    log_p = _leaf_log_softmax(leaf_logits, tree)
    places = _Places.of(tree, log_p.device)
    each = log_p[:, places.pair_leaf]  # (B, pairs)
    node = places.pair_node.expand_as(each)
    highest = log_p.new_full((len(log_p), len(tree)), -math.inf)  # (B, N)
    highest.scatter_reduce_(1, node, each.detach(), "amax")  # only a scale: nothing flows back
    total = torch.zeros_like(highest).scatter_add(1, node, (each - highest.gather(1, node)).exp())
    return total.log() + highest


def soft_targets(tree: LabelTree, beta: float, like: Tensor) -> Tensor:
    """What a picture labelled at each node should be answered, as weights over leaves.

    For a leaf C the weight of leaf A is ``exp(-beta d(A, C))``, scaled to sum 1, with d the height
    of their lowest common ancestor over the largest such height (Bertinetto et al. 2020, eq. 6);
    the heights are those of a tree with one root above all tops. For any other node it is the mean
    over its leaves.

    Args:
        tree: the N nodes, K of them leaves.
        beta: how hard the targets are.
        like: has the dtype and device wanted.

    Returns:
        ``(N, K)``, rows sum to 1. Worked out once for a tree, ``beta``, dtype and device, and kept.
    """
    key = (soft_targets, beta, like.dtype, like.device)
    if key not in tree.derived:
        with torch.inference_mode(mode=False):  # or what is kept would be no good in training
            tree.derived[key] = _soft_table(tree, beta).to(like)
    found: Tensor = tree.derived[key]
    return found


class WithLoss(Rival[Tensor]):
    """A trunk, one linear layer, and one of the hierarchical losses above.

    Its outputs are logits, ``(B, N)`` for ``level-ce`` and ``(B, K)``, a column a leaf, otherwise.
    ``level-ce`` is read level by level, each a softmax of its own; the others from the softmax over
    leaves, a node being the sum of its leaves.

    Args:
        tree: the N nodes, K of them leaves.
        trunk: ``(B, C, H, W)`` feature maps to ``(B, width)``.
        width: of the trunk's features.
        loss: which of the losses.
        alpha: of ``hxe``.
        beta: of ``soft``.

    Raises:
        ValueError: if there is no loss of that name.
    """

    def __init__(  # noqa: PLR0913 - two of them are settings of one loss each, named at the call
        self,
        tree: LabelTree,
        trunk: nn.Module,
        width: int,
        loss: LossName,
        *,
        alpha: float = 0.1,
        beta: float = 10.0,
    ) -> None:
        super().__init__(tree)
        if loss not in get_args(LossName):
            raise ValueError(f"loss must be one of {', '.join(get_args(LossName))}, got {loss!r}")
        self._by_level = loss == "level-ce"
        losses: dict[LossName, Callable[[Tensor, Tensor, LabelTree], Tensor]] = {
            "level-ce": level_cross_entropy,
            "soft": partial(soft_labels, beta=beta),
            "hxe": partial(hierarchical_cross_entropy, alpha=alpha),
        }
        self._loss = losses[loss]
        self.trunk = trunk
        self.classify = nn.Linear(width, len(tree) if self._by_level else len(tree.leaves))

    def forward(self, maps: Tensor) -> Tensor:
        """``(B, C, H, W)`` feature maps -> logits, ``(B, N)`` or ``(B, K)``."""
        logits: Tensor = self.classify(self.trunk(maps))
        return logits

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss it was built with, of logits as :meth:`forward` gives them."""
        return self._loss(outputs, targets, self.tree)

    def log_probability(self, outputs: Tensor) -> Tensor:
        """Log-probability of each node, ``(B, N)``."""
        read = level_log_softmax if self._by_level else leaf_log_marginals
        return read(outputs, self.tree)


@dataclass(frozen=True)
class _Places:
    """Where a tree's nodes stand in tensors, on one device."""

    path: Tensor
    """``(N, L)`` of each node its ancestor at each level, itself at its own, N below that."""
    levels: tuple[Tensor, ...]
    """Of each level its nodes, ascending."""
    pair_node: Tensor
    """``(pairs,)`` a node, once for each leaf under it ..."""
    pair_leaf: Tensor
    """``(pairs,)`` ... and that leaf's column."""

    @classmethod
    def of(cls, tree: LabelTree, device: torch.device) -> "_Places":
        """Work it out for a device, or find what was worked out before."""
        key = (cls, device)
        if key not in tree.derived:
            with torch.inference_mode(mode=False):  # or what is kept would be no good in training
                tree.derived[key] = cls._find(tree, device)
        found: _Places = tree.derived[key]
        return found

    @classmethod
    def _find(cls, tree: LabelTree, device: torch.device) -> "_Places":
        path = _paths(tree)
        of_leaf = path[list(tree.leaves)]  # (K, L)
        leaf, at = (of_leaf < len(tree)).nonzero(as_tuple=True)
        levels = [torch.tensor(tree.level_nodes(level)) for level in range(tree.depth)]
        return cls(
            path=path.to(device),
            levels=tuple(nodes.to(device) for nodes in levels),
            pair_node=of_leaf[leaf, at].to(device),
            pair_leaf=leaf.to(device),
        )


def _paths(tree: LabelTree) -> Tensor:
    """Of each node its ancestor at each level, N where it is not that deep: ``(N, L)``."""
    path = torch.full((len(tree) + 1, tree.depth), len(tree))
    parents = torch.tensor(tree.parents)
    for level in range(tree.depth):
        nodes = torch.tensor(tree.level_nodes(level))
        path[nodes] = path[parents[nodes]]  # a top's parent is -1: the last row, which has none
        path[nodes, level] = nodes
    return path[:-1]


def _along(log_p: Tensor, targets: Tensor, tree: LabelTree) -> tuple[Tensor, Tensor]:
    """Values of the nodes on each target's path, 0 below it, and which there are: ``(B, L)`` x2."""
    path = _Places.of(tree, log_p.device).path[targets]
    return nn.functional.pad(log_p, (0, 1)).gather(1, path), path < len(tree)


def _leaf_log_softmax(leaf_logits: Tensor, tree: LabelTree) -> Tensor:
    """Checked, and worked out in float32 or better: ``(B, K)``."""
    leaves = len(tree.leaves)
    if leaf_logits.ndim != 2 or leaf_logits.shape[1] != leaves:
        raise ShapeError(
            f"leaf_logits must be (B, {leaves}), one column a leaf, got {tuple(leaf_logits.shape)}"
        )
    if not leaf_logits.is_floating_point():
        raise ShapeError(f"leaf_logits must be floats, got {leaf_logits.dtype}")
    return precise(leaf_logits).log_softmax(1)


def _soft_table(tree: LabelTree, beta: float) -> Tensor:
    """:func:`soft_targets` in float64 on the CPU."""
    places = _Places.of(tree, torch.device("cpu"))
    height = torch.tensor(_heights(tree), dtype=torch.float64)
    of_leaf = places.path[list(tree.leaves)]  # (K, L)
    distance = torch.full((len(of_leaf), len(of_leaf)), float(tree.depth), dtype=torch.float64)
    for above in of_leaf.unbind(1):  # (K,), a level further down each time
        both = (above[:, None] == above) & (above < len(tree))
        distance = torch.where(both, height[above.clamp(max=len(tree) - 1)][:, None], distance)
    largest = distance.max().clamp(min=1)  # of one leaf alone it is 0
    of_leaves = torch.softmax(-beta * distance / largest, dim=1)  # (K, K)
    table = torch.zeros(len(tree), len(of_leaf), dtype=torch.float64)
    table.index_add_(0, places.pair_node, of_leaves[places.pair_leaf])
    return table / places.pair_node.bincount(minlength=len(tree))[:, None]


def _heights(tree: LabelTree) -> list[int]:
    """Of each node how many steps below it the deepest leaf lies: 0 for a leaf."""
    found = [0] * len(tree)
    for node in reversed(tree.preorder):
        parent = tree.parents[node]
        if parent != TOP:
            found[parent] = max(found[parent], found[node] + 1)
    return found
