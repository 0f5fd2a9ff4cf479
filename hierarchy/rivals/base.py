"""What every rival can be asked: to score feature maps, to learn from them, and to be read.

Letters: B pictures, C channels of the backbone's last map, H x W its grid, N nodes.
"""

from abc import ABC, abstractmethod
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from hierarchy.errors import ShapeError
from hierarchy.tree import LabelTree

OutputsT = TypeVar("OutputsT")
"""What a method computes of a batch: a tensor, or a frozen dataclass of tensors."""


class Rival(nn.Module, ABC, Generic[OutputsT]):
    """A hierarchical classifier on top of a backbone, with its own loss and its own read-out.

    Attributes:
        tree: the label tree it was built for.
    """

    tree: LabelTree

    def __init__(self, tree: LabelTree) -> None:
        super().__init__()
        self.tree = tree

    @abstractmethod
    def forward(self, maps: Tensor) -> OutputsT:
        """Score ``(B, C, H, W)`` feature maps."""

    @abstractmethod
    def loss(self, outputs: OutputsT, targets: Tensor) -> Tensor:
        """Say how wrong the outputs are, in nats, as a differentiable scalar.

        Args:
            outputs: what :meth:`forward` gave for B pictures.
            targets: ``(B,)`` int64 node ids, of each picture the deepest node known, any level.
        """

    @abstractmethod
    def log_probability(self, outputs: OutputsT) -> Tensor:
        """Log of what the method says of each node, ``(B, N)``, column i for node i.

        The method's prediction at a level is the argmax over that level's columns. Columns need
        not agree with each other across levels: that is the method's business.
        """


def check_maps(maps: Tensor, channels: int) -> None:
    """See that feature maps are what a method was built for.

    Raises:
        ShapeError: if they are not ``(B, channels, H, W)``.
    """
    if maps.ndim != 4 or maps.shape[1] != channels:
        raise ShapeError(f"maps must be (B, {channels}, H, W), got {tuple(maps.shape)}")


def check_targets(targets: Tensor, batch: int, tree: LabelTree) -> None:
    """See that targets are one node id a picture.

    Raises:
        ShapeError: if they are not ``(batch,)`` int64, there is none, or (on the CPU, where looking
            costs nothing) one is not a node's id.
    """
    if targets.shape != (batch,) or targets.dtype != torch.int64:
        raise ShapeError(
            f"targets must be ({batch},) int64 node ids, got {tuple(targets.shape)} {targets.dtype}"
        )
    if not batch:
        raise ShapeError("a batch needs at least one picture, got none")
    if targets.device.type == "cpu":
        low, high = (int(bound) for bound in targets.aminmax())
        if low < 0 or high >= len(tree):
            raise ShapeError(
                f"targets must be node ids from 0 to {len(tree) - 1}, got {low} to {high}"
            )


def precise(values: Tensor) -> Tensor:
    """Half-precision floats as float32, others as they are: what sums and logs are taken of."""
    return values if values.dtype in (torch.float32, torch.float64) else values.float()
