"""The networks: backbone features in, one raw score a node out, for any tree.

`ResidualHead` is HRN's (Chen et al., "Label Relation Graphs Enhanced Hierarchical Residual
Network", CVPR 2022): features of its own for each level of the tree, the coarser levels' added to
the finer ones' before the ReLU; it trains together with the backbone. `FrozenHead` stands on cached
features of a backbone that stays as it is, where a shared trunk measured better
(docs/decisions/0012). Scores are raw, not sigmoids: docs/decisions/0003.

Letters: B pictures, C channels of the backbone's last map, H x W its grid, N nodes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hierarchy.errors import ShapeError
from hierarchy.loss import tree_loss
from hierarchy.quantised import IntegerConvolution, QuantisedMaps, in_bytes
from hierarchy.tree import LabelTree
from hierarchy.winograd import WholeGrid, fits

#: The score of a node that the network has not been trained on yet: e^-15 of a sibling's weight.
UNSEEN_SCORE = -15.0

#: Pictures at a time from which the transformed weights, five times as many, are worth reading.
SETTLED_FROM = 8


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
        return features * (kept.to(features) / (1 - self.share))


class MapTrunk(nn.Module):
    """Feature maps -> one vector a picture: a 3x3 convolution, mean over the grid, dropout."""

    #: What `settle` makes for the grid of the maps: the convolution and what is added behind it.
    _settled: tuple[tuple[int, int], WholeGrid, Tensor] | None = None

    def __init__(self, channels: int, width: int, dropout: float = 0.5) -> None:
        super().__init__()
        self.convolve = nn.Conv2d(channels, width, 3, bias=False)
        self.normalise_map = nn.BatchNorm2d(width)
        self.normalise = nn.BatchNorm1d(width)
        self.dropout = SeededDropout(dropout)

    def seed(self, seed: int) -> None:
        """Start the dropout's draws anew."""
        self.dropout.seed(seed)

    def forward(self, maps: Tensor) -> Tensor:
        """``(B, c, H, W)`` -> ``(B, width)`` float32."""
        if min(maps.shape[2:]) < 3:  # a grid smaller than the kernel: pad it up to one position
            short = [max(0, 3 - size) for size in maps.shape[2:]]
            maps = nn.functional.pad(maps, (0, short[1], 0, short[0]))
        settled = None if len(maps) < SETTLED_FROM else self._settled
        if settled is not None and settled[0] == tuple(maps.shape[2:]):
            mean = torch.relu(settled[1](maps) + settled[2]).mean(dim=0)
        else:
            dense = torch.relu(self.normalise_map(self.convolve(maps)))
            mean = dense.float().mean(dim=(2, 3))
        features: Tensor = self.dropout(self.normalise(mean))
        return features

    def settle(self, height: int, width: int) -> None:
        """Make ready to answer on a CPU: maps of this size will cost a third, many at a time.

        In eval mode; `train` ends it, and no weights may be loaded behind it.
        """
        known = self._settled is not None and self._settled[0] == (height, width)
        if known or self.training or not fits(height, width):
            return
        norm = self.normalise_map
        assert norm.running_var is not None and norm.running_mean is not None  # noqa: PT018, S101
        factor = norm.weight.detach() * (norm.running_var + norm.eps).rsqrt()
        whole = WholeGrid(self.convolve.weight * factor[:, None, None, None], height, width)
        self._settled = (height, width), whole, norm.bias.detach() - norm.running_mean * factor

    def train(self, mode: bool = True) -> "MapTrunk":  # noqa: FBT001, FBT002 - as PyTorch has it
        """See ``nn.Module``."""
        self._settled = None if mode else self._settled
        return super().train(mode)


@dataclass(frozen=True)
class Features:
    """What is left of backbone maps when all that is fixed has been done to them.

    Attributes:
        maps: ``(B, c, H, W)`` after the reduction; c is 0 where no network looks at them.
        means: ``(B, C)`` of the whole map over its grid, each channel standardised.
    """

    maps: Tensor
    means: Tensor

    def __len__(self) -> int:
        return len(self.means)

    def __getitem__(self, rows: Any) -> "Features":  # noqa: ANN401 - whatever a tensor takes
        return Features(self.maps[rows], self.means[rows])


