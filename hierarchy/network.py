"""The networks: backbone features in, one raw score a node out, for any tree.

Both keep the idea of HRN (Chen et al., "Label Relation Graphs Enhanced Hierarchical Residual
Network", CVPR 2022): features of its own for each level of the tree, the coarser levels' added to
the finer ones' before the ReLU. Scores are raw, not sigmoids: docs/decisions/0003.

Letters: B pictures, C channels of the backbone's last map, H x W its grid, N nodes.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hierarchy.errors import ShapeError
from hierarchy.tree import LabelTree

#: The score of a node that the network has not been trained on yet: e^-15 of a sibling's weight.
UNSEEN_SCORE = -15.0


class LevelScores(nn.Module):
    """One raw score a node, level by level, coarser levels' features added to finer ones'.

    ``h_l = relu(g_1 + ... + g_l)`` with ``g_k = U_k z`` is HRN's residual sum (its section on
    granularity-specific blocks); a node's score is linear in ``h_l`` and, skipping the ReLU, in
    ``z``: without that second term the head lost leaf accuracy where leaf labels are rare.
    """

    def __init__(self, tree: LabelTree, width: int, projection: int) -> None:
        super().__init__()
        levels = [tree.level_nodes(level) for level in range(tree.depth)]
        self.project = nn.ModuleList(nn.Linear(width, projection, bias=False) for _ in levels)
        self.classify = nn.ModuleList(nn.Linear(projection, len(nodes)) for nodes in levels)
        self.skip = nn.ModuleList(nn.Linear(width, len(nodes), bias=False) for nodes in levels)
        order = torch.tensor([node for nodes in levels for node in nodes])
        self.column: Tensor
        self.register_buffer("column", torch.argsort(order), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """``(B, width)`` shared features -> ``(B, N)`` scores, column i for node i."""
        total: Tensor | None = None
        scores = []
        for project, classify, skip in zip(self.project, self.classify, self.skip, strict=True):
            own = project(features)  # (B, projection)
            total = own if total is None else total + own
            scores.append(classify(torch.relu(total)) + skip(features))
        return torch.cat(scores, dim=1)[:, self.column]


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
        """``(B, width)`` -> the same, a ``share`` of it 0 and the rest scaled up, in training."""
        if not self.training or not self.share:
            return features
        kept = torch.rand(features.shape, generator=self._draw) >= self.share
        return features * kept.to(features.device) / (1 - self.share)


class FrozenHead(nn.Module):
    """The head that learns on features of a backbone that stays as it is.

    PCA of the feature map to ``reduced`` channels, one 3x3 convolution, mean over the grid, and the
    level scores. ``reduce`` is fitted once and not trained, so training keeps reduced maps only.
    """

    def __init__(  # noqa: PLR0913 - the sizes that make up the head, each named at the call
        self,
        tree: LabelTree,
        channels: int,
        *,
        reduced: int = 256,
        width: int = 256,
        projection: int = 128,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, reduced, 1)
        self.reduce.requires_grad_(requires_grad=False)
        self.convolve = nn.Conv2d(reduced, width, 3, bias=False)
        self.normalise_map = nn.BatchNorm2d(width)
        self.normalise = nn.BatchNorm1d(width)
        self.dropout = SeededDropout(dropout)
        self.scores = LevelScores(tree, width, projection)

    def set_reduction(self, weight: Tensor, bias: Tensor) -> None:
        """Take the fitted PCA, ``weight`` ``(reduced, C)`` and ``bias`` ``(reduced,)``."""
        with torch.no_grad():
            self.reduce.weight.copy_(weight[:, :, None, None])
            self.reduce.bias.copy_(bias)  # type: ignore[union-attr]

    def from_reduced(self, maps: Tensor) -> Tensor:
        """``(B, reduced, H, W)`` maps that went through ``reduce`` -> ``(B, N)`` raw scores."""
        if min(maps.shape[2:]) < 3:  # a grid smaller than the kernel: pad it up to one position
            short = [max(0, 3 - size) for size in maps.shape[2:]]
            maps = nn.functional.pad(maps, (0, short[1], 0, short[0]))
        dense = torch.relu(self.normalise_map(self.convolve(maps)))
        pooled = self.normalise(dense.float().mean(dim=(2, 3)))  # (B, width)
        scores: Tensor = self.scores(self.dropout(pooled))
        return scores

    def forward(self, maps: Tensor) -> Tensor:
        """``(B, C, H, W)`` feature maps -> ``(B, N)`` raw scores."""
        if maps.ndim != 4 or maps.shape[1] != self.reduce.in_channels:
            raise ShapeError(
                f"maps must be (B, {self.reduce.in_channels}, H, W), got {tuple(maps.shape)}"
            )
        return self.from_reduced(self.reduce(maps))


class GranularityBlock(nn.Module):
    """HRN's block of one level, as published (docs/decisions/0003 for what we left out).

    1x1 convolution to ``inner`` channels, 3x3 back, mean over the grid, two linear layers to
    ``features``. The result is *before* the ReLU, which comes after the sum over levels.
    """

    def __init__(self, channels: int, inner: int, features: int) -> None:
        super().__init__()
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

    def forward(self, maps: Tensor) -> Tensor:
        """``(B, C, H, W)`` -> ``(B, features)``."""
        pooled = self.convolve(maps).mean(dim=(2, 3))
        result: Tensor = self.connect(pooled)
        return result


class ResidualHead(nn.Module):
    """The paper's head: a granularity block a level, residual sums, a classifier a level.

    Used when the backbone itself is fine-tuned; on frozen features separate blocks bought nothing.
    """

    def __init__(
        self, tree: LabelTree, channels: int, *, inner: int = 1024, features: int = 512
    ) -> None:
        super().__init__()
        levels = [tree.level_nodes(level) for level in range(tree.depth)]
        self.blocks = nn.ModuleList(GranularityBlock(channels, inner, features) for _ in levels)
        self.classify = nn.ModuleList(nn.Linear(features, len(nodes)) for nodes in levels)
        order = torch.tensor([node for nodes in levels for node in nodes])
        self.column: Tensor
        self.register_buffer("column", torch.argsort(order), persistent=False)

    def forward(self, maps: Tensor) -> Tensor:
        """``(B, C, H, W)`` feature maps -> ``(B, N)`` raw scores."""
        total: Tensor | None = None
        scores = []
        for block, classify in zip(self.blocks, self.classify, strict=True):
            own = block(maps)
            total = own if total is None else total + own
            scores.append(classify(torch.relu(total)))
        return torch.cat(scores, dim=1)[:, self.column]


def carry_over(
    state: Mapping[str, Tensor], old: LabelTree, new: LabelTree, fresh: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Weights for ``new``'s head that keep what ``old``'s head knew of every node that stays.

    Args:
        state: weights of a head built for ``old``.
        old: the tree it was trained on.
        new: the tree of today; nodes are the same when their paths are.
        fresh: weights of the same head newly built for ``new``; gives names and shapes.

    Returns:
        Weights for the new head. A node that stays keeps its rows, so it scores what it scored; a
        node that is new starts at ``UNSEEN_SCORE`` whatever the picture, so it is not answered
        before it is learnt; a level that is new adds nothing to the residual sum.
    """
    carried = {}
    for name, value in fresh.items():
        parts = name.split(".")
        if "classify" in parts or "skip" in parts:
            level = int(parts[-2])
            carried[name] = _rows(state.get(name), old, new, level, value)
        elif name in state and state[name].shape == value.shape:
            carried[name] = state[name].clone()
        else:  # the block of a level that did not exist
            carried[name] = torch.zeros_like(value) if "project" in parts else value.clone()
    return carried


def _rows(known: Tensor | None, old: LabelTree, new: LabelTree, level: int, like: Tensor) -> Tensor:
    """Rows of one level's classifier, by path; a bias (1-d) of an unseen node gets its score."""
    rows = torch.full_like(like, UNSEEN_SCORE) if like.ndim == 1 else torch.zeros_like(like)
    if known is None or level >= old.depth:
        return rows
    where = {old.paths[node]: row for row, node in enumerate(old.level_nodes(level))}
    for row, node in enumerate(new.level_nodes(level)):
        if (source := where.get(new.paths[node])) is not None:
            rows[row] = known[source]
    return rows
