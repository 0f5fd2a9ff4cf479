"""A label tree as arrays, for arithmetic on many nodes at once.

Letters: N nodes, L levels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class TreeIndex:
    """The nodes of a tree in numbers, each array ``(N,)`` int64.

    Attributes:
        parents: id of the parent, -1 for a root node.
        levels: 0 for a root node.
        enter: place in preorder.
        leave: the place behind the last descendant; what lies below is ``enter`` to ``leave``.
        height: edges down to the furthest leaf below; 0 for a leaf.
        leaves: how many leaves lie below; 1 for a leaf.
    """

    parents: Ints
    levels: Ints
    enter: Ints
    leave: Ints
    height: Ints
    leaves: Ints

    @classmethod
    def build(cls, parents: Sequence[int], levels: Sequence[int], preorder: Sequence[int]) -> Self:
        """Number the nodes of a tree, in O(N)."""
        size, height = [1] * len(parents), [0] * len(parents)
        leaves = [0] * len(parents)
        for node in reversed(preorder):
            leaves[node] = leaves[node] or 1
            parent = parents[node]
            if parent >= 0:
                size[parent] += size[node]
                height[parent] = max(height[parent], height[node] + 1)
                leaves[parent] += leaves[node]
        enter = np.empty(len(parents), dtype=np.int64)
        enter[list(preorder)] = np.arange(len(parents))
        return cls(
            parents=np.array(parents, dtype=np.int64),
            levels=np.array(levels, dtype=np.int64),
            enter=enter,
            leave=enter + np.array(size),
            height=np.array(height),
            leaves=np.array(leaves),
        )
