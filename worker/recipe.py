"""How a head is trained: the settings, each with the measurement behind it."""

from dataclasses import asdict, dataclass
from typing import Any, Self

from inference.views import LEARNT_FROM


@dataclass(frozen=True)
class Recipe:
    """Settings of one training run on frozen features.

    docs/decisions/0012 says what they were measured to be worth.

    Attributes:
        views: the ways of looking at a picture that are learnt from (``inference.views``).
        spatial: networks that see the map through a 3x3 convolution.
        reduced: PCA channels kept of the backbone's map for those.
        width: channels of each one's convolution.
        pooled: networks that see the map's mean.
        hidden: width of each one's hidden layer.
        dropout: share of a network's last features dropped.
        epochs: passes over the labels.
        least_steps: but at least so many optimiser steps, for projects with few labels.
        batch: labels a step, half of it up to ``cross_fit_up_to`` labels: as good there in half the
            time.
        rate: AdamW's peak learning rate, cosine to 0.
        decay: AdamW's weight decay, on matrices only.
        pooled_rate: the rate of the pooled networks.
        pooled_decay: their decay.
        folds: parts for cross-fitting.
        cross_fit_up_to: with more pictures than this one part is held out instead.
        seed: of everything drawn at random.
    """

    views: tuple[int, ...] = LEARNT_FROM
    spatial: int = 1
    reduced: int = 256
    width: int = 256
    pooled: int = 2
    hidden: int = 512
    dropout: float = 0.5
    epochs: int = 16
    least_steps: int = 120
    batch: int = 64
    rate: float = 1e-3
    decay: float = 1.0
    pooled_rate: float = 2e-3
    pooled_decay: float = 0.3
    folds: int = 4
    cross_fit_up_to: int = 600
    seed: int = 0

    @classmethod
    def fast(cls) -> Self:
        """For retraining between two answers: seconds, and within 2 points of the default.

        The pooled networks alone. Chosen on validation photos and held-out clusters, three seeds at
        0, 50 and 90 % coarse labels: two of 384 were worth 1.9, 2.1 and 1.6 points on the first and
        0.2, 0.3 and 1.1 on the second over one of 512, for half as much time again. Two of 512 or
        three of 256 took longer or as long and gave no more on the first; two of 256, batches of
        128 and 12 passes lost a point or more at 90 %. Few labels get as many steps as 2,640 do
        in 16 passes: over campaigns of 81 to 1,081 labels 670 were worth 0.8 to 1.0 points more
        than 300 (docs/results-acquisition.md), and the seconds are the same as with many.
        """
        return cls(spatial=0, hidden=384, least_steps=670)

    def sizes(self) -> dict[str, int]:
        """What a head is built with."""
        names = ("spatial", "reduced", "width", "pooled", "hidden")
        return {name: getattr(self, name) for name in names}

    def batch_of(self, labels: int) -> int:
        """Labels a step when there are so many in all."""
        return self.batch // 2 if labels <= self.cross_fit_up_to else self.batch

    def to_json(self) -> dict[str, Any]:
        """Plain data for a manifest."""
        return {**asdict(self), "views": list(self.views)}
