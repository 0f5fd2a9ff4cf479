"""Rows of answers become arrays, and only rejections that say something are kept."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hierarchy import LabelTree, tree_loss
from hierarchy.errors import UnknownLabelError
from hierarchy.labels import padded, telling
from tests.strategies import trees

TREE = LabelTree.from_paths([("Fruit", "Apple", "Gala"), ("Fruit", "Pear"), ("Milk",)])
FRUIT, MILK, APPLE, PEAR, GALA = (TREE.index(path) for path in TREE.paths)


@given(st.lists(st.lists(st.integers(0, 99), max_size=5), max_size=6))
def test_padding_keeps_the_rows_and_adds_only_minus_ones(rows: list[list[int]]) -> None:
    found = padded(rows)
    assert found.dtype == np.int64
    assert found.shape == (len(rows), max([1, *map(len, rows)]))
    assert [[one for one in row if one >= 0] for row in found.tolist()] == rows
    assert (np.diff((found < 0).astype(int), axis=1) >= 0).all()  # left-aligned


def test_padding_takes_any_iterable() -> None:
    assert padded(iter([(1,), range(2, 4)])).tolist() == [[1, -1], [2, 3]]


@pytest.mark.parametrize(
    ("rejected", "named", "expected"),
    [
        ([GALA], [FRUIT], (GALA,)),  # the answer is above: it is this that a rejection can tell
        ([PEAR, GALA], [FRUIT], (PEAR, GALA)),
        ([GALA], [PEAR], ()),  # the answer lies elsewhere and says so itself
        ([GALA], [GALA], ()),  # confirmed
        ([FRUIT], [GALA], ()),  # refined: the answer counts
        ([GALA, GALA, MILK], [MILK, APPLE], (GALA,)),
        ([GALA, MILK], [], (MILK, GALA)),  # nothing but "not these"
        ([], [FRUIT], ()),
    ],
)
def test_what_a_rejection_tells(
    rejected: list[int], named: list[int], expected: tuple[int, ...]
) -> None:
    assert telling(rejected, named, TREE) == expected


def test_an_unknown_node_is_named() -> None:
    with pytest.raises(UnknownLabelError, match="got 9"):
        telling([9], [FRUIT], TREE)


@settings(max_examples=40)
@given(trees(), st.data())
def test_what_is_dropped_beside_the_answer_teaches_nothing(
    tree: LabelTree, data: st.DataObject
) -> None:
    """Where no rejection covers a named node, the loss is the same with and without the others."""
    node = st.integers(0, len(tree) - 1)
    named = data.draw(st.lists(node, min_size=1, max_size=3))
    drawn = data.draw(st.lists(node, max_size=4))
    rejected = [one for one in drawn if not any(tree.covers(one, other) for other in named)]
    scores = torch.tensor(
        [data.draw(st.lists(st.floats(-5, 5), min_size=len(tree), max_size=len(tree)))]
    )
    kept = telling(rejected, named, tree)

    def loss(excluded: Sequence[int]) -> torch.Tensor:
        return tree_loss(
            scores.double(),
            torch.from_numpy(padded([named])),
            tree,
            excluded=torch.from_numpy(padded([excluded])),
        )

    torch.testing.assert_close(loss(kept), loss(rejected))
