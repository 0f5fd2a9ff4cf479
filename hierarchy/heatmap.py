"""Where a head looked: for each node, or the best node of each level, heat over the feature map.

Heat is in nats of log-odds: how much of ``log P(v) - log(1 - P(v))`` comes from each position.
Letters: B pictures, C channels, H x W the grid, N nodes, K nodes asked about, L levels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hierarchy.errors import ShapeError
from hierarchy.marginals import log_marginals
from hierarchy.tree import LabelTree

#: Beyond any sum of scores: added to a node's score it makes the node certain, or impossible.
_FAR = 1e6


@dataclass(frozen=True, eq=False)
class LevelHeat:
    """The most probable node of each level and where its evidence lies.

    Attributes:
        nodes: ``(B, L)`` node ids, int64.
        log_probability: ``(B, L)`` log P of each, float64, in nats.
        heat: ``(B, L, H, W)`` float32, >= 0, in nats.
    """

    nodes: Tensor
    log_probability: Tensor
    heat: Tensor


def level_heat(head: nn.Module, maps: Tensor, tree: LabelTree) -> LevelHeat:
    """Heat of the most probable node of each level.

    Args:
        head: ``(B, C, H, W)`` maps -> ``(B, N)`` raw scores; in eval mode.
        maps: ``(B, C, H, W)`` feature maps, on the head's device and in its precision.
        tree: the N nodes.

    Raises:
        ShapeError: maps or scores are not of that shape, or the head is in training mode.
    """
    _check(head, maps)
    with torch.no_grad():
        log_probability = log_marginals(head(maps).double(), tree)  # (B, N)
    best = []
    for level in range(tree.depth):
        ids = torch.tensor(tree.level_nodes(level), device=maps.device)
        best.append(ids[log_probability[:, ids].argmax(dim=1)])
    nodes = torch.stack(best, dim=1)  # (B, L)
    return LevelHeat(
        nodes=nodes,
        log_probability=log_probability.gather(1, nodes),
        heat=node_heat(head, maps, nodes, tree),
    )


def node_heat(head: nn.Module, maps: Tensor, nodes: Tensor, tree: LabelTree) -> Tensor:
    """Heat of given nodes, whatever their probability.

    HiRes-CAM (Draelos & Carin 2020, "Use HiResCAM instead of Grad-CAM for faithful explanations of
    convolutional neural networks", section 3): gradient times activation, summed over channels,
    negative sums cut off as in Grad-CAM (Selvaraju et al. 2017, equation 2).

    Args:
        head: see `level_heat`.
        maps: see `level_heat`.
        nodes: ``(B, K)`` int64 node ids.
        tree: the N nodes.

    Returns:
        ``(B, K, H, W)`` in nats of the node's log-odds, >= 0, on the device of ``maps``.

    Raises:
        ShapeError: a shape is not as above, or the head is in training mode.
    """
    _check(head, maps)
    if nodes.ndim != 2 or len(nodes) != len(maps) or nodes.dtype != torch.int64:
        raise ShapeError(
            f"nodes must be ({len(maps)}, K) int64, got {tuple(nodes.shape)} {nodes.dtype}"
        )
    asked = nodes.shape[1]
    # One row a question: a head in eval mode treats rows alone, so one pass answers all of them.
    rows = maps.repeat_interleave(asked, dim=0)  # (B K, C, H, W)
    gradient = _gradient(head, rows, nodes.flatten(), tree)
    heat = (gradient * rows).sum(dim=1).relu()  # (B K, H, W)
    return heat.detach().view(len(maps), asked, *maps.shape[2:])


def log_odds_gradient(scores: Tensor, nodes: Tensor, tree: LabelTree) -> Tensor:
    """What each score does to a node's log-odds: ``P(i | v) - P(i | not v)``.

    It is the gradient of ``log P(v)`` divided by ``1 - P(v)``, so a map of either looks the same;
    but this form is as exact for a node that is certain, where the other vanishes. Both parts come
    from the marginals with v's score pushed far up and far down.

    Args:
        scores: ``(B, N)`` float, raw.
        nodes: ``(B,)`` int64, v of each row.
        tree: the N nodes.

    Returns:
        ``(B, N)`` float64, each in [-1, 1]; 1 for v itself.
    """
    scores = scores.detach().double()
    far = torch.zeros_like(scores).scatter_(1, nodes[:, None], _FAR)
    return log_marginals(scores + far, tree).exp() - log_marginals(scores - far, tree).exp()


def _gradient(head: nn.Module, maps: Tensor, nodes: Tensor, tree: LabelTree) -> Tensor:
    """Gradient of each row's log-odds with respect to its map, ``(B, C, H, W)``."""
    with torch.inference_mode(mode=False), torch.enable_grad():  # whatever the caller does
        inputs = maps.detach().clone().requires_grad_()
        scores = head(inputs)  # (B, N)
        upstream = log_odds_gradient(scores, nodes, tree).to(scores)
        (gradient,) = torch.autograd.grad(scores, inputs, upstream)
    return gradient


def _check(head: nn.Module, maps: Tensor) -> None:
    if maps.ndim != 4 or not maps.is_floating_point():
        raise ShapeError(f"maps must be (B, C, H, W) floats, got {tuple(maps.shape)} {maps.dtype}")
    if head.training:
        raise ShapeError(
            "the head is in training mode, where pictures of a batch change each other's scores: "
            "call head.eval() first"
        )
