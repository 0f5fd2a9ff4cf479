"""The HRN head: feature vectors in, one raw score per node out, for any tree.

Source: Chen et al., "Label Relation Graphs Enhanced Hierarchical Residual Network for Hierarchical
Multi-Granularity Classification" (CVPR 2022): each level of the tree has features of its own, and
the coarser levels' features are added to the finer ones' before the ReLU. Scores are raw, not
sigmoids: docs/decisions/0003.

Letters: B images, C channels of the feature vector, M members, H hidden units per member and level,
N nodes, K score layers (one per level).
"""

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hierarchy.errors import ShapeError
from hierarchy.loss import tree_loss
from hierarchy.marginals import log_marginals
from hierarchy.tree import TOP, LabelTree

#: The score of a node that the head has not been trained on yet: e^-15 of a sibling's weight.
UNSEEN_SCORE = -15.0

#: A channel's deviation counts as at least this share of the mean deviation, so that a channel
#: that is constant in the training set stays near zero in other images.
LEAST_DEVIATION = 1e-3

#: Vectors scored at once: bounds the memory, 100 MB for 1,536 units and 1,000 nodes.
AT_ONCE = 4096


class SeededDropout(nn.Module):
    """Dropout that draws from a generator of its own.

    PyTorch's draws from one that all threads of a process share, so heads that train side by side
    would come out differently each time.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share
        self._draw = torch.Generator()

    def seed(self, seed: int) -> None:
        """Start the draws anew."""
        self._draw.manual_seed(seed)

    def forward(self, features: Tensor) -> Tensor:
        """Zero a ``share`` of the features and scale the rest up, in training."""
        if not self.training or not self.share:
            return features
        kept = torch.rand(features.shape, generator=self._draw) >= self.share
        return features * (kept.to(features) / (1 - self.share))


class LevelBlock(nn.Module):
    """One level's features of all members: a linear layer and a batch norm.

    The result is *before* the ReLU, which comes after the sum over levels.

    Args:
        slices: channels of each part of the vector that has members of its own, in order.
        width: members per part times hidden units.
    """

    def __init__(self, slices: Sequence[int], width: int) -> None:
        super().__init__()
        self._slices = list(slices)
        # One wide matrix product costs less than several narrow ones.
        self.connect = nn.ModuleList(nn.Linear(size, width, bias=False) for size in slices)
        self.normalise = nn.BatchNorm1d(width * len(slices))

    def forward(self, vectors: Tensor) -> Tensor:
        """``(B, C)`` -> ``(B, M * H)`` float32."""
        parts = vectors.split(self._slices, dim=1)
        wide = [linear(part) for linear, part in zip(self.connect, parts, strict=True)]
        features: Tensor = self.normalise(torch.cat(wide, dim=1).float())
        return features


class NodeScores(nn.Module):
    """Linear scores of some nodes, of each member from its own features."""

    def __init__(self, members: int, hidden: int, nodes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(members, nodes, hidden))
        self.bias = nn.Parameter(torch.empty(members, nodes))

    def forward(self, features: Tensor) -> Tensor:
        """``(B, M * H)`` -> ``(M, B, nodes)``."""
        return score_nodes(features, self.weight, self.bias)


def score_nodes(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``(B, M * H)`` features, ``(M, n, H)`` and ``(M, n)`` -> ``(M, B, n)`` raw scores."""
    by_member = features.unflatten(1, (len(weight), -1)).transpose(0, 1)
    return torch.baddbmm(bias[:, None, :], by_member, weight.transpose(1, 2))


