"""A version that is worse stays out; chance alone refuses nobody."""

import numpy as np
import pytest
from numpy.typing import NDArray

from worker.gate import LEAST, compare, compare_figures


def pair(
    won: int, lost: int, both: int = 0, neither: int = 0
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Right or wrong of the new and the live version."""
    cases = [(True, False)] * won + [(False, True)] * lost
    cases += [(True, True)] * both + [(False, False)] * neither
    table = np.array(cases, dtype=bool).reshape(-1, 2)
    return table[:, 0], table[:, 1]


@pytest.mark.parametrize(
    ("won", "lost", "passed"),
    [
        (0, 4, True),  # 1/16
        (0, 5, False),  # 1/32
        (1, 7, False),  # 9/256 = 0.035
        (1, 6, True),  # 8/128 = 0.063
        (2, 8, True),  # 56/1024 = 0.055
        (2, 9, False),  # 67/2048 = 0.033
        (5, 0, True),
        (0, 0, True),
        (50, 50, True),
    ],
)
def test_mcnemar_on_paper(won: int, lost: int, passed: bool) -> None:  # noqa: FBT001
    new, live = pair(won, lost, both=30)
    verdict = compare(new, live, "v3")
    assert verdict.passed is passed
    assert verdict.why.startswith("not worse" if passed else "worse than v3")


def test_pictures_that_both_get_right_or_wrong_decide_nothing() -> None:
    assert not compare(*pair(0, 5, both=1000, neither=1000), "v3").passed
    assert compare(*pair(0, 4, both=1000, neither=1000), "v3").passed


def test_too_few_pictures_say_nothing() -> None:
    verdict = compare(*pair(0, LEAST - 1), "v3")
    assert verdict.passed
    assert verdict.why == "only 9 pictures are new since v3: not compared"
    assert not compare(*pair(0, LEAST), "v3").passed


def test_no_picture_at_all_says_nothing() -> None:
    assert compare(*pair(0, 0), "v3").passed


def test_the_reason_gives_both_accuracies() -> None:
    why = compare(*pair(3, 1, both=12, neither=4), "v3").why
    assert why == "not worse on 20 pictures labelled since v3: 75.0% right against 65.0%"


@pytest.mark.parametrize(
    ("new", "live", "checked", "passed"),
    [
        (0.8, 0.9, 100, False),  # two errors are 2 sqrt(2 * 0.09 / 100) = 0.085
        (0.82, 0.9, 100, True),
        (0.8, 0.9, 50, True),  # and 0.12 here
        (0.95, 0.9, 100, True),
        (0.95, 1.0, 100, False),  # a perfect score is not taken to be exact: 0.028
        (0.98, 1.0, 100, True),
        (0.0, 1.0, LEAST - 1, True),
        (None, 0.9, 100, True),
        (0.9, None, 100, True),
    ],
)
def test_held_out_figures_on_paper(
    new: float | None,
    live: float | None,
    checked: int,
    passed: bool,  # noqa: FBT001
) -> None:
    verdict = compare_figures(new, live, checked, "v3")
    assert verdict.passed is passed
    assert "v3" in verdict.why