@dataclass(frozen=True)
class Reduction:
    """How maps become `Features`: fitted once to the training pictures and not trained.

    Attributes:
        weight: ``(c, C)`` of a PCA over map positions, after standardising each channel, rounded to
            a byte each (`in_bytes`); c may be 0.
        bias: ``(c,)``.
        centre: ``(C,)`` mean of the maps' means.
        spread: ``(C,)`` their standard deviation, > 0.
    """

    weight: Tensor
    bias: Tensor
    centre: Tensor
    spread: Tensor

    def of(self, maps: Tensor) -> Features:
        """``(B, C, H, W)`` float maps -> their features."""
        reduced = torch.einsum("dc,bchw->bdhw", self.weight, maps) + self.bias[:, None, None]
        return Features(reduced, (maps.mean(dim=(2, 3)) - self.centre) / self.spread)


class MeanTrunk(nn.Module):
    """Standardised channel means -> one vector a picture: one hidden layer, dropout."""

    def __init__(self, channels: int, width: int, dropout: float = 0.5) -> None:
        super().__init__()
        self.connect = nn.Linear(channels, width, bias=False)
        self.normalise = nn.BatchNorm1d(width)
        self.dropout = SeededDropout(dropout)

    def seed(self, seed: int) -> None:
        """Start the dropout's draws anew."""
        self.dropout.seed(seed)

    def forward(self, means: Tensor) -> Tensor:
        """``(B, C)`` -> ``(B, width)`` float32."""
        features: Tensor = self.dropout(torch.relu(self.normalise(self.connect(means).float())))
        return features


