"""The usual hierarchical losses that the tree loss is compared with, and a classifier to try them.

Targets are node ids at any level: what lies below one is unknown, and is left out of the loss.
B images, N nodes, K leaves, L levels; one column per leaf means in the order of ``tree.leaves``.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

from hierarchy.baselines.base import Baseline, check_targets, precise
from hierarchy.baselines.tree_ops import (
    along_path,
    check_columns,
    leaf_log_marginals,
    level_log_softmax,
    paths,
)
from hierarchy.tree import LabelTree, cached_on_tree

Loss = Callable[[Tensor, Tensor, LabelTree], Tensor]
"""Takes logits, ``(B,)`` targets and the tree to a scalar in nats."""


def marginal(leaf_logits: Tensor, targets: Tensor, tree: LabelTree) -> Tensor:
    """Return the cross-entropy of a softmax over leaves; a coarse target has its leaves' sum.

    The likelihood of partial labels when each image has exactly one leaf (as in R. Jin,
    Z. Ghahramani, "Learning with Multiple Labels", NIPS 2002, with one answer known to be among
    several). Nothing is adapted: labels of any level are what it is for.

    Args:
        leaf_logits: ``(B, K)`` float, one column per leaf.
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


def leaves_only(leaf_logits: Tensor, targets: Tensor, tree: LabelTree) -> Tensor:
    """Return the mean cross-entropy of the images whose label is a leaf.

    Coarse labels are dropped: what ignoring the tree is worth. 0, with a gradient of 0, if no label
    is a leaf. Arguments and errors are those of :func:`marginal`.
    """
    check_columns(leaf_logits, len(tree.leaves), "leaf")
    check_targets(targets, len(leaf_logits), tree)
    leaves = torch.tensor(tree.leaves, device=leaf_logits.device)
    held = leaves == targets[:, None]  # (B, K)
    losses = precise(leaf_logits).log_softmax(1).masked_fill(~held, 0).sum()
    return -losses / held.sum().clamp(min=1)


def level_cross_entropy(level_logits: Tensor, targets: Tensor, tree: LabelTree) -> Tensor:
    """Return the sum over levels of the cross-entropy of a softmax over each level's nodes.

    A level's mean is over the images whose class there is known, so a target that ends above it,
    for being coarse or for being a leaf of a shorter branch, has no part in it; a level that no
    image of the batch knows counts nothing.

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
    along, there = along_path(log_p, targets, tree)
    by_level = (along * there).sum(0) / there.sum(0).clamp(min=1)  # (L,)
    return by_level.sum().neg()


def soft_labels(
    leaf_logits: Tensor, targets: Tensor, tree: LabelTree, *, beta: float = 10.0
) -> Tensor:
    """Return the cross-entropy to targets that leave some weight on leaves near the true one.

    Bertinetto et al., "Making Better Mistakes" (CVPR 2020), section 3.2; :func:`soft_targets` has
    the formula. A coarse target asks for the mean over the leaves under it.

    Args:
        leaf_logits: ``(B, K)`` float, one column per leaf.
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
    check_columns(leaf_logits, len(tree.leaves), "leaf")
    check_targets(targets, len(leaf_logits), tree)
    log_p = precise(leaf_logits).log_softmax(1)
    wanted = soft_targets(tree, beta).to(log_p)[targets]  # (B, K)
    return (wanted * log_p).sum(1).mean().neg()


def hierarchical_cross_entropy(
    leaf_logits: Tensor, targets: Tensor, tree: LabelTree, *, alpha: float = 0.1
) -> Tensor:
    """Return HXE: the log of each step down the true path, given the node above, discounted.

    Bertinetto et al., "Making Better Mistakes" (CVPR 2020), section 3.1: the loss is minus the sum
    over the path of ``w(C) log p(C | parent of C)``, with ``p(C)`` the sum of the softmax over the
    leaves under C and ``w = exp(-alpha distance)``. Distance is from the first level down, as in
    the authors' code but for their constant factor: at ``alpha`` 0 this is cross-entropy. A coarse
    target has the steps that are known.

    Args:
        leaf_logits: ``(B, K)`` float, one column per leaf.
        targets: ``(B,)`` int64 node ids, any level.
        tree: the nodes.
        alpha: how fast finer levels lose weight (the paper: 0.1 to 0.9).

    Returns:
        Scalar in nats, >= 0.

    Raises:
        ShapeError: if a shape or kind is not as above, or a target is no node's id.

    Example:
        >>> import math
        >>> tree = LabelTree.from_paths([("Fruit", "Apple"), ("Fruit", "Pear"), ("Milk",)])
        >>> apple, halved = torch.tensor([2]), math.log(2)  # log 3/2 for Fruit, then log 2 / 2
        >>> hierarchical_cross_entropy(torch.zeros(1, 3), apple, tree, alpha=halved)
        tensor(0.7520)
    """
    log_p = leaf_log_marginals(leaf_logits, tree)
    check_targets(targets, len(log_p), tree)
    along, there = along_path(log_p, targets, tree)
    above = nn.functional.pad(along[:, :-1], (1, 0))  # the root's log-probability is 0
    level = torch.arange(tree.depth, dtype=log_p.dtype, device=log_p.device)
    weights = torch.exp(-alpha * level) * there  # (B, L)
    return ((along - above) * weights).sum(1).mean().neg()


