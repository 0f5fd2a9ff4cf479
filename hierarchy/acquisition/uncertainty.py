"""Rules that ask the model: how torn it is between leaves, and batches that are not all alike.

B images, N nodes, K leaves, c channels.
"""

import numpy as np
from numpy.typing import NDArray

from hierarchy.acquisition.embedding import Floats, Ints
from hierarchy.errors import ShapeError
from hierarchy.tree import LabelTree

Doubles = NDArray[np.float64]


def check_log_p(log_p: Doubles, images: int, tree: LabelTree) -> None:
    """Refuse what are no log-probabilities of this tree's nodes.

    Raises:
        ShapeError: not ``(B, N)``, or a number above 0 or NaN.
    """
    if log_p.shape != (images, len(tree)):
        raise ShapeError(f"log_p must be ({images}, {len(tree)}), got {log_p.shape}")
    if not (log_p <= 1e-6).all():  # NaN fails too
        raise ShapeError("log_p must be log-probabilities: numbers of 0 or less, and no NaN")


def leaf_probabilities(log_p: Doubles, tree: LabelTree) -> Doubles:
    """``(B, N)`` log-probabilities of all nodes -> ``(B, K)`` of the leaves, each row adding to 1.

    What the model leaves to inner nodes ("a fruit, of no kind that I know") is shared out, so a
    rule compares leaves with leaves. A row in which no leaf has any chance becomes uniform.
    """
    leaves = log_p[:, list(tree.leaves)]
    top = leaves.max(axis=1, keepdims=True)
    weights = np.where(np.isfinite(top), np.exp(leaves - np.where(np.isfinite(top), top, 0)), 1.0)
    result: Doubles = weights / weights.sum(axis=1, keepdims=True)
    return result


def margin(log_p: Doubles, tree: LabelTree) -> Doubles:
    """Return the best leaf's lead over the second, ``(B,)`` in [0, 1]; a small one is uncertain.

    Scheffer, Decomain, Wrobel, "Active Hidden Markov Models" (2001). In a tree of one leaf there
    is no second, and no doubt: 1.
    """
    leaves = leaf_probabilities(log_p, tree)
    if leaves.shape[1] == 1:
        return np.ones(len(leaves))
    two = np.partition(leaves, -2, axis=1)[:, -2:]
    result: Doubles = two[:, 1] - two[:, 0]
    return result


def entropy(log_p: Doubles, tree: LabelTree) -> Doubles:
    """Entropy of the leaves in nats, ``(B,)``; a large one is in doubt (kept for comparison)."""
    leaves = leaf_probabilities(log_p, tree)
    result: Doubles = -(leaves * np.log(np.maximum(leaves, 1e-300))).sum(axis=1)
    return result


def k_center(vectors: Floats, count: int, *, taken: Floats | None = None) -> Ints:
    """Farthest first: again and again the image farthest from all that are chosen or answered.

    Sener and Savarese, "Active Learning for Convolutional Neural Networks: A Core-Set Approach"
    (ICLR 2018), algorithm 1. On its own it picks outliers; among images in doubt it spreads them.

    Args:
        vectors: ``(B, c)``; earlier ones are preferred where distances are equal.
        count: how many to choose.
        taken: ``(T, c)`` of answered images; without any the first image is chosen first.

    Returns:
        ``(min(count, B),)`` positions in the order chosen.
    """
    count = min(count, len(vectors))
    lengths = np.einsum("bc,bc->b", vectors, vectors)
    far = np.full(len(vectors), np.inf, dtype=np.float32)
    if taken is not None:
        for start in range(0, len(taken), 1024):
            some = taken[start : start + 1024]
            own = np.einsum("tc,tc->t", some, some)
            near = (own - 2 * (vectors @ some.T)).min(axis=1) + lengths
            np.minimum(far, near, out=far)
    chosen = np.zeros(count, dtype=np.int64)
    for number in range(count):
        pick = int(far.argmax())
        chosen[number] = pick
        np.minimum(far, lengths + lengths[pick] - 2 * (vectors @ vectors[pick]), out=far)
        far[chosen[: number + 1]] = -np.inf
    return chosen
