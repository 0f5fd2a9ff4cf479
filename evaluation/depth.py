"""Depth of answers, and whether what is promised of them holds: figures of one run.

``certificates``: the rule is fitted to images drawn from a set that then stands for the population.
``streams``: the rule is fitted to other images than those that arrive, and follows the feedback.
Letters: n images, N nodes, L levels, R repetitions.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hierarchy.calibration import Evidence, fit_rule
from hierarchy.depth_selection import DepthRule, choose_depth, corrected
from hierarchy.online_calibration import Feedback, begin, follow

Ints = NDArray[np.int64]

#: Target accuracies that are reported.
TARGETS = (0.90, 0.95, 0.99)

#: Calibrations for each target, and orders of arrival for each target and share answered.
CALIBRATIONS, ORDERS = 200, 4

#: Shares of the arriving images that annotators answer.
ANSWERED = (1.0, 0.2)

#: Images over which a stream's accuracy is taken, and between the starts of two such windows.
WINDOW, STRIDE = 500, 50

#: How far below the target a window may lie, in accuracy.
TOLERANCE = 0.01


def shown(seen: Evidence, rule: DepthRule) -> tuple[Ints, Ints]:
    """Apply a depth rule: ``(n,)`` depths, 0 for nothing, and ``(n,)`` verdicts of what is shown.

    A verdict is 1 for right, 0 for wrong, -1 for not known or nothing shown.
    """
    depth = choose_depth(corrected(seen.probability, rule.platt), rule)
    at_depth = seen.right[np.arange(len(depth)), np.maximum(depth - 1, 0)]
    return depth, np.where(depth > 0, at_depth, -1)


def accuracy(verdicts: Ints, *, nothing: float) -> float:
    """Return the share of known verdicts that are right; ``nothing`` where none is known."""
    known = verdicts[verdicts >= 0]
    return float((known == 1).mean()) if len(known) else nothing


def certificates(
    seen: Evidence, seed: int, *, calibrations: int = CALIBRATIONS
) -> dict[str, float]:
    """Fit the rule to many draws of half the images, and judge it on all of them.

    Args:
        seen: what one head says of images that it was not trained on.
        seed: of the draws, with replacement.
        calibrations: draws for each target.

    Returns:
        For each target, with and without the strict mode: ``kept`` (share of calibrations after
        which the accuracy of what is shown is at least the target), ``every level kept``,
        ``depth`` (mean, nothing shown counting 0), ``given`` and ``accuracy of shown``.
    """
    figures: dict[str, float] = {}
    size, levels = seen.probability.shape
    for target in TARGETS:
        for strict in (False, True):
            draw = np.random.default_rng(seed)
            found = []
            for _ in range(calibrations):
                drawn = draw.integers(0, size, size // 2)
                part = Evidence(seen.probability[drawn], seen.right[drawn])
                depth, verdict = shown(seen, fit_rule(part, target=target, strict=strict).rule)
                whole = accuracy(verdict, nothing=1.0)  # nothing shown, nothing broken
                by_level = [
                    accuracy(verdict[depth == level + 1], nothing=1.0) for level in range(levels)
                ]
                kept = whole >= target, min(by_level) >= target
                found.append([*kept, depth.mean(), (depth > 0).mean(), whole])
            names = ("kept", "every level kept", "depth", "given", "accuracy of shown")
            mode = f"{100 * target:g} %{', strict' if strict else ''}"
            means = np.mean(np.array(found, dtype=np.float64), axis=0).tolist()
            figures |= {f"{name} at {mode}": mean for name, mean in zip(names, means, strict=True)}
    return figures


def streams(
    calibration: Evidence, arriving: Evidence, seed: int, *, orders: int = ORDERS
) -> dict[str, float]:
    """Fit the rule to some images, let others arrive in random order, and follow the answers.

    Args:
        calibration: what the rule is certified on.
        arriving: what then arrives, of the same head.
        seed: of orders and of who is answered.
        orders: streams for each target and share answered.

    Returns:
        For each target and share answered: ``first`` (accuracy of what is shown among the first
        window), ``within`` (share of later windows at most ``TOLERANCE`` below the target),
        ``given`` and ``depth``; what cannot be taken of so few images is left out.
    """
    figures: dict[str, float] = {}
    for answered in ANSWERED:
        for target in TARGETS:
            rule = fit_rule(calibration, target=target).rule
            draw = np.random.default_rng(seed)
            runs = []
            for _ in range(orders):
                order = draw.permutation(len(arriving))
                runs.append(stream(rule, arriving, order, draw.random(len(order)) < answered))
            depth = np.array([one for one, _ in runs])  # (R, n)
            starts = range(WINDOW, len(arriving) - WINDOW + 1, STRIDE)
            later = [
                accuracy(verdict[start : start + WINDOW], nothing=1.0) >= target - TOLERANCE
                for _, verdict in runs
                for start in starts
            ]
            first = [accuracy(verdict[:WINDOW], nothing=np.nan) for _, verdict in runs]
            mode = f"{100 * target:g} %, {100 * answered:g} % answered"
            figures |= {
                f"first at {mode}": float(np.mean(first)),
                f"given at {mode}": float((depth > 0).mean()),
                f"depth at {mode}": float(depth.mean()),
            }
            if later:
                figures[f"within at {mode}"] = float(np.mean(later))
    return {name: value for name, value in figures.items() if np.isfinite(value)}


def stream(
    own: DepthRule, seen: Evidence, order: Ints, answered: Sequence[bool] | NDArray[np.bool_]
) -> tuple[Ints, Ints]:
    """Let images arrive: ``(n,)`` depths shown and ``(n,)`` verdicts, in the order of arrival."""
    state = begin(own)
    depth, verdict = np.zeros(len(order), dtype=np.int64), np.full(len(order), -1)
    for at, image in enumerate(order.tolist()):
        one = Evidence(seen.probability[image : image + 1], seen.right[image : image + 1])
        (depth[at],), (verdict[at],) = shown(one, state.rule)
        if answered[at]:
            row = tuple(seen.probability[image].tolist())
            right = tuple(seen.right[image].tolist())
            answer = Feedback(at, row, right, shown=int(depth[at]), verdict=int(verdict[at]))
            state = follow(state, [answer])
    return depth, verdict
