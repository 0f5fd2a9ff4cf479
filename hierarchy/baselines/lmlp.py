"""HMC-LMLP: one multilayer perceptron per level, each reading what the one above it answered.

R. Cerri, R. C. Barros, A. C. P. L. F. de Carvalho, "Hierarchical multi-label classification using
local neural networks", Journal of Computer and System Sciences 80(1), 2014.

Letters: B images, N nodes, L levels.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from hierarchy.baselines.base import Baseline
from hierarchy.baselines.tree_ops import binary_losses, join_levels, known, mean_by_level
from hierarchy.tree import LabelTree


class Lmlp(Baseline[Tensor]):
    """A chain of perceptrons with one hidden layer and a sigmoid per node.

    As published: the perceptron of a level takes the sigmoid outputs of the level above as input
    and is trained for its own level only, so no gradient goes from a level's loss into the
    perceptrons above it. It takes the features as well, as in the authors' later variant (Cerri,
    Barros, de Carvalho, Jin, "Reduction strategies for hierarchical multi-label classification in
    protein function prediction", BMC Bioinformatics 17, 2016): outputs alone lose the image.

    Adapted: the perceptrons learn side by side and not one after the other, since they share a
    trunk, which hears from every level; hidden units are ReLU, the error is binary cross-entropy.
    A label at node v settles every node but those below v; only settled nodes count, so a level
    that the label does not reach teaches no more than which branches are wrong. Outputs are read
    level by level; the published clean-up of parents below their threshold would change no argmax.

    Args:
        tree, trunk: see `Baseline`.
        width: of the trunk's output.
        hidden: units of each perceptron's hidden layer.
    """

    def __init__(self, tree: LabelTree, trunk: nn.Module, width: int, *, hidden: int = 256) -> None:
        super().__init__(tree, trunk)
        levels = [tree.level_nodes(level) for level in range(tree.depth)]
        above = [0, *(len(nodes) for nodes in levels)]
        self.perceptrons = nn.ModuleList(
            nn.Sequential(nn.Linear(width + extra, hidden), nn.ReLU(), nn.Linear(hidden, len(own)))
            for extra, own in zip(above, levels, strict=False)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Features of B images -> ``(B, N)`` logits, column i for node i."""
        features = self.trunk(features)  # (B, width)
        seen = features
        found = []
        for perceptron in self.perceptrons:
            logits = perceptron(seen)
            found.append(logits)
            seen = torch.cat([features, logits.detach().sigmoid()], dim=1)
        return join_levels(found, self.tree)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the sum over levels of the mean cross-entropy of the nodes that labels settle."""
        label = known(targets, len(outputs), self.tree)
        return mean_by_level(binary_losses(outputs, label), label.settled, self.tree).sum()

    def log_probability(self, outputs: Tensor) -> Tensor:
        """Return the log of each node's sigmoid, ``(B, N)``; levels need not agree."""
        return logsigmoid(outputs)
