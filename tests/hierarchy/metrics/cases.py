"""Random trees with images and answers, and the words that the slow answers are told in."""

import numpy as np
from hypothesis import strategies as st

from hierarchy import LabelTree, log_marginals
from hierarchy.metrics.ancestors import Floats, Ints
from tests.strategies import batches, trees

Case = tuple[LabelTree, Floats, Ints]
Answers = tuple[LabelTree, Ints, Ints]

PAPER = LabelTree.from_paths(
    [
        ("Fruit", "Apple", "Gala"),
        ("Fruit", "Apple", "Fuji"),
        ("Fruit", "Pear"),
        ("Milk", "Oat", "Plain"),
    ]
)
"""Worked out on paper: 0 Fruit, 1 Milk, 2 Apple, 3 Pear, 4 Oat, 5 Gala, 6 Fuji, 7 Plain."""

GALA, FUJI, PLAIN, PEAR, APPLE, FRUIT, MILK, NOTHING = 5, 6, 7, 3, 2, 0, 1, -1


@st.composite
def raw(draw: st.DrawFn) -> Case:
    """Scores that say nothing about a tree, many of them equal; n images of any target."""
    tree, scores, targets = draw(batches(bound=3, max_size=8))
    return tree, scores.numpy(), targets.numpy()


@st.composite
def probable(draw: st.DrawFn) -> Case:
    """Log-probabilities, falling along each path; n images of any target."""
    tree, scores, targets = draw(batches(max_size=8))
    return tree, log_marginals(scores, tree).numpy(), targets.numpy()


@st.composite
def answers(draw: st.DrawFn) -> Answers:
    """One answer an image, any node or nothing, and its target, any node."""
    tree = draw(trees())
    pair = st.tuples(st.integers(-1, len(tree) - 1), st.integers(0, len(tree) - 1))
    pairs = np.array(draw(st.lists(pair, min_size=1, max_size=8)))
    return tree, pairs[:, 0], pairs[:, 1]


def path(tree: LabelTree, node: int) -> tuple[int, ...]:
    """From the top down to the node; empty for nothing."""
    return tree.ancestors(node) if node >= 0 else ()


def best(tree: LabelTree, row: list[float], nodes: tuple[int, ...]) -> int:
    """The first of the nodes with the highest score."""
    return max(nodes, key=lambda node: (row[node], -node))
