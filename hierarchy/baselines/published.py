"""HRN exactly as published, for any tree, and the switches of its ablations.

Chen et al., "Label Relation Graphs Enhanced Hierarchical Residual Network for Hierarchical
Multi-Granularity Classification", CVPR 2022. B images, C channels, N nodes, K leaves.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from hierarchy.baselines.base import Baseline, check_targets, precise
from hierarchy.baselines.tree_ops import leaf_log_marginals
from hierarchy.errors import ShapeError
from hierarchy.loss import tree_loss
from hierarchy.marginals import log_marginals
from hierarchy.tree import LabelTree

Blocks = Literal["own", "shared"]
Parts = Literal["both", "tree", "leaf"]
Scores = Literal["sigmoid", "raw"]
Read = Literal["branch", "tree"]

NO_LEAF = -100
"""Stands where a target has no leaf column; what torch's cross-entropy leaves out by default."""


@dataclass(frozen=True)
class PublishedOutputs:
    """Outputs of the network for B images, before any sigmoid or softmax."""

    raw: Tensor
    """``(B, N)`` of each node, from its level's classifier; column i for node i."""
    leaf_logits: Tensor
    """``(B, K)`` of the softmax branch, columns in the order of ``tree.leaves``."""


class GranularityBlock(nn.Module):
    """HRN's block of one level: of a map as published, of a vector without its convolutions.

    Of a map: 1x1 convolution to ``inner`` channels, 3x3 back, mean over the grid. Then, as of a
    vector, two linear layers to ``features``. The result is *before* the ReLU, which comes after
    the sum over levels.
    """

    def __init__(self, channels: int, inner: int, features: int, *, maps: bool = True) -> None:
        super().__init__()
        self.convolve: nn.Sequential | None = None
        if maps:
            self.convolve = nn.Sequential(
                nn.Conv2d(channels, inner, 1, bias=False),
                nn.BatchNorm2d(inner, momentum=0.01),
                nn.ReLU(inplace=True),
                nn.Conv2d(inner, channels, 3, padding=1, bias=False),
                nn.BatchNorm2d(channels, momentum=0.01),
                nn.ReLU(inplace=True),
            )
        self.connect = nn.Sequential(
            nn.BatchNorm1d(channels),
            nn.Linear(channels, inner),
            nn.BatchNorm1d(inner),
            nn.ELU(inplace=True),
            nn.Linear(inner, features),
        )

    def forward(self, features: Tensor) -> Tensor:
        """``(B, C, H, W)`` maps, or ``(B, C)`` vectors -> ``(B, features)``."""
        if self.convolve is not None:
            features = self.convolve(features).mean(dim=(2, 3))
        found: Tensor = self.connect(features)
        return found


