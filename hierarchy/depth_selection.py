"""Depth selection: probabilities of all nodes and a rule -> one node per image or none, and why.

The price rule: of the most probable node of each level, answer the one that maximises
``depth + bonus - price * ((1 - P) - (1 - target))``, nothing when that is negative for all. It
maximises the mean depth for a given accuracy of what is shown when P is calibrated; ``price`` is
the one number that calibration chooses. A strict rule has a least P for each level instead.
Levels are decision levels (``hierarchy.decisions``) wherever something is promised; only the
limits ``minimum`` and ``maximum`` count the tree's own. Letters: B images, N nodes, L levels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from hierarchy.tree import LabelTree

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

#: Probabilities are kept this far from 0 and 1 before their logit is taken.
EDGE = 1e-9

#: A node less probable than this is never shown, even where the average could bear it: with few
#: errors to spare elsewhere, a low price would answer a leaf of level 1 with some node of level 2.
LEAST_PROBABILITY = 0.25


@dataclass(frozen=True)
class DepthRule:
    """When to stop: what ``calibration.fit_rule`` found, or a project's own setting.

    Attributes:
        target: the accuracy that shown labels should have, in (0, 1).
        price: levels of depth that one unit of excess risk costs; None shows nothing at all.
        platt: for each level how its probability is corrected: slope and offset of its logit, or a
            weight for the logit of every level's best node, and an offset.
        minimum: shallowest level of the tree that is shown (1 = top level).
        maximum: deepest level of the tree that is shown; None for no limit.
        bonus: what showing anything is worth beside its depth, in levels.
        thresholds: strict rules only: the least probability that each level is shown at, None for a
            level that is not; the deepest level that reaches its own is shown. The price then only
            says whether anything is.
        least_like: an image whose likeness (`hierarchy.familiarity`) is less is shown nothing.
    """

    target: float
    price: float | None
    platt: tuple[tuple[float, ...], ...]
    minimum: int = 1
    maximum: int | None = None
    bonus: float = 0.0
    thresholds: tuple[float | None, ...] | None = None
    least_like: float = 0.0

    @property
    def strict(self) -> bool:
        """Tell whether every level keeps the target for itself."""
        return self.thresholds is not None

    def to_json(self) -> dict[str, Any]:
        """Plain data for a manifest."""
        return {
            "target": self.target,
            "price": self.price,
            "platt": [list(row) for row in self.platt],
            "minimum": self.minimum,
            "maximum": self.maximum,
            "bonus": self.bonus,
            "thresholds": None if self.thresholds is None else list(self.thresholds),
            "least_like": self.least_like,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """The rule that ``to_json`` wrote, also of a release that knew fewer of its numbers."""
        levels = data.get("thresholds")
        return cls(
            target=float(data["target"]),
            price=None if data["price"] is None else float(data["price"]),
            platt=tuple(tuple(float(number) for number in row) for row in data["platt"]),
            minimum=int(data["minimum"]),
            maximum=None if data["maximum"] is None else int(data["maximum"]),
            bonus=float(data.get("bonus", 0.0)),
            thresholds=None
            if levels is None
            else tuple(None if least is None else float(least) for least in levels),
            least_like=float(data.get("least_like", 0.0)),
        )


@dataclass(frozen=True)
class Candidates:
    """The most probable node of each level, for each image.

    Attributes:
        nodes: ``(B, L)`` node ids.
        probability: ``(B, L)`` their probabilities, before any correction.
        leaf: ``(B,)`` the most probable leaf, on whatever level it is.
        confidence: ``(B,)`` that leaf's probability: low where a person is needed most.
    """

    nodes: Ints
    probability: Floats
    leaf: Ints
    confidence: Floats


def candidates(
    log_probability: Floats, tree: LabelTree, levels: Sequence[Ints] | None = None
) -> Candidates:
    """Pick each level's best node out of ``(B, N)`` log-probabilities of all nodes.

    Args:
        log_probability: of each node of the tree.
        tree: the N nodes.
        levels: ids of each level's nodes, such as decision levels; None for the tree's own levels.
    """
    if levels is None:
        levels = [np.array(tree.level_nodes(level)) for level in range(tree.depth)]
    rows = np.arange(len(log_probability))
    nodes = np.empty((len(rows), len(levels)), dtype=np.int64)
    for level, ids in enumerate(levels):
        nodes[:, level] = ids[log_probability[:, ids].argmax(axis=1)]
    leaves = np.array(tree.leaves)
    leaf = leaves[log_probability[:, leaves].argmax(axis=1)]
    return Candidates(
        nodes=nodes,
        probability=np.exp(log_probability[rows[:, None], nodes]),
        leaf=leaf,
        confidence=np.exp(log_probability[rows, leaf]),
    )


def logits(probability: Floats) -> Floats:
    """Log-odds, kept finite."""
    inside = np.clip(probability, EDGE, 1 - EDGE)
    result: Floats = np.log(inside) - np.log1p(-inside)
    return result


def sigmoid(logit: Floats) -> Floats:
    """Return probabilities of log-odds, away from 0 and 1."""
    result: Floats = 1 / (1 + np.exp(-np.clip(logit, -40, 40)))
    return result


def corrected(probability: Floats, platt: tuple[tuple[float, ...], ...]) -> Floats:
    """``(B, L)`` probabilities of each level's best node after the correction in logit space.

    A tree that has grown deeper since the fit uses the deepest known level's numbers below it; in
    one that has lost levels, the deepest that is left speaks for those below it.
    """
    weights, offsets = correction(platt, probability.shape[1])
    return sigmoid(logits(probability) @ weights.T + offsets)


def corrected_nodes(
    best: Floats, probability: Floats, levels: Ints, platt: tuple[tuple[float, ...], ...]
) -> Floats:
    """Correct the probabilities of any nodes: each takes the place of the best one of its level.

    Args:
        best: ``(B, L)`` of each level's best node, before correction.
        probability: ``(B, K)`` of the nodes asked for, before correction.
        levels: ``(B, K)`` their levels, 0 the top.
        platt: the rule's.

    Returns:
        ``(B, K)`` corrected probabilities.
    """
    weights, offsets = correction(platt, best.shape[1])
    own = np.take_along_axis(logits(best), levels, axis=1)  # (B, K)
    total = logits(best) @ weights.T + offsets  # (B, L)
    total = np.take_along_axis(total, levels, axis=1)
    total += weights[levels, levels] * (logits(probability) - own)
    return sigmoid(total)


def correction(platt: tuple[tuple[float, ...], ...], levels: int) -> tuple[Floats, Floats]:
    """``(L, L)`` weights and ``(L,)`` offsets of a correction, for a tree of ``levels`` levels.

    Raises:
        ValueError: a row is neither slope and offset nor one weight a row and an offset.
    """
    weights, offsets = np.zeros((levels, levels)), np.zeros(levels)
    for level in range(levels):
        known = min(level, len(platt) - 1)
        *slopes, offsets[level] = platt[known]
        if len(slopes) == 1:
            weights[level, level] = slopes[0]
            continue
        if len(slopes) != len(platt):
            raise ValueError(
                f"the correction of level {known + 1} has {len(slopes)} weights: expected 1, of "
                f"its own logit, or {len(platt)}, one a level"
            )
        for other, slope in enumerate(slopes):
            weights[level, level if other == known else min(other, levels - 1)] += slope
    return weights, offsets


def choose_depth(
    probability: Floats, rule: DepthRule, at: Ints | None = None, like: Floats | None = None
) -> Ints:
    """Depth to answer at, 0 for nothing, from ``(B, L)`` corrected probabilities -> ``(B,)``.

    Args:
        probability: of each level's best node.
        rule: when to stop.
        at: ``(B, L)`` the level of the tree that each of those nodes lies on (1 = top level), which
            the rule's limits are about; None where the levels are the tree's own.
        like: ``(B,)`` likeness of each image; None where it is not known, which holds nothing back.

    Example:
        >>> rule = DepthRule(target=0.9, price=10.0, platt=((1.0, 0.0), (1.0, 0.0)))
        >>> choose_depth(np.array([[0.99, 0.95], [0.97, 0.4], [0.5, 0.3]]), rule)
        array([2, 1, 0])
    """
    if rule.price is None or not probability.shape[1]:
        return np.zeros(len(probability), dtype=np.int64)
    depth = np.arange(1, probability.shape[1] + 1)
    allowed = allowed_levels(probability, rule, at, like)
    if rule.thresholds is not None:
        worth = np.where(probability >= _least(rule.thresholds, len(depth)), depth, 0.0)
    else:
        worth = depth + rule.bonus - rule.price * (rule.target - probability)
    worth = np.where(allowed, worth, -np.inf)
    best = worth.argmax(axis=1)
    shown = worth[np.arange(len(worth)), best] > 0
    return np.where(shown, best + 1, 0)


def allowed_levels(
    probability: Floats, rule: DepthRule, at: Ints | None = None, like: Floats | None = None
) -> Bools:
    """``(B, L)`` levels within the rule's limits whose node is more than a bare guess.

    Of an image that is too unlike the labelled ones there is none: its probabilities mean nothing.
    """
    at = np.arange(1, probability.shape[1] + 1) if at is None else at
    allowed: Bools = (at >= rule.minimum) & (probability >= min(LEAST_PROBABILITY, rule.target))
    if rule.maximum is not None:
        allowed &= at <= rule.maximum
    if like is not None:
        allowed &= ~unlike(like, rule)[:, None]
    return allowed


def unlike(like: Floats, rule: DepthRule) -> Bools:
    """``(B,)`` whether images of this likeness are too unlike the labelled ones to be answered."""
    result: Bools = like < rule.least_like
    return result


def _least(thresholds: tuple[float | None, ...], levels: int) -> Floats:
    """``(L,)`` least probabilities, more than 1 for closed levels; unknown levels are closed."""
    known = [2.0 if least is None else least for least in thresholds[:levels]]
    return np.array(known + [2.0] * (levels - len(known)))


class Reason(StrEnum):
    """Why an answer stops where it does."""

    DEEPEST = "deepest"  #: there is nothing below what is shown
    RISK = "risk"  #: one level deeper would be wrong too often
    LIMIT = "limit"  #: sure enough for more, but the project wants no deeper answers
    UNSURE = "unsure"  #: nothing is shown: not even the shallowest level is sure enough
    MINIMUM = "minimum"  #: nothing is shown: only levels that the project does not want are sure
    NOTHING = "nothing"  #: nothing is shown: too few checked labels for any promise
    UNLIKE = "unlike"  #: nothing is shown: the image is unlike those that were labelled


#: Reasons in the order of the codes that ``explain_depth`` returns.
REASONS = tuple(Reason)


@dataclass(frozen=True)
class Explained:
    """Depths with the reason for each.

    Attributes:
        depth: ``(B,)`` depth to answer at, 0 for nothing: what ``choose_depth`` returns.
        code: ``(B,)`` index into ``REASONS``.
        refused: ``(B,)`` depth of the next level, the first that was refused; 0 where none is left.
        deeper: ``(B,)`` corrected probability of the best node there; NaN where no level is left.
    """

    depth: Ints
    code: Ints
    refused: Ints
    deeper: Floats

    def reasons(self) -> list[Reason]:
        """Return one reason per image."""
        return [REASONS[code] for code in self.code.tolist()]


def explain_depth(
    probability: Floats,
    rule: DepthRule,
    ends: Bools | None = None,
    at: Ints | None = None,
    like: Floats | None = None,
) -> Explained:
    """``choose_depth`` with the reason why each answer goes no deeper.

    Args:
        probability: ``(B, L)`` corrected probabilities.
        rule: when to stop.
        ends: ``(B, L)`` whether the best node of each level has nothing below it; None where all
            leaves lie on the last level.
        at: as in `choose_depth`.
        like: as in `choose_depth`.

    Example:
        >>> rule = DepthRule(target=0.9, price=10.0, platt=((1.0, 0.0), (1.0, 0.0)))
        >>> explain_depth(np.array([[0.99, 0.95], [0.97, 0.4], [0.5, 0.3]]), rule).reasons()
        [<Reason.DEEPEST: 'deepest'>, <Reason.RISK: 'risk'>, <Reason.UNSURE: 'unsure'>]
    """
    rows, levels = np.arange(len(probability)), probability.shape[1]
    depth = choose_depth(probability, rule, at, like)
    free = choose_depth(probability, replace(rule, minimum=1, maximum=None))
    last = depth == levels
    if ends is not None and levels:
        last |= (depth > 0) & ends[rows, np.maximum(depth - 1, 0)]
    far = np.zeros(len(rows), dtype=bool) if like is None else unlike(like, rule)
    name = np.select(
        [rule.price is None, far, last, (depth > 0) & (free > depth), depth > 0, free > 0],
        [REASONS.index(reason) for reason in (Reason.NOTHING, Reason.UNLIKE, Reason.DEEPEST)]
        + [REASONS.index(reason) for reason in (Reason.LIMIT, Reason.RISK, Reason.MINIMUM)],
        REASONS.index(Reason.UNSURE),
    )
    if not levels:  # a tree that leaves no choice
        nothing = np.zeros(len(rows), dtype=np.int64)
        return Explained(depth, name.astype(np.int64), nothing, np.full(len(rows), np.nan))
    at = np.broadcast_to(np.arange(1, levels + 1), probability.shape) if at is None else at
    deep = at >= rule.minimum
    first = np.where(deep.any(axis=1), deep.argmax(axis=1), levels - 1)  # the shallowest allowed
    refused = np.where(last, 0, np.where(depth > 0, depth, first) + 1)
    deeper = np.where(last, np.nan, probability[rows, np.minimum(refused, levels) - 1])
    return Explained(depth, name.astype(np.int64), refused, deeper)


def reason_text(
    reason: Reason,
    *,
    deeper: str | None = None,
    probability: float | None = None,
    target: float | None = None,
) -> str:
    """A reason in words for people.

    Args:
        reason: which.
        deeper: name of the best node of the next level, the first that was refused.
        probability: that it is right, corrected.
        target: the accuracy asked for.

    Example:
        >>> reason_text(Reason.RISK, deeper="Gala", probability=0.62, target=0.95)
        "One level deeper, 'Gala' would be right in about 62 % of such images (target 95 %)."
    """
    name = "the best guess" if deeper is None else f"'{deeper}'"
    often = "too rarely" if probability is None else f"in {_about(probability)} of such images"
    aim = "" if target is None else f" (target {100 * target:g} %)"
    return {
        Reason.DEEPEST: "There is nothing below this label.",
        Reason.RISK: f"One level deeper, {name} would be right {often}{aim}.",
        Reason.LIMIT: "A deeper label would be sure enough, but the project wants none.",
        Reason.UNSURE: f"Nothing is shown: {name} would be right {often}{aim}.",
        Reason.MINIMUM: "Nothing is shown: what is sure is shallower than the project wants.",
        Reason.NOTHING: "Nothing is shown: too few checked labels yet to promise any accuracy.",
        Reason.UNLIKE: "Nothing is shown: the image looks unlike those that were labelled.",
    }[reason]


def _about(probability: float) -> str:
    return f"about {100 * probability:.0f} %"
