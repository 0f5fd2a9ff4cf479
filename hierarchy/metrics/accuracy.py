"""Accuracy by level and of whole paths, and consistency between levels.

Letters: n images, N nodes, L levels.
"""

from typing import Any

import numpy as np

from hierarchy.decisions import choices
from hierarchy.metrics.ancestors import Flags, Ints, ancestor_paths
from hierarchy.tree import TOP, LabelTree


def accuracy_by_level(answers: Ints, targets: Ints, tree: LabelTree) -> list[dict[str, Any]]:
    """Accuracy on each level: of the images whose target reaches it, the share answered right.

    An image counts on a level where its target, or the node above it there, has siblings: a node
    without any cannot be wrong once its parent is right. Levels on which none counts are left out.

    Args:
        answers: ``(n, L)`` of each level the node answered, -1 for none.
        targets: ``(n,)`` deepest node known.
        tree: gives the ancestors.

    Example:
        >>> tree = LabelTree.from_paths([("Fruit", "Pear"), ("Fruit", "Fig"), ("Milk",)])
        >>> answers = np.array([[0, 2], [0, 3], [1, 2], [0, 2]])
        >>> rows = accuracy_by_level(answers, np.array([2, 2, 1, 0]), tree)
        >>> [(row["level"], row["right"], row["checked"]) for row in rows]
        [(1, 4, 4), (2, 1, 2)]
    """
    truth = ancestor_paths(targets, tree)
    counts = (truth != TOP) & choices(tree)[truth]
    hits = counts & (answers == truth)
    return [
        {
            "level": level + 1,
            "checked": int(checked),
            "right": int(right),
            "accuracy": round(int(right) / int(checked), 4),
        }
        for level, (checked, right) in enumerate(
            zip(counts.sum(axis=0), hits.sum(axis=0), strict=True)
        )
        if checked
    ]


def right_by_level(answers: Ints, targets: Ints, tree: LabelTree) -> Ints:
    """Judge each level's answer, ``(n, L)`` -> ``(n, L)``: 1 right, 0 wrong, -1 not judged.

    Levels below the target are not judged, neither when the answer there lies under the target
    (it may be right) nor when it does not: counting only the second would charge coarse targets.

    Args:
        answers: of each level the node answered, -1 for none.
        targets: ``(n,)`` deepest node known.
        tree: gives the ancestors.
    """
    truth = ancestor_paths(targets, tree)
    return np.where(truth == TOP, -1, answers == truth).astype(np.int64)


def whole_path(answers: Ints, targets: Ints, tree: LabelTree) -> Flags:
    """Tell whether all levels down to the target are right, each read on its own, ``(n,)``."""
    return np.asarray((right_by_level(answers, targets, tree) != 0).all(axis=1))


def consistent(answers: Ints, leaf: Ints, tree: LabelTree) -> Flags:
    """Tell whether the levels' answers form one path, ``(n,)``: from the best leaf upward.

    In a ragged tree the leaf may lie on any level; levels below it say nothing and are not asked.

    Args:
        answers: ``(n, L)`` of each level the node answered, -1 for none.
        leaf: ``(n,)`` the best leaf.
        tree: gives the ancestors.
    """
    path = ancestor_paths(leaf, tree)
    return np.asarray(((answers == path) | (path == TOP)).all(axis=1))


def share(right: Flags) -> float | None:
    """Share of true, None where there is nothing to judge."""
    return float(right.mean()) if len(right) else None
