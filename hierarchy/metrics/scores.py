"""Everything that is measured of a classifier, for all pictures and for those of sibling classes.

Letters: n pictures, N nodes, L levels.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hierarchy.choice import Candidates, candidates
from hierarchy.errors import ShapeError
from hierarchy.metrics.accuracy import consistent, right_by_level, share, whole_path
from hierarchy.metrics.calibration import Calibration, calibration
from hierarchy.metrics.distance import Overlap, Severity, overlap, severity
from hierarchy.metrics.lines import Floats, Ints, checked, known, lines, on_leaves, on_siblings
from hierarchy.metrics.ranking import area_under_prc
from hierarchy.metrics.selective import (
    area_under_climbing,
    area_under_risk,
    climbing_curve,
    risk_coverage,
)
from hierarchy.tree import TOP, LabelTree


@dataclass(frozen=True)
class LevelScores:
    """One level: of the pictures whose target lies on it or deeper.

    Attributes:
        level: 1 for the tops.
        accuracy: share whose answer on this level is right; None if no picture can be judged.
        calibration: of the answers on this level, and -log P of its true node.
    """

    level: int
    accuracy: float | None
    calibration: Calibration

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"level": self.level, "accuracy": self.accuracy, **self.calibration.to_json()}


@dataclass(frozen=True)
class Scores:
    """How good a classifier is on some pictures; None where nothing could be judged.

    Attributes:
        pictures: how many there are.
        leaves: how many have a leaf as target; the "leaf" figures are of those.
        levels: each level by itself, its answers read independently of the other levels'.
        leaf: share whose best leaf, on whatever level, is the target.
        leaf_calibration: of the best leaf.
        path: share with every level right, down to the target.
        consistency: share whose levels' answers are one path.
        prc: area under the precision-recall curve, micro.
        overlap: hierarchical precision, recall and F of the best leaf.
        severity: of the best leaf's mistakes.
        aurc: area under the best leaf's risk-coverage curve; less is better.
        haurc: area under the climbing rule's, against hierarchical coverage; less is better.
        siblings: all of this for the pictures of sibling classes; None in there.
    """

    pictures: int
    leaves: int
    levels: tuple[LevelScores, ...]
    leaf: float | None
    leaf_calibration: Calibration
    path: float | None
    consistency: float | None
    prc: float | None
    overlap: Overlap
    severity: Severity
    aurc: float | None
    haurc: float | None
    siblings: "Scores | None"

    def to_json(self) -> dict[str, Any]:
        """Plain data for a report."""
        return {
            "pictures": self.pictures,
            "leaves": self.leaves,
            "levels": [level.to_json() for level in self.levels],
            "leaf": self.leaf,
            "leaf_calibration": self.leaf_calibration.to_json(),
            "path": self.path,
            "consistency": self.consistency,
            "prc": self.prc,
            "overlap": self.overlap.to_json(),
            "severity": self.severity.to_json(),
            "aurc": self.aurc,
            "haurc": self.haurc,
            "siblings": self.siblings and self.siblings.to_json(),
        }


@dataclass(frozen=True)
class _Pictures:
    """What was answered and what is true, checked."""

    log_probability: Floats
    targets: Ints
    best: Candidates
    answers: Ints

    def only(self, rows: NDArray[np.bool_]) -> "_Pictures":
        best = Candidates(
            self.best.nodes[rows],
            self.best.probability[rows],
            self.best.leaf[rows],
            self.best.confidence[rows],
        )
        return _Pictures(self.log_probability[rows], self.targets[rows], best, self.answers[rows])


def evaluate(
    log_probability: NDArray[np.floating],
    targets: Ints,
    tree: LabelTree,
    *,
    answers: Ints | None = None,
) -> Scores:
    """Measure a classifier by all there is.

    Args:
        log_probability: ``(n, N)`` of every node. Scores that are no probabilities are taken for
            what they say: the logarithm of a sigmoid is held to be that of a probability.
        targets: ``(n,)`` deepest node known, any node: what lies below it is never judged.
        tree: the classes.
        answers: ``(n, L)`` each level's answer (-1 for none) where a method reads them otherwise
            than as each level's best node, such as :func:`hierarchy.metrics.path_answers`.

    Returns:
        Scores of all pictures, those of sibling classes within.

    Raises:
        ShapeError: if there is not one column a node, one target a picture, or a score is nan.
        UnknownLabelError: if a target or an answer is not a node's id.
    """
    whole, nodes = checked(log_probability, targets, tree)
    best = candidates(whole, tree)
    read = best.nodes if answers is None else known(answers, tree, least=TOP)
    if read.shape != best.nodes.shape:
        raise ShapeError(f"answers must be {best.nodes.shape}, one a level, got {read.shape}")
    every = _Pictures(whole, nodes, best, read)
    return _scores(every, tree, siblings=_scores(every.only(on_siblings(nodes, tree)), tree))


def _scores(of: _Pictures, tree: LabelTree, siblings: Scores | None = None) -> Scores:
    fine = of.only(on_leaves(of.targets, tree))
    hit = fine.best.leaf == fine.targets
    return Scores(
        pictures=len(of.targets),
        leaves=len(fine.targets),
        levels=_levels(of, tree),
        leaf=share(hit),
        leaf_calibration=calibration(
            fine.best.confidence, hit, _pick(fine.log_probability, fine.targets)
        ),
        path=share(whole_path(of.answers, of.targets, tree)),
        consistency=share(consistent(of.answers, of.best.leaf, tree)),
        prc=area_under_prc(of.log_probability, of.targets, tree),
        overlap=overlap(of.best.leaf, of.targets, tree),
        severity=severity(fine.best.leaf, fine.targets, tree),
        aurc=area_under_risk(risk_coverage(fine.best.confidence, hit)),
        haurc=area_under_climbing(climbing_curve(fine.log_probability, fine.targets, tree)),
        siblings=siblings,
    )


def _levels(of: _Pictures, tree: LabelTree) -> tuple[LevelScores, ...]:
    right, truth = right_by_level(of.answers, of.targets, tree), lines(of.targets, tree)
    found = []
    for level in range(tree.depth):
        known_rows = right[:, level] >= 0
        given = known_rows & (of.answers[:, level] != TOP)
        stated = np.exp(_pick(of.log_probability[given], of.answers[given, level]))
        true = _pick(of.log_probability[known_rows], truth[known_rows, level])
        measured = calibration(stated, right[given, level] == 1, true)
        found.append(LevelScores(level + 1, share(right[known_rows, level] == 1), measured))
    return tuple(found)


def _pick(scores: Floats, nodes: Ints) -> Floats:
    """Each row's score of one node, ``(n, N)`` and ``(n,)`` -> ``(n,)``."""
    return np.asarray(scores[np.arange(len(nodes)), nodes])
