"""Likeness of an image to those that were labelled, by its feature vector.

The distance of an image is one minus its cosine with the nearest of a few centres of the labelled
images. It is read against the same distance of labelled images that were held out: the share of
those that are at least as far is the image's likeness, a conformal p-value (Bates et al., "Testing
for outliers with conformal p-values", 2023). Vectors are taken as they are: things that were never
labelled show in channels that labelled images leave near zero, which centring, standardising and
PCA hide (docs/decisions/0024). Letters: P labelled images, m held-out ones, n images, K centres,
C channels.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hierarchy.depth_selection import Floats, Ints

Vectors = NDArray[np.floating]

#: Centres of the labelled images: more of them tell no better what is unlike.
CENTRES: Final = 64

#: Images less like the labelled ones than all but this share are counted as unlike.
USUAL: Final = 0.05

#: Chance of an alarm where open images are like the labelled ones.
FALSE_ALARM: Final = 0.01

#: A share of unlike images this many times the usual one is worth an alarm.
WORTH_TELLING: Final = 2.0

#: With fewer open images than this nothing is told of a node.
LEAST_OPEN: Final = 20


@dataclass(frozen=True, eq=False)
class Familiarity:
    """Centres of labelled images, and the distances of held-out ones from them.

    Attributes:
        centres: ``(K, C)`` float32, of length 1.
        distances: ``(m,)`` float32, ascending, of labelled images from centres fitted without them.
    """

    centres: NDArray[np.float32]
    distances: NDArray[np.float32]

    def distance(self, vectors: Vectors) -> NDArray[np.float32]:
        """Return the distance, ``(n,)`` in [0, 2], of ``(n, C)`` feature vectors."""
        return _distance(_unit(vectors), self.centres)

    def likeness(self, vectors: Vectors) -> Floats:
        """Return ``(n,)`` shares of labelled images at least as far as ``(n, C)`` new ones.

        A new image counts itself, so that the least share of m held-out images is 1 / (m + 1).

        Example:
            >>> east_and_north = np.eye(2, dtype=np.float32)
            >>> known = Familiarity(east_and_north, np.array([0.1, 0.2, 0.3], dtype=np.float32))
            >>> known.likeness(np.array([[3.0, 0.0], [1.0, 1.0], [-1.0, 0.0]]))
            array([1.  , 0.5 , 0.25])
        """
        nearer = np.searchsorted(self.distances, self.distance(vectors), side="left")
        result: Floats = (len(self.distances) - nearer + 1) / (len(self.distances) + 1)
        return result


def fit_familiarity(vectors: Vectors, parts: Ints, *, seed: int = 0) -> tuple[Familiarity, Floats]:
    """Fit the centres of labelled images, and judge each held-out part by those of the others.

    Args:
        vectors: ``(P, C)`` of the labelled images, P > 0.
        parts: ``(P,)`` the part that each is held out with, -1 for none.
        seed: of the search for centres.

    Returns:
        What is known, and the likeness, ``(P,)``, of each held-out image among all of them; NaN for
        those of no part, or where nothing would be left without it.
    """
    unit = _unit(vectors)
    distance = np.full(len(unit), np.nan)
    for part in np.unique(parts[parts >= 0]).tolist():
        held = parts == part
        if not held.all():
            distance[held] = _distance(unit[held], _centres(unit[~held], seed))
    known = np.sort(distance[~np.isnan(distance)])
    nearer = np.searchsorted(known, distance, side="left")
    likeness = np.where(np.isnan(distance), np.nan, (len(known) - nearer) / max(1, len(known)))
    return Familiarity(_centres(unit, seed), known.astype(np.float32)), likeness


def _unit(vectors: Vectors) -> NDArray[np.float32]:
    vectors = vectors.astype(np.float32)
    result: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(
        1e-6
    )
    return result


def _distance(unit: NDArray[np.float32], centres: NDArray[np.float32]) -> NDArray[np.float32]:
    result: NDArray[np.float32] = 1 - (unit @ centres.T).max(axis=1)
    return result


def _centres(unit: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    """Return at most ``CENTRES`` of k-means, and at most one per two images, of length 1."""
    from sklearn.cluster import KMeans  # a second, which a server that only answers need not spend

    distinct = np.unique(unit.round(6), axis=0)  # k-means warns when asked for more than there are
    count = min(CENTRES, (len(distinct) + 1) // 2)
    found = KMeans(count, init="random", n_init=1, max_iter=10, random_state=seed).fit(distinct)
    return _unit(found.cluster_centers_)


def more_than_usual(unlike: int, among: int, held_out: int, *, chance: float = FALSE_ALARM) -> bool:
    """Tell whether more images are unlike the labelled ones than chance explains.

    The number of unlike ones among n images like the m held-out ones is beta-binomial, since what
    counts as unlike is a quantile of m images itself (Wilks, 1942).

    Args:
        unlike: images whose likeness is below ``USUAL``.
        among: so many, n.
        held_out: labelled images that tell what is usual, m.
        chance: of an alarm where all is as usual.
    """
    below = int(np.ceil(USUAL * (held_out + 1))) - 1  # likenesses below USUAL that m images allow
    if among < LEAST_OPEN or below < 1 or unlike < WORTH_TELLING * USUAL * among:
        return False
    from scipy.stats import betabinom  # see `_centres`

    return bool(betabinom.sf(unlike - 1, among, below, held_out + 1 - below) <= chance)
