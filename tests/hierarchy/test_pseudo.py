"""Safe targets: the deepest node of which the model is sure enough."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hierarchy import LabelTree
from hierarchy.errors import ShapeError
from hierarchy.pseudo import safe_targets
from tests.hierarchy.test_acquisition import said
from tests.strategies import trees

TREE = LabelTree.from_paths([("Fruit", "Apple"), ("Fruit", "Pear"), ("Milk",)])


def test_worked_out_by_hand() -> None:
    """Fruit, Milk, Apple, Pear: sure of the leaf, of the top only, of nothing, of a short path."""
    chance = np.array(
        [[0.99, 0.01, 0.9, 0.05], [0.95, 0.05, 0.5, 0.4], [0.6, 0.3, 0.4, 0.2], [0.0, 1.0, 0, 0]]
    )
    with np.errstate(divide="ignore"):
        assert safe_targets(np.log(chance), TREE).tolist() == [2, 0, -1, 1]


@given(trees(), st.integers(0, 99), st.floats(0.51, 1))
def test_agrees_with_a_search_of_all_nodes(tree: LabelTree, seed: int, least: float) -> None:
    log_p = said(tree, 4, seed)
    for row, found in zip(log_p, safe_targets(log_p, tree, least=least).tolist(), strict=True):
        sure = [n for n in range(len(tree)) if row[n] >= math.log(least) - 1e-9]
        assert found == max(sure, key=lambda n: tree.levels[n], default=-1)
        assert all(tree.covers(one, found) for one in sure)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"log_p must be \(B, 4\)"):
        safe_targets(np.zeros((2, 3)), TREE)
    with pytest.raises(ShapeError, match=r"above 0.5 and at most 1, got 0.5"):
        safe_targets(np.zeros((2, 4)), TREE, least=0.5)
