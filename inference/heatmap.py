"""Where a version looked: a picture's feature map -> heat for nodes, laid over the picture.

n pictures, C channels, h x w the map's grid, H x W pixels of the picture, N nodes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hierarchy.heatmap import node_heat
from inference.backbone import Preparation
from inference.predictor import Predictor

Floats = NDArray[np.float32]

#: Maps explained at once: each stands in memory once a level, with its gradient.
_BATCH = 8


@dataclass(frozen=True, eq=False)
class HeatMap:
    """What speaks for one node in one picture.

    Attributes:
        path: the node, from the top.
        probability: of the node, corrected as in answers.
        heat: ``(h, w)`` over the feature map, >= 0, nats of the node's log-odds; see `spread`.
    """

    path: tuple[str, ...]
    probability: float
    heat: Floats


@dataclass(frozen=True)
class Box:
    """A part of a picture; each side in shares of the picture's width or height.

    Below 0 or above 1 where the network was shown more than there is (it saw black there).
    """

    left: float
    top: float
    right: float
    bottom: float


def node_heat_maps(
    predictor: Predictor, maps: NDArray[np.float16], paths: Sequence[Sequence[str]]
) -> list[tuple[HeatMap, ...]]:
    """Heat of the given nodes in every picture, however improbable they are there.

    Args:
        predictor: the version.
        maps: ``(n, C, h, w)`` feature maps from the version's backbone.
        paths: the nodes, each from the top.

    Returns:
        For each map one `HeatMap` a path, in order.

    Raises:
        UnknownLabelError: a path is not in the version's tree; names the nearest that is.
    """
    ids = torch.tensor([predictor.tree.index(path) for path in paths], dtype=torch.int64)
    found = []
    for chunk in torch.from_numpy(maps).split(_BATCH):
        inputs = _on_device(chunk, predictor)
        nodes = ids.to(inputs.device).expand(len(inputs), -1)
        heat = node_heat(predictor.head, inputs, nodes, predictor.tree)
        found += _told(predictor, nodes, chunk, heat)
    return found


def seen_part(size: tuple[int, int], preparation: Preparation) -> Box:
    """The part of a picture that the network is shown: the middle, square.

    Agrees with `inference.features.prepare` but for its rounding to whole pixels.

    Args:
        size: the picture's width and height, in any unit.
        preparation: the backbone's.
    """
    width, height = size
    side = min(size) * preparation.crop / preparation.resize
    across, down = side / width / 2, side / height / 2
    return Box(0.5 - across, 0.5 - down, 0.5 + across, 0.5 + down)


def spread(heat: Floats, part: Box, size: tuple[int, int]) -> Floats:
    """Lay heat over a picture: bilinear between the grid's positions, 0 outside the part.

    Args:
        heat: ``(h, w)`` over the grid.
        part: where the grid lies, see `seen_part`.
        size: width W and height H of the result, in pixels; the picture's or a smaller one's.

    Returns:
        ``(H, W)``, in the unit of ``heat``.
    """
    width, height = size
    down = _weights(height, heat.shape[0], part.top, part.bottom)
    across = _weights(width, heat.shape[1], part.left, part.right)
    laid: Floats = (down @ heat @ across.T).astype(np.float32)
    return laid


def _weights(pixels: int, positions: int, start: float, end: float) -> NDArray[np.float64]:
    """How much each position of one axis counts at each pixel, ``(pixels, positions)``."""
    inside = ((np.arange(pixels) + 0.5) / pixels - start) / (end - start)  # 0 to 1 in the part
    place = np.clip(inside * positions - 0.5, 0, positions - 1)
    weights = np.clip(1 - np.abs(place[:, None] - np.arange(positions)), 0, None)
    return np.where(((inside >= 0) & (inside <= 1))[:, None], weights, 0.0)


def _on_device(maps: Tensor, predictor: Predictor) -> Tensor:
    return maps.to(next(predictor.head.parameters()).device).float()


def _told(
    predictor: Predictor, nodes: Tensor, maps: Tensor, heat: Tensor
) -> list[tuple[HeatMap, ...]]:
    """``(b, K)`` nodes of ``(b, C, h, w)`` maps, and their ``(b, K, h, w)`` heat, as values."""
    if not nodes.numel():
        return [()] * len(nodes)
    ids = nodes.cpu().numpy()
    probability = predictor.sure(predictor.log_probabilities(maps.numpy()), ids)
    values = heat.float().cpu().numpy()
    return [
        tuple(
            HeatMap(predictor.tree.paths[node], float(probability[row, k]), values[row, k])
            for k, node in enumerate(asked.tolist())
        )
        for row, asked in enumerate(ids)
    ]
