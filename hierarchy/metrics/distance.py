"""How far off: shared ancestors, and how bad a mistake is.

An answer is any node, -1 for nothing (the root above all tops). What lies below the target is not
known and never held against an answer. Letters: n pictures.
"""

from dataclasses import asdict, dataclass

import numpy as np

from hierarchy.metrics.lines import Floats, Ints, judged, known, lines, shared
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

    def to_json(self) -> dict[str, float | None]:
        """Plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Severity:
    """How bad the mistakes are; None where there is none to look at.

    Attributes:
        mistakes: answers that are wrong.
        height: mean over mistakes of the height of the lowest common ancestor (Bertinetto et al.,
            "Making Better Mistakes", CVPR 2020, section 4.2): edges from it down to its furthest
            leaf; the root lies one above the highest top.
        height_of_all: the same mean over all judged answers, right ones counting 0.
        edges: mean over mistakes of the edges between answer and target.
        edges_of_all: the same over all judged answers: those that stop above the target count too.
    """

    mistakes: int
    height: float | None
    height_of_all: float | None
    edges: float | None
    edges_of_all: float | None

    def to_json(self) -> dict[str, float | None]:
        """Plain data."""
        return asdict(self)


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
    hits = int(shared(lines(said, tree), lines(truth, tree)).sum())
    unknown = judged(said, truth, tree) < 0
    counted = np.where(unknown, truth, said)
    answered = int(np.where(counted == TOP, 0, levels[counted] + 1).sum())
    true = int((levels[truth] + 1).sum())
    return Overlap(
        precision=hits / answered if answered else None,
        recall=hits / true if true else None,
        f=2 * hits / (answered + true) if true else None,
    )


def severity(answers: Ints, targets: Ints, tree: LabelTree) -> Severity:
    """How far the mistakes are from the truth; answers below their targets are left out.

    A mistake is an answer that does not cover its target: stopping above it is none.

    Args:
        answers: ``(n,)`` node ids, -1 for nothing.
        targets: ``(n,)`` deepest node known.
        tree: gives the ancestors.

    Raises:
        UnknownLabelError: if one is not a node's id.
    """
    said, truth = known(answers, tree, least=TOP), known(targets, tree)
    right = judged(said, truth, tree)
    said, truth, wrong = said[right >= 0], truth[right >= 0], right[right >= 0] == 0
    height, edges = _common(said, truth, tree)
    return Severity(
        mistakes=int(wrong.sum()),
        height=_mean(height[wrong]),
        height_of_all=_mean(np.where(wrong, height, 0)),
        edges=_mean(edges[wrong]),
        edges_of_all=_mean(edges),
    )


def _common(said: Ints, truth: Ints, tree: LabelTree) -> tuple[Ints, Ints]:
    """Height of the lowest common ancestor, and edges from one to the other over it."""
    of = tree.arrays
    path = lines(truth, tree)
    count = shared(lines(said, tree), path)
    common = np.where(count, path[np.arange(len(path)), np.maximum(count - 1, 0)], TOP)
    height = np.where(common == TOP, of.height.max() + 1, of.height[common])
    depth = np.where(said == TOP, 0, of.levels[said] + 1)
    return height, depth + of.levels[truth] + 1 - 2 * count


def _mean(values: Ints | Floats) -> float | None:
    return float(values.mean()) if len(values) else None
