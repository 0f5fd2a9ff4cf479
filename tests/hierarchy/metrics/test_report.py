"""Everything gathered: on paper, the same on any order of images, siblings apart."""

import tracemalloc
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given

from hierarchy import LabelTree
from hierarchy.depth_selection import candidates
from hierarchy.errors import UnknownLabelError
from hierarchy.metrics import Scores, evaluate, on_siblings
from hierarchy.metrics.ancestors import Floats
from hierarchy.metrics.calibration import calibration_gap
from tests.hierarchy.metrics.cases import (
    APPLE,
    FRUIT,
    FUJI,
    GALA,
    MILK,
    PAPER,
    PLAIN,
    Case,
    probable,
)

MIB = 2**20


def guess(*chances: dict[int, float]) -> Floats:
    """Log-probabilities: the given ones, a little for the rest."""
    found = np.full((len(chances), len(PAPER)), 0.01)
    for row, chance in enumerate(chances):
        found[row, list(chance)] = list(chance.values())
    return np.asarray(np.log(found), dtype=np.float64)


SURE = {MILK: 0.9, 4: 0.8, PLAIN: 0.7}
TORN = {FRUIT: 0.9, APPLE: 0.8, FUJI: 0.4, GALA: 0.3}


def test_by_hand() -> None:
    """Plain, found; Gala, taken for Fuji; Fruit, of which no more is known."""
    found = evaluate(guess(SURE, TORN, TORN), np.array([PLAIN, GALA, FRUIT]), PAPER)
    assert (found.images, found.leaves) == (3, 2)
    assert [level.accuracy for level in found.levels] == [1, 1, 0.5]
    assert found.levels[0].calibration.ece == pytest.approx(0.1)
    assert found.leaf_calibration.nll == pytest.approx(-(np.log(0.7) + np.log(0.3)) / 2)
    assert found.path == pytest.approx(2 / 3)
    assert (found.leaf, found.consistency) == (0.5, 1)
    assert found.overlap.recall == pytest.approx((3 + 2 + 1) / (3 + 3 + 1))
    assert found.severity == 1
    assert found.aurc == pytest.approx((0 + 1 / 2) / 2)


def test_siblings_are_the_pictures_whose_class_has_siblings() -> None:
    found = evaluate(guess(SURE, TORN, TORN), np.array([PLAIN, GALA, FRUIT]), PAPER)
    alone = evaluate(guess(TORN), np.array([GALA]), PAPER)
    assert found.siblings is not None
    assert alone.siblings is not None
    assert found.siblings.images == 1
    assert found.siblings == replace(alone, siblings=None)


@given(probable())
def test_the_order_of_pictures_does_not_matter(case: Case) -> None:
    tree, scores, targets = case
    turned = evaluate(scores[::-1], targets[::-1], tree)
    assert flat(turned) == pytest.approx(flat(evaluate(scores, targets, tree)))


@given(probable())
def test_every_rate_lies_between_0_and_1(case: Case) -> None:
    tree, scores, targets = case
    found = evaluate(scores, targets, tree)
    rates = [found.leaf, found.path, found.consistency, found.prc, found.aurc, found.haurc]
    rates += [level.accuracy for level in found.levels]
    rates += [level.calibration.ece for level in found.levels]
    assert all(rate is None or -1e-12 <= rate <= 1 + 1e-12 for rate in rates)


@given(probable())
def test_the_leaf_is_measured_where_a_leaf_is_known(case: Case) -> None:
    tree, scores, targets = case
    found = evaluate(scores, targets, tree)
    best = candidates(scores, tree)
    fine = np.isin(targets, tree.leaves)
    hit = (best.leaf == targets)[fine]
    assert found.leaf == (pytest.approx(hit.mean()) if fine.any() else None)
    assert found.leaf_calibration.ece == calibration_gap(best.confidence[fine], hit)
    assert found.siblings is not None
    assert found.siblings.images == on_siblings(targets, tree).sum()


def test_float32_is_as_good() -> None:
    scores, targets = guess(SURE, TORN), np.array([PLAIN, GALA])
    single = evaluate(scores.astype(np.float32), targets, PAPER)
    exact = evaluate(scores, targets, PAPER)
    assert flat(single) == pytest.approx(flat(exact))


def test_no_picture_has_no_figures() -> None:
    found = evaluate(np.empty((0, len(PAPER))), np.empty(0, dtype=np.int64), PAPER)
    assert set(flat(found).values()) <= {0, 1, 2, 3, None}  # counts and level numbers
    assert (found.leaf, found.path, found.prc, found.haurc) == (None, None, None, None)


def test_targets_that_the_tree_lacks_are_refused() -> None:
    with pytest.raises(UnknownLabelError):
        evaluate(guess(SURE), np.array([-1]), PAPER)


def test_a_tree_of_100_000_nodes_takes_memory_by_the_node() -> None:
    """Nodes x nodes would be 10 GB even in bits and bytes; images x nodes is 3 MiB here."""
    parents = [-1, *((node - 1) // 5 for node in range(1, 100_000))]
    tree = LabelTree.from_parents(parents, [str(node) for node in range(100_000)])
    scores = -np.random.default_rng(0).exponential(size=(4, 100_000))
    targets = np.array([tree.leaves[0], tree.leaves[-1], 7, 40_000])
    tracemalloc.start()
    try:
        found = evaluate(scores, targets, tree)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (found.images, found.leaves) == (4, 3)
    assert peak < 150 * MIB


def flat(data: object, name: str = "") -> dict[str, float | None]:
    """Nested figures under one name each, to be compared all at once."""
    if isinstance(data, Scores):
        data = asdict(data)
    if isinstance(data, dict):
        parts = [flat(value, f"{name}.{key}") for key, value in data.items()]
    elif isinstance(data, list | tuple):
        parts = [flat(value, f"{name}.{place}") for place, value in enumerate(data)]
    else:
        assert data is None or isinstance(data, int | float)
        return {name: data}
    return {key: value for part in parts for key, value in part.items()}
