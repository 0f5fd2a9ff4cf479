"""Embedding of images: standardised features, fewer channels, clusters, near-duplicates.

B images, T of them answered, C channels before and c after the projection, k clusters.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hierarchy.errors import ShapeError

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

#: Channels kept. On photos of groceries 128 of 1280 hold 70 % of the squared length, and a start of
#: 81 typical photos covers 63.0 of 81 classes with them, 59.8 with all (five seeds): what is left
#: out is mostly noise, and everything below takes a tenth of the time.
KEPT = 128

#: Images that the projection is fitted to, at random if there are more.
SAMPLE = 4096

#: Rows worked on at once: 4096 x 500 distances are 8 MB.
CHUNK = 4096

#: Lloyd's steps at most; it ends sooner when no image changes sides.
STEPS = 15


@dataclass(frozen=True, eq=False)
class Space:
    """The way from features to unit vectors whose inner product is a likeness.

    Channels of a pooled map differ in scale by orders of magnitude, so each is standardised; the
    cosine of standardised features is what all rules measured best with. The projection keeps the
    directions with the largest sum of squared inner products (PCA without centring), so cosines
    survive it.

    Attributes:
        centre: ``(C,)`` mean of each channel.
        spread: ``(C,)`` its standard deviation, above 0.
        basis: ``(C, c)`` orthonormal columns.
    """

    centre: Floats
    spread: Floats
    basis: Floats

    @classmethod
    def of(cls, features: Floats, *, kept: int = KEPT, seed: int = 0) -> "Space":
        """Fit to ``(B, C)`` features.

        Raises:
            ShapeError: features are not two-dimensional, empty, or not finite.
        """
        check_features(features)
        if not len(features):
            raise ShapeError("a space needs at least one image to be fitted to, got none")
        sample = features
        if len(features) > SAMPLE:
            rng = np.random.default_rng(seed)
            sample = features[np.sort(rng.choice(len(features), SAMPLE, replace=False))]
        centre = sample.mean(axis=0, dtype=np.float64)
        deviation = sample.std(axis=0, dtype=np.float64)
        # A channel that never moves stays at zero, and no noise of it is blown up.
        spread = deviation + 1e-3 * max(float(deviation.mean()), 1e-6)
        centre32, spread32 = centre.astype(np.float32), spread.astype(np.float32)
        unit = _unit((sample - centre32) / spread32)
        return cls(centre32, spread32, _basis(unit, min(kept, features.shape[1])))

    def vectors(self, features: Floats) -> Floats:
        """``(B, C)`` features -> ``(B, c)`` unit vectors; zeros for an image at the centre."""
        found = np.empty((len(features), self.basis.shape[1]), dtype=np.float32)
        for rows in chunks(len(features)):
            found[rows] = ((features[rows] - self.centre) / self.spread) @ self.basis
        return _unit(found)


def check_features(features: Floats) -> None:
    """Refuse what no distance can be taken of.

    Raises:
        ShapeError: not ``(B, C)``, or a number that is not finite; the message names the image.
    """
    if features.ndim != 2 or not features.shape[1]:
        raise ShapeError(f"features must be (B, C) with C of at least 1, got {features.shape}")
    for rows in chunks(len(features)):
        bad = ~np.isfinite(features[rows]).all(axis=1)
        if bad.any():
            raise ShapeError(
                f"features of image {rows.start + int(bad.argmax())} are not finite numbers: "
                "leave it out, or extract it again"
            )


def chunks(length: int) -> Iterator[slice]:
    """Slices that cover so many rows, in order."""
    return (slice(start, min(start + CHUNK, length)) for start in range(0, length, CHUNK))


def _unit(vectors: Floats) -> Floats:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    result: Floats = vectors / np.maximum(length, 1e-12).astype(np.float32)
    return result


def _basis(unit: Floats, kept: int) -> Floats:
    """``(n, C)`` unit vectors -> ``(C, kept)`` leading directions of their second moment."""
    if kept == unit.shape[1]:
        return np.eye(kept, dtype=np.float32)
    from scipy.linalg import eigh  # what a server that only answers need not load

    channels = unit.shape[1]
    # NumPy computes all of them, in three times as long.
    _, directions = eigh(unit.T @ unit, subset_by_index=(channels - kept, channels - 1))
    result: Floats = np.ascontiguousarray(directions[:, ::-1])
    return result


def cluster(vectors: Floats, count: int, *, seed: int = 0) -> tuple[Ints, Floats]:
    """k-means by Lloyd's steps from a k-means++ start (Arthur and Vassilvitskii 2007).

    Args:
        vectors: ``(B, c)``.
        count: clusters; no more than there are images.
        seed: of the start.

    Returns:
        ``(B,)`` the cluster of each, and ``(k, c)`` centres. A cluster may be empty where vectors
        coincide.
    """
    count = min(count, len(vectors))
    if not count:
        return np.zeros(len(vectors), dtype=np.int64), vectors[:0]
    centres = vectors[_plus_plus(vectors, count, np.random.default_rng(seed))]
    belongs = np.full(len(vectors), -1)
    for _ in range(STEPS):
        nearest = _nearest(vectors, centres)
        if (nearest == belongs).all():
            break
        belongs = nearest
        centres = _means(vectors, belongs, centres)
    return belongs, centres


def _plus_plus(vectors: Floats, count: int, rng: np.random.Generator) -> Ints:
    """Positions drawn one after another by squared distance to the nearest drawn before."""
    lengths = np.einsum("bc,bc->b", vectors, vectors)
    chosen = [int(rng.integers(len(vectors)))]
    far = np.full(len(vectors), np.inf, dtype=np.float32)
    for _ in range(count - 1):
        last = vectors[chosen[-1]]
        np.minimum(far, lengths + lengths[chosen[-1]] - 2 * (vectors @ last), out=far)
        np.maximum(far, 0, out=far)
        far[chosen[-1]] = 0
        chosen.append(_drawn(far, rng))
    return np.array(chosen, dtype=np.int64)


def _drawn(weights: Floats, rng: np.random.Generator) -> int:
    """A position by weight; any position if none weighs anything."""
    total = np.cumsum(weights, dtype=np.float64)
    if not total[-1] > 0:
        return int(rng.integers(len(weights)))
    return int(min(np.searchsorted(total, rng.random() * total[-1], "right"), len(weights) - 1))


def _nearest(vectors: Floats, centres: Floats) -> Ints:
    half = np.einsum("kc,kc->k", centres, centres) / 2
    found = np.empty(len(vectors), dtype=np.int64)
    for rows in chunks(len(vectors)):
        found[rows] = (vectors[rows] @ centres.T - half).argmax(axis=1)
    return found


def _means(vectors: Floats, belongs: Ints, centres: Floats) -> Floats:
    """Each cluster's mean; an empty one stays where it is."""
    order = np.argsort(belongs, kind="stable")
    filled, starts, sizes = np.unique(belongs[order], return_index=True, return_counts=True)
    found = centres.copy()
    found[filled] = np.add.reduceat(vectors[order], starts, axis=0) / sizes[:, None]
    return found


