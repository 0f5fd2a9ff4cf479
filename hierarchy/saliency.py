"""Evidence for a node: the gradient of its log-odds with respect to feature vectors.

Letters: B images, C channels, N nodes, K nodes asked about.
"""

import torch
from torch import Tensor, nn

from hierarchy.errors import ShapeError
from hierarchy.marginals import log_marginals
from hierarchy.tree import LabelTree

#: Beyond any sum of scores: added to a node's score it makes the node certain, or impossible.
_FAR = 1e6


def channel_gradient(head: nn.Module, vectors: Tensor, nodes: Tensor, tree: LabelTree) -> Tensor:
    """Differentiate nodes' log-odds by each channel of the feature vectors.

    A vector is the mean of a map, so this times the map, summed over channels, is HiRes-CAM
    (Draelos & Carin 2020, "Use HiResCAM instead of Grad-CAM for faithful explanations of
    convolutional neural networks", section 3).

    Args:
        head: ``(B, C)`` vectors -> ``(B, N)`` raw scores; in eval mode.
        vectors: ``(B, C)`` float, on the head's device and in its precision.
        nodes: ``(B, K)`` int64 node ids, whatever their probability.
        tree: the N nodes.

    Returns:
        ``(B, K, C)``, in nats of log-odds per unit of the channel.

    Raises:
        ShapeError: a shape is not as above, or the head is in training mode.
    """
    if vectors.ndim != 2 or not vectors.is_floating_point():
        raise ShapeError(
            f"vectors must be (B, C) floats, got {tuple(vectors.shape)} {vectors.dtype}"
        )
    if nodes.ndim != 2 or len(nodes) != len(vectors) or nodes.dtype != torch.int64:
        raise ShapeError(
            f"nodes must be ({len(vectors)}, K) int64, got {tuple(nodes.shape)} {nodes.dtype}"
        )
    if head.training:
        raise ShapeError(
            "the head is in training mode, where images of a batch change each other's scores: "
            "call head.eval() first"
        )
    asked = nodes.shape[1]
    # One row per question: a head in eval mode treats rows alone, so one pass answers all of them.
    with torch.inference_mode(mode=False), torch.enable_grad():  # whatever the caller does
        inputs = vectors.detach().clone().repeat_interleave(asked, dim=0).requires_grad_()
        scores = head(inputs)  # (B K, N)
        upstream = log_odds_gradient(scores, nodes.flatten(), tree).to(scores)
        (gradient,) = torch.autograd.grad(scores, inputs, upstream)
    return gradient.view(len(vectors), asked, vectors.shape[1])


def log_odds_gradient(scores: Tensor, nodes: Tensor, tree: LabelTree) -> Tensor:
    """Differentiate a node's log-odds by each score: ``P(i | v) - P(i | not v)``.

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
