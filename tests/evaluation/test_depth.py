"""The two studies of depth measure what they say, on images whose truth is known."""

import numpy as np
import pytest

from evaluation import depth
from evaluation.comparison import evidence_of
from hierarchy import LabelTree
from hierarchy.calibration import Evidence, fit_rule
from hierarchy.depth_selection import DepthRule, corrected

TREE = LabelTree.from_paths([("Fruit", "Apple"), ("Fruit", "Pear"), ("Milk",)])
DEEP = DepthRule(target=0.9, price=0.5, platt=((1.0, 0.0), (1.0, 0.0)))


def images(seed: int, count: int, *, off: float = 0.0) -> Evidence:
    """Nested levels whose stated probabilities are too sure by ``off`` in logit."""
    draw = np.random.default_rng(seed)
    steps = np.stack([draw.beta(12, 1, count), draw.beta(4, 1, count)], axis=1)
    reached = (draw.random((count, 2)) < steps).cumprod(axis=1)
    stated = corrected(steps.cumprod(axis=1), ((1.0, off),))
    return Evidence(stated, reached.astype(np.int64))


def test_predictions_are_held_against_the_truth() -> None:
    fruit, milk, apple, pear = (
        TREE.index(path) for path in [("Fruit",), ("Milk",), *TREE.paths[2:4]]
    )
    log_p = np.full((2, len(TREE)), -9.0)
    log_p[:, [fruit, apple]] = np.log([0.8, 0.6])
    found = evidence_of(log_p, np.array([pear, milk]), TREE)
    np.testing.assert_allclose(found.probability, [[0.8, 0.6]] * 2)
    assert found.right.tolist() == [[1, 0], [0, 0]]


def test_most_calibrations_keep_what_they_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(depth, "TARGETS", (0.9,))
    found = depth.certificates(images(0, 1000), 0, calibrations=40)
    assert found["kept at 90 %"] >= 0.85
    assert 0.9 < found["accuracy of shown at 90 %"] < 0.95
    assert found["given at 90 %"] > 0.9
    assert found["depth at 90 %"] > 1.1
    assert found["every level kept at 90 %"] < found["kept at 90 %"]
    assert found["every level kept at 90 %, strict"] >= 0.85
    assert found["depth at 90 %, strict"] < found["depth at 90 %"]


def test_the_figures_of_one_calibration_are_those_of_its_rule(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(depth, "TARGETS", (0.9,))
    seen = images(2, 600)
    found = depth.certificates(seen, 3, calibrations=1)
    drawn = np.random.default_rng(3).integers(0, 600, 300)
    rule = fit_rule(Evidence(seen.probability[drawn], seen.right[drawn]), target=0.9).rule
    assert rule.price is not None
    sure, right, levels = corrected(seen.probability, rule.platt), [], 0
    for p, truth in zip(sure.tolist(), seen.right.tolist(), strict=True):  # the rule, read slowly
        worth = [
            d + rule.bonus - rule.price * (0.9 - p[d - 1]) if p[d - 1] >= 0.25 else -1
            for d in (1, 2)
        ]
        deep = 1 + int(worth[1] > worth[0]) if max(worth) > 0 else 0
        levels += deep
        right += [truth[deep - 1]] if deep else []
    assert found["accuracy of shown at 90 %"] == pytest.approx(np.mean(right))
    assert found["given at 90 %"] == pytest.approx(len(right) / 600)
    assert found["depth at 90 %"] == pytest.approx(levels / 600)


def test_without_feedback_the_rule_stays() -> None:
    seen = images(4, 100)
    order = np.arange(100)[::-1].copy()
    deep, verdict = depth.stream(DEEP, seen, order, np.zeros(100, dtype=bool))
    expected = np.where(seen.probability[order, 1] >= 0.25, 2, 1)
    expected[seen.probability[order, 0] < 0.25] = 0
    np.testing.assert_array_equal(deep, expected)
    shown = deep > 0
    np.testing.assert_array_equal(verdict[shown], seen.right[order[shown], deep[shown] - 1])
    assert (verdict[~shown] == -1).all()


def test_feedback_brings_a_drifting_stream_back_to_its_target(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(depth, "TARGETS", (0.9,))
    monkeypatch.setattr(depth, "ANSWERED", (0.0, 0.2, 1.0))
    found = depth.streams(images(5, 600), images(6, 1700, off=2.0), 0, orders=2)
    first = [found[f"first at 90 %, {share} % answered"] for share in (0, 20, 100)]
    assert first[0] < 0.86
    assert first[0] < min(first[1:])
    assert first[2] > 0.885
    assert found["within at 90 %, 0 % answered"] == 0
    assert found["within at 90 %, 100 % answered"] > 0.9
    assert found["depth at 90 %, 100 % answered"] < found["depth at 90 %, 0 % answered"] <= 2


def test_few_images_have_no_later_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(depth, "TARGETS", (0.9,))
    found = depth.streams(images(7, 100), images(8, 60), 0, orders=1)
    assert "first at 90 %, 100 % answered" in found
    assert "within at 90 %, 100 % answered" not in found