@cached_on_tree
def soft_targets(tree: LabelTree, beta: float) -> Tensor:
    """Return what an image labelled at each node should be answered, as weights over leaves.

    For a leaf C the weight of leaf A is ``exp(-beta d(A, C))``, scaled to sum 1, with d the height
    of their lowest common ancestor over the largest such height (Bertinetto et al. 2020, eq. 6);
    the heights are those of a tree with one root above all root nodes. For any other node it is
    the mean over its leaves.

    Args:
        tree: the N nodes, K of them leaves.
        beta: how hard the targets are.

    Returns:
        ``(N, K)`` float64, rows sum to 1.
    """
    with torch.inference_mode(mode=False):  # tensors made in inference mode cannot be trained with
        of = paths(tree, torch.device("cpu"))
        height = torch.from_numpy(tree.arrays.height).double()
        of_leaf = of.path[list(tree.leaves)]  # (K, L)
        distance = torch.full((len(of_leaf), len(of_leaf)), float(tree.depth), dtype=torch.float64)
        for above in of_leaf.unbind(1):  # (K,), one level further down each time
            both = (above[:, None] == above) & (above < len(tree))
            distance = torch.where(both, height[above.clamp(max=len(tree) - 1)][:, None], distance)
        largest = distance.max().clamp(min=1)  # of one leaf alone it is 0
        of_leaves = torch.softmax(-beta * distance / largest, dim=1)  # (K, K)
        node = of.above[of.covers_leaf]
        table = torch.zeros(len(tree), len(of_leaf), dtype=torch.float64)
        table.index_add_(0, node, of_leaves[of.column])
        return table / node.bincount(minlength=len(tree))[:, None]


#: The losses by name. ``level-ce`` has one column per node, the others one per leaf.
LOSSES: Mapping[str, Loss] = MappingProxyType(
    {
        "marginal": marginal,
        "flat": leaves_only,
        "level-ce": level_cross_entropy,
        "soft": soft_labels,
        "hxe": hierarchical_cross_entropy,
    }
)


class WithLoss(Baseline[Tensor]):
    """A trunk, one linear layer, and one of the hierarchical losses above.

    Its outputs are logits, ``(B, N)`` for ``level-ce`` and ``(B, K)``, one column per leaf,
    otherwise. ``level-ce`` is read level by level, each a softmax of its own; the others from the
    softmax over leaves, a node being the sum of its leaves.

    Args:
        tree, trunk: see `Baseline`.
        width: of the trunk's output.
        loss: a name in :data:`LOSSES`.

    Raises:
        ValueError: if there is no loss of that name.
    """

    def __init__(self, tree: LabelTree, trunk: nn.Module, width: int, loss: str) -> None:
        super().__init__(tree, trunk)
        if loss not in LOSSES:
            raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {loss!r}")
        self._loss = LOSSES[loss]
        self._by_level = loss == "level-ce"
        self.classify = nn.Linear(width, len(tree) if self._by_level else len(tree.leaves))

    def forward(self, features: Tensor) -> Tensor:
        """Features of B images -> logits, ``(B, N)`` or ``(B, K)``."""
        logits: Tensor = self.classify(self.trunk(features))
        return logits

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss it was built with."""
        return self._loss(outputs, targets, self.tree)

    def log_probability(self, outputs: Tensor) -> Tensor:
        """Return the log-probability of each node, ``(B, N)``."""
        read = level_log_softmax if self._by_level else leaf_log_marginals
        return read(outputs, self.tree)