class FrozenHead(nn.Module):
    """The head that learns on features of a backbone that stays as it is.

    Two kinds of small networks side by side read the backbone's map: ``spatial`` ones see a PCA of
    it to ``reduced`` channels through a 3x3 convolution (`MapTrunk`), ``pooled`` ones its mean over
    the grid through one hidden layer. Each ends in one linear score a node and learns by a tree
    loss of its own. What answers is the mean score of the two kinds, the geometric mean of their
    probabilities: they err on different pictures. docs/decisions/0012 has the measurements.
    """

    #: The reduction for quantised maps, made when first asked for.
    _integers: IntegerConvolution | None = None

    def __init__(  # noqa: PLR0913 - the sizes that make up the head, each named at the call
        self,
        tree: LabelTree,
        channels: int,
        *,
        reduced: int = 256,
        width: int = 256,
        spatial: int = 1,
        hidden: int = 512,
        pooled: int = 2,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if spatial < 0 or pooled < 0 or not spatial + pooled:
            raise ValueError(
                f"a head needs at least one network, got {spatial} spatial and {pooled} pooled"
            )
        self.tree = tree
        self.channels = channels
        self.centre: Tensor
        self.register_buffer("centre", torch.zeros(channels))
        self.spread: Tensor
        self.register_buffer("spread", torch.ones(channels))
        self.spatial, self.pooled = spatial, pooled
        self.reduce: nn.Conv2d | None = None
        if spatial:
            self.reduce = nn.Conv2d(channels, reduced, 1).requires_grad_(requires_grad=False)
            numbers, step = in_bytes(self.reduce.weight.flatten(1))  # as those that are fitted
            self.reduce.weight.copy_((numbers * step)[:, :, None, None])
        # One wide step costs less than several narrow ones.
        self.trunk = MapTrunk(reduced, spatial * width, dropout) if spatial else None
        self.hidden = MeanTrunk(channels, pooled * hidden, dropout) if pooled else None
        widths = [width] * spatial + [hidden] * pooled
        self.score = nn.ModuleList(nn.Linear(one, len(tree)) for one in widths)

    def set_reduction(self, reduction: Reduction) -> None:
        """Take what was fitted."""
        self._integers = None
        self.centre.copy_(reduction.centre)
        self.spread.copy_(reduction.spread)
        if self.reduce is not None and self.reduce.bias is not None:
            with torch.no_grad():
                self.reduce.weight.copy_(reduction.weight[:, :, None, None])
                self.reduce.bias.copy_(reduction.bias)

    def seed(self, seed: int) -> None:
        """Start the dropout's draws anew."""
        for trunk in (self.trunk, self.hidden):
            if trunk is not None:
                trunk.seed(seed)

    def settle(self, height: int, width: int) -> None:
        """Make ready to answer on a CPU; see `MapTrunk.settle`."""
        if self.trunk is not None:
            self.trunk.settle(height, width)

    def last(self, features: Features) -> list[Tensor]:
        """Features of B pictures -> what each network's scores are read from, ``(B, width)``."""
        parts: list[Tensor] = []
        if self.trunk is not None:
            parts += self.trunk(features.maps).chunk(self.spatial, dim=1)
        if self.hidden is not None:
            parts += self.hidden(features.means).chunk(self.pooled, dim=1)
        return parts

    def each(self, features: Features) -> Tensor:
        """Features of B pictures -> ``(B, networks, N)``, each network's own raw scores."""
        own = [score(part) for score, part in zip(self.score, self.last(features), strict=True)]
        return torch.stack(own, dim=1)

    def objective(self, features: Features, targets: Tensor, weights: Tensor) -> Tensor:
        """Mean tree loss of the networks, in nats: what training makes small.

        Args:
            features: of B pictures.
            targets: as ``tree_loss`` takes them.
            weights: ``(B,)``.
        """
        scores = self.each(features)
        return tree_loss(
            scores.float().flatten(0, 1),
            targets.repeat_interleave(len(self.score), dim=0),
            self.tree,
            weights=weights.repeat_interleave(len(self.score)),
        )

    def from_features(self, features: Features) -> Tensor:
        """Features of B pictures -> ``(B, N)`` raw scores."""
        scores = self.each(features)
        kinds = [part for part in scores.split([self.spatial, self.pooled], dim=1) if part.shape[1]]
        return torch.stack([kind.mean(dim=1) for kind in kinds]).mean(dim=0)

    def of_quantised(self, maps: QuantisedMaps) -> Tensor:
        """Maps of B pictures -> ``(B, N)`` raw scores: to answer with, on a CPU, in eval mode.

        No weights may be loaded behind the first call before `train` was called.
        """
        self._check(maps.steps.shape)
        means = (torch.from_numpy(maps.means) - self.centre) / self.spread
        if self.reduce is None:
            return self.from_features(Features(means.new_empty(len(means), 0, 1, 1), means))
        if self._integers is None:
            assert self.reduce.bias is not None  # noqa: S101 - as it was made
            self._integers = IntegerConvolution(self.reduce.weight.flatten(1), self.reduce.bias)
        return self.from_features(Features(self._integers(maps), means))

    def train(self, mode: bool = True) -> "FrozenHead":  # noqa: FBT001, FBT002 - as PyTorch has it
        """See ``nn.Module``."""
        self._integers = None if mode else self._integers
        return super().train(mode)

    def _check(self, shape: Sequence[int]) -> None:
        if len(shape) != 4 or shape[1] != self.channels:
            raise ShapeError(f"maps must be (B, {self.channels}, H, W), got {tuple(shape)}")

    def forward(self, maps: Tensor) -> Tensor:
        """``(B, C, H, W)`` feature maps -> ``(B, N)`` raw scores."""
        self._check(maps.shape)
        means = (maps.mean(dim=(2, 3)) - self.centre) / self.spread
        reduced = maps[:, :0] if self.reduce is None else self.reduce(maps)
        return self.from_features(Features(reduced, means))


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
        before it is learnt.
    """
    carried = {}
    for name, value in fresh.items():
        parts = name.split(".")
        if "score" in parts:  # a row for each node
            carried[name] = _rows(state.get(name), old.paths, new.paths, value)
        elif "classify" in parts:  # a row for each node of a level
            level = int(parts[-2])
            carried[name] = _rows(state.get(name), _paths(old, level), _paths(new, level), value)
        elif name in state and state[name].shape == value.shape:
            carried[name] = state[name].clone()
        else:  # the block of a level that did not exist: no node that stays reads it
            carried[name] = value.clone()
    return carried


def _paths(tree: LabelTree, level: int) -> tuple[tuple[str, ...], ...]:
    if level >= tree.depth:
        return ()
    return tuple(tree.paths[node] for node in tree.level_nodes(level))


def _rows(
    known: Tensor | None,
    old: Sequence[tuple[str, ...]],
    new: Sequence[tuple[str, ...]],
    like: Tensor,
) -> Tensor:
    """A classifier's rows, found by path; a bias (1-d) of an unseen node gets its score."""
    rows = torch.full_like(like, UNSEEN_SCORE) if like.ndim == 1 else torch.zeros_like(like)
    if known is None:
        return rows
    where = {path: row for row, path in enumerate(old)}
    for row, path in enumerate(new):
        if (source := where.get(path)) is not None:
            rows[row] = known[source]
    return rows
