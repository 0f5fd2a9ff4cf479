"""Random ragged trees and scores for them, and the slow answers that the fast code must match."""

from collections.abc import Sequence
from decimal import Decimal, localcontext

import torch
from hypothesis import strategies as st
from torch import Tensor

from hierarchy.tree import LabelTree

DIGITS = 60
"""Enough that nothing the oracle adds up is lost, for scores of +-1e4 on a path of 9."""


@st.composite
def trees(draw: st.DrawFn, *, max_nodes: int = 9) -> LabelTree:
    """Ragged trees in any order of ids: several tops, chains, one name under many parents."""
    size = draw(st.integers(1, max_nodes))
    parents = [draw(st.just(i - 1) | st.integers(-1, i - 1)) for i in range(size)]
    names = [chr(ord("a") + parents[:i].count(parents[i])) for i in range(size)]  # by birth order
    order = draw(st.permutations(range(size)))
    place = {node: new for new, node in enumerate(order)} | {-1: -1}
    moved = [place[parents[node]] for node in order]
    return LabelTree.from_parents(moved, [names[node] for node in order])


@st.composite
def batches(
    draw: st.DrawFn, *, bound: float = 5, max_size: int = 3
) -> tuple[LabelTree, Tensor, Tensor]:
    """A tree, float64 scores (B, N) within +-bound, often at the ends of it, and targets (B,)."""
    tree = draw(trees())
    one = st.floats(-bound, bound, width=32) | st.sampled_from([-bound, 0.0, bound])
    row = st.lists(one, min_size=len(tree), max_size=len(tree))
    rows = draw(st.lists(row, min_size=1, max_size=max_size))
    target = st.integers(0, len(tree) - 1)
    targets = draw(st.lists(target, min_size=len(rows), max_size=len(rows)))
    return tree, torch.tensor(rows, dtype=torch.float64), torch.tensor(targets)


def slow_log_p(scores: Sequence[float], tree: LabelTree, given: int | None = None) -> list[float]:
    """Log P of each node, by listing every legal answer, in numbers of 60 digits.

    With ``given``, only the answers that hold that node count; -inf where none of those do.
    """
    with localcontext() as context:
        context.prec = DIGITS
        exact = [Decimal(score) for score in scores]
        paths = [list(tree.ancestors(node)) for node in range(len(tree))]
        answers = [[], *paths]
        weights = [sum((exact[n] for n in path), Decimal(0)).exp() for path in answers]
        legal = [i for i, path in enumerate(answers) if given is None or given in path]
        whole = sum(weights[i] for i in legal)
        held = [sum(weights[i] for i in legal if node in answers[i]) for node in range(len(tree))]
        return [float((part / whole).ln()) if part else -torch.inf for part in held]


def slow_rows(scores: Tensor, tree: LabelTree, given: Sequence[int | None] = ()) -> Tensor:
    """:func:`slow_log_p` of each image, (B, N) -> (B, N); ``given`` is one node an image."""
    pairs = zip(scores.tolist(), given or [None] * len(scores), strict=True)
    return torch.tensor([slow_log_p(row, tree, node) for row, node in pairs], dtype=torch.float64)
