"""HMCN-F: a global path through all levels, and a local answer at each of them.

J. Wehrmann, R. Cerri, R. C. Barros, "Hierarchical Multi-Label Classification Networks", ICML 2018.

Letters: B images, N nodes, L levels.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from hierarchy.baselines.base import Baseline
from hierarchy.baselines.tree_ops import binary_losses, join_levels, known, mean_by_level
from hierarchy.tree import TOP, LabelTree


@dataclass(frozen=True)
class HmcnOutputs:
    """Both answers, as logits."""

    local: Tensor
    """``(B, N)`` of each node, by the layer of its own level."""
    overall: Tensor
    """``(B, N)`` of each node, at the end of the global path."""


class Hmcn(Baseline[HmcnOutputs]):
    """The feed-forward form of the network, with its three losses.

    As published, in the notation of the paper (x the features, ";" joins vectors):

    - global path: ``A_G^1 = f(W x)``, ``A_G^h = f(W [A_G^(h-1); x])``, ``P_G = sigmoid(W A_G^L)``;
    - local: ``A_L^h = f(W A_G^h)``, ``P_L^h = sigmoid(W A_L^h)`` for the nodes of level h;
    - answer: ``P_F = beta P_L + (1 - beta) P_G`` with beta 0.5;
    - loss: binary cross-entropy of each ``P_L^h``, plus that of ``P_G``, plus lambda 0.1 times
      ``max(0, P_F(node) - P_F(parent))^2``.

    f is 384 ReLU units, batch norm and dropout.

    Adapted: a label at node v settles every node but those below v; only settled nodes count in
    the cross-entropies. The penalty needs no label and is taken over every edge.

    Args:
        tree, trunk: see `Baseline`.
        width: of the trunk's output.
        hidden: units of each layer.
        dropout: share of the units left out in training.
        beta: weight of the local answer.
        penalty: lambda, the weight of violations.
    """

    def __init__(  # noqa: PLR0913 - the paper's settings, each named at the call
        self,
        tree: LabelTree,
        trunk: nn.Module,
        width: int,
        *,
        hidden: int = 384,
        dropout: float = 0.6,
        beta: float = 0.5,
        penalty: float = 0.1,
    ) -> None:
        super().__init__(tree, trunk)
        self.beta = beta
        self.penalty = penalty
        levels = [tree.level_nodes(level) for level in range(tree.depth)]
        inputs = [width] + [width + hidden] * (tree.depth - 1)
        self.path = nn.ModuleList(_layer(size, hidden, dropout) for size in inputs)
        self.transit = nn.ModuleList(_layer(hidden, hidden, dropout) for _ in levels)
        self.answer = nn.ModuleList(nn.Linear(hidden, len(nodes)) for nodes in levels)
        self.overall = nn.Linear(hidden, len(tree))
        edges = [(node, up) for node, up in enumerate(tree.parents) if up != TOP]
        self.edges: Tensor
        ends = torch.tensor(edges, dtype=torch.int64).reshape(-1, 2).t()
        self.register_buffer("edges", ends.contiguous(), persistent=False)  # (2, edges)

    def forward(self, features: Tensor) -> HmcnOutputs:
        """Features of B images -> both answers, ``(B, N)`` logits each."""
        features = self.trunk(features)  # (B, width)
        seen = features
        found = []
        for path, transit, answer in zip(self.path, self.transit, self.answer, strict=True):
            state = path(seen)  # (B, hidden)
            found.append(answer(transit(state)))
            seen = torch.cat([state, features], dim=1)
        return HmcnOutputs(join_levels(found, self.tree), self.overall(state))

    def loss(self, outputs: HmcnOutputs, targets: Tensor) -> Tensor:
        """Return the local, global and violation losses together, in nats.

        Over levels the sum of the local means, plus the global mean, over settled nodes; plus the
        penalty, summed over edges and averaged over images.
        """
        label = known(targets, len(outputs.local), self.tree)
        local = mean_by_level(binary_losses(outputs.local, label), label.settled, self.tree).sum()
        overall = binary_losses(outputs.overall, label).sum() / label.settled.sum()
        return local + overall + self.penalty * self.violation(outputs)

    def violation(self, outputs: HmcnOutputs) -> Tensor:
        """Return the square of what nodes claim beyond their parents, summed over edges."""
        claimed = self.log_probability(outputs).exp()
        child, parent = self.edges
        excess = (claimed[:, child] - claimed[:, parent]).clamp(min=0)
        return excess.square().sum(1).mean()

    def log_probability(self, outputs: HmcnOutputs) -> Tensor:
        """Return the log of ``beta P_L + (1 - beta) P_G``, ``(B, N)``; levels need not agree."""
        local, overall = logsigmoid(outputs.local), logsigmoid(outputs.overall)
        if self.beta in (0, 1):  # log 0 has no gradient
            return local if self.beta else overall
        return torch.logaddexp(local + math.log(self.beta), overall + math.log1p(-self.beta))


def _layer(inputs: int, hidden: int, dropout: float) -> nn.Module:
    """Linear, ReLU, batch norm, dropout."""
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.ReLU(), nn.BatchNorm1d(hidden), nn.Dropout(dropout)
    )
