"""Online calibration: annotators' answers against the pre-labels that they saw.

Keeps a running estimate of the accuracy of what is shown, level by level, and moves the depth rule
so that the target holds when the images drift: refitted from the feedback alone once there is
enough, plus a small offset after each answer (adaptive conformal inference, Gibbs and Candes 2021,
on the logarithm of the price). States go in and come out; nothing here is changed in place.
Letters: m answers kept, L levels.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from hierarchy.calibration import PRICES, Evidence, estimate, fit_platt, left_out
from hierarchy.depth_selection import DepthRule, Ints, corrected, logits, sigmoid

#: Answers from which on the rule is fitted to them alone; before, the version's own holds. Held-out
#: images of before a drift keep the accuracy low for a thousand answers if they stay in.
REFIT_FROM = 50

#: Answers between two fits.
REFIT_EVERY = 10

#: Answers from which on the probabilities are corrected anew too, not only priced.
CORRECT_FROM = 200

#: Answers kept, the newest; the oldest say least of what is shown now.
KEEP = 1000

#: What a wrong label that was shown adds to the offset; every label that was shown takes
#: GAIN * (1 - target) off again, so where errors are as rare as they should be both cancel out.
GAIN = 0.25

#: The offset never goes further: a long run without errors must not be paid for by as long a run
#: with too many.
FURTHEST = 1.0

#: Confidence of the intervals told.
CONFIDENCE = 0.9


@dataclass(frozen=True)
class Feedback:
    """One annotator's answer, held against the pre-label that it started from.

    Attributes:
        id: the annotation's; the same id again is the same answer, maybe changed.
        probability: of each level's best node, before correction.
        right: of each level's best node: 1 right, 0 wrong, -1 not known.
        shown: level of the tree of the pre-label that the annotator saw, 0 for none.
        verdict: of that pre-label: 1 right, 0 wrong, -1 not known or none shown.
        depth: level of the tree of each level's best node; empty where they are the tree's own.
        like: likeness of the image to the labelled ones; 1 where it is not known.
    """

    id: int
    probability: tuple[float, ...]
    right: tuple[int, ...]
    shown: int
    verdict: int
    depth: tuple[int, ...] = ()
    like: float = 1.0

    @property
    def at(self) -> tuple[int, ...]:
        """The level of the tree that each node lies on."""
        return self.depth or tuple(range(1, len(self.right) + 1))


@dataclass(frozen=True)
class ShownAccuracy:
    """Accuracy of what was shown on one level.

    Attributes:
        level: level of the tree shown, 1 the top; 0 stands for all levels together.
        shown: answers that had started from a label on this level.
        checked: those whose pre-label could be judged.
        right: how many of those were right.
        accuracy: right / checked; None without any checked.
        low: lower end of the 90 % interval (Clopper and Pearson 1934), 0 without any checked.
        high: upper end, 1 without any checked.
    """

    level: int
    shown: int
    checked: int
    right: int
    accuracy: float | None
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Follower:
    """State of online calibration since a version went live, and the rule that follows from it.

    Attributes:
        own: the version's own rule, as it was certified.
        refitted: the newest fit to the feedback; None before there is enough.
        offset: added to the logarithm of the price, or to a strict rule's logits.
        ids: ``(m,)`` annotations kept, in order of arrival.
        seen: what they say of each level's best node, m rows.
        shown: ``(m,)`` level of the tree of the pre-label, 0 for none.
        verdict: ``(m,)`` 1 right, 0 wrong, -1 not known.
        since: answers since the newest fit.
        through: the highest id that was let go; answers up to it that are not kept are old ones.
    """

    own: DepthRule
    refitted: DepthRule | None
    offset: float
    ids: Ints
    seen: Evidence
    shown: Ints
    verdict: Ints
    since: int = 0
    through: int = -1

    @property
    def rule(self) -> DepthRule:
        """The rule in force."""
        return _moved(self.own if self.refitted is None else self.refitted, self.offset)

    @property
    def useful(self) -> int:
        """Answers that say anything of any level."""
        return int((self.seen.right >= 0).any(axis=1).sum())

    @property
    def accuracy(self) -> tuple[ShownAccuracy, ...]:
        """All levels together, then each level."""
        deepest = max(self.seen.right.shape[1], int(self.shown.max(initial=0)))
        levels = range(deepest + 1)
        return tuple(_shown_accuracy(level, self.shown, self.verdict) for level in levels)

    def to_json(self) -> dict[str, Any]:
        """Plain data, to be kept beside the version."""
        return {
            "own": self.own.to_json(),
            "refitted": None if self.refitted is None else self.refitted.to_json(),
            "offset": self.offset,
            "ids": self.ids.tolist(),
            "probability": self.seen.probability.round(6).tolist(),
            "right": self.seen.right.tolist(),
            "depth": self.seen.at.tolist(),
            "like": [] if self.seen.like is None else self.seen.like.tolist(),
            "shown": self.shown.tolist(),
            "verdict": self.verdict.tolist(),
            "since": self.since,
            "through": self.through,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """The state that ``to_json`` wrote."""
        own = DepthRule.from_json(data["own"])
        shape = (len(data["ids"]), len(own.platt))
        refitted = data["refitted"]
        return cls(
            own=own,
            refitted=None if refitted is None else DepthRule.from_json(refitted),
            offset=float(data["offset"]),
            ids=np.array(data["ids"], dtype=np.int64),
            seen=Evidence(
                np.array(data["probability"], dtype=np.float64).reshape(shape),
                np.array(data["right"], dtype=np.int64).reshape(shape),
                np.array(data["depth"], dtype=np.int64).reshape(shape),
                like=np.array(data.get("like", [1.0] * len(data["ids"])), dtype=np.float64),
            ),
            shown=np.array(data["shown"], dtype=np.int64),
            verdict=np.array(data["verdict"], dtype=np.int64),
            since=int(data["since"]),
            through=int(data["through"]),
        )


def begin(own: DepthRule) -> Follower:
    """The state on the day that a version goes live."""
    none = np.empty(0, dtype=np.int64)
    levels = len(own.platt)
    nothing = np.empty((0, levels), dtype=np.int64)
    seen = Evidence(np.empty((0, levels)), nothing, nothing, like=np.empty(0))
    return Follower(own, None, 0.0, none, seen, none, none)


def follow(state: Follower, answers: Iterable[Feedback]) -> Follower:
    """Take in answers, in the order in which they were submitted.

    An answer whose id is known replaces what it said before, and moves nothing.

    Raises:
        ValueError: an answer speaks of another number of levels than the rule.
    """
    for answer in answers:
        _check(state, answer)
        known = np.flatnonzero(state.ids == answer.id)
        if len(known):
            state = _changed(state, int(known[0]), answer)
        elif answer.id > state.through:
            state = _added(state, answer)
            if state.since >= REFIT_EVERY and state.useful >= REFIT_FROM:
                state = replace(state, refitted=_refitted(state), since=0)
    return state


def _check(state: Follower, answer: Feedback) -> None:
    levels = state.seen.probability.shape[1]
    if len(answer.probability) != levels or len(answer.right) != levels:
        raise ValueError(
            f"answer {answer.id} speaks of {len(answer.probability)} levels: expected {levels}, as "
            "the version's tree has; begin anew when the tree changes"
        )


def _evidence_of(answer: Feedback) -> Evidence:
    """Return what one answer says, as a row of evidence."""
    return Evidence(
        np.array([answer.probability]),
        np.array([answer.right]),
        np.array([answer.at]),
        like=np.array([answer.like]),
    )


def _changed(state: Follower, at: int, answer: Feedback) -> Follower:
    before, behind = (state.seen.some(rows) for rows in np.split(np.arange(len(state.ids)), [at]))
    seen = before.joined(_evidence_of(answer)).joined(behind.some(np.arange(1, len(behind))))
    shown, verdict = state.shown.copy(), state.verdict.copy()
    shown[at], verdict[at] = answer.shown, answer.verdict
    return replace(state, seen=seen, shown=shown, verdict=verdict)


def _added(state: Follower, answer: Feedback) -> Follower:
    offset = state.offset
    if answer.shown and answer.verdict >= 0:
        offset += GAIN * ((answer.verdict == 0) - (1 - state.own.target))
    gone, kept = np.split(np.arange(len(state.ids)), [max(0, len(state.ids) + 1 - KEEP)])
    return replace(
        state,
        offset=float(np.clip(offset, -FURTHEST, FURTHEST)),
        ids=np.append(state.ids[kept], answer.id),
        seen=state.seen.some(kept).joined(_evidence_of(answer)),
        shown=np.append(state.shown[kept], answer.shown),
        verdict=np.append(state.verdict[kept], answer.verdict),
        since=state.since + 1,
        through=max([state.through, *state.ids[gone].tolist()]),
    )


def _refitted(state: Follower) -> DepthRule:
    """The loosest rule that the feedback bears, by the cautious estimate.

    Where it bears none, the strictest there is: an error in a hundred cannot be told from 50
    answers, and the version's own promise is what the feedback was to check.
    """
    own, seen = state.own, state.seen
    platt = fit_platt(seen) if state.useful >= CORRECT_FROM else own.platt
    sure = left_out(seen, platt) if platt is not own.platt else corrected(seen.probability, platt)
    rule = replace(own, platt=platt)
    found = estimate(seen, sure, rule)
    if found is not None:
        return found.rule
    if own.thresholds is not None:
        return replace(rule, price=None)
    return replace(rule, price=float(PRICES[0]))


def _moved(rule: DepthRule, offset: float) -> DepthRule:
    """The rule made stricter by a positive offset, looser by a negative one."""
    if rule.price is None or not offset:
        return rule
    if rule.thresholds is None:
        return replace(rule, price=rule.price * float(np.exp(offset)))
    raised = tuple(
        None if p is None else float(sigmoid(logits(np.array(p)) + offset)) for p in rule.thresholds
    )
    return replace(rule, thresholds=raised)


def _shown_accuracy(level: int, depth: Ints, verdict: Ints) -> ShownAccuracy:
    from scipy.stats import beta  # a second, which a server that only answers need not spend

    here = depth == level if level else depth > 0
    right, wrong = int((here & (verdict == 1)).sum()), int((here & (verdict == 0)).sum())
    outside = (1 - CONFIDENCE) / 2
    return ShownAccuracy(
        level=level,
        shown=int(here.sum()),
        checked=right + wrong,
        right=right,
        accuracy=right / (right + wrong) if right + wrong else None,
        low=float(beta.ppf(outside, right, wrong + 1)) if right else 0.0,
        high=float(beta.ppf(1 - outside, right + 1, wrong)) if wrong else 1.0,
    )