class HRNHead(nn.Module):
    """A block per level, scores that read coarser levels' blocks too, an ensemble of members.

    Members are independent heads of the same form that differ in their initial weights and what
    dropout draws. They are trained at once, each by its own tree loss; their mean score answers,
    which is the geometric mean of their probabilities.

    Args:
        tree: the N nodes.
        channels: C.
        hidden: H.
        members: independent heads whose scores are averaged; per network, if ``networks`` is given.
        dropout: share of the features behind the ReLU that is dropped in training.
        networks: channels of each backbone whose features lie side by side in the vector. Each has
            members of its own, which see nothing else. Empty: every member sees the whole vector.
        residual: let the finer levels' scores read the coarser levels' features too: their sum with
            the level's own, before the ReLU.
        side_by_side: not their sum but all of them, each after a ReLU of its own, so a level's
            scores are a linear combination of its features and of those of the levels above.
        shared: one block for all levels instead of one per level: a plain multi-layer perceptron.
        sigmoid: squeeze scores into (0, 1), as published.
        delta: where the score biases start: those of leaves that much higher, those of root nodes
            with children that much lower. So every answer that ends above the leaves weighs
            e^-delta before anything is learnt, and "nothing of the tree" still weighs 1.
        seed: of the initial weights, which follow from it alone.

    Raises:
        ValueError: a size is not positive, or ``networks`` do not add up to ``channels``.

    Example:
        >>> tree = LabelTree.from_paths([("Fruit", "Apple"), ("Fruit", "Pear"), ("Milk",)])
        >>> head = HRNHead(tree, 1280, hidden=64, members=2)
        >>> head(torch.zeros(3, 1280)).shape
        torch.Size([3, 4])
    """

    def __init__(  # noqa: PLR0913 - the sizes and switches that make up the head
        self,
        tree: LabelTree,
        channels: int,
        *,
        hidden: int = 256,
        members: int = 2,
        dropout: float = 0.5,
        networks: Sequence[int] = (),
        residual: bool = True,
        side_by_side: bool = False,
        shared: bool = False,
        sigmoid: bool = False,
        delta: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if min(channels, hidden, members) < 1:
            raise ValueError(
                "channels, hidden and members must be at least 1, got "
                f"{channels}, {hidden} and {members}"
            )
        slices = list(networks) or [channels]
        if sum(slices) != channels or min(slices) < 1:
            raise ValueError(
                f"the networks' channels must add up to {channels}, got {list(networks)}"
            )
        self.tree = tree
        self.channels = channels
        self.members = members * len(slices)
        self.residual, self.shared, self.sigmoid = residual, shared, sigmoid
        self.side_by_side = residual and side_by_side
        self.mean: Tensor
        self.register_buffer("mean", torch.zeros(channels))
        self.std: Tensor
        self.register_buffer("std", torch.ones(channels))
        layers = self.layers(tree)
        self.blocks = nn.ModuleList(LevelBlock(slices, members * hidden) for _ in layers)
        self.dropout = SeededDropout(dropout)
        self.score = nn.ModuleList(
            NodeScores(self.members, hidden * (1 + level * self.side_by_side), len(nodes))
            for level, nodes in enumerate(layers)
        )
        order = torch.tensor([node for nodes in layers for node in nodes])
        self.column: Tensor
        self.register_buffer("column", torch.argsort(order), persistent=False)
        self._draw_weights(torch.Generator().manual_seed(seed))
        offsets = delta * _towards_leaves(tree)
        with torch.no_grad():
            for layer, nodes in zip(self.score_layers, layers, strict=True):
                layer.bias.add_(offsets[list(nodes)])

    def layers(self, tree: LabelTree) -> list[Sequence[int]]:
        """Nodes that each score layer of a head of this form scores in such a tree."""
        if self.shared:
            return [range(len(tree))]
        return [tree.level_nodes(level) for level in range(tree.depth)]

    def _draw_weights(self, draw: torch.Generator) -> None:
        """Draw all weights as ``nn.Linear`` does, uniform within 1 / sqrt(inputs)."""
        with torch.no_grad():
            for name, value in self.named_parameters():
                if name.endswith("weight") and "normalise" not in name:
                    inputs = value.shape[-1]
                if "normalise" not in name:  # a bias comes after its weight
                    bound = 1 / math.sqrt(inputs)
                    value.uniform_(-bound, bound, generator=draw)

    @property
    def score_layers(self) -> list[NodeScores]:
        """The K score layers, the coarsest level's first."""
        return [layer for layer in self.score if isinstance(layer, NodeScores)]

    def set_standardisation(self, mean: Tensor, std: Tensor) -> None:
        """Take each channel's mean and deviation over the training set, ``(C,)`` each."""
        self.mean.copy_(mean)
        self.std.copy_(std + LEAST_DEVIATION * std.mean().clamp_min(1e-6))

    def seed(self, seed: int) -> None:
        """Start the dropout's draws anew."""
        self.dropout.seed(seed)

    def last(self, vectors: Tensor) -> list[Tensor]:
        """What each of the K score layers reads, before dropout: ``(B, M * H)`` each.

        With ``side_by_side`` it is ``(B, M * H)``, ``(B, M * 2 H)`` and so on.

        Args:
            vectors: ``(B, C)``, or ``(B, C, h, w)`` maps, of which the mean over the grid is taken.
        """
        if vectors.ndim not in (2, 4) or vectors.shape[1] != self.channels:
            raise ShapeError(
                f"feature vectors must be (B, {self.channels}), or maps (B, {self.channels}, h, w),"
                f" got {tuple(vectors.shape)}"
            )
        pooled = vectors.float() if vectors.ndim == 2 else vectors.float().mean(dim=(2, 3))
        standard = (pooled - self.mean) / self.std
        own = [block(standard) for block in self.blocks]
        if self.side_by_side:
            by_member = [torch.relu(one).unflatten(1, (self.members, -1)) for one in own]
            return [torch.cat(by_member[:end], 2).flatten(1) for end in range(1, len(own) + 1)]
        return [torch.relu(one) for one in (accumulate(own) if self.residual else own)]

    def each(self, vectors: Tensor) -> Tensor:
        """Feature vectors of B images -> ``(M, B, N)``, each member's own raw scores."""
        found = [
            score(self.dropout(features))
            for score, features in zip(self.score, self.last(vectors), strict=True)
        ]
        return self.in_order(found)

    def in_order(self, scores: Sequence[Tensor]) -> Tensor:
        """Scores of all score layers, ``(M, B, nodes)`` -> ``(M, B, N)`` float32 by node id."""
        ordered = torch.cat(list(scores), dim=2).float()[:, :, self.column]
        return ordered.sigmoid() if self.sigmoid else ordered

    def objective(self, vectors: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """Mean tree loss of the members, in nats: what training makes small.

        Args:
            vectors: of B images, see `last`.
            targets: as ``tree_loss`` takes them.
            weights: ``(B,)``.
        """
        return members_loss(self.each(vectors), targets, weights, self.tree)

    def forward(self, vectors: Tensor) -> Tensor:
        """``(B, C)`` vectors, or ``(B, C, h, w)`` maps -> ``(B, N)`` raw scores."""
        return self.each(vectors).mean(dim=0)

    def log_probabilities(self, vectors: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return log P(node), ``(n, N)``, of n images' ``(n, C)`` feature vectors.

        The head must be in eval mode.
        """
        result = np.empty((len(vectors), len(self.tree)))
        with torch.inference_mode():
            for start in range(0, len(vectors), AT_ONCE):
                some = torch.from_numpy(vectors[start : start + AT_ONCE]).to(self.mean.device)
                log_p = log_marginals(self(some).double(), self.tree)
                result[start : start + AT_ONCE] = log_p.cpu().numpy()
        return result


def _towards_leaves(tree: LabelTree) -> Tensor:
    """``(N,)`` offsets of scores that weaken each answer above the leaves by one nat."""
    offsets = torch.zeros(len(tree))
    for node, (parent, below) in enumerate(zip(tree.parents, tree.children, strict=True)):
        if below and parent == TOP:
            offsets[node] = -1.0
        elif not below and parent != TOP:
            offsets[node] = 1.0
    return offsets


def members_loss(scores: Tensor, targets: Tensor, weights: Tensor, tree: LabelTree) -> Tensor:
    """Mean tree loss of ``(M, B, N)`` scores, one ensemble's members on the same B images."""
    members = len(scores)
    return tree_loss(
        scores.flatten(0, 1),
        targets.repeat(members, *[1] * (targets.ndim - 1)),
        tree,
        weights=weights.repeat(members),
    )


def transfer_weights(state: Mapping[str, Tensor], old: LabelTree, head: HRNHead) -> None:
    """Give a head of today's tree what an earlier tree's head knew of every node that stays.

    A node that stays keeps its rows, so it scores what it scored. A new node starts at
    ``UNSEEN_SCORE`` whatever the image, so it is not answered before it is learnt.

    Args:
        state: weights of a head of the same form, for ``old``.
        old: the tree it was trained on; nodes are the same when their paths are.
        head: newly built for today's tree; changed in place.
    """
    known, now = head.layers(old), head.layers(head.tree)
    carried = {}
    for name, value in head.state_dict().items():
        first, *rest = name.split(".")
        if first == "score":
            layer = int(rest[0])
            before = known[layer] if layer < len(known) else ()
            paths = [old.paths[node] for node in before]
            carried[name] = _rows(
                state.get(name), paths, [head.tree.paths[node] for node in now[layer]], value
            )
        elif name in state and state[name].shape == value.shape:
            carried[name] = state[name]
        else:  # the block of a level that did not exist: no node that stays reads it
            carried[name] = value
    head.load_state_dict(carried)


def _rows(
    known: Tensor | None,
    old: Sequence[tuple[str, ...]],
    new: Sequence[tuple[str, ...]],
    like: Tensor,
) -> Tensor:
    """A score layer's rows, ``(M, nodes, ...)``, found by path; unseen nodes get their score."""
    rows = torch.full_like(like, UNSEEN_SCORE) if like.ndim == 2 else torch.zeros_like(like)
    if known is None:
        return rows
    where = {path: row for row, path in enumerate(old)}
    for row, path in enumerate(new):
        if (source := where.get(path)) is not None:
            rows[:, row] = known[:, source]
    return rows
