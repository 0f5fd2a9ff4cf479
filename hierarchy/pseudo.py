"""Labels that a model gives itself, as deep as it is nearly sure: for learning from open pictures.

B pictures, N nodes.
"""

import math

import numpy as np
from numpy.typing import NDArray

from hierarchy.errors import ShapeError
from hierarchy.tree import LabelTree

#: Probability from which a node counts as known, and what such a label weighs beside an answer's 1.
LEAST, WEIGHT = 0.9, 0.5


def safe_targets(
    log_p: NDArray[np.float64], tree: LabelTree, *, least: float = LEAST
) -> NDArray[np.int64]:
    """Find the deepest node of each picture that the model gives at least so much.

    Pseudo-labels (Lee 2013) with the tree as a way out: where the leaf is open, what lies above it
    may be certain, and the tree loss learns from a label of any depth. Above one half at most one
    node of a level qualifies, and all that do lie on one path.

    Args:
        log_p: ``(B, N)`` log-probabilities of all nodes.
        tree: of the nodes.
        least: above 0.5, at most 1.

    Returns:
        ``(B,)`` node ids, -1 where not even a top is that certain.

    Raises:
        ShapeError: ``log_p`` does not fit the tree, or ``least`` is out of range.
    """
    if log_p.ndim != 2 or log_p.shape[1] != len(tree):
        raise ShapeError(f"log_p must be (B, {len(tree)}), got {log_p.shape}")
    if not 0.5 < least <= 1:
        raise ShapeError(f"least must be above 0.5 and at most 1, got {least}")
    levels = np.array(tree.levels)
    # The hair covers the rounding of a probability that is 1 on paper.
    depth = np.where(log_p >= math.log(least) - 1e-9, levels, -1)  # (B, N)
    deepest = depth.argmax(axis=1)
    sure = depth[np.arange(len(depth)), deepest] >= 0
    return np.where(sure, deepest, -1)
