"""C-HMCNN: no node can be less sure than one below it, in the answer and in the loss.

E. Giunchiglia, T. Lukasiewicz, "Coherent Hierarchical Multi-Label Classification Networks",
NeurIPS 2020.

Letters: B images, N nodes.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, softplus

from hierarchy.baselines.base import Baseline
from hierarchy.baselines.tree_ops import highest_below, known
from hierarchy.tree import LabelTree


class Chmcnn(Baseline[Tensor]):
    """One sigmoid per node, max-constraint module (MCM) and max-constraint loss (MCLoss) on it.

    As published, with h the sigmoids, y the labels and D_A the nodes A and below:

    - MCM_A = max over B in D_A of h_B;
    - MCLoss_A = -y_A log(max over B in D_A of y_B h_B) - (1 - y_A) log(1 - MCM_A).

    So a true node may lean on what lies below it only where that is true as well. Both maxima are
    taken of logits: the sigmoid keeps their order, and nothing is lost to rounding.

    Adapted: h is the shared trunk and one linear layer. A label at node v settles every node but
    those below v, which are left out: y is 1 from the top to v, 0 on nodes elsewhere. All that
    lies below a settled 0 is a settled 0, so MCM_A never looks at an unknown node there.

    Args:
        tree, trunk: see `Baseline`.
        width: of the trunk's output.
    """

    def __init__(self, tree: LabelTree, trunk: nn.Module, width: int) -> None:
        super().__init__(tree, trunk)
        self.score = nn.Linear(width, len(tree))

    def forward(self, features: Tensor) -> Tensor:
        """Features of B images -> ``(B, N)`` logits of h, before the constraint."""
        logits: Tensor = self.score(self.trunk(features))
        return logits

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean of MCLoss over the nodes that the labels settle."""
        label = known(targets, len(outputs), self.tree)
        constrained = highest_below(outputs, self.tree)
        true_only = highest_below(outputs.masked_fill(~label.holds, -math.inf), self.tree)
        against = torch.where(label.holds, -true_only, constrained)  # (B, N) -log p = softplus
        return softplus(against)[label.settled].mean()

    def log_probability(self, outputs: Tensor) -> Tensor:
        """Return the log of MCM, ``(B, N)``: a parent is at least as sure as its children."""
        return logsigmoid(highest_below(outputs, self.tree))
