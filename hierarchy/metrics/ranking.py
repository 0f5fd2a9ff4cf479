"""Area under the precision-recall curve over all (image, node) pairs, as HRN was published with.

Letters: n images, N nodes, L levels.
"""

import numpy as np
from numpy.typing import NDArray

from hierarchy.metrics.ancestors import Floats, Ints, ancestor_paths, checked, covers, on_leaves
from hierarchy.tree import TOP, LabelTree


def area_under_prc(scores: NDArray[np.floating], targets: Ints, tree: LabelTree) -> float | None:
    """Micro average precision: every node of every image ranked in one list.

    A pair is true when the node is the image's target or above it. What lies below a target
    that is no leaf is not known and left out. Each distinct score is one threshold, so equal
    scores have no order: the sum over thresholds of gained recall times precision (Chen et al.,
    "Label Relation Graphs Enhanced Hierarchical Residual Network for Hierarchical Multi-Granularity
    Classification", CVPR 2022; scikit-learn's ``average_precision_score(average="micro")``).

    Args:
        scores: ``(n, N)``, any monotone form of confidence.
        targets: ``(n,)`` deepest node known.
        tree: gives N and the ancestors.

    Returns:
        In (0, 1]; None without images.

    Raises:
        ShapeError: if there is not one column per node, one target per image, or a score is nan.
        UnknownLabelError: if a target is not a node's id.

    Example:
        >>> tree = LabelTree.from_parents([-1, 0, 0], names=["Fruit", "Apple", "Pear"])
        >>> area_under_prc(np.array([[0.9, 0.3, 0.6]]), np.array([1]), tree)  # (1 + 2/3) / 2
        0.8333333333333333
    """
    whole, nodes = checked(scores, targets, tree)
    if not len(whole):
        return None
    truth = ancestor_paths(nodes, tree)
    rows, levels = np.nonzero(truth != TOP)
    return _average_precision(_known(whole, nodes, tree), whole[rows, truth[rows, levels]])


def _known(scores: Floats, targets: Ints, tree: LabelTree) -> Floats:
    """The scores of all pairs but those below a coarse target, flat."""
    fine = on_leaves(targets, tree)
    coarse = targets[~fine, None]
    if not len(coarse):
        return scores.ravel()
    nodes = np.arange(len(tree))
    below = covers(coarse, nodes, tree) & (nodes != coarse)
    return np.concatenate([scores[fine].ravel(), scores[~fine][~below]])


def _average_precision(every: Floats, true: Floats) -> float:
    """From the scores of all pairs and of the true ones among them."""
    thresholds, gained = np.unique(true, return_counts=True)
    gained = gained[::-1]  # strictest first
    hits = gained.cumsum()
    said = len(every) - np.searchsorted(np.sort(every), thresholds[::-1], side="left")
    return float((gained * hits / said).sum() / hits[-1])
