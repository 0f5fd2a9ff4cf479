"""How a head is trained: the settings, each with the measurement behind it."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from hierarchy import LabelTree
from inference.augmentation import LEARNT_FROM


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
        epochs: passes over the labels.
        least_steps: but at least so many optimiser steps, for projects with few labels.
        batch: labels per step.
        rate: AdamW's peak learning rate, cosine to 0.
        decay: AdamW's weight decay, on matrices only.
        residual: add the coarser levels' features to the finer ones'.
        shared: one block for all levels.
        sigmoid: scores in (0, 1), as published.
        folds: parts for cross-fitting.
        cross_fit_up_to: with more images than this one part is held out instead.
        seed: of everything drawn at random.
    """

    augmentations: tuple[int, ...] = LEARNT_FROM
    members: int = 2
    hidden: int = 192
    networks: tuple[int, ...] = ()
    dropout: float = 0.5
    epochs: int = 16
    least_steps: int = 670
    batch: int = 64
    rate: float = 2e-3
    decay: float = 0.3
    residual: bool = True
    shared: bool = False
    sigmoid: bool = False
    folds: int = 4
    cross_fit_up_to: int = 600
    seed: int = 0

    @classmethod
    def suited(
        cls, labels: int, tree: LabelTree, networks: Sequence[int] = (), *, seed: int = 0
    ) -> Self:
        """Return the settings for so many labels of such a tree.

        Args:
            labels: R.
            tree: of the nodes.
            networks: channels of each network whose features lie side by side in a vector.
            seed: of everything drawn at random.
        """
        del labels, tree
        return cls(networks=tuple(networks), seed=seed)

    def sizes(self) -> dict[str, Any]:
        """Return what a head is built with, as plain data."""
        names = ("hidden", "members", "residual", "shared", "sigmoid")
        return {name: getattr(self, name) for name in names} | {"networks": list(self.networks)}

    def schedule(self, labels: int) -> tuple[int, int]:
        """Return the epochs, and the optimiser steps of each, for so many labels."""
        steps = math.ceil(labels / self.batch_of(labels))
        return max(self.epochs, math.ceil(self.least_steps / steps)), steps

    def batch_of(self, labels: int) -> int:
        """Return the labels per step when there are so many in all."""
        batch = self.batch // 2 if labels <= self.cross_fit_up_to else self.batch
        return min(batch, labels)

    def to_json(self) -> dict[str, Any]:
        """Return plain data for a manifest."""
        return {
            **asdict(self),
            "augmentations": list(self.augmentations),
            "networks": list(self.networks),
        }
