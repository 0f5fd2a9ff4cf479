"""A comparison of methods: one run -> its figures on every judged set."""

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from evaluation import depth
from evaluation.features import Features
from evaluation.methods import learn
from evaluation.protocols import Protocol
from evaluation.results import Row
from hierarchy import LabelTree
from hierarchy.calibration import Evidence, evidence, fit_rule
from hierarchy.decisions import Decisions
from hierarchy.depth_selection import candidates
from hierarchy.metrics import Scores, evaluate

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Targets at which every comparison reports what would be shown.
TARGETS = (0.9, 0.95)


def compare(
    features: Features, *, method: str, protocol: Protocol, seed: int, with_depth: bool = False
) -> list[Row]:
    """Train a method under a protocol and judge it.

    Args:
        features: of the data set.
        method: see `evaluation.methods`.
        protocol: which labels it gets.
        seed: of labels and training.
        with_depth: also the studies of `evaluation.depth`, half a minute each.
    """
    own = features
    if protocol.leaves is not None:
        own = features.small(protocol.leaves, seed)
    learnt = learn(method, own, protocol, seed)
    figures = {"seconds": learnt.seconds, "relabelled": protocol.share}
    for name, log_p in learnt.log_probability.items():
        targets = own.judged[name].targets
        if len(targets):
            prefix = "" if name == "test" else f"{name} "
            scores = evaluate(log_p, targets, own.tree)
            figures |= {f"{prefix}{figure}": value for figure, value in flat(scores)}
    val, test = (
        evidence_of(learnt.log_probability[name], own.judged[name].targets, own.tree)
        for name in ("val", "test")
    )
    if len(val) and len(test):
        figures |= shown_figures(val, test)
    if with_depth:
        figures |= depth.certificates(test, seed) | depth.streams(val, test, seed)
    return [Row(method, protocol.name, seed, figures)]


def flat(scores: Scores) -> Iterable[tuple[str, float]]:
    """Yield the figures that tables are made of, by name; those without a finite value are left."""
    found: dict[str, float | None] = {
        "leaf": scores.leaf,
        "leaf ece": scores.leaf_calibration.ece,
        "leaf nll": scores.leaf_calibration.nll,
        "path": scores.path,
        "consistency": scores.consistency,
        "prc": scores.prc,
        "h-precision": scores.overlap.precision,
        "h-recall": scores.overlap.recall,
        "h-f": scores.overlap.f,
        "severity": scores.severity,
        "aurc": scores.aurc,
        "haurc": scores.haurc,
    }
    for level in scores.levels:
        found[f"level {level.level}"] = level.accuracy
        found[f"level {level.level} ece"] = level.calibration.ece
    if scores.siblings is not None:
        found |= {f"siblings {name}": value for name, value in flat(scores.siblings)}
    # A method that gives the truth no chance at all has no finite loss to report.
    return [
        (name, float(value))
        for name, value in found.items()
        if value is not None and math.isfinite(value)
    ]


def evidence_of(log_p: Floats, targets: Ints, tree: LabelTree) -> Evidence:
    """Return what ``(n, N)`` log-probabilities say of each level's best node, and what is right."""
    return evidence(candidates(log_p, tree, Decisions.of(tree).levels), targets, tree)


def shown_figures(val: Evidence, test: Evidence) -> dict[str, float]:
    """Return what pre-labels would be shown on test with a rule calibrated on val only."""
    figures = {}
    for target in TARGETS:
        rule = fit_rule(val, target=target).rule
        shown, verdict = depth.shown(test, rule)
        name = f"{100 * target:g} %"
        figures[f"val: given at {name}"] = float((shown > 0).mean())
        figures[f"val: depth at {name}"] = float(shown.mean())
        right = depth.accuracy(verdict, nothing=math.nan)
        if math.isfinite(right):
            figures[f"val: accuracy of shown at {name}"] = right
    return figures
