"""How a backbone is trained along with its head: the settings, as published or for fewer epochs."""

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Self

from inference.precision import has_bf16

Optimiser = Literal["sgd", "adamw"]
Precision = Literal["bf16", "f32"]


@dataclass(frozen=True)
class TuneRecipe:
    """Settings of a fine-tuning. The defaults are the published code's where it has them.

    Attributes:
        hidden: width of the head's block of one level.
        dropout: share of a block's features dropped.
        delta: where the score biases start, see `hierarchy.heads.HRNHead`.
        optimiser: ``sgd`` as published, its rate falling by a cosine once an epoch; or ``adamw``,
            by a cosine each step.
        epochs: passes over the labels.
        least_steps: but at least so many optimiser steps, for projects with few labels.
        batch: labels a step; 8 in the published code at 448 px.
        at_once: labels on the device at once; a larger batch is done in parts whose gradients are
            added up.
        rate: peak learning rate of the new layers.
        backbone_share: of that rate which the backbone gets.
        momentum: of SGD.
        decay: weight decay; on everything with SGD, as published, on matrices only with AdamW.
        warm_up: share of all steps in which the rate rises from 0.
        average: decay of a running average of the weights that is used in the end; 0 for none.
        frozen_statistics: the backbone's batch norms keep the statistics they came with, for
            batches too small to have good ones.
        precision: ``bf16`` computes in bfloat16 where autocast allows; weights stay float32.
        folds: one of so many parts is held out for calibration and never trained on.
        seed: of everything drawn at random.

    Raises:
        ValueError: a setting is out of range.
    """

    hidden: int = 512
    dropout: float = 0.0
    delta: float = 3.0
    optimiser: Optimiser = "sgd"
    epochs: int = 30
    least_steps: int = 0
    batch: int = 32
    at_once: int = 64
    rate: float = 0.002
    backbone_share: float = 0.1
    momentum: float = 0.9
    decay: float = 5e-4
    warm_up: float = 0.0
    average: float = 0.0
    frozen_statistics: bool = False
    precision: Precision = "bf16"
    folds: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch - 1) < 1:
            raise ValueError(
                f"one epoch and a batch of 2 at least, got {self.epochs}, {self.batch}"
            )
        if self.at_once < 3:  # so that no part of a batch has one row only
            raise ValueError(f"batch norm needs parts of 2: at_once from 3, got {self.at_once}")
        if not (0 <= self.warm_up < 1 and 0 <= self.average < 1):
            raise ValueError(
                f"warm_up and average from 0 to below 1, got {self.warm_up}, {self.average}"
            )

    @classmethod
    def adamw(cls) -> Self:
        """Return settings that reach far in few epochs, which EfficientNets do badly by SGD."""
        return cls(
            optimiser="adamw",
            rate=1e-3,
            decay=0.05,
            warm_up=0.1,
            average=0.998,
            least_steps=400,
            batch=64,
        )

    @classmethod
    def for_device(cls, device: str) -> Self:
        """Return AdamW's on a GPU; on a CPU narrower blocks and few epochs."""
        precision: Precision = "bf16" if has_bf16(device) else "f32"
        if device == "cuda":
            return replace(cls.adamw(), precision=precision)
        return cls(hidden=256, epochs=5, batch=16, precision=precision)

    def sizes(self) -> dict[str, Any]:
        """Return what a head is built with; one member, as many backbones would be too many."""
        return {"hidden": self.hidden, "members": 1}

    def to_json(self) -> dict[str, Any]:
        """Return plain data for a manifest."""
        return {"kind": "fine-tune", **asdict(self)}
