"""How a head is trained: the settings, each with the measurement behind it."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """Settings of one training run on frozen features.

    docs/decisions/0011 says what they were measured to be worth.

    Attributes:
        reduced: PCA channels kept of the backbone's map.
        width: channels of the 3x3 convolution.
        projection: features a level before its classifier.
        dropout: share of pooled features dropped.
        epochs: passes over the labels.
        least_steps: but at least so many optimiser steps, for projects with few labels.
        batch: labels a step, half of it up to ``cross_fit_up_to`` labels: as good there in half the
            time.
        rate: AdamW's peak learning rate, cosine to 0.
        decay: AdamW's weight decay, on matrices only.
        folds: parts for cross-fitting.
        cross_fit_up_to: with more pictures than this one part is held out instead.
        seed: of everything drawn at random.
    """

    reduced: int = 256
    width: int = 256
    projection: int = 128
    dropout: float = 0.5
    epochs: int = 16
    least_steps: int = 120
    batch: int = 64
    rate: float = 1e-3
    decay: float = 1.0
    folds: int = 4
    cross_fit_up_to: int = 600
    seed: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain data for a manifest."""
        return asdict(self)
