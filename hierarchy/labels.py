"""Targets as arrays: rows of node ids padded with -1.

Letters: R rows, K nodes in a row at most.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray


def padded(rows: Iterable[Iterable[int]]) -> NDArray[np.int64]:
    """Return the node ids of each row, left-aligned and filled up with -1.

    Returns:
        ``(R, K)`` with K the longest row's length, at least 1.

    Example:
        >>> padded([[4], [2, 7], []]).tolist()
        [[4, -1], [2, 7], [-1, -1]]
    """
    lists = [list(row) for row in rows]
    width = max([1, *map(len, lists)])
    filled = np.full((len(lists), width), -1, dtype=np.int64)
    for at, row in enumerate(lists):
        filled[at, : len(row)] = row
    return filled
