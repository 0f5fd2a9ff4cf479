"""Which images are held out together, so that a score on them holds for new images."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans


def assign_folds(  # noqa: PLR0913 - what is split, how, and how it was split before
    features: NDArray[np.float32],
    target: NDArray[np.int64],
    groups: Sequence[str | None],
    *,
    folds: int,
    seed: int,
    before: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """Assign each image to a fold: whole groups, else clusters of look-alikes within a label.

    Random folds put near-duplicates on both sides: on Grocery they promised 97 % where other
    stores' photos gave 72 %. Clusters within a label are about as far from the rest as those
    photos are (nearest-neighbour cosine 0.56 against 0.55; random folds 0.73).

    Args:
        features: ``(P, C)`` pooled features.
        target: ``(P,)`` a label of each image.
        groups: what may not be parted (a session, a camera trap), or None for "find out".
        folds: how many, at least 2.
        seed: for the clustering.
        before: ``(P,)`` folds in the version before, -1 for an image that had none. The search for
            clusters starts from these, and a cluster keeps its fold, so that a few new labels leave
            most images where they were.

    Returns:
        ``(P,)`` fold numbers in ``[0, folds)``.
    """
    unit = features / np.linalg.norm(features, axis=1, keepdims=True).clip(1e-6)
    known = np.full(len(target), -1) if before is None else np.where(before < folds, before, -1)
    result = np.full(len(target), -1, dtype=np.int64)
    sizes = np.bincount(known[known >= 0], minlength=folds)

    def place(members: NDArray[np.int64], fold: int) -> None:
        result[members] = fold
        sizes[fold] += (known[members] < 0).sum()

    named = np.array([group is not None for group in groups], dtype=bool)
    for group in dict.fromkeys(group for group in groups if group is not None):
        members = np.flatnonzero([one == group for one in groups])
        taken = known[members][known[members] >= 0]
        place(members, int(np.bincount(taken).argmax() if len(taken) else sizes.argmin()))
    for label in np.unique(target[~named]).tolist():
        members = np.flatnonzero((target == label) & ~named)
        found, taken = _clusters(unit[members], known[members], folds, seed)
        for cluster in sorted(set(found.tolist()), key=lambda c: -int((found == c).sum())):
            if cluster < len(taken):
                fold = int(taken[cluster])
            else:
                open_to_it = sizes.astype(float)
                open_to_it[taken] = np.inf  # another cluster of this label is there
                fold = int(open_to_it.argmin())
            place(members[found == cluster], fold)
    return result


def _clusters(
    unit: NDArray[np.float32], known: NDArray[np.int64], folds: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the cluster of each image of a label, and the folds of the first clusters."""
    # Distinct points only: k-means warns when asked for more clusters than there are.
    clusters = min(folds, len({row.tobytes() for row in unit.round(6) + 0.0}))
    taken = np.unique(known[known >= 0])[:clusters]
    if clusters == 1:
        return np.zeros(len(unit), dtype=np.int64), taken
    if not len(taken):
        return KMeans(clusters, n_init=2, random_state=seed).fit_predict(unit), taken
    centres = [unit[known == fold].mean(axis=0) for fold in taken]
    while len(centres) < clusters:  # the others start from what is farthest from these
        away = np.min([((unit - centre) ** 2).sum(axis=1) for centre in centres], axis=0)
        centres.append(unit[away.argmax()])
    return KMeans(clusters, init=np.stack(centres), n_init=1).fit_predict(unit), taken
