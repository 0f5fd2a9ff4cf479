"""How good: accuracy by level, calibration. Rates in [0, 1], None where nothing can be judged."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def accuracy_by_level(right: NDArray[np.int64]) -> list[dict[str, Any]]:
    """Accuracy of each level's best node over the pictures where it can be judged.

    Args:
        right: ``(n, L)`` 1 right, 0 wrong, -1 not known.

    Example:
        >>> accuracy_by_level(np.array([[1], [1], [0], [-1]]))
        [{'level': 1, 'checked': 3, 'accuracy': 0.6667}]
    """
    levels = []
    for level in range(right.shape[1]):
        known = right[right[:, level] >= 0, level]
        accuracy = round(float(known.mean()), 4) if len(known) else None
        levels.append({"level": level + 1, "checked": len(known), "accuracy": accuracy})
    return levels


def expected_calibration_error(
    confidence: NDArray[np.float64], right: NDArray[np.bool_], *, bins: int = 15
) -> float | None:
    """Mean gap between confidence and accuracy over equal-width bins (Guo et al. 2017, eq. 5).

    Args:
        confidence: ``(n,)`` stated probabilities.
        right: ``(n,)`` whether each came true.
        bins: equal-width bins on [0, 1].

    Example:
        >>> expected_calibration_error(np.array([0.9, 0.9]), np.array([True, False]))
        0.4
    """
    if not len(confidence):
        return None
    which = np.clip((confidence * bins).astype(int), 0, bins - 1)
    gap = 0.0
    for one in range(bins):
        inside = which == one
        if inside.any():
            gap += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    return round(float(gap), 4)
