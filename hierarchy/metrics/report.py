"""Everything that is measured of a classifier, for all images and for those of sibling classes.

Letters: n images, N nodes, L levels.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hierarchy.depth_selection import Candidates, candidates
from hierarchy.metrics.accuracy import consistent, right_by_level, share, whole_path
from hierarchy.metrics.ancestors import (
    Floats,
    Ints,
    ancestor_paths,
    checked,
    on_leaves,
    on_siblings,
)
from hierarchy.metrics.calibration import Calibration, calibration
from hierarchy.metrics.hierarchical import Overlap, overlap, severity
from hierarchy.metrics.ranking import area_under_prc
from hierarchy.metrics.selective import (
    area_under_climbing,
    area_under_risk,
    climbing_curve,
    risk_coverage,
)
from hierarchy.tree import LabelTree


@dataclass(frozen=True)
class LevelScores:
    """One level: of the images whose target lies on it or deeper.

    Attributes:
        level: 1 for the root nodes.
        accuracy: share whose answer on this level is right; None if no image can be judged.
        calibration: of the answers on this level, and -log P of its true node.
    """

    level: int
    accuracy: float | None
    calibration: Calibration


@dataclass(frozen=True)
class Scores:
    """Figures of a classifier on some images; None where nothing could be judged.

    Attributes:
        images: how many there are.
        leaves: how many have a leaf as target; the "leaf" figures are of those.
        levels: each level by itself, its answers read independently of the other levels'.
        leaf: share whose best leaf, on whatever level, is the target.
        leaf_calibration: of the best leaf.
        path: share with every level right, down to the target.
        consistency: share whose levels' answers are one path.
        prc: area under the precision-recall curve, micro.
        overlap: hierarchical precision, recall and F of the best leaf.
        severity: mean height of the lowest common ancestor of the best leaf's mistakes.
        aurc: area under the best leaf's risk-coverage curve; less is better.
        haurc: area under the climbing rule's, against hierarchical coverage; less is better.
        siblings: all of this for the images of sibling classes; None in there.
    """

    images: int
    leaves: int
    levels: tuple[LevelScores, ...]
    leaf: float | None
    leaf_calibration: Calibration
    path: float | None
    consistency: float | None
    prc: float | None
    overlap: Overlap
    severity: float | None
    aurc: float | None
    haurc: float | None
    siblings: "Scores | None"


def evaluate(log_probability: NDArray[np.floating], targets: Ints, tree: LabelTree) -> Scores:
    """Measure a classifier by all there is.

    Args:
        log_probability: ``(n, N)`` of every node. Scores that are no probabilities are taken for
            what they say: the logarithm of a sigmoid is held to be that of a probability.
        targets: ``(n,)`` deepest node known, any node: what lies below it is never judged.
        tree: the classes.

    Returns:
        Scores of all images, those of sibling classes within.

    Raises:
        ShapeError: if there is not one column per node, one target per image, or a score is nan.
        UnknownLabelError: if a target is not a node's id.
    """
    log_p, nodes = checked(log_probability, targets, tree)
    some = on_siblings(nodes, tree)
    return replace(_scores(log_p, nodes, tree), siblings=_scores(log_p[some], nodes[some], tree))


def _scores(log_p: Floats, targets: Ints, tree: LabelTree) -> Scores:
    best, fine = candidates(log_p, tree), on_leaves(targets, tree)
    leaf, sure, truth = best.leaf[fine], best.confidence[fine], targets[fine]
    hit = leaf == truth
    return Scores(
        images=len(targets),
        leaves=len(truth),
        levels=_levels(log_p, best, targets, tree),
        leaf=share(hit),
        leaf_calibration=calibration(sure, hit, _pick(log_p[fine], truth)),
        path=share(whole_path(best.nodes, targets, tree)),
        consistency=share(consistent(best.nodes, best.leaf, tree)),
        prc=area_under_prc(log_p, targets, tree),
        overlap=overlap(best.leaf, targets, tree),
        severity=severity(leaf, truth, tree),
        aurc=area_under_risk(risk_coverage(sure, hit)),
        haurc=area_under_climbing(climbing_curve(log_p, targets, tree)),
        siblings=None,
    )


def _levels(
    log_p: Floats, best: Candidates, targets: Ints, tree: LabelTree
) -> tuple[LevelScores, ...]:
    right, truth = right_by_level(best.nodes, targets, tree), ancestor_paths(targets, tree)
    found = []
    for level in range(tree.depth):
        judged = right[:, level] >= 0
        hit = right[judged, level] == 1
        true = _pick(log_p[judged], truth[judged, level])
        measured = calibration(best.probability[judged, level], hit, true)
        found.append(LevelScores(level + 1, share(hit), measured))
    return tuple(found)


def _pick(scores: Floats, nodes: Ints) -> Floats:
    """Return each row's score of one node, ``(n, N)`` and ``(n,)`` -> ``(n,)``."""
    return np.asarray(scores[np.arange(len(nodes)), nodes])
