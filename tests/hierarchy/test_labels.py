"""Rows of node ids become arrays."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hierarchy.labels import padded


@given(st.lists(st.lists(st.integers(0, 99), max_size=5), max_size=6))
def test_padding_keeps_the_rows_and_adds_only_minus_ones(rows: list[list[int]]) -> None:
    found = padded(rows)
    assert found.dtype == np.int64
    assert found.shape == (len(rows), max([1, *map(len, rows)]))
    assert [[one for one in row if one >= 0] for row in found.tolist()] == rows
    assert (np.diff((found < 0).astype(int), axis=1) >= 0).all()  # left-aligned
