"""Pooled opinions against a table of all answers."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hierarchy import LabelTree, log_marginals
from hierarchy.errors import ShapeError
from hierarchy.pool import opinion_pool
from tests.strategies import trees


def _draw(tree: LabelTree, rows: int, seed: int) -> list[np.ndarray]:
    generator = torch.Generator().manual_seed(seed)
    return [
        2 * torch.randn(rows, len(tree), generator=generator, dtype=torch.float64).numpy()
        for _ in range(3)
    ]


def _slow(log_p: list[np.ndarray], tree: LabelTree) -> np.ndarray:
    """Every answer by name, node by node."""
    means = []
    for row in range(len(log_p[0])):
        answers: dict[int, float] = {-1: 1.0, **dict.fromkeys(range(len(tree)), 1.0)}
        for one in log_p:
            p = np.exp(one[row])
            for node in answers:
                below = [c for c in range(len(tree)) if tree.parents[c] == node]
                own = (1.0 if node < 0 else p[node]) - sum(p[c] for c in below)
                answers[node] *= max(own, 1e-300) ** (1 / len(log_p))
        total = sum(answers.values())
        means.append(
            [
                sum(w for other, w in answers.items() if other >= 0 and tree.covers(node, other))
                / total
                for node in range(len(tree))
            ]
        )
    return np.asarray(np.log(np.array(means)))


@given(trees(), st.integers(0, 2**31))
def test_it_is_the_normalised_geometric_mean_of_every_answer(tree: LabelTree, seed: int) -> None:
    """On any tree."""
    opinions = [log_marginals(torch.from_numpy(s), tree).numpy() for s in _draw(tree, 2, seed)]
    np.testing.assert_allclose(opinion_pool(opinions, tree), _slow(opinions, tree), atol=1e-5)


@given(trees(), st.integers(0, 2**31))
def test_it_is_what_averaging_scores_gives(tree: LabelTree, seed: int) -> None:
    """So that networks may be pooled with or without their scores."""
    scores = _draw(tree, 2, seed)
    opinions = [log_marginals(torch.from_numpy(s), tree).numpy() for s in scores]
    expected = log_marginals(torch.from_numpy(np.mean(scores, axis=0)), tree).numpy()
    np.testing.assert_allclose(opinion_pool(opinions, tree), expected, atol=1e-5)


def test_opinions_of_another_shape_are_refused() -> None:
    """The message tells both shapes."""
    tree = LabelTree.from_paths([("a", "b"), ("c",)])
    with pytest.raises(ShapeError, match=r"\(1, 3\).*\(2, 3\)"):
        opinion_pool([np.zeros((1, 3)), np.zeros((2, 3))], tree)


def test_a_probability_of_zero_can_be_outvoted() -> None:
    """A saved float32 rounds small shares away."""
    tree = LabelTree.from_paths([("a", "b"), ("a", "c")])
    sure = np.log(np.array([[1.0, 1.0, 1e-30]]))
    other = np.log(np.array([[0.9, 0.1, 0.7]]))
    assert np.isfinite(opinion_pool([sure, other], tree)).all()
