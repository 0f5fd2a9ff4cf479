"""The interface of a baseline: score features, say how wrong the scores are, read them.

Letters: B images, C channels, N nodes.
"""

from abc import ABC, abstractmethod
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from hierarchy.errors import ShapeError
from hierarchy.tree import LabelTree

OutputsT = TypeVar("OutputsT")
"""The outputs of a method for a batch: a tensor, or a frozen dataclass of tensors."""


class Baseline(nn.Module, ABC, Generic[OutputsT]):
    """A hierarchical classifier on top of a backbone, with its own loss and its own read-out.

    Args:
        tree: the N nodes.
        trunk: takes features to ``(B, width)``; without one a baseline reads features itself.
    """

    def __init__(self, tree: LabelTree, trunk: nn.Module | None = None) -> None:
        super().__init__()
        self.tree = tree
        self.trunk = nn.Identity() if trunk is None else trunk

    @abstractmethod
    def forward(self, features: Tensor) -> OutputsT:
        """Score ``(B, C)`` feature vectors, or whatever the baseline's trunk takes."""

    @abstractmethod
    def loss(self, outputs: OutputsT, targets: Tensor) -> Tensor:
        """Return how wrong the outputs are, in nats, as a differentiable scalar.

        Args:
            outputs: what :meth:`forward` gave for B images.
            targets: ``(B,)`` int64 node ids: the deepest node known of each image, on any level.

        Raises:
            ShapeError: the targets are not one node id per image.
        """

    @abstractmethod
    def log_probability(self, outputs: OutputsT) -> Tensor:
        """Return the log of the probability that the method gives each node, ``(B, N)``.

        The method's prediction at a level is the argmax over that level's columns. Columns of
        different levels may contradict each other: that is the method's business.
        """


def check_targets(targets: Tensor, images: int, tree: LabelTree) -> None:
    """Check that the targets are one node id per image.

    Raises:
        ShapeError: if they are not ``(images,)`` int64, there is none, or (on the CPU, where
            looking costs nothing) one is not a node's id.
    """
    if targets.shape != (images,) or targets.dtype != torch.int64 or not images:
        raise ShapeError(
            f"targets must be ({max(images, 1)},) int64 node ids, one per image, "
            f"got {tuple(targets.shape)} {targets.dtype}"
        )
    if targets.device.type == "cpu":
        low, high = (int(bound) for bound in targets.aminmax())
        if low < 0 or high >= len(tree):
            raise ShapeError(
                f"targets must be node ids from 0 to {len(tree) - 1}, got {low} to {high}"
            )


def precise(values: Tensor) -> Tensor:
    """Return half-precision floats as float32 and others unchanged: logs and sums need that."""
    return values if values.dtype in (torch.float32, torch.float64) else values.float()
