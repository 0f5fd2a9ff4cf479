"""Calibration of stated probabilities: expected calibration error and log-loss."""

from dataclasses import dataclass

import numpy as np

from hierarchy.metrics.ancestors import Flags, Floats, Ints

#: Log-probabilities are not taken below that of float64's eps (as in scikit-learn's ``log_loss``):
#: one certain mistake would make the mean infinite.
LEAST_LOG = float(np.log(np.finfo(np.float64).eps))


@dataclass(frozen=True)
class Calibration:
    """Distance of stated probabilities from what came true; None where nothing could be judged.

    Attributes:
        ece: expected calibration error of the answers, 15 bins.
        nll: mean of -log P(true node), nats.
    """

    ece: float | None
    nll: float | None


def calibration(confidence: Floats, right: Flags, log_truth: Floats) -> Calibration:
    """Gather both for one level, or for the leaves.

    Args:
        confidence: ``(m,)`` stated probability of each answer that was given.
        right: ``(m,)`` whether it came true.
        log_truth: ``(n,)`` log-probability of the true node of each judged image.
    """
    return Calibration(ece=calibration_gap(confidence, right), nll=log_loss(log_truth))


def expected_calibration_error(confidence: Floats, right: Flags, *, bins: int = 15) -> float | None:
    """Mean gap between confidence and accuracy over equal-width bins (Guo et al. 2017, eq. 5).

    Args:
        confidence: ``(n,)`` stated probabilities.
        right: ``(n,)`` whether each came true.
        bins: equal-width bins on [0, 1].

    Returns:
        Rounded to four digits, for a manifest; None without images.

    Example:
        >>> expected_calibration_error(np.array([0.9, 0.9]), np.array([True, False]))
        0.4
    """
    gap = calibration_gap(confidence, right, bins=bins)
    return None if gap is None else round(gap, 4)


def calibration_gap(confidence: Floats, right: Flags, *, bins: int = 15) -> float | None:
    """:func:`expected_calibration_error` in full precision."""
    if not len(confidence):
        return None
    which = np.clip((confidence * bins).astype(int), 0, bins - 1)
    surplus = np.bincount(which, weights=confidence - right, minlength=bins)  # (bins,)
    return float(np.abs(surplus).sum() / len(confidence))


def log_loss(log_truth: Floats) -> float | None:
    """Mean of -log P(true node), nats, from ``(n,)`` log-probabilities; None without images."""
    return float(-np.clip(log_truth, LEAST_LOG, 0).mean() + 0.0) if len(log_truth) else None


def binned(confidence: Floats, right: Flags, *, bins: int = 15) -> tuple[Ints, Floats, Floats]:
    """A reliability diagram: of each bin that holds images, how many, confidence and accuracy."""
    which = np.clip((confidence * bins).astype(int), 0, bins - 1)
    count = np.bincount(which, minlength=bins)
    held = count > 0
    stated = np.bincount(which, weights=confidence, minlength=bins)[held] / count[held]
    came = np.bincount(which, weights=right, minlength=bins)[held] / count[held]
    return count[held], stated, came
