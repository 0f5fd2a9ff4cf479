"""The real choices of a tree: which nodes can be wrong, and how many choices lead to each.

A node without siblings (a root node above everything, an only child) is right whenever its parent
is. Counted as a label it would promise something for nothing, so depth selection and certificates
see only nodes that have siblings, by the number of choices that lead to them: their decision level.
Letters: N nodes, D decision levels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from hierarchy.tree import TOP, LabelTree, cached_on_tree

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Decisions:
    """A tree's choices; only children go with the choice above them.

    Attributes:
        tree: whose nodes they are.
        stands: ``(N,)`` the choice that each node stands for: itself, or the nearest above it; -1
            for a node that no choice leads to.
        levels: of each decision level the ids of its choices, ascending.
    """

    tree: LabelTree
    stands: Ints
    levels: tuple[Ints, ...]

    @classmethod
    def of(cls, tree: LabelTree) -> "Decisions":
        """The nodes that have siblings; several root nodes are siblings."""
        return _decisions(tree)

    @classmethod
    def by_level(cls, tree: LabelTree) -> "Decisions":
        """All nodes from the first level on that has two: how versions before these were fitted."""
        first = leading_levels(tree)
        return cls.build(tree, [level >= first for level in tree.levels])

    @classmethod
    def build(cls, tree: LabelTree, choice: Sequence[bool]) -> "Decisions":
        """Take the nodes for which ``choice`` is true as the choices."""
        stands, level = np.full(len(tree), TOP), np.full(len(tree), -1)
        for node in tree.preorder:
            parent = tree.parents[node]
            if parent != TOP:
                stands[node], level[node] = stands[parent], level[parent]
            if choice[node]:
                stands[node], level[node] = node, level[node] + 1
        own = stands == np.arange(len(tree))
        deepest = int(level.max(initial=-1))
        return cls(
            tree,
            stands,
            tuple(np.flatnonzero(own & (level == at)) for at in range(deepest + 1)),
        )

    @cached_property
    def level(self) -> Ints:
        """``(N,)`` decision level of the choice that each node stands for, 0 the first; -1 none."""
        found = np.full(len(self.tree) + 1, -1)  # the last for "none"
        for number, ids in enumerate(self.levels):
            found[ids] = number
        result: Ints = found[self.stands]
        return result

    @cached_property
    def last(self) -> Ints:
        """``(N,)`` the lowest node that goes with each choice; nodes that are none go nowhere."""
        found = np.arange(len(self.tree))
        for node in reversed(self.tree.preorder):
            below = self.tree.children[node]
            if len(below) == 1 and self.stands[below[0]] != below[0]:
                found[node] = found[below[0]]
        return found

    def within(self, today: LabelTree) -> "Decisions":
        """Return the choices in a tree that has changed since: those of its nodes that are left.

        Nodes that are new stand for nothing: a version has not learnt to tell them apart.
        """
        if today == self.tree:
            return self
        place = np.full(len(self.tree) + 1, TOP)  # the last for "none"
        there = {path: node for node, path in enumerate(today.paths)}
        for node, path in enumerate(self.tree.paths):
            place[node] = there.get(path, TOP)
        left = [np.sort(place[ids][place[ids] != TOP]) for ids in self.levels]
        stands = np.full(len(today), TOP)
        kept = place[:-1] != TOP
        stands[place[:-1][kept]] = place[self.stands[kept]]
        return Decisions(today, stands, tuple(ids for ids in left if len(ids)))


def leading_levels(tree: LabelTree) -> int:
    """Count the levels from the first that hold a single node: each names every image alike."""
    for level in range(tree.depth):
        if len(tree.level_nodes(level)) > 1:
            return level
    return tree.depth


def choices(tree: LabelTree) -> NDArray[np.bool_]:
    """``(N,)`` whether each node has siblings, so can be wrong where its parent is right."""
    result: NDArray[np.bool_] = Decisions.of(tree).stands == np.arange(len(tree))
    return result


@cached_on_tree
def _decisions(tree: LabelTree) -> Decisions:
    return Decisions.build(tree, [size > 1 for size in _siblings(tree)])


def _siblings(tree: LabelTree) -> list[int]:
    """Count for each node the children of its parent, itself among them."""
    tops = tree.parents.count(TOP)
    return [tops if parent == TOP else len(tree.children[parent]) for parent in tree.parents]
