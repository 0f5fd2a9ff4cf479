"""Metrics: accuracy, consistency, calibration, severity of mistakes, ranking, risk-coverage.

Rates in [0, 1], None where nothing can be judged. :func:`evaluate` gathers everything; plots and
single figures take the functions of the modules below. Numpy only.
"""

from hierarchy.metrics.accuracy import accuracy_by_level
from hierarchy.metrics.ancestors import on_siblings, sibling_leaves
from hierarchy.metrics.calibration import expected_calibration_error
from hierarchy.metrics.report import Scores, evaluate

__all__ = [
    "Scores",
    "accuracy_by_level",
    "evaluate",
    "expected_calibration_error",
    "on_siblings",
    "sibling_leaves",
]