def twin_ranks(vectors: Floats, belongs: Ints, order: Ints, taken: int, *, alike: float) -> Ints:
    """Count each image's near-duplicates that come before it; answered images come first.

    Images are compared within their cluster only: near-duplicates share it but for those that
    straddle a border. The first image of a group that comes speaks for all that are like it.

    Args:
        vectors: ``(B + T, c)`` unit vectors, those of the T answered images last.
        belongs: ``(B + T,)`` the cluster of each.
        order: ``(B,)`` positions of the open images, the one to be preferred first.
        taken: T.
        alike: the cosine from which two images count as the same.

    Returns:
        ``(B,)`` ranks: 0 for an image that is unlike all before it.
    """
    count = len(vectors) - taken
    place = np.full(len(vectors), -1)  # answered images before all others
    place[order] = np.arange(count)
    ranks = np.zeros(count, dtype=np.int64)
    by_cluster = np.lexsort((place, belongs))
    borders = np.flatnonzero(np.diff(belongs[by_cluster])) + 1
    for members in np.split(by_cluster, borders):
        _rank_group(vectors[members], members, ranks, alike)
    return ranks


def _rank_group(vectors: Floats, members: Ints, ranks: Ints, alike: float) -> None:
    """Fill in the ranks of one cluster's open images; ``members`` come in order."""
    waiting = np.arange(len(members))
    while len(waiting):
        like = vectors[waiting] @ vectors[waiting[0]] >= alike
        like[0] = True
        group = members[waiting[like]]
        is_open = group < len(ranks)
        ranks[group[is_open]] = np.arange(len(group))[is_open]
        waiting = waiting[~like]
