"""Rules that ask the model: how torn it is between leaves, and batches that are not all alike.

B pictures, N nodes, K leaves, c channels.
"""

import numpy as np
from numpy.typing import NDArray

from hierarchy.acquisition.space import Floats, Ints, _drawn
from hierarchy.errors import ShapeError
from hierarchy.tree import LabelTree

Doubles = NDArray[np.float64]


def check_log_p(log_p: Doubles, pictures: int, tree: LabelTree) -> None:
    """Refuse what are no log-probabilities of this tree's nodes.

    Raises:
        ShapeError: not ``(B, N)``, or a number above 0 or NaN.
    """
    if log_p.shape != (pictures, len(tree)):
        raise ShapeError(f"log_p must be ({pictures}, {len(tree)}), got {log_p.shape}")
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
    """How far the best leaf is ahead of the second, ``(B,)`` in [0, 1]; a small one is in doubt.

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
    """Farthest first: again and again the picture farthest from all that are chosen or answered.

    Sener and Savarese, "Active Learning for Convolutional Neural Networks: A Core-Set Approach"
    (ICLR 2018), algorithm 1. On its own it picks outliers; among pictures in doubt it spreads them.

    Args:
        vectors: ``(B, c)``; earlier ones are preferred where distances are equal.
        count: how many to choose.
        taken: ``(T, c)`` of answered pictures; without any the first picture is chosen first.

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


def badge(vectors: Floats, probability: Doubles, count: int, *, seed: int = 0) -> Ints:
    """k-means++ over the gradients that the model's own best guess would give its last layer.

    Ash et al., "Deep Batch Active Learning by Diverse, Uncertain Gradient Lower Bounds" (ICLR
    2020), algorithm 1. The gradient of picture i is the outer product of a_i = p_i - onehot(best
    leaf) and x_i, K x c numbers; it is never formed, since
    ``|g_i - g_j|^2 = |a_i|^2 |x_i|^2 + |a_j|^2 |x_j|^2 - 2 (a_i . a_j) (x_i . x_j)``.

    Args:
        vectors: ``(B, c)``, x above.
        probability: ``(B, K)`` of the leaves, p above.
        count: how many to choose.
        seed: of the draws; the first picture is the one with the largest gradient, as published.

    Returns:
        ``(min(count, B),)`` positions in the order drawn.
    """
    count = min(count, len(vectors))
    if not count:
        return np.zeros(0, dtype=np.int64)
    rng = np.random.default_rng(seed)
    away = probability.astype(np.float32)
    away[np.arange(len(away)), away.argmax(axis=1)] -= 1  # (B, K)
    squared = np.einsum("bk,bk->b", away, away) * np.einsum("bc,bc->b", vectors, vectors)
    far = np.full(len(vectors), np.inf, dtype=np.float32)
    open_ = np.ones(len(vectors), dtype=bool)
    chosen = [int(squared.argmax())]
    for _ in range(count - 1):
        last = chosen[-1]
        open_[last] = False
        cross = (away @ away[last]) * (vectors @ vectors[last])
        np.minimum(far, np.maximum(squared + squared[last] - 2 * cross, 0), out=far)
        far[last] = 0
        pick = _drawn(far, rng)
        if not open_[pick]:  # all that are left coincide with chosen ones
            pick = int(rng.choice(np.flatnonzero(open_)))
        chosen.append(pick)
    return np.array(chosen, dtype=np.int64)
