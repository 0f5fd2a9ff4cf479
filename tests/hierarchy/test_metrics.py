"""Figures by hand and against slow counting."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from hierarchy.metrics import accuracy_by_level, expected_calibration_error

BINS = 15


@given(
    arrays(np.int64, st.tuples(st.integers(0, 9), st.integers(1, 4)), elements=st.integers(-1, 1))
)
def test_accuracy_counts_only_what_can_be_judged(right: NDArray[np.int64]) -> None:
    for level, told in enumerate(accuracy_by_level(right)):
        known = [value for value in right[:, level].tolist() if value != -1]
        assert (told["level"], told["checked"]) == (level + 1, len(known))
        if known:
            assert told["accuracy"] == pytest.approx(sum(known) / len(known), abs=1e-4)
        else:
            assert told["accuracy"] is None


def slow_ece(confidence: list[float], right: list[bool]) -> float:
    bins: dict[int, list[int]] = {}
    for row, stated in enumerate(confidence):
        bins.setdefault(min(int(stated * BINS), BINS - 1), []).append(row)
    gaps = [
        abs(sum(confidence[i] for i in rows) - sum(right[i] for i in rows))
        for rows in bins.values()
    ]
    return sum(gaps) / len(confidence)


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=30))
def test_calibration_error_matches_counting(pairs: list[tuple[float, bool]]) -> None:
    stated, came = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    found = expected_calibration_error(np.array(stated), np.array(came))
    assert found == pytest.approx(slow_ece(stated, came), abs=1e-4)


def test_calibration_error_by_hand() -> None:
    """Two bins of two: |0.9 - 0.5| and |0.1 - 0|, each half of the pictures."""
    stated = np.array([0.9, 0.9, 0.1, 0.1])
    came = np.array([True, False, False, False])
    assert expected_calibration_error(stated, came) == pytest.approx(0.25)


def test_certain_and_right_is_perfect() -> None:
    assert expected_calibration_error(np.ones(5), np.ones(5, dtype=bool)) == 0


def test_nothing_to_judge_is_not_zero() -> None:
    assert expected_calibration_error(np.empty(0), np.empty(0, dtype=bool)) is None
