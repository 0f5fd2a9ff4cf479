"""Answering less to be right more often: risk against coverage, flat and along the tree.

Letters: n images, N nodes, L levels, T distinct thresholds.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hierarchy.depth_selection import candidates
from hierarchy.metrics.ancestors import (
    Flags,
    Floats,
    Ints,
    ancestor_paths,
    checked,
    covers,
    information,
    on_leaves,
)
from hierarchy.tree import TOP, LabelTree


@dataclass(frozen=True)
class Curve:
    """Risk against coverage, strictest threshold first; each ``(T,)``.

    Attributes:
        threshold: least confidence that is answered, in the scores' own unit.
        coverage: how much is answered at it, in [0, 1].
        risk: how often what is answered is wrong; see the function that made the curve.
    """

    threshold: Floats
    coverage: Floats
    risk: Floats


def risk_coverage(confidence: Floats, right: Flags) -> Curve:
    """Error rate among the images of at least each confidence (El-Yaniv and Wiener 2010).

    Equal confidences are answered together.

    Args:
        confidence: ``(n,)`` of each image's answer, any monotone form.
        right: ``(n,)`` whether it is right.
    """
    order = np.argsort(-confidence, kind="stable")
    ranked = confidence[order]
    last = np.append(ranked[1:] != ranked[:-1], True)[: len(ranked)]
    wrong = (~right[order]).cumsum()[last]
    answered = np.arange(1, len(ranked) + 1)[last]
    return Curve(ranked[last], answered / max(len(ranked), 1), wrong / answered)


def area_under_risk(curve: Curve) -> float | None:
    """AURC: the mean over images of the risk at their confidence, in [0, 1].

    Geifman et al., "Bias-Reduced Uncertainty Estimation", ICLR 2019. None without images.
    """
    if not len(curve.coverage):
        return None
    return float((np.diff(curve.coverage, prepend=0.0) * curve.risk).sum())


def climbing_curve(log_probability: NDArray[np.floating], targets: Ints, tree: LabelTree) -> Curve:
    """Risk against hierarchical coverage of the climbing rule, at every threshold there is.

    From the best leaf go up to the first node that is at least as probable as the threshold, to
    the root if none is. Coverage is the mean :func:`hierarchy.metrics.ancestors.information` of the
    answers; risk the share of *all* images whose answer does not cover the target, the root
    never being wrong (Goren et al., "Hierarchical Selective Classification", NeurIPS 2024,
    sections 2 and 3; risk as in their released code, ``risk_01``). The first point is the root for
    every image, (0, 0), which their curve leaves out where a probability is rounded to 1.

    Args:
        log_probability: ``(n, N)``, any monotone form; not necessarily falling along a path.
        targets: ``(n,)`` deepest node known. Images whose target is no leaf are left out: a
            leaf below it could not be judged, and leaving out only those would flatter nobody.
        tree: gives N and the ancestors.

    Returns:
        A curve from (0, 0) to (1, error rate of the best leaf); empty without images.

    Raises:
        ShapeError: if there is not one column per node, one target per image, or a score is nan.
        UnknownLabelError: if a target is not a node's id.
    """
    scores, truth = checked(log_probability, targets, tree)
    scores, truth = scores[on_leaves(truth, tree)], truth[on_leaves(truth, tree)]
    if not len(scores):
        return Curve(np.empty(0), np.empty(0), np.empty(0))
    path = ancestor_paths(candidates(scores, tree).leaf, tree)
    met = _met(scores, path)
    told = np.diff(information(path, tree), axis=1, prepend=0.0)  # what one step down adds
    wrong = ~covers(path, truth[:, None], tree)
    fails = np.diff(wrong.astype(np.int64), axis=1, prepend=0)
    return _descend(met[path != TOP], told[path != TOP], fails[path != TOP], len(scores))


def _met(scores: Floats, path: Ints) -> Floats:
    """The threshold at which climbing gets past each node of the path, ``(n, L)``.

    That is the highest score on the way up from the leaf: above a node that is less likely than
    its child nobody ever stops.
    """
    on_path = np.where(path == TOP, -np.inf, np.take_along_axis(scores, np.maximum(path, 0), 1))
    return np.maximum.accumulate(on_path[:, ::-1], axis=1)[:, ::-1]


def _descend(met: Floats, told: Floats, fails: Ints, images: int) -> Curve:
    """Lower the threshold past each step down; every step adds its information and its failure."""
    order = np.argsort(-met, kind="stable")
    ranked = met[order]
    last = np.append(ranked[1:] != ranked[:-1], True)
    coverage = told[order].cumsum()[last] / images
    risk = fails[order].cumsum()[last] / images
    return Curve(
        threshold=np.append(np.inf, ranked[last]),
        coverage=np.append(0.0, np.clip(coverage, 0.0, 1.0)),
        risk=np.append(0.0, risk),
    )


def area_under_climbing(curve: Curve) -> float | None:
    """Area under the curve by trapezoids, hAURC as in the paper's released code, in [0, 1].

    None without images.
    """
    if not len(curve.coverage):
        return None
    return float(np.trapezoid(curve.risk, curve.coverage))
