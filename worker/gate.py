"""Is a new version worse than the live one? Only pictures neither was trained on may say so."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

#: With fewer pictures than this the comparison says nothing.
LEAST = 10

#: Chance of refusing a version that is as good.
DELTA = 0.05


@dataclass(frozen=True)
class Verdict:
    """Whether the new version may go live, and why in words."""

    passed: bool
    why: str


def compare(new_right: NDArray[np.bool_], live_right: NDArray[np.bool_], live: str) -> Verdict:
    """McNemar's exact one-sided test on pictures labelled since the live version was trained.

    The live version has not seen them, and the new version's answers come from cross-fitting. What
    remains in the live one's favour is that annotators saw its pre-labels.

    Args:
        new_right: ``(n,)`` was the new version right at the level the annotator named?
        live_right: ``(n,)`` the same of the live version.
        live: its name.
    """
    checked = len(new_right)
    won = int((new_right & ~live_right).sum())
    lost = int((live_right & ~new_right).sum())
    if checked < LEAST:
        return Verdict(
            passed=True, why=f"only {checked} pictures are new since {live}: not compared"
        )
    figures = (
        f"on {checked} pictures labelled since {live}: {new_right.mean():.1%} right against "
        f"{live_right.mean():.1%}"
    )
    if lost > won and binomtest(lost, lost + won, 0.5, alternative="greater").pvalue < DELTA:
        return Verdict(passed=False, why=f"worse than {live} {figures}")
    return Verdict(passed=True, why=f"not worse {figures}")


def compare_figures(new: float | None, live: float | None, checked: int, name: str) -> Verdict:
    """Without new pictures: each version's own held-out leaf accuracy, within two errors."""
    if new is None or live is None or checked < LEAST:
        return Verdict(passed=True, why=f"nothing to compare with {name}")
    margin = 2 * float(np.sqrt(max(live * (1 - live), 0.01) * 2 / checked))
    if new < live - margin:
        return Verdict(passed=False, why=f"held-out leaf accuracy {new:.1%}, {name} had {live:.1%}")
    return Verdict(passed=True, why=f"held-out leaf accuracy {new:.1%}, {name} had {live:.1%}")
