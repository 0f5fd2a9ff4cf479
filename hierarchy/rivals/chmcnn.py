"""C-HMCNN: no node can be less sure than one below it, in the answer and in the loss.

E. Giunchiglia, T. Lukasiewicz, "Coherent Hierarchical Multi-Label Classification Networks",
NeurIPS 2020.

Letters: B pictures, C channels of the backbone's last map, H x W its grid, N nodes.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, softplus

from hierarchy.rivals.base import Rival
from hierarchy.rivals.lineage import highest_below, said
from hierarchy.tree import LabelTree


class Chmcnn(Rival[Tensor]):
    """One sigmoid a node, max-constraint module (MCM) and max-constraint loss (MCLoss) on it.

    As published, with h the sigmoids, y the labels and D_A the nodes A and below:

    - MCM_A = max over B in D_A of h_B;
    - MCLoss_A = -y_A log(max over B in D_A of y_B h_B) - (1 - y_A) log(1 - MCM_A).

    So a true node may lean on what lies below it only where that is true as well. Both maxima are
    taken of logits: the sigmoid keeps their order, and nothing is lost to rounding.

    Adapted: h is the shared trunk and one linear layer. A label at node v settles every node but
    those below v, which are left out: y is 1 from the top to v, 0 on nodes elsewhere. All that
    lies below a settled 0 is a settled 0, so MCM_A never looks at an unknown node there.

    Args:
        tree: the N nodes.
        trunk: takes ``(B, C, H, W)`` maps to ``(B, width)`` features.
        width: of the features.
    """

    def __init__(self, tree: LabelTree, trunk: nn.Module, width: int) -> None:
        super().__init__(tree)
        self.trunk = trunk
        self.score = nn.Linear(width, len(tree))

    def forward(self, maps: Tensor) -> Tensor:
        """``(B, C, H, W)`` maps -> ``(B, N)`` logits of h, before the constraint."""
        logits: Tensor = self.score(self.trunk(maps))
        return logits

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean of MCLoss over the nodes that the labels settle.

        Args:
            outputs: ``(B, N)`` logits.
            targets: ``(B,)`` int64 node ids, of each picture the deepest node known, any level.

        Returns:
            Scalar in nats.

        Raises:
            ShapeError: if a shape or kind is not as above.
        """
        label = said(targets, len(outputs), self.tree)
        constrained = highest_below(outputs, self.tree)
        true_only = highest_below(outputs.masked_fill(~label.holds, -math.inf), self.tree)
        against = torch.where(label.holds, -true_only, constrained)  # (B, N) -log p = softplus
        return softplus(against)[label.known].mean()

    def log_probability(self, outputs: Tensor) -> Tensor:
        """Log of MCM, ``(B, N)``: a parent is at least as sure as its children."""
        return logsigmoid(highest_below(outputs, self.tree))
