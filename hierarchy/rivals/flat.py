"""One softmax over the leaves, for the two ways of learning from labels that are no leaf.

Letters: B pictures, C channels of the backbone's last map, H x W its grid, N nodes, K leaves.
"""

import torch
from torch import Tensor, nn

from hierarchy.rivals.base import Rival
from hierarchy.rivals.lineage import check_targets, log_total_below
from hierarchy.tree import LabelTree


class Marginal(Rival[Tensor]):
    """A coarse label is an "or" over its leaves: the loss is -log of the sum of their softmax.

    The likelihood of partial labels when each picture has exactly one leaf (as in R. Jin,
    Z. Ghahramani, "Learning with Multiple Labels", NIPS 2002, with one answer known to be among
    several). Nothing is adapted: labels of any level are what it is for.

    Args:
        tree: the N nodes.
        trunk: takes ``(B, C, H, W)`` maps to ``(B, width)`` features.
        width: of the features.
    """

    def __init__(self, tree: LabelTree, trunk: nn.Module, width: int) -> None:
        super().__init__(tree)
        self.trunk = trunk
        self.score = nn.Linear(width, len(tree.leaves))

    def forward(self, maps: Tensor) -> Tensor:
        """``(B, C, H, W)`` maps -> ``(B, K)`` logits in order of ``tree.leaves``."""
        logits: Tensor = self.score(self.trunk(maps))
        return logits

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean of -log of the summed probability of the leaves under each target.

        Args:
            outputs: ``(B, K)`` logits.
            targets: ``(B,)`` int64 node ids, of each picture the deepest node known, any level.

        Returns:
            Scalar in nats.

        Raises:
            ShapeError: if a shape or kind is not as above.
        """
        check_targets(targets, len(outputs), self.tree)
        return -self.log_probability(outputs).gather(1, targets[:, None]).mean()

    def log_probability(self, outputs: Tensor) -> Tensor:
        """Log of each node's share of the softmax over leaves, ``(B, N)``."""
        return log_total_below(outputs.log_softmax(1), self.tree)


class Flat(Marginal):
    """Softmax over the leaves, trained on leaf labels alone: what ignoring the tree is worth.

    Pictures with a coarse label are dropped from the loss; the read-out sums leaves all the same.
    """

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy of the pictures whose label is a leaf.

        Args:
            outputs: ``(B, K)`` logits.
            targets: ``(B,)`` int64 node ids of any level.

        Returns:
            Scalar in nats; 0, with a gradient of 0, if no label is a leaf.

        Raises:
            ShapeError: if a shape or kind is not as above.
        """
        check_targets(targets, len(outputs), self.tree)
        leaves = torch.tensor(self.tree.leaves, device=outputs.device)
        held = leaves == targets[:, None]  # (B, K)
        losses = outputs.log_softmax(1).masked_fill(~held, 0).sum()
        return -losses / held.sum().clamp(min=1)
