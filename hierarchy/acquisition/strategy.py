"""The order in which a project's open images are asked about: variety, then doubt, and chance.

B images open, T answered, N nodes, C channels, c of them kept.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hierarchy.acquisition.diversity import MOST_CLUSTERS, typical
from hierarchy.acquisition.embedding import Floats, Ints, Space, check_features, cluster, twin_ranks
from hierarchy.acquisition.uncertainty import check_log_p, k_center, margin
from hierarchy.errors import ShapeError
from hierarchy.tree import LabelTree

Doubles = NDArray[np.float64]
Reason: TypeAlias = Literal["varied", "uncertain", "random"]

#: Answers a leaf of the tree up to which, and from which on, variety has all and none of a batch.
VARIED_UP_TO, VARIED_UNTIL = 1.0, 7.0

#: Images in doubt that farthest-first may choose from, for each that it chooses.
CHOICE = 4

#: Cosine in `Space` from which two images count as the same. On photos of groceries 74 of 3.5
#: million pairs are above it, all of one class and to the eye one shelf, a step aside; at 0.93 the
#: first different shelves come in.
ALIKE = 0.97


@dataclass(frozen=True, eq=False)
class Asked:
    """The order of a pool.

    Attributes:
        order: ``(B,)`` all positions of the pool, most useful first.
        reasons: of the first ``count`` (or all, if there are fewer) why each was chosen.
        margin: ``(B,)`` by position, best leaf's lead over the second in [0, 1]; None without a
            model.
    """

    order: Ints
    reasons: tuple[Reason, ...]
    margin: Doubles | None


def varied_share(labels: int, leaves: int) -> float:
    """The share of a batch that goes to variety, falling in a straight line from 1 to 0.

    All of it up to one answer a leaf, none from seven on: with 81 leaves and batches of 100 that
    is 100, 80, 60, 40, 20 and 0 %, the schedule that was measured; by answers a leaf it fits any
    tree.

    Example:
        >>> [round(varied_share(labels, 81), 2) for labels in (81, 181, 281, 381, 481, 581)]
        [1.0, 0.79, 0.59, 0.38, 0.18, 0.0]
    """
    each = labels / max(1, leaves)
    return float(np.clip((VARIED_UNTIL - each) / (VARIED_UNTIL - VARIED_UP_TO), 0.0, 1.0))


def ask(  # noqa: PLR0913 - a pool, what is known of it, and what is wanted
    features: Floats,
    log_p: Doubles | None,
    tree: LabelTree,
    *,
    taken: Floats,
    count: int,
    labels: int,
    seed: int,
    random_share: float = 0.05,
) -> Asked:
    """Order a pool by what an answer would teach.

    Without a model: TypiClust, the typical image of each part of the pool that has no answer
    yet. With one, each batch is a mix: a share of TypiClust that falls as answers come
    (`varied_share`), a small share drawn at random, so that how well the model does can be
    measured on images that it did not choose, and for the rest images in doubt that differ
    from each other and from all answered ones. The kinds are spread evenly over the batch, so any
    part of it is a mix. Behind the batch the others follow by margin.

    A near-duplicate of an answered or earlier image comes after all images that are none; one
    that was drawn at random keeps its place.

    Args:
        features: ``(B, C)`` pooled features of the images without an answer; one that was
            answered, however coarsely, is not to be in here.
        log_p: ``(B, N)`` what the model says of them; None before there is one.
        tree: of the nodes.
        taken: ``(T, C)`` features of the images that have an answer.
        count: images in the batch.
        labels: answers that there are; decides how much goes to variety.
        seed: equal seeds and inputs give equal orders.
        random_share: of the batch, in [0, 1]; where it is no whole number of images, chance
            decides which of the two next to it, so it holds over many batches.

    Raises:
        ShapeError: a shape or number is not as above.
    """
    _check(features, log_p, tree, taken, count, labels, random_share)
    pool = len(features)
    doubt = None if log_p is None else margin(log_p, tree)
    if not pool:
        return Asked(np.zeros(0, dtype=np.int64), (), doubt)
    rng = np.random.default_rng(seed)
    both = np.concatenate([features, taken])
    vectors = Space.of(both, seed=seed).vectors(both)
    count = min(count, pool)
    clusters = min(len(taken) + max(count, 1), MOST_CLUSTERS)
    belongs, _ = cluster(vectors, clusters, seed=seed)
    if doubt is None:
        usual = typical(vectors[:pool], pool, taken=vectors[pool:], belongs=belongs, seed=seed)
    else:
        usual = np.argsort(doubt, kind="stable")
    ranks = twin_ranks(vectors, belongs, usual, len(taken), alike=ALIKE)
    usual = usual[np.argsort(ranks[usual], kind="stable")]
    if doubt is None:
        varied: Reason = "varied"
        return Asked(usual, (varied,) * count, None)
    batch = _Batch(vectors, belongs, len(taken), usual[: int((ranks == 0).sum())], rng, seed)
    share = varied_share(labels, len(tree.leaves))
    batch.mix(min(count, len(batch.fresh)), share, random_share)
    chosen, reasons = batch.spread()
    rest = usual[~np.isin(usual, chosen)]
    doubtful: Reason = "uncertain"  # beyond the batch only near-duplicates were left
    more = (doubtful,) * (count - len(chosen))
    return Asked(np.concatenate([chosen, rest]), reasons + more, doubt)


def _check(  # noqa: PLR0913 - what `ask` is given
    features: Floats,
    log_p: Doubles | None,
    tree: LabelTree,
    taken: Floats,
    count: int,
    labels: int,
    random_share: float,
) -> None:
    check_features(features)
    check_features(taken)
    if features.shape[1] != taken.shape[1]:
        raise ShapeError(
            f"taken must have {features.shape[1]} channels as features do, got {taken.shape[1]}"
        )
    if log_p is not None:
        check_log_p(log_p, len(features), tree)
    if count < 0 or labels < 0 or not 0 <= random_share <= 1:
        raise ShapeError(
            "count and labels must be 0 or more and random_share in [0, 1], "
            f"got {count}, {labels}, {random_share}"
        )


class _Batch:
    """A batch as it is filled: what is chosen so far, with reasons."""

    def __init__(  # noqa: PLR0913 - what `ask` has worked out
        self,
        vectors: Floats,
        belongs: Ints,
        taken: int,
        fresh: Ints,
        rng: np.random.Generator,
        seed: int,
    ) -> None:
        self.fresh = fresh  # positions that are no near-duplicates, the one most in doubt first
        self._vectors = vectors
        self._belongs = belongs
        self._pool = len(vectors) - taken
        self._rng = rng
        self._seed = seed
        self._kinds: dict[Reason, Ints] = {}

    def mix(self, count: int, varied: float, random: float) -> None:
        """Choose at random first, as nothing may sway that; then typical ones, then doubtful."""
        by_chance = min(count, int(random * count + self._rng.random()))
        # Out of all that are open, near-duplicates too: they are images that get a pre-label.
        self._kinds["random"] = self._rng.choice(self._pool, by_chance, replace=False)
        by_variety = round(varied * (count - by_chance))
        self._kinds["varied"] = self._typical(by_variety)
        in_doubt = count - by_chance - by_variety
        self._kinds["uncertain"] = self._doubtful(in_doubt)

    def spread(self) -> tuple[Ints, tuple[Reason, ...]]:
        """All that was chosen, each kind evenly over the whole."""
        found = [
            ((place + 0.5) / len(chosen), kind, int(position))
            for kind, chosen in self._kinds.items()
            for place, position in enumerate(chosen)
        ]
        found.sort(key=lambda one: one[0])
        order = np.array([position for _, _, position in found], dtype=np.int64)
        return order, tuple(kind for _, kind, _ in found)

    def _open(self) -> Ints:
        """Fresh positions not chosen yet, the one most in doubt first."""
        return self.fresh[~np.isin(self.fresh, self._chosen())]

    def _chosen(self) -> Ints:
        return np.concatenate([np.zeros(0, dtype=np.int64), *self._kinds.values()])

    def _answered(self) -> Ints:
        """Positions of what is answered, or will be once what is chosen so far is."""
        return np.concatenate([np.arange(self._pool, len(self._vectors)), self._chosen()])

    def _typical(self, count: int) -> Ints:
        if not count:
            return np.zeros(0, dtype=np.int64)
        open_, answered = self._open(), self._answered()
        places = np.concatenate([open_, answered])
        found = typical(
            self._vectors[open_],
            count,
            taken=self._vectors[answered],
            belongs=self._belongs[places],
            seed=self._seed,
        )
        return open_[found]

    def _doubtful(self, count: int) -> Ints:
        open_ = self._open()[: CHOICE * count]
        return open_[k_center(self._vectors[open_], count, taken=self._vectors[self._answered()])]
