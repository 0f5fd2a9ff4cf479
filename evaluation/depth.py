"""How deep answers go, and whether what is promised of them holds: two studies on kept predictions.

``bootstrap``: the rule is fitted to pictures drawn from a set that then stands for the population.
``stream``: the rule is fitted to other pictures than those that arrive, and follows the feedback.
Letters: n pictures, N nodes, L levels, R repetitions.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hierarchy import LabelTree
from hierarchy.calibration import Evidence, evidence, fit_rule
from hierarchy.choice import DepthRule, Floats, Ints, candidates, choose_depth, corrected
from hierarchy.decisions import Decisions
from hierarchy.feedback import Feedback, begin, follow

#: Target accuracies that are reported.
TARGETS = (0.90, 0.95, 0.99)

#: Pictures over which a stream's accuracy is taken.
WINDOW = 500

#: Pictures between the starts of two windows.
STRIDE = 50

#: How far below the target a window may lie, in accuracy.
TOLERANCE = 0.01

Arrangement = Literal["random", "by class"]


@dataclass(frozen=True)
class Held:
    """Predictions of one head on pictures that it was not trained on.

    Attributes:
        seen: what they say of each level's best node.
        targets: ``(n,)`` the true nodes.
    """

    seen: Evidence
    targets: Ints

    def __len__(self) -> int:
        return len(self.targets)


def held(log_probability: Floats, targets: Ints, tree: LabelTree) -> Held:
    """From ``(n, N)`` log-probabilities and ``(n,)`` true nodes."""
    found = candidates(log_probability, tree, Decisions.of(tree).levels)
    return Held(evidence(found, targets, tree), targets)


@dataclass(frozen=True)
class Bootstrap:
    """What calibrations on draws of pictures led to, over all of the pictures.

    Attributes:
        target: accuracy promised.
        strict: for every level separately?
        pictures: drawn for each calibration, with replacement.
        calibrations: how many there were, over all heads.
        certified: share with a certificate, the others only with an estimate.
        kept: share with which the accuracy of what is shown is at least the target.
        levels_kept: share with which it is so on every level that is shown.
        accuracy: of what is shown, mean over the calibrations.
        accuracy_sd: its standard deviation.
        given: mean share of pictures that get a label.
        depth: mean depth, nothing shown counting 0.
        level_accuracy: of what is shown on each level, mean over calibrations that show it.
        heads_kept: ``kept`` for each head.
    """

    target: float
    strict: bool
    pictures: int
    calibrations: int
    certified: float
    kept: float
    levels_kept: float
    accuracy: float
    accuracy_sd: float
    given: float
    depth: float
    level_accuracy: tuple[float | None, ...]
    heads_kept: tuple[float, ...]


@dataclass(frozen=True)
class _Outcome:
    certified: bool
    accuracy: float
    given: float
    depth: float
    levels: tuple[float, ...]  # NaN where nothing is shown


def bootstrap(  # noqa: PLR0913 - the pictures, and what is varied
    heads: Sequence[Held],
    *,
    targets: Iterable[float] = TARGETS,
    calibrations: int = 200,
    pictures: int | None = None,
    strict: bool = False,
    seed: int = 0,
) -> list[Bootstrap]:
    """Fit the rule to many draws from each head's pictures, and judge it on all of them.

    Args:
        heads: one a training seed.
        targets: accuracies to promise.
        calibrations: draws a head.
        pictures: drawn each time, with replacement; None for half of what there is.
        strict: promise the target for every level separately.
        seed: of the draws.
    """
    rows = []
    for target in targets:
        found = [
            [
                _judged(head, draw, target, strict=strict)
                for draw in _draws(len(head), calibrations, pictures, seed + number)
            ]
            for number, head in enumerate(heads)
        ]
        rows.append(_summary(found, target, pictures or len(heads[0]) // 2, strict=strict))
    return rows


def _draws(size: int, count: int, pictures: int | None, seed: int) -> Iterable[Ints]:
    draw = np.random.default_rng(seed)
    for _ in range(count):
        yield draw.integers(0, size, pictures or size // 2)


def _judged(head: Held, drawn: Ints, target: float, *, strict: bool) -> _Outcome:
    seen = head.seen
    fitted = fit_rule(
        Evidence(seen.probability[drawn], seen.right[drawn]), target=target, strict=strict
    )
    depth = choose_depth(corrected(seen.probability, fitted.rule.platt), fitted.rule)
    verdict = _verdicts(seen, depth)
    return _Outcome(
        certified=fitted.standing == "certified",
        accuracy=_share(verdict, depth > 0, otherwise=1.0),  # nothing shown, nothing broken
        given=float((depth > 0).mean()),
        depth=float(depth.mean()),
        levels=tuple(
            _share(verdict, depth == level + 1, otherwise=np.nan)
            for level in range(seen.probability.shape[1])
        ),
    )


def _verdicts(seen: Evidence, depth: Ints) -> Ints:
    """``(n,)`` of the node shown: 1 right, 0 wrong, -1 not known or nothing shown."""
    at_depth = seen.right[np.arange(len(seen)), np.maximum(depth - 1, 0)]
    result: Ints = np.where(depth > 0, at_depth, -1)
    return result


def _share(verdict: Ints, which: NDArray[np.bool_], *, otherwise: float) -> float:
    known = verdict[which & (verdict >= 0)]
    return float((known == 1).mean()) if len(known) else otherwise


def _summary(
    found: Sequence[Sequence[_Outcome]], target: float, pictures: int, *, strict: bool
) -> Bootstrap:
    every = [one for head in found for one in head]
    accuracy = np.array([one.accuracy for one in every])
    levels = np.array([one.levels for one in every])  # (R, L)
    shown = ~np.isnan(levels)
    return Bootstrap(
        target=target,
        strict=strict,
        pictures=pictures,
        calibrations=len(every),
        certified=float(np.mean([one.certified for one in every])),
        kept=float((accuracy >= target).mean()),
        levels_kept=float(((levels >= target) | ~shown).all(axis=1).mean()),
        accuracy=float(accuracy.mean()),
        accuracy_sd=float(accuracy.std()),
        given=float(np.mean([one.given for one in every])),
        depth=float(np.mean([one.depth for one in every])),
        level_accuracy=tuple(
            float(levels[has, level].mean()) if has.any() else None
            for level, has in enumerate(shown.T)
        ),
        heads_kept=tuple(
            float(np.mean([one.accuracy >= target for one in head])) for head in found
        ),
    )


@dataclass(frozen=True)
class Stream:
    """How a rule did on pictures that arrived one after the other.

    Attributes:
        target: accuracy promised.
        feedback: share of pictures that annotators answered; 0 keeps the rule as it was.
        arrangement: ``random`` order, or ``by class``, classes in random order.
        streams: how many there were, over all heads.
        first: accuracy of what is shown among the first window, mean over streams; NaN where
            nothing is shown.
        parts: the same for each window after the other; the last may be shorter.
        within: share of all later windows whose accuracy is at most ``TOLERANCE`` below the target.
        given: share of pictures that get a label, over all.
        depth: mean depth, nothing shown counting 0, over all.
        late_depth: mean depth after the first two windows; NaN in a shorter stream.
    """

    target: float
    feedback: float
    arrangement: Arrangement
    streams: int
    first: float
    parts: tuple[float, ...]
    within: float
    given: float
    depth: float
    late_depth: float


def stream(  # noqa: PLR0913 - who learns from whom, and what is varied
    calibration: Sequence[Held],
    arriving: Sequence[Held],
    *,
    target: float,
    feedback: float = 1.0,
    arrangement: Arrangement = "random",
    orders: int = 20,
    strict: bool = False,
    seed: int = 0,
) -> Stream:
    """Fit the rule to some pictures, let others arrive, and follow what is answered.

    Args:
        calibration: what the rule is certified on, one a head.
        arriving: what then arrives, of the same heads.
        target: accuracy promised.
        feedback: share of pictures that are answered, drawn at random.
        arrangement: order of arrival.
        orders: streams a head.
        strict: promise the target for every level separately.
        seed: of orders and draws.
    """
    runs = []
    for number, (before, after) in enumerate(zip(calibration, arriving, strict=True)):
        own = fit_rule(before.seen, target=target, strict=strict).rule
        draw = np.random.default_rng(seed + number)
        for _ in range(orders):
            order = arrange(after.targets, arrangement, draw)
            answered = draw.random(len(order)) < feedback
            runs.append(run(own, after.seen, order, answered))
    return _told(runs, target, feedback, arrangement)


def arrange(targets: Ints, arrangement: Arrangement, draw: np.random.Generator) -> Ints:
    """``(n,)`` an order of arrival."""
    order = draw.permutation(len(targets))
    if arrangement == "by class":
        classes = np.unique(targets)
        place = dict(zip(classes.tolist(), draw.permutation(len(classes)).tolist(), strict=True))
        turn = np.array([place[node] for node in targets[order].tolist()])
        order = order[np.argsort(turn, kind="stable")]
    return np.asarray(order, dtype=np.int64)


def run(
    own: DepthRule, seen: Evidence, order: Ints, answered: NDArray[np.bool_]
) -> tuple[Ints, Ints]:
    """One stream: ``(n,)`` depths shown and ``(n,)`` verdicts, in the order of arrival."""
    state = begin(own)
    depth, verdict = np.zeros(len(order), dtype=np.int64), np.full(len(order), -1)
    for at, picture in enumerate(order.tolist()):
        probability = seen.probability[picture : picture + 1]
        rule = state.rule
        shown = int(choose_depth(corrected(probability, rule.platt), rule)[0])
        depth[at], verdict[at] = shown, seen.right[picture, shown - 1] if shown else -1
        if answered[at]:
            row = tuple(probability[0].tolist())
            right = tuple(seen.right[picture].tolist())
            answer = Feedback(at, row, right, shown=shown, verdict=int(verdict[at]))
            state = follow(state, [answer])
    return depth, verdict


def _told(
    runs: Sequence[tuple[Ints, Ints]], target: float, feedback: float, arrangement: Arrangement
) -> Stream:
    size = len(runs[0][0])
    depth = np.array([one for one, _ in runs])  # (R, n)
    parts = [
        _mean([_window(verdict, start) for _, verdict in runs]) for start in range(0, size, WINDOW)
    ]
    starts = range(WINDOW, size - WINDOW + 1, STRIDE)
    later = [_window(verdict, start) for _, verdict in runs for start in starts]
    return Stream(
        target=target,
        feedback=feedback,
        arrangement=arrangement,
        streams=len(runs),
        first=parts[0],
        parts=tuple(parts),
        within=float(np.mean([not one < target - TOLERANCE for one in later])) if later else 1.0,
        given=float((depth > 0).mean()),
        depth=float(depth.mean()),
        late_depth=_mean(depth[:, 2 * WINDOW :].ravel().tolist()),
    )


def _mean(values: Sequence[float]) -> float:
    """Of those that are numbers; NaN where there are none."""
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


def _window(verdict: Ints, start: int) -> float:
    """Accuracy of what is shown in one window, NaN where nothing is."""
    inside = verdict[start : start + WINDOW]
    return _share(inside, inside >= 0, otherwise=np.nan)


def to_json(rows: Iterable[Bootstrap | Stream]) -> list[dict[str, Any]]:
    """Plain data for a report; what is not a number is None."""
    return [
        {
            name: None if isinstance(value, float) and np.isnan(value) else value
            for name, value in asdict(row).items()
        }
        for row in rows
    ]
