"""A 3x3 convolution over a small grid in a quarter of the multiplications, to answer with.

Winograd's minimal filtering (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks",
CVPR 2016), with the whole grid as its one tile: a side of n positions takes n products a channel
pair where the sliding kernel takes 3 (n - 2). Built from Toom and Cook's product of polynomials:
evaluate at n points, multiply, interpolate; transposed, that is the correlation.

B pictures, c channels in, d out, H x W the grid.
"""

from functools import cache
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

KERNEL: Final = 3
#: Where polynomials are evaluated, beside infinity. Small numbers: their powers are added up in
#: float32, and each point more costs digits. With these a result errs by three times what the
#: sliding kernel does on 7 positions a side, five times on 8.
POINTS: Final = (0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5)
#: Positions a side for which they are enough.
LONGEST_SIDE: Final = len(POINTS) + 1


@cache
def _matrices(side: int) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """``(side, side)`` for the grid, ``(side, 3)`` for the kernel, ``(side - 2, side)`` back."""

    def at_points(coefficients: int) -> NDArray[np.float64]:
        powers = np.vander(POINTS[: side - 1], coefficients, increasing=True)
        return np.vstack([powers, np.eye(coefficients)[-1]])  # at infinity the last one counts

    kernel, back = at_points(KERNEL), at_points(side - KERNEL + 1).T
    grid = np.linalg.inv(at_points(side)).T
    # A point's products may be large and be made small again, which costs digits: even it out.
    scale = np.sqrt(np.abs(grid).sum(axis=1) / np.abs(kernel).sum(axis=1))
    return grid / scale[:, None], kernel * scale[:, None], back


def fits(height: int, width: int) -> bool:
    """Can a grid of this size be taken whole?"""
    return min(height, width) > KERNEL and max(height, width) <= LONGEST_SIDE


class WholeGrid:
    """One 3x3 convolution without padding, its weights transformed for one size of grid."""

    def __init__(self, weight: Tensor, height: int, width: int) -> None:
        """Transform the weights: ``H * W / 9`` times their memory.

        Args:
            weight: ``(d, c, 3, 3)``.
            height: of the grid.
            width: of the grid.

        Raises:
            ValueError: the grid does not fit, see `fits`.
        """
        if not fits(height, width):
            raise ValueError(
                f"a grid of {KERNEL + 1} to {LONGEST_SIDE} positions a side, got {height} x {width}"
            )
        grid, kernel, back = (
            torch.from_numpy(np.kron(tall, wide)).float()
            for tall, wide in zip(_matrices(height), _matrices(width), strict=True)
        )
        self._grid, self._back = grid, back
        taps = weight.detach().float().permute(2, 3, 1, 0).flatten(0, 1)  # (9, c, d)
        self._weight = (kernel @ taps.flatten(1)).view(-1, *taps.shape[1:])  # (H * W, c, d)

    def __call__(self, maps: Tensor) -> Tensor:
        """``(B, c, H, W)`` -> ``((H - 2) * (W - 2), B, d)``, all in float32."""
        places, channels, out = self._weight.shape
        rows = maps.permute(2, 3, 0, 1).reshape(places, -1)
        products = torch.bmm((self._grid @ rows).view(places, -1, channels), self._weight)
        return (self._back @ products.view(places, -1)).view(len(self._back), -1, out)