class Published(Baseline[PublishedOutputs]):
    """HRN: a block per level, coarser blocks' features added, sigmoids, and a softmax over leaves.

    With ``g_l`` level l's block, ``h_l = relu(g_1 + ... + g_l)``; level l's classifier
    is linear in ``h_l``, and so is the branch over *all* leaves in the last ``h``. The defaults are
    what was published; the paper's ablation goes ``blocks="shared", combine=False, relu=False``,
    then own blocks, then combined, then ReLU.

    Args:
        tree: the N nodes; any number of levels, leaves at any of them.
        channels: C of the features.
        maps: whether the features are maps, as published, or vectors.
        inner: channels inside a block.
        features: of ``g`` and ``h``.
        blocks: a block for each level, or one for all.
        combine: whether coarser levels' ``g`` are added to finer ones'.
        relu: whether a ReLU follows the sum.
        parts: which losses are trained: the tree loss, the leaf branch's cross-entropy, or both,
            which count the same.
        scores: what the tree loss sees, sigmoids as published or the raw scores.
        read: answers from each level's own classifier, a leaf's from the softmax branch, as
            published; or all from the tree's marginals. What was not trained is not read: without
            the leaf cross-entropy a leaf is read from its score (the published code reports that
            number too), without the tree loss a node is the sum of its leaves' softmax.

    Raises:
        ValueError: if a switch has another value, or the tree is to be read but not trained.
    """

    def __init__(  # noqa: PLR0913 - sizes, and the ablations' switches, named at the call
        self,
        tree: LabelTree,
        channels: int,
        *,
        maps: bool = True,
        inner: int = 1024,
        features: int = 512,
        blocks: Blocks = "own",
        combine: bool = True,
        relu: bool = True,
        parts: Parts = "both",
        scores: Scores = "sigmoid",
        read: Read = "branch",
    ) -> None:
        super().__init__(tree)
        _check_switches(blocks, parts, scores, read)
        self.shape = (channels, 4 if maps else 2)
        self.combine, self.relu = combine, relu
        self.parts, self.kind, self.read = parts, scores, read
        levels = [tree.level_nodes(level) for level in range(tree.depth)]
        count = len(levels) if blocks == "own" else 1
        self.blocks = nn.ModuleList(
            GranularityBlock(channels, inner, features, maps=maps) for _ in range(count)
        )
        self.classify = nn.ModuleList(nn.Linear(features, len(nodes)) for nodes in levels)
        self.classify_leaves = nn.Linear(features, len(tree.leaves))
        self.column: Tensor
        self.leaf_column: Tensor
        self.leaves: Tensor
        order = torch.tensor([node for nodes in levels for node in nodes])
        self.register_buffer("column", torch.argsort(order), persistent=False)
        self.register_buffer("leaf_column", _leaf_columns(tree), persistent=False)
        self.register_buffer("leaves", torch.tensor(tree.leaves), persistent=False)

    def forward(self, features: Tensor) -> PublishedOutputs:
        """``(B, C, H, W)`` maps, or ``(B, C)`` vectors -> scores before sigmoid and softmax.

        Raises:
            ShapeError: if the features have another shape.
        """
        channels, dimensions = self.shape
        if features.ndim != dimensions or features.shape[1] != channels:
            wanted = f"(B, {channels}{', H, W' if dimensions == 4 else ''})"
            raise ShapeError(f"features must be {wanted}, got {tuple(features.shape)}")
        levels = self._levels(features)
        raw = [classify(h) for classify, h in zip(self.classify, levels, strict=True)]
        return PublishedOutputs(
            raw=torch.cat(raw, dim=1)[:, self.column],
            leaf_logits=self.classify_leaves(levels[-1]),
        )

    def scores(self, outputs: PublishedOutputs) -> Tensor:
        """Return what the tree loss sees of each node, ``(B, N)``: sigmoids, or the raw scores."""
        return outputs.raw.sigmoid() if self.kind == "sigmoid" else outputs.raw

    def loss(self, outputs: PublishedOutputs, targets: Tensor) -> Tensor:
        """Return the tree loss over the batch plus the cross-entropy of its leaf-labelled images.

        Without any such image the second part is absent (0).

        Raises:
            ShapeError: if targets are not ``(B,)`` int64 node ids.
        """
        check_targets(targets, len(outputs.raw), self.tree)
        parts = []
        if self.parts != "leaf":
            parts.append(tree_loss(self.scores(outputs), targets, self.tree))
        if self.parts != "tree":
            parts.append(self.leaf_loss(outputs, targets))
        return torch.stack(parts).sum()

    def leaf_loss(self, outputs: PublishedOutputs, targets: Tensor) -> Tensor:
        """Return the softmax branch's mean loss over leaf-labelled images; 0 without any."""
        wanted = self.leaf_column[targets]
        total = nn.functional.cross_entropy(
            precise(outputs.leaf_logits), wanted, ignore_index=NO_LEAF, reduction="sum"
        )
        return total / wanted.ne(NO_LEAF).sum().clamp(min=1)

    def log_probability(self, outputs: PublishedOutputs) -> Tensor:
        """Return the log of what is read of each node, ``(B, N)``; see ``read``.

        Read from branches, columns come from sigmoids and a softmax side by side, so levels
        contradict each other at times, as in the published evaluation.
        """
        if self.read == "tree":
            return log_marginals(self.scores(outputs), self.tree)
        if self.parts == "leaf":
            return leaf_log_marginals(outputs.leaf_logits, self.tree)
        own = nn.functional.logsigmoid(precise(outputs.raw))
        if self.parts == "tree":
            return own
        return own.index_copy(1, self.leaves, precise(outputs.leaf_logits).log_softmax(1))

    def _levels(self, features: Tensor) -> list[Tensor]:
        """Return the features of each level, coarsest first: ``(B, features)`` each."""
        own = [block(features) for block in self.blocks]
        own = own * self.tree.depth if len(own) == 1 else own  # one block serves all levels
        if self.combine:
            own = list(torch.stack(own).cumsum(0))
        return [torch.relu(h) for h in own] if self.relu else own


def _check_switches(blocks: str, parts: str, scores: str, read: str) -> None:
    for name, value, kind in (
        ("blocks", blocks, Blocks),
        ("parts", parts, Parts),
        ("scores", scores, Scores),
        ("read", read, Read),
    ):
        if value not in get_args(kind):
            raise ValueError(f"{name} must be one of {', '.join(get_args(kind))}, got {value!r}")
    if parts == "leaf" and read == "tree":
        raise ValueError(
            "read='tree' needs the tree loss, which parts='leaf' leaves out: "
            "read='branch', or train it with parts='both'"
        )


def _leaf_columns(tree: LabelTree) -> Tensor:
    """Return each node's column among the leaves, NO_LEAF if it is none: ``(N,)``."""
    columns = torch.full((len(tree),), NO_LEAF)
    columns[list(tree.leaves)] = torch.arange(len(tree.leaves))
    return columns
