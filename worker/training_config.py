"""How a head is trained: the settings, each with the measurement behind it."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from hierarchy import LabelTree
from inference.augmentation import LEARNT_FROM

#: Nodes times levels up to which levels stand side by side. It multiplies the weights of the finer
#: levels' nodes, so that of a tree of 100,000 nodes they would take gigabytes.
SIDE_BY_SIDE_UP_TO = 20_000


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of one training on feature vectors.

    Attributes:
        augmentations: the changed copies of an image that are learnt from, the plain one first.
        members: independent heads whose scores are averaged; per network if ``networks`` is given.
        hidden: width of a member's block of one level.
        networks: channels of each network that has members of its own; empty for members that see
            the whole vector.
        dropout: share of a block's features dropped.
        delta: see `hierarchy.heads.HRNHead`. Picked for its lower log loss on validation images in
            5 of 6 settings of labels; the leaf accuracy did not differ.
        epochs: passes over the labels.
        least_shown: but so many passes that at least so many labels are shown, a batch counting as
            full. On 324 labels, 43,000 gave 1.3 points more than 21,500 (one seed); people who
            label wait for the five heads of a training, and this is what they wait.
        batch: labels per step, half of it up to ``cross_fit_up_to`` labels.
        rate: AdamW's peak learning rate, cosine to 0.
        decay: AdamW's weight decay, on matrices only.
        residual: let finer levels' scores read coarser levels' features.
        side_by_side: all of them, not their sum, in trees of up to ``SIDE_BY_SIDE_UP_TO``.
        shared: one block for all levels.
        sigmoid: scores in (0, 1), as published.
        folds: parts for cross-fitting.
        cross_fit_up_to: with more images than this one part is held out instead.
        seed: of everything drawn at random.
    """

    augmentations: tuple[int, ...] = LEARNT_FROM
    members: int = 2
    hidden: int = 128
    networks: tuple[int, ...] = ()
    dropout: float = 0.5
    delta: float = 3.0
    epochs: int = 16
    least_shown: int = 12_000
    batch: int = 128
    rate: float = 3e-3
    decay: float = 0.3
    residual: bool = True
    side_by_side: bool = True
    shared: bool = False
    sigmoid: bool = False
    folds: int = 4
    cross_fit_up_to: int = 600
    seed: int = 0

    @classmethod
    def for_networks(cls, networks: Sequence[int] = (), *, seed: int = 0) -> Self:
        """Return the product's settings for vectors of these networks.

        Args:
            networks: channels of each network whose features lie side by side in a vector.
            seed: of everything drawn at random.
        """
        return cls(networks=tuple(networks), seed=seed)

    def sizes(self, tree: LabelTree) -> dict[str, Any]:
        """Return what a head for such a tree is built with, as plain data."""
        names = ("hidden", "members", "residual", "shared", "sigmoid")
        fits = len(tree) * tree.depth <= SIDE_BY_SIDE_UP_TO
        return {name: getattr(self, name) for name in names} | {
            "side_by_side": self.side_by_side and fits,
            "networks": list(self.networks),
        }

    def schedule(self, labels: int) -> tuple[int, int]:
        """Return the epochs, and the optimiser steps of each, for so many labels."""
        batch = self.batch_of(labels)
        shown = math.ceil(self.least_shown / max(labels, batch))
        return max(self.epochs, shown), math.ceil(labels / batch)

    def batch_of(self, labels: int) -> int:
        """Return the most labels per step when there are so many in all."""
        return self.batch // 2 if labels <= self.cross_fit_up_to else self.batch

    def to_json(self) -> dict[str, Any]:
        """Return plain data for a manifest."""
        return {
            **asdict(self),
            "augmentations": list(self.augmentations),
            "networks": list(self.networks),
        }
