"""Chang et al.: features split by level; coarse levels may read finer features, not shape them.

D. Chang, K. Pang, Y. Zheng, Z. Ma, Y.-Z. Song, J. Guo, "Your 'Flamingo' is My 'Bird':
Fine-Grained, or Not", CVPR 2021.

Letters: B images, N nodes, L levels.
"""

import torch
from torch import Tensor, nn

from hierarchy.baselines.base import Baseline
from hierarchy.baselines.losses import level_cross_entropy
from hierarchy.baselines.tree_ops import join_levels, level_log_softmax
from hierarchy.tree import LabelTree


class Chang(Baseline[Tensor]):
    """A part of the features and a softmax per level, with the paper's gradient controller.

    As published: batch norm, linear layer, batch norm and ELU give the features, split into equal
    parts, one per level. The classifier of a level reads its own part and those of all finer
    levels, the latter with gradients stopped; so the finest reads its own alone, and coarse labels
    cannot spoil fine features. The loss is the sum of the levels' cross-entropies.

    Adapted: a level counts only for the images whose label reaches it; what lies deeper than a
    label, or deeper than a leaf that ends early, is left out. Gradients of
    coarse labels reach the trunk through the coarse parts, as they reach the paper's backbone.

    Args:
        tree, trunk: see `Baseline`.
        width: of the trunk's output.
        part: features of each level, 200 in the authors' code.
    """

    def __init__(self, tree: LabelTree, trunk: nn.Module, width: int, *, part: int = 200) -> None:
        super().__init__(tree, trunk)
        self.part = part
        self.features = nn.Sequential(
            nn.BatchNorm1d(width),
            nn.Linear(width, part * tree.depth),
            nn.BatchNorm1d(part * tree.depth),
            nn.ELU(),
        )
        levels = [tree.level_nodes(level) for level in range(tree.depth)]
        self.classify = nn.ModuleList(
            nn.Linear(part * (tree.depth - level), len(nodes)) for level, nodes in enumerate(levels)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Features of B images -> ``(B, N)`` logits, to be compared within a level only."""
        parts = self.features(self.trunk(features))  # (B, L * part), coarsest first
        found = []
        for level, classify in enumerate(self.classify):
            own, finer = parts[:, level * self.part :].tensor_split([self.part], dim=1)
            found.append(classify(torch.cat([own, finer.detach()], dim=1)))
        return join_levels(found, self.tree)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the sum over levels of the mean cross-entropy of the images labelled so deep."""
        return level_cross_entropy(outputs, targets, self.tree)

    def log_probability(self, outputs: Tensor) -> Tensor:
        """Return the log of each level's softmax, ``(B, N)``; levels may contradict each other."""
        return level_log_softmax(outputs, self.tree)
