"""Log-marginals agree with the list of legal answers, with the published code, and stay finite."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from hierarchy import LabelTree, log_marginals
from hierarchy.errors import HierarchyError, ShapeError
from hierarchy.marginals import layout_of
from tests.hierarchy.golden import read_goldens
from tests.strategies import batches, slow_rows

Batch = tuple[LabelTree, Tensor, Tensor]

FRUIT = LabelTree.from_paths([("Fruit", "Apple"), ("Fruit", "Pear"), ("Milk",)])


@given(batches())
def test_agree_with_the_list_of_answers(batch: Batch) -> None:
    tree, scores, _ = batch
    assert_close(log_marginals(scores, tree), slow_rows(scores, tree), rtol=1e-10, atol=1e-13)


@given(batches(bound=1e4))
def test_agree_with_the_list_of_answers_for_huge_scores(batch: Batch) -> None:
    tree, scores, _ = batch
    assert_close(log_marginals(scores, tree), slow_rows(scores, tree), rtol=1e-10, atol=1e-9)


@given(batches(bound=1e4))
def test_float32_is_finite_and_near_for_huge_scores(batch: Batch) -> None:
    tree, scores, _ = batch
    ours = log_marginals(scores.float(), tree)
    assert ours.dtype == torch.float32
    # A score of 1e4 is itself only known to 5e-4 in float32.
    assert_close(ours.double(), log_marginals(scores, tree), rtol=1e-5, atol=0.05)


@given(batches(), st.data())
def test_gradient_agrees_with_the_list_of_answers(batch: Batch, data: st.DataObject) -> None:
    """D log P(i) / d score(j) is P(j | i) - P(j)."""
    tree, scores, _ = batch
    node = data.draw(st.integers(0, len(tree) - 1))
    expected = slow_rows(scores, tree, [node] * len(scores)).exp() - slow_rows(scores, tree).exp()
    leaf = scores.requires_grad_()
    (grad,) = torch.autograd.grad(log_marginals(leaf, tree)[:, node].sum(), leaf)
    assert_close(grad, expected, rtol=1e-10, atol=1e-13)


@given(batches(bound=30))
def test_children_never_sum_to_more_than_their_parent(batch: Batch) -> None:
    tree, scores, _ = batch
    p = log_marginals(scores, tree).exp()
    for node, children in enumerate(tree.children):
        assert (p[:, list(children)].sum(1) <= p[:, node] * (1 + 1e-12)).all()
    assert (p[:, list(tree.level_nodes(0))].sum(1) <= 1 + 1e-12).all()


@given(batches(bound=1e4))
def test_no_node_is_likelier_than_its_parent_even_in_the_last_digit(batch: Batch) -> None:
    tree, scores, _ = batch
    log_p = log_marginals(scores.float(), tree)
    for node, parent in enumerate(tree.parents):
        above = log_p[:, parent] if parent >= 0 else torch.zeros(len(log_p))
        assert (log_p[:, node] <= above).all()


@given(batches(), st.data())
def test_permuting_the_pictures_permutes_the_answers(batch: Batch, data: st.DataObject) -> None:
    tree, scores, _ = batch
    order = data.draw(st.permutations(range(len(scores))))
    assert_close(log_marginals(scores[order], tree), log_marginals(scores, tree)[order])


@given(batches(), st.data())
def test_renumbering_the_nodes_renumbers_the_answers(batch: Batch, data: st.DataObject) -> None:
    tree, scores, _ = batch
    order = data.draw(st.permutations(range(len(tree))))
    place = [order.index(node) for node in range(len(tree))]
    parents = [place[tree.parents[n]] if tree.parents[n] >= 0 else -1 for n in order]
    other = LabelTree.from_parents(parents, [tree.names[n] for n in order])
    ours = log_marginals(scores[:, order], other)
    assert_close(ours, log_marginals(scores, tree)[:, order])


def test_agree_with_the_published_code(shared: Path) -> None:
    for golden in read_goldens(shared):
        ours = log_marginals(golden.scores.double(), golden.tree).exp()
        assert_close(ours, golden.marginals, rtol=1e-10, atol=0)


def test_agree_with_the_published_code_in_float32(shared: Path) -> None:
    """A log of -25 rounded to float32 is itself 1e-6 off, and so its exponential, relatively."""
    for golden in read_goldens(shared):
        ours = log_marginals(golden.scores, golden.tree).double()
        assert_close(ours, golden.marginals.log(), rtol=1e-6, atol=1e-6)
        assert_close(ours.exp(), golden.marginals, rtol=5e-6, atol=0)


def test_gradient_passes_torchs_own_check() -> None:
    scores = torch.linspace(-2, 3, 8, dtype=torch.float64).reshape(2, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: log_marginals(x, FRUIT), (scores,))


def test_second_derivatives_are_refused_in_words() -> None:
    scores = torch.zeros(1, 4, requires_grad=True)
    (grad,) = torch.autograd.grad(log_marginals(scores, FRUIT).sum(), scores, create_graph=True)
    with pytest.raises(HierarchyError, match="first derivative only"):
        (grad.sum() + scores.sum()).backward()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_worked_out_in_float32(dtype: torch.dtype) -> None:
    scores = torch.tensor([[1.5, -2.0, 0.25, 3.0]], dtype=dtype, requires_grad=True)
    ours = log_marginals(scores, FRUIT)
    assert_close(ours, log_marginals(scores.float(), FRUIT))
    ours.sum().backward()
    assert scores.grad is not None
    assert scores.grad.dtype == dtype


def test_no_pictures_give_no_answers() -> None:
    assert log_marginals(torch.zeros(0, 4), FRUIT).shape == (0, 4)


def test_a_chain_of_5000_nodes_works() -> None:
    chain = LabelTree.from_parents(range(-1, 4999), ["x"] * 5000)
    scores = torch.zeros(1, 5000, dtype=torch.float64)
    expected = torch.arange(5000, 0, -1, dtype=torch.float64).div(5001).log()  # 5001 answers
    assert_close(log_marginals(scores, chain)[0], expected)


@pytest.mark.parametrize("shape", [(4,), (2, 3), (2, 4, 1)])
def test_a_wrong_shape_is_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"\(B, 4\)"):
        log_marginals(torch.zeros(shape), FRUIT)


def test_whole_numbers_are_refused() -> None:
    with pytest.raises(ShapeError, match="int64"):
        log_marginals(torch.zeros(1, 4, dtype=torch.int64), FRUIT)


def test_what_is_laid_out_while_answering_serves_training_too() -> None:
    tree = LabelTree.from_paths([("a", "b"), ("a", "c"), ("d",)])
    with torch.inference_mode():
        log_marginals(torch.zeros(1, len(tree)), tree)
    layout = layout_of(tree, torch.device("cpu"))
    assert not layout.row.is_inference()
    assert not any(level.family.is_inference() for level in layout.levels)
