"""Rules that look at features alone: the typical image of each part of the pool.

B images open, T answered, c channels, k clusters.
"""

import heapq

import numpy as np
from numpy.typing import NDArray

from hierarchy.acquisition.embedding import Floats, Ints, cluster

#: Most clusters: beyond these they hold too few images for a density (Hacohen et al. 2022, 3.2).
MOST_CLUSTERS = 500

#: Neighbours that an image's density is measured by (the same, appendix F).
NEIGHBOURS = 20

#: Members of a cluster that densities are measured against; of more, so many at random.
REFERENCES = 1000


def typical(
    vectors: Floats,
    count: int,
    *,
    taken: Floats | None = None,
    belongs: Ints | None = None,
    seed: int = 0,
) -> Ints:
    """TypiClust: the densest image of each cluster, clusters without an answer first.

    Hacohen, Dekel, Weinshall, "Active Learning on a Budget" (ICML 2022), algorithm 1: as many
    clusters as there are answers and images to choose, the one with the fewest answers next, the
    largest of those, and of it the image with the smallest mean distance to its neighbours in
    the cluster.

    Args:
        vectors: ``(B, c)`` unit vectors of the open images.
        count: how many to choose.
        taken: ``(T, c)`` those of answered images.
        belongs: ``(B + T,)`` the cluster of each, open ones first; found if not given.
        seed: of the clusters.

    Returns:
        ``(min(count, B),)`` positions, the most useful first.
    """
    answered = vectors[:0] if taken is None else taken
    both = np.concatenate([vectors, answered])
    count = min(count, len(vectors))
    if belongs is None:
        belongs, _ = cluster(both, min(len(answered) + count, MOST_CLUSTERS), seed=seed)
    rng = np.random.default_rng(seed)
    members = _members(belongs)
    waiting: list[tuple[int, int, int]] = []  # answers, minus size, cluster
    for number, group in enumerate(members):
        answers = int((group >= len(vectors)).sum())
        if answers < len(group):
            waiting.append((answers, -len(group), number))
    heapq.heapify(waiting)
    queues: dict[int, list[int]] = {}
    chosen: list[int] = []
    while len(chosen) < count:
        answers, size, number = heapq.heappop(waiting)
        if number not in queues:
            group = members[number]
            dense = group[np.argsort(mean_distance(both[group], rng), kind="stable")]
            queues[number] = dense[dense < len(vectors)][::-1].tolist()
        chosen.append(queues[number].pop())
        if queues[number]:
            heapq.heappush(waiting, (answers + 1, size, number))
    return np.array(chosen, dtype=np.int64)


def _members(belongs: Ints) -> list[Ints]:
    """Positions by cluster; no entry for an empty one."""
    order = np.argsort(belongs, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(belongs[order])) + 1) if len(order) else []


def mean_distance(vectors: Floats, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return each vector's mean distance to at most ``NEIGHBOURS`` nearest others, ``(n,)``."""
    others = np.arange(len(vectors))
    if len(others) > REFERENCES:
        others = np.sort(rng.choice(others, REFERENCES, replace=False))
    lengths = np.einsum("bc,bc->b", vectors, vectors)
    found = np.zeros(len(vectors), dtype=np.float32)
    for start in range(0, len(vectors), REFERENCES):
        rows = slice(start, min(start + REFERENCES, len(vectors)))
        squared = lengths[rows, None] + lengths[others] - 2 * (vectors[rows] @ vectors[others].T)
        squared[np.arange(start, rows.stop)[:, None] == others] = np.inf  # not to itself
        near = min(NEIGHBOURS, len(vectors) - 1, len(others) - 1)
        if near:
            nearest = np.partition(squared, near - 1, axis=1)[:, :near]
            found[rows] = np.sqrt(np.maximum(nearest, 0)).mean(axis=1)
    return found
