"""What speaks for a node is what finite differences say."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hierarchy import LabelTree, log_marginals
from hierarchy.errors import ShapeError
from hierarchy.heads import HRNHead
from hierarchy.saliency import channel_gradient, log_odds_gradient
from tests.strategies import trees

TREE = LabelTree.from_paths([("Fruit", "Apple", "Gala"), ("Fruit", "Pear"), ("Milk",)])


@pytest.fixture
def head() -> HRNHead:
    return HRNHead(TREE, 6, hidden=5, members=2).eval()


def some_vectors(images: int = 3) -> Tensor:
    return torch.rand(images, 6, generator=torch.Generator().manual_seed(0)) * 4


def log_odds(scores: Tensor, nodes: Tensor, tree: LabelTree) -> Tensor:
    """Read from the marginals, as one would write it down: exact only well below 1."""
    log_p = log_marginals(scores.double(), tree).gather(1, nodes[:, None])[:, 0]
    return log_p - torch.log1p(-log_p.exp())


@given(trees(), st.data())
def test_the_gradient_in_closed_form_is_autograds(tree: LabelTree, data: st.DataObject) -> None:
    row = st.tuples(*(st.floats(-3, 3) for _ in tree.parents))
    rows = data.draw(st.lists(row, min_size=1, max_size=3))
    scores = torch.tensor(rows, dtype=torch.float64, requires_grad=True)
    ids = st.integers(0, len(tree) - 1)
    nodes = torch.tensor([data.draw(ids) for _ in rows])
    (expected,) = torch.autograd.grad(log_odds(scores, nodes, tree).sum(), scores)
    torch.testing.assert_close(log_odds_gradient(scores, nodes, tree), expected)


def test_a_certain_node_has_a_gradient_all_the_same() -> None:
    scores = torch.zeros(1, len(TREE))
    apple = TREE.index(("Fruit", "Apple"))
    scores[0, apple] = 300.0  # 1 - P is beyond what floats can tell from 0
    found = log_odds_gradient(scores, torch.tensor([apple]), TREE)[0]
    assert found[apple] == 1
    # Without Apple: nothing, Milk, Fruit, Pear are left, so Fruit is there in 2 of 4.
    assert found[TREE.index(("Fruit",))] == pytest.approx(1 - 2 / 4)
    assert found[TREE.index(("Milk",))] == pytest.approx(-1 / 4)


def test_each_channel_counts_as_finite_differences_say(head: HRNHead) -> None:
    vectors, step = some_vectors(1), 1e-3
    nodes = torch.tensor([[TREE.index(("Fruit", "Apple")), TREE.index(("Milk",))]])
    found = channel_gradient(head, vectors, nodes, TREE)
    expected = torch.empty(1, 2, 6)
    for channel in range(6):
        shift = torch.zeros(1, 6)
        shift[0, channel] = step
        with torch.no_grad():
            for k in range(2):
                up, down = (
                    log_odds(head(vectors + sign * shift), nodes[:, k], TREE) for sign in (1, -1)
                )
                expected[0, k, channel] = (up - down) / (2 * step)
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)
    assert found.abs().max() > 0.02


def test_an_image_has_the_same_gradient_in_any_batch(head: HRNHead) -> None:
    vectors, nodes = some_vectors(), torch.tensor([[0, 1, 4], [2, 2, 2], [3, 0, 1]])
    together = channel_gradient(head, vectors, nodes, TREE)
    for row in range(3):
        alone = channel_gradient(head, vectors[[row]], nodes[[row]], TREE)[0]
        torch.testing.assert_close(alone, together[row])


def test_none_asked_is_none_told(head: HRNHead) -> None:
    nothing = torch.empty(3, 0, dtype=torch.int64)
    assert channel_gradient(head, some_vectors(), nothing, TREE).shape == (3, 0, 6)
    assert channel_gradient(head, some_vectors(0), nothing[:0], TREE).shape == (0, 0, 6)


def test_it_leaves_no_trace(head: HRNHead) -> None:
    """It works inside inference mode, and neither the head nor the vectors gain a gradient."""
    nodes = torch.tensor([[0], [1], [2]])
    with torch.inference_mode():
        found = channel_gradient(head, some_vectors(), nodes, TREE)
    torch.testing.assert_close(found, channel_gradient(head, some_vectors(), nodes, TREE))
    assert not found.requires_grad
    assert all(value.grad is None for value in head.parameters())


# --- refusals ---


def test_vectors_of_another_shape_are_refused(head: HRNHead) -> None:
    nodes = torch.zeros(6, 1, dtype=torch.int64)
    with pytest.raises(ShapeError, match=r"vectors must be \(B, C\) floats, got \(6,\)"):
        channel_gradient(head, some_vectors()[0], nodes, TREE)


@pytest.mark.parametrize("nodes", [torch.zeros(3), torch.zeros(2, 1), torch.zeros(3, 1).double()])
def test_nodes_of_another_shape_or_kind_are_refused(head: HRNHead, nodes: Tensor) -> None:
    with pytest.raises(ShapeError, match=r"nodes must be \(3, K\) int64"):
        channel_gradient(head, some_vectors(), nodes, TREE)


def test_a_head_in_training_mode_is_refused(head: HRNHead) -> None:
    nodes = torch.zeros(3, 1, dtype=torch.int64)
    with pytest.raises(ShapeError, match="training mode"):
        channel_gradient(head.train(), some_vectors(), nodes, TREE)
