"""Calibration agrees with scikit-learn and with slow counting."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss as sklearn_log_loss

from hierarchy.metrics import expected_calibration_error
from hierarchy.metrics.calibration import (
    LEAST_LOG,
    Calibration,
    binned,
    calibration,
    calibration_gap,
    log_loss,
)

BINS = 15

outcomes = st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=30)


def slow_ece(confidence: list[float], right: list[bool]) -> float:
    bins: dict[int, list[int]] = {}
    for row, stated in enumerate(confidence):
        bins.setdefault(min(int(stated * BINS), BINS - 1), []).append(row)
    gaps = [
        abs(sum(confidence[i] for i in rows) - sum(right[i] for i in rows))
        for rows in bins.values()
    ]
    return sum(gaps) / len(confidence)


@given(outcomes)
def test_calibration_error_matches_counting(pairs: list[tuple[float, bool]]) -> None:
    stated, came = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    found = expected_calibration_error(np.array(stated), np.array(came))
    assert found == pytest.approx(slow_ece(stated, came), abs=1e-4)
    exact = calibration_gap(np.array(stated), np.array(came))
    assert exact == pytest.approx(slow_ece(stated, came), abs=1e-12)


@given(outcomes)
def test_the_reliability_diagram_adds_up_to_the_error(pairs: list[tuple[float, bool]]) -> None:
    stated, came = np.array([pair[0] for pair in pairs]), np.array([pair[1] for pair in pairs])
    count, confidence, accuracy = binned(stated, came)
    assert count.sum() == len(pairs)
    gap = (count * np.abs(confidence - accuracy)).sum() / len(pairs)
    assert gap == pytest.approx(calibration_gap(stated, came), abs=1e-12)


@given(st.integers(0, 1000), st.integers(1, 20), st.integers(2, 6))
def test_log_loss_is_scikit_learns(seed: int, images: int, classes: int) -> None:
    random = np.random.default_rng(seed)
    stated = random.dirichlet(np.full(classes, 0.5), images)
    truth = random.integers(0, classes, images)
    theirs = sklearn_log_loss(truth, stated, labels=range(classes))
    ours = log_loss(np.log(np.maximum(stated[np.arange(images), truth], 1e-300)))
    assert ours == pytest.approx(theirs, abs=1e-9)


def test_one_impossible_truth_does_not_swallow_the_rest() -> None:
    assert log_loss(np.array([-np.inf, 0.0])) == pytest.approx(-LEAST_LOG / 2)


def test_calibration_error_by_hand() -> None:
    """Two bins of two: |0.9 - 0.5| and |0.1 - 0|, each half of the images."""
    stated = np.array([0.9, 0.9, 0.1, 0.1])
    came = np.array([True, False, False, False])
    assert expected_calibration_error(stated, came) == pytest.approx(0.25)


def test_gathered_by_hand() -> None:
    """Gaps 0.2 and 0.6 in bins of their own; -log of 1/2 and 1/8."""
    found = calibration(
        np.array([0.8, 0.6]), np.array([True, False]), np.log(np.array([0.5, 0.125]))
    )
    assert (found.ece, found.nll) == pytest.approx((0.4, 2 * np.log(2)))


def test_nothing_to_judge_is_not_zero() -> None:
    assert expected_calibration_error(np.empty(0), np.empty(0, dtype=bool)) is None
    found = calibration(np.empty(0), np.empty(0, dtype=bool), np.empty(0))
    assert found == Calibration(None, None)
