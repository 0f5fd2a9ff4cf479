"""Fitting the depth rule, with a certificate, from pictures the network was not trained on.

Fixed-sequence learn-then-test (Angelopoulos et al., "Learn then Test", 2021): walk from the
strictest price to looser ones, at each an exact binomial test of "what is shown is less accurate
than the target"; stop at the first that does not reject. Letters: n pictures, L levels.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from scipy.stats import binom

from hierarchy.choice import EDGE, Candidates, DepthRule, Floats, Ints, choose_depth, corrected
from hierarchy.tree import LabelTree

#: Prices tried, strictest first: above the first only the safest level can win, below the last
#: depth always does.
PRICES: Floats = np.geomspace(3000.0, 0.5, 400)

#: Strength of the pull of a level's slope and offset towards (1, 0), in pictures.
PULL = 4.0

Standing = Literal["certified", "estimated", "none"]


@dataclass(frozen=True)
class Evidence:
    """What held-out pictures say of each level's best node.

    Attributes:
        probability: ``(n, L)`` of each level's best node, before correction.
        right: ``(n, L)`` 1 right, 0 wrong, -1 not known (the annotator's answer is coarser).
    """

    probability: Floats
    right: Ints

    def __len__(self) -> int:
        return len(self.probability)


@dataclass(frozen=True)
class Fitted:
    """A depth rule and what it rests on.

    Attributes:
        rule: to be used as it is; its price is None where there is no evidence at all.
        standing: ``certified``, the accuracy of what is shown is at least the target with
            confidence 1 - delta; ``estimated``, with too few pictures for that, only the cautious
            estimate 1 - (wrong + 1) / (checked + 1) is; ``none``, nothing can be shown.
        checked: held-out pictures whose shown label could be checked.
        wrong: how many of those were wrong.
        given: share of held-out pictures that get a label.
        mean_depth: over all held-out pictures, nothing shown counting 0.
    """

    rule: DepthRule
    standing: Standing
    checked: int
    wrong: int
    given: float
    mean_depth: float

    def to_json(self) -> dict[str, Any]:
        """Plain data for a manifest."""
        return {
            "rule": self.rule.to_json(),
            "standing": self.standing,
            "checked": self.checked,
            "wrong": self.wrong,
            "given": round(self.given, 4),
            "mean_depth": round(self.mean_depth, 3),
        }


def evidence(found: Candidates, targets: Ints, tree: LabelTree) -> Evidence:
    """Hold each level's best node against the deepest node known for its picture.

    A node is right when the target is it or below it, not known when it lies below the target
    (the annotator stopped above), wrong otherwise.
    """
    right = np.empty_like(found.nodes)
    for row, target in enumerate(targets.tolist()):
        for level, node in enumerate(found.nodes[row].tolist()):
            right[row, level] = (
                1 if tree.covers(node, target) else -1 if tree.covers(target, node) else 0
            )
    return Evidence(found.probability, right)


def fit_platt(seen: Evidence) -> tuple[tuple[float, float], ...]:
    """Slope and offset of each level's logit by penalised logistic regression (Platt 1999).

    The penalty pulls towards (1, 0), "leave the probabilities as they are", so that a level with
    few checked pictures is hardly moved.
    """
    return tuple(
        _platt(seen.probability[known, level], seen.right[known, level].astype(np.float64))
        for level in range(seen.probability.shape[1])
        for known in [seen.right[:, level] >= 0]
    )


def _platt(probability: Floats, right: Floats) -> tuple[float, float]:
    inside = np.clip(probability, EDGE, 1 - EDGE)
    design = np.stack([np.log(inside) - np.log1p(-inside), np.ones_like(inside)], axis=1)  # (n, 2)
    start = np.array([1.0, 0.0])
    fit = start.copy()
    for _ in range(50):  # Newton; the penalised problem is strictly convex
        p = 1 / (1 + np.exp(-np.clip(design @ fit, -40, 40)))
        gradient = design.T @ (p - right) + PULL * (fit - start)
        hessian = (design * (p * (1 - p))[:, None]).T @ design + PULL * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        fit -= step / max(1.0, float(np.abs(step).max()))  # damped: never more than 1 a step
        if np.abs(step).max() < 1e-10:
            break
    slope = max(float(fit[0]), 0.05)  # a negative slope would turn the order of pictures around
    return slope, float(fit[1])


def fit_rule(
    seen: Evidence,
    *,
    target: float,
    delta: float = 0.1,
    minimum: int = 1,
    maximum: int | None = None,
) -> Fitted:
    """The loosest price whose accuracy of shown labels is certified, else cautiously estimated.

    Args:
        seen: held-out evidence.
        target: accuracy promised for what is shown, in (0, 1).
        delta: chance that a certificate is wrong.
        minimum: shallowest depth to show.
        maximum: deepest depth to show, None for all.

    Raises:
        ValueError: ``target`` or ``delta`` outside (0, 1).
    """
    if not 0 < target < 1 or not 0 < delta < 1:
        raise ValueError(f"target and delta must lie in (0, 1), got {target} and {delta}")
    platt = fit_platt(seen)
    rule = DepthRule(target, None, platt, minimum, maximum)
    if not len(seen):
        return Fitted(rule, "none", 0, 0, 0.0, 0.0)
    sure = corrected(seen.probability, platt)
    walk = [_tried(seen, sure, replace(rule, price=float(price))) for price in PRICES]
    certified = _walk(walk, lambda tried: _rejects(tried, 1 - target, delta))
    if certified is not None:
        return replace(certified, standing="certified")
    estimated = _walk(walk, lambda tried: _seems(tried, 1 - target))
    if estimated is not None:
        return estimated
    return Fitted(rule, "none", 0, 0, 0.0, 0.0)


def _tried(seen: Evidence, sure: Floats, rule: DepthRule) -> Fitted:
    """What a rule would have shown, given the ``(n, L)`` corrected probabilities."""
    depth = choose_depth(sure, rule)
    shown = depth > 0
    right = seen.right[np.arange(len(seen)), np.maximum(depth - 1, 0)]
    checked = shown & (right >= 0)
    return Fitted(
        rule,
        "estimated",
        int(checked.sum()),
        int((checked & (right == 0)).sum()),
        float(shown.mean()),
        float(depth.mean()),
    )


def _rejects(tried: Fitted, risk: float, delta: float) -> bool:
    """Is "wrong at least ``risk`` of the time" rejected at level ``delta``? Exact binomial."""
    return bool(binom.cdf(tried.wrong, tried.checked, risk) <= delta)


def _seems(tried: Fitted, risk: float) -> bool:
    """Is the cautious estimate of being wrong at most ``risk``?"""
    return tried.wrong + 1 <= risk * (tried.checked + 1) + EDGE  # 1 - 0.9 is less than 0.1


def _walk(walk: list[Fitted], passes: Callable[[Fitted], bool]) -> Fitted | None:
    """The last that passes before the first that fails, starting where passing is possible.

    The start is chosen by how many pictures are *shown*, never by how many are wrong, as the method
    demands; the Platt fit has seen the same pictures, which it does not allow for
    (docs/decisions/0009 says what that was measured to cost).
    """
    start = next((i for i, tried in enumerate(walk) if passes(replace(tried, wrong=2))), None)
    if start is None:  # too few pictures for two errors: the longest list there is, without error
        start = max(range(len(walk)), key=lambda i: walk[i].checked)
    last = None
    for tried in walk[start:]:
        if not passes(tried):
            break
        last = tried
    return last
