"""The two studies of depth measure what they say, on pictures whose truth is known."""

import json

import numpy as np
import pytest

from evaluation.depth import (
    WINDOW,
    Held,
    arrange,
    bootstrap,
    held,
    run,
    stream,
    to_json,
)
from hierarchy import LabelTree
from hierarchy.calibration import Evidence, fit_rule
from hierarchy.choice import DepthRule, corrected

TREE = LabelTree.from_paths([("Fruit", "Apple"), ("Fruit", "Pear"), ("Milk",)])
DEEP = DepthRule(target=0.9, price=0.5, platt=((1.0, 0.0), (1.0, 0.0)))


def pictures(seed: int, count: int, *, off: float = 0.0) -> Held:
    """Nested levels whose stated probabilities are too sure by ``off`` in logit."""
    draw = np.random.default_rng(seed)
    steps = np.stack([draw.beta(12, 1, count), draw.beta(4, 1, count)], axis=1)
    reached = (draw.random((count, 2)) < steps).cumprod(axis=1)
    stated = corrected(steps.cumprod(axis=1), ((1.0, off),))
    return Held(Evidence(stated, reached.astype(np.int64)), draw.integers(0, 9, count))


def test_predictions_are_held_against_the_truth() -> None:
    fruit, milk, apple, pear = (
        TREE.index(path) for path in [("Fruit",), ("Milk",), *TREE.paths[2:4]]
    )
    log_p = np.full((2, len(TREE)), -9.0)
    log_p[:, [fruit, apple]] = np.log([0.8, 0.6])
    found = held(log_p, np.array([pear, milk]), TREE)
    np.testing.assert_allclose(found.seen.probability, [[0.8, 0.6]] * 2)
    assert found.seen.right.tolist() == [[1, 0], [0, 0]]
    assert len(found) == 2


def test_most_calibrations_keep_what_they_promise() -> None:
    heads = [pictures(0, 1000), pictures(1, 1000)]
    (row,) = bootstrap(heads, targets=[0.9], calibrations=40)
    assert (row.calibrations, row.pictures, row.certified) == (80, 500, 1.0)
    assert row.kept >= 0.85
    assert row.kept == pytest.approx(np.mean(row.heads_kept))
    assert 0.9 < row.accuracy < 0.95
    assert row.given > 0.9
    assert row.depth > 1.2
    assert row.levels_kept < row.kept


def test_the_figures_of_one_calibration_are_those_of_its_rule() -> None:
    head = pictures(2, 600)
    (row,) = bootstrap([head], targets=[0.9], calibrations=1, pictures=500, seed=3)
    drawn = np.random.default_rng(3).integers(0, 600, 500)
    seen = head.seen
    rule = fit_rule(Evidence(seen.probability[drawn], seen.right[drawn]), target=0.9).rule
    assert rule.price is not None
    sure, right, shown = corrected(seen.probability, rule.platt), [], 0
    for p, truth in zip(sure.tolist(), seen.right.tolist(), strict=True):  # the rule, read slowly
        worth = [
            d + rule.bonus - rule.price * (0.9 - p[d - 1]) if p[d - 1] >= 0.25 else -1
            for d in (1, 2)
        ]
        depth = 1 + int(worth[1] > worth[0]) if max(worth) > 0 else 0
        shown += depth
        right += [truth[depth - 1]] if depth else []
    assert row.accuracy == pytest.approx(np.mean(right))
    assert row.given == pytest.approx(len(right) / 600)
    assert row.depth == pytest.approx(shown / 600)
    assert row.accuracy_sd == 0


def test_strict_calibrations_keep_every_level() -> None:
    (row,) = bootstrap([pictures(0, 1000)], targets=[0.9], calibrations=40, strict=True)
    assert row.strict
    assert row.levels_kept >= 0.85
    assert all(one is None or one > 0.9 for one in row.level_accuracy)


def test_classes_arrive_one_after_the_other() -> None:
    targets = np.random.default_rng(0).integers(0, 9, 200)
    order = arrange(targets, "by class", np.random.default_rng(1))
    assert sorted(order.tolist()) == list(range(200))
    assert (np.diff(targets[order]) != 0).sum() == len(np.unique(targets)) - 1
    first = [arrange(targets, "by class", np.random.default_rng(s))[0] for s in range(9)]
    assert len({int(targets[at]) for at in first}) > 1
    mixed = arrange(targets, "random", np.random.default_rng(1))
    assert sorted(mixed.tolist()) == list(range(200))
    assert (np.diff(targets[mixed]) != 0).sum() > 100


def test_without_feedback_the_rule_stays() -> None:
    seen = pictures(4, 100).seen
    order = np.arange(100)[::-1].copy()
    depth, verdict = run(DEEP, seen, order, np.zeros(100, dtype=bool))
    expected = np.where(seen.probability[order, 1] >= 0.25, 2, 1)
    expected[seen.probability[order, 0] < 0.25] = 0
    np.testing.assert_array_equal(depth, expected)
    shown = depth > 0
    np.testing.assert_array_equal(verdict[shown], seen.right[order[shown], depth[shown] - 1])
    assert (verdict[~shown] == -1).all()


def test_feedback_brings_a_drifting_stream_back_to_its_target() -> None:
    before, after = [pictures(5, 600)], [pictures(6, 1700, off=2.0)]
    fixed = stream(before, after, target=0.9, feedback=0.0, orders=2)
    followed = stream(before, after, target=0.9, orders=2)
    part = stream(before, after, target=0.9, feedback=0.2, orders=2)
    assert fixed.first < 0.86
    assert followed.first > 0.885
    assert fixed.first < part.first
    assert fixed.within == 0
    assert followed.within > 0.9
    assert len(followed.parts) == -(-1700 // WINDOW)
    assert followed.parts[0] == followed.first
    assert followed.given > 0.8
    assert 1 < followed.late_depth < fixed.late_depth <= 2


def test_tables_are_plain_data() -> None:
    rows = bootstrap([pictures(7, 100)], targets=[0.9, 0.99], calibrations=2)
    told = to_json([*rows, stream([pictures(7, 100)], [pictures(8, 60)], target=0.9, orders=1)])
    read = json.loads(json.dumps(told))
    assert [row["target"] for row in read] == [0.9, 0.99, 0.9]
    assert read[2]["arrangement"] == "random"
    assert read[2]["within"] == 1.0  # there was no later window
