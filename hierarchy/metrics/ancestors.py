"""Relations between many nodes of a tree at once: paths of ancestors, leaves below.

A node of -1 is "nothing answered": the root above all root nodes.
Letters: n images, N nodes, L levels.
"""

import numpy as np
from numpy.typing import NDArray

from hierarchy.errors import ShapeError, UnknownLabelError
from hierarchy.tree import TOP, LabelTree

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]


def checked(scores: NDArray[np.floating], targets: Ints, tree: LabelTree) -> tuple[Floats, Ints]:
    """Bring scores and targets into shape, ``(n, N)`` float64 and ``(n,)`` int64.

    Raises:
        ShapeError: if there is not one column per node, one target per image, or a score is nan.
        UnknownLabelError: if a target is not a node's id.
    """
    whole, nodes = np.asarray(scores, dtype=np.float64), np.asarray(targets)
    if whole.ndim != 2 or whole.shape[1] != len(tree) or nodes.shape != whole.shape[:1]:
        raise ShapeError(
            f"expected one column per node and one target per image, (n, {len(tree)}) and (n,), "
            f"got {whole.shape} and {nodes.shape}"
        )
    if np.isnan(whole).any():
        image, node = np.argwhere(np.isnan(whole))[0].tolist()
        raise ShapeError(f"scores must be numbers, got nan for image {image}, node {node}")
    return whole, known(nodes, tree)


def known(nodes: Ints, tree: LabelTree, *, least: int = 0) -> Ints:
    """Nodes as int64, if the tree has them all; ``least=-1`` lets "nothing" pass.

    Raises:
        UnknownLabelError: if one is not a node's id.
    """
    found = np.asarray(nodes)
    if found.size and not (least <= found.min() and found.max() < len(tree)):
        raise UnknownLabelError(
            f"node ids go from {least} to {len(tree) - 1}, got {found.min()} to {found.max()}"
        )
    return found.astype(np.int64)


def ancestor_paths(nodes: Ints, tree: LabelTree) -> Ints:
    """Return paths from the root node down, ``(n,)`` -> ``(n, L)``: -1 below the node itself.

    Example:
        >>> tree = LabelTree.from_paths([("Fruit", "Pear"), ("Milk",)])
        >>> ancestor_paths(np.array([2, 1, -1]), tree)
        array([[ 0,  2],
               [ 1, -1],
               [-1, -1]])
    """
    of = tree.arrays
    table = np.full((len(nodes), tree.depth), TOP, dtype=np.int64)
    rows, above = np.arange(len(nodes)), np.asarray(nodes)
    while len(rows := rows[above != TOP]):
        above = above[above != TOP]
        table[rows, of.levels[above]] = above
        above = of.parents[above]
    return table


def shared(one: Ints, other: Ints) -> Ints:
    """Count the nodes that two paths have in common, ``(n, L)`` twice -> ``(n,)``."""
    return np.asarray(((one == other) & (one != TOP)).sum(axis=1), dtype=np.int64)


def covers(above: Ints, below: Ints, tree: LabelTree) -> Flags:
    """Tell whether nodes are the others or lie above them; "nothing" covers all. They broadcast."""
    of = tree.arrays
    inside = (of.enter[above] <= of.enter[below]) & (of.enter[below] < of.leave[above])
    return np.asarray((above == TOP) | (inside & (below != TOP)))


def judged(answers: Ints, targets: Ints, tree: LabelTree) -> Ints:
    """1 right, 0 wrong, -1 not known (the answer lies below its target), broadcast.

    An answer is right when the target is it or lies below it; nothing answered is never wrong.
    """
    right = covers(answers, targets, tree)
    return np.where(right, 1, np.where(covers(targets, answers, tree), -1, 0)).astype(np.int64)


def information(nodes: Ints, tree: LabelTree) -> Floats:
    """Return the information of answers, any shape: 1 for a leaf, 0 for nothing.

    ``1 - log(leaves below) / log(all leaves)``, the entropy that is gone when all leaves are
    equally likely beforehand (Goren et al., "Hierarchical Selective Classification", NeurIPS
    2024, the hierarchical coverage of section 2). With a single leaf every node is as good as it.

    Example:
        >>> tree = LabelTree.from_paths([("Fruit", "Pear"), ("Fruit", "Fig"), ("Tea",), ("Milk",)])
        >>> information(np.array([-1, 0, 1]), tree)
        array([0. , 0.5, 1. ])
    """
    below = tree.arrays.leaves[nodes]
    whole = np.log(len(tree.leaves))
    told = 1 - np.log(below) / whole if whole else np.ones(below.shape)
    return np.where(np.asarray(nodes) == TOP, 0.0, told)


def sibling_leaves(tree: LabelTree) -> tuple[int, ...]:
    """Leaves that are not their parent's only child; several tops are siblings of each other.

    Whoever knows the parent of any other leaf knows the leaf: those flatter.

    Example:
        >>> sibling_leaves(LabelTree.from_paths([("A", "only"), ("B", "one"), ("B", "two")]))
        (3, 4)
    """
    tops = tree.parents.count(TOP)
    return tuple(
        leaf
        for leaf in tree.leaves
        for parent in [tree.parents[leaf]]
        if (tops if parent == TOP else len(tree.children[parent])) > 1
    )


def on_siblings(targets: Ints, tree: LabelTree) -> Flags:
    """Tell which images' targets are among :func:`sibling_leaves`, ``(n,)``."""
    mask = np.zeros(len(tree), dtype=np.bool_)
    mask[list(sibling_leaves(tree))] = True
    return np.asarray(mask[targets])


def on_leaves(targets: Ints, tree: LabelTree) -> Flags:
    """Tell which images' targets are leaves, ``(n,)``."""
    return np.asarray(tree.arrays.height[targets] == 0)
