"""Hierarchical metrics: shared ancestors, and the severity of mistakes.

An answer is any node, -1 for nothing (the root above all tops). What lies below the target is not
known and never held against an answer. Letters: n images.
"""

from dataclasses import dataclass

import numpy as np

from hierarchy.metrics.ancestors import Ints, ancestor_paths, judged, known, shared
from hierarchy.tree import TOP, LabelTree


@dataclass(frozen=True)
class Overlap:
    """Hierarchical precision, recall and F, in [0, 1]; None where there is nothing to count.

    Attributes:
        precision: share of the answered nodes, ancestors included, that are true.
        recall: share of the true nodes that were answered.
        f: harmonic mean of the two; 0 if both are.
    """

    precision: float | None
    recall: float | None
    f: float | None


def overlap(answers: Ints, targets: Ints, tree: LabelTree) -> Overlap:
    """Hierarchical precision, recall and F over sets of a node and its ancestors, summed first.

    Kiritchenko et al., "Learning and Evaluation in the Presence of Class Hierarchies", 2006. Of an
    answer below its target only the part down to the target is counted.

    Args:
        answers: ``(n,)`` node ids, -1 for nothing: the empty set.
        targets: ``(n,)`` deepest node known.
        tree: gives the ancestors.

    Raises:
        UnknownLabelError: if one is not a node's id.

    Example:
        >>> tree = LabelTree.from_parents([-1, 0, 0], names=["Fruit", "Apple", "Pear"])
        >>> overlap(np.array([1, 0]), np.array([2, 2]), tree)  # {0, 1} and {0} against {0, 2}
        Overlap(precision=0.6666666666666666, recall=0.5, f=0.5714285714285714)
    """
    said, truth = known(answers, tree, least=TOP), known(targets, tree)
    levels = tree.arrays.levels
    hits = int(shared(ancestor_paths(said, tree), ancestor_paths(truth, tree)).sum())
    unknown = judged(said, truth, tree) < 0
    counted = np.where(unknown, truth, said)
    answered = int(np.where(counted == TOP, 0, levels[counted] + 1).sum())
    true = int((levels[truth] + 1).sum())
    return Overlap(
        precision=hits / answered if answered else None,
        recall=hits / true if true else None,
        f=2 * hits / (answered + true) if true else None,
    )


def severity(answers: Ints, targets: Ints, tree: LabelTree) -> float | None:
    """Return the mean height of the lowest common ancestor over mistakes; None without mistakes.

    Bertinetto et al., "Making Better Mistakes", CVPR 2020, section 4.2: edges from that ancestor
    down to its furthest leaf; the root lies one above the highest root node. A mistake is an answer
    that does not cover its target: stopping above it is none. Answers below their targets are left
    out.

    Args:
        answers: ``(n,)`` node ids, -1 for nothing.
        targets: ``(n,)`` deepest node known.
        tree: gives the ancestors.

    Raises:
        UnknownLabelError: if one is not a node's id.
    """
    said, truth = known(answers, tree, least=TOP), known(targets, tree)
    wrong = judged(said, truth, tree) == 0
    if not wrong.any():
        return None
    path = ancestor_paths(truth[wrong], tree)
    count = shared(ancestor_paths(said[wrong], tree), path)
    common = np.where(count, path[np.arange(len(path)), np.maximum(count - 1, 0)], TOP)
    height = tree.arrays.height
    return float(np.where(common == TOP, height.max() + 1, height[common]).mean())
