"""The tree loss agrees with its definition and the published code, and stays fast and small."""

import math
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.tree_loss import grow
from hierarchy import LabelTree, tree_loss
from hierarchy.errors import HierarchyError, ShapeError
from tests.hierarchy.golden import read_goldens
from tests.strategies import batches, slow_rows

Batch = tuple[LabelTree, Tensor, Tensor]

FRUIT = LabelTree.from_paths([("Fruit", "Apple"), ("Fruit", "Pear"), ("Milk",)])
ROOT = Path(__file__).resolve().parents[2]
PUBLISHED_SIZES = {"cub": (13, 38, 200), "aircraft": (30, 70, 100), "cars": (9, 196)}

MEASURE = """
import resource, torch
from benchmarks.tree_loss import grow
from hierarchy import tree_loss
tree = grow(100_000, shuffled=True)
targets = torch.arange(16)
tree_loss(torch.zeros(1, 100_000), targets[:1], tree)  # index tensors are made once
scores = torch.randn(16, 100_000, requires_grad=True)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
tree_loss(scores, targets, tree).backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def gradient(scores: Tensor, targets: Tensor, tree: LabelTree) -> Tensor:
    """Of the mean loss, (B, N)."""
    leaf = scores.detach().requires_grad_()
    (found,) = torch.autograd.grad(tree_loss(leaf, targets, tree), leaf)
    return found


@pytest.mark.parametrize("bound", [5, 1e4])
def test_agrees_with_the_list_of_answers(bound: float) -> None:
    """The gradient is the mean of P(i) - P(i | target), also where P(target) is too small."""

    @given(batches(bound=bound))
    def check(batch: Batch) -> None:
        tree, scores, targets = batch
        every = slow_rows(scores, tree)
        held = slow_rows(scores, tree, targets.tolist()).exp()
        loss = -every.gather(1, targets[:, None]).mean()
        assert_close(tree_loss(scores, targets, tree), loss, rtol=1e-10, atol=1e-9)
        slope = (every.exp() - held) / len(scores)
        assert_close(gradient(scores, targets, tree), slope, rtol=1e-9, atol=1e-10)

    check()


@given(batches(bound=1e4))
def test_float32_is_finite_for_huge_scores(batch: Batch) -> None:
    tree, scores, targets = batch
    loss = tree_loss(scores.float(), targets, tree)
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert loss >= 0
    slope = gradient(scores.float(), targets, tree)
    assert slope.isfinite().all()
    assert slope.abs().max() <= 1 + 1e-6


def test_agrees_with_the_published_code(shared: Path) -> None:
    for golden in read_goldens(shared):
        scores = golden.scores.double()
        ours = tree_loss(scores, golden.targets, golden.tree)
        assert_close(ours, golden.losses.mean(), rtol=1e-10, atol=0)
        slope = gradient(scores, golden.targets, golden.tree)
        assert_close(slope, golden.gradient, rtol=1e-10, atol=0)


def test_agrees_with_the_published_code_in_float32(shared: Path) -> None:
    for golden in read_goldens(shared):
        ours = tree_loss(golden.scores, golden.targets, golden.tree).double()
        assert_close(ours, golden.losses.mean(), rtol=1e-6, atol=0)
        slope = gradient(golden.scores, golden.targets, golden.tree).double()
        error = (slope - golden.gradient).norm() / golden.gradient.norm()
        assert error <= 1e-6
        assert_close(slope, golden.gradient, rtol=0, atol=1e-7)


@pytest.mark.parametrize("sizes", PUBLISHED_SIZES.values(), ids=PUBLISHED_SIZES)
@pytest.mark.parametrize("squashed", [True, False], ids=["sigmoid", "raw"])
def test_agrees_with_a_dense_table_on_trees_of_published_sizes(
    sizes: tuple[int, ...], *, squashed: bool
) -> None:
    """An N x N table of ancestry and autograd: what the product must never do at run time."""
    drawn = torch.Generator().manual_seed(sum(sizes))
    parents = [-1] * sizes[0]
    for above, below in pairwise(sizes):
        first = len(parents) - above
        parents += torch.randint(first, len(parents), (below,), generator=drawn).tolist()
    tree = LabelTree.from_parents(parents, [str(node) for node in range(len(parents))])
    scores = 3 * torch.randn(32, len(tree), generator=drawn, dtype=torch.float64)
    scores = scores.sigmoid() if squashed else scores
    targets = torch.randint(len(tree), (32,), generator=drawn)
    leaf = scores.requires_grad_()
    ancestry = torch.zeros(len(tree), len(tree), dtype=torch.float64)
    for node in range(len(tree)):
        ancestry[node, list(tree.ancestors(node))] = 1
    weight = leaf @ ancestry.T
    held = weight.masked_fill(ancestry.T[targets] == 0, -math.inf).logsumexp(1)
    whole = torch.cat([weight, torch.zeros(32, 1)], 1).logsumexp(1)
    expected = (whole - held).mean()
    (slope,) = torch.autograd.grad(expected, leaf)
    assert_close(tree_loss(scores, targets, tree), expected, rtol=1e-10, atol=0)
    assert_close(gradient(scores, targets, tree), slope, rtol=1e-9, atol=1e-14)


def test_worked_out_on_paper() -> None:
    """Five answers; Fruit is in three of them, Pear in one."""
    losses = [tree_loss(torch.zeros(1, 4), torch.tensor([node]), FRUIT) for node in (0, 3)]
    assert_close(torch.stack(losses), torch.tensor([math.log(5 / 3), math.log(5)]))


def test_a_coarse_target_teaches_neither_child_more() -> None:
    slope = gradient(torch.zeros(1, 4), torch.tensor([0]), FRUIT)  # Fruit, Milk, Apple, Pear
    assert_close(slope, torch.tensor([[3 / 5 - 1, 1 / 5, 1 / 5 - 1 / 3, 1 / 5 - 1 / 3]]))


def test_weights_make_a_weighted_mean() -> None:
    scores, targets = torch.randn(3, 4, dtype=torch.float64), torch.tensor([0, 2, 1])
    each = [tree_loss(scores[i : i + 1], targets[i : i + 1], FRUIT) for i in range(3)]
    ours = tree_loss(scores, targets, FRUIT, weights=torch.tensor([1.0, 0.0, 3.0]))
    assert_close(ours, (each[0] + 3 * each[2]) / 4)


def test_a_image_of_no_weight_teaches_nothing() -> None:
    scores = torch.randn(2, 4, requires_grad=True)
    loss = tree_loss(scores, torch.tensor([0, 2]), FRUIT, weights=torch.tensor([1.0, 0.0]))
    (slope,) = torch.autograd.grad(loss, scores)
    assert slope[1].eq(0).all()
    assert slope[0].ne(0).any()


def test_gradient_passes_torchs_own_check() -> None:
    scores = torch.linspace(-2, 3, 16, dtype=torch.float64).reshape(4, 4).requires_grad_()
    weights = torch.tensor([1.0, 2.0, 0.5, 1.0], dtype=torch.float64)
    every = torch.arange(4)
    assert torch.autograd.gradcheck(
        lambda x: tree_loss(x, every, FRUIT, weights=weights), (scores,)
    )


def test_gradient_can_be_asked_for_twice() -> None:
    scores = torch.randn(2, 4, requires_grad=True)
    loss = tree_loss(scores, torch.tensor([0, 2]), FRUIT)
    (first,) = torch.autograd.grad(loss, scores, retain_graph=True)
    (again,) = torch.autograd.grad(2 * loss, scores)
    assert_close(again, 2 * first)


def test_second_derivatives_are_refused_in_words() -> None:
    scores = torch.zeros(1, 4, requires_grad=True)
    loss = tree_loss(scores, torch.tensor([0]), FRUIT)
    (slope,) = torch.autograd.grad(loss, scores, create_graph=True)
    with pytest.raises(HierarchyError, match="first derivative only"):
        (slope.sum() + scores.sum()).backward()


def test_scores_are_left_as_they_were() -> None:
    scores = torch.randn(2, 4)
    before = scores.clone()
    gradient(scores, torch.tensor([0, 2]), FRUIT)
    assert scores.equal(before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_worked_out_in_float32(dtype: torch.dtype) -> None:
    scores, targets = torch.tensor([[1.5, -2.0, 0.25, 3.0]], dtype=dtype), torch.tensor([2])
    loss = tree_loss(scores, targets, FRUIT)
    assert_close(loss, tree_loss(scores.float(), targets, FRUIT))
    expected = gradient(scores.float(), targets, FRUIT).to(dtype)
    assert_close(gradient(scores, targets, FRUIT), expected)


def test_a_tree_of_one_node_is_a_logistic_loss() -> None:
    one = LabelTree.from_paths([("Milk",)])
    loss = tree_loss(torch.tensor([[2.0]]), torch.tensor([0]), one)
    assert_close(loss, torch.tensor(math.log1p(math.exp(-2))))


def test_a_chain_of_5000_nodes_works() -> None:
    chain = LabelTree.from_parents(range(-1, 4999), ["x"] * 5000)
    scores = torch.zeros(2, 5000, dtype=torch.float64)
    targets = torch.tensor([4999, 0])
    expected = (math.log(5001) - math.log(5000 / 5001)) / 2
    assert_close(tree_loss(scores, targets, chain).item(), expected)
    assert gradient(scores, targets, chain)[1, 0] == pytest.approx(-1 / 5001 / 2)


@pytest.mark.parametrize(
    ("targets", "says"),
    [
        (torch.tensor([0]), r"targets must be \(2,\), got \(1,\)"),
        (torch.tensor([0, 4]), "from 0 to 3, got 0 to 4"),
        (torch.tensor([-1, 1]), "from 0 to 3, got -1 to 1"),
        (torch.tensor([0.0, 1.0]), "int64"),
    ],
)
def test_wrong_targets_are_named(targets: Tensor, says: str) -> None:
    with pytest.raises(ShapeError, match=says):
        tree_loss(torch.zeros(2, 4), targets, FRUIT)


def test_wrong_scores_are_named() -> None:
    with pytest.raises(ShapeError, match=r"\(B, 4\).*got \(2, 3\)"):
        tree_loss(torch.zeros(2, 3), torch.tensor([0, 1]), FRUIT)


def test_wrong_weights_are_named() -> None:
    with pytest.raises(ShapeError, match=r"weights must be \(2,\), got \(1,\)"):
        tree_loss(torch.zeros(2, 4), torch.tensor([0, 1]), FRUIT, weights=torch.ones(1))


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(ShapeError, match="at least one image"):
        tree_loss(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), FRUIT)


@pytest.mark.slow
def test_memory_is_linear_in_the_nodes() -> None:
    """16 images x 100,000 nodes x 4 bytes are 6.4 MB; a table of nodes x nodes is 10 GB."""
    command = [sys.executable, "-c", MEASURE]
    told = subprocess.run(
        command, check=True, capture_output=True, text=True, cwd=ROOT, timeout=300
    )
    grown_kib = int(told.stdout)
    assert grown_kib <= 10 * 16 * 100_000 * 4 / 1024


class Touched(TorchDispatchMode):
    """Counts operations, and the numbers that they give back."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls = self.numbers = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        self.calls += 1
        if isinstance(found, Tensor) and not func.is_view:
            self.numbers += found.numel()
        return found


@pytest.mark.parametrize("ids", ["levels", "shuffled"])
def test_work_is_a_few_passes_over_the_scores_and_a_few_calls_a_level(ids: str) -> None:
    """What it costs, without a clock; the figures are in docs/performance.md."""
    tree = grow(10_000, shuffled=ids == "shuffled")
    scores, targets = torch.randn(64, len(tree), requires_grad=True), torch.tensor(tree.leaves)
    tree_loss(scores, targets[:64], tree)  # index tensors are made once
    with Touched() as touched:
        tree_loss(scores, targets[:64], tree).backward()
    assert touched.numbers <= 50 * scores.numel()
    assert touched.calls <= 40 + 35 * tree.depth


# Several nodes named


Sets = tuple[LabelTree, Tensor, Tensor]


@st.composite
def labelled(draw: st.DrawFn, *, bound: float = 5) -> Sets:
    """A tree, scores (B, N) and nodes named (B, 4), -1 anywhere in between."""
    tree, scores, targets = draw(batches(bound=bound))
    named = []
    for target in targets.tolist():
        some = [target, *draw(st.lists(st.integers(0, len(tree) - 1), max_size=3))]
        named.append(draw(st.permutations(some + [-1] * (4 - len(some)))))
    return tree, scores, torch.tensor(named)


def one_by_one(named: Tensor, tree: LabelTree) -> list[list[int]]:
    """Of each row the nodes with no other named node above them, each once."""
    rows = [{node for node in row if node >= 0} for row in named.tolist()]
    return [[n for n in row if not row & set(tree.ancestors(n)[:-1])] for row in rows]


@pytest.mark.parametrize("bound", [5, 1e4])
def test_a_union_weighs_what_its_separate_subtrees_do(bound: float) -> None:
    """By the list of answers: P(union) is a sum, its gradient the mean of the nodes' own."""

    @given(labelled(bound=bound))
    def check(labels: Sets) -> None:
        tree, scores, named = labels
        every, losses, slopes = slow_rows(scores, tree), [], []
        for row, nodes in enumerate(one_by_one(named, tree)):
            log_p = every[row, nodes]
            losses.append(-log_p.logsumexp(0))
            given_one = [slow_rows(scores[row : row + 1], tree, [node])[0].exp() for node in nodes]
            slopes.append(every[row].exp() - log_p.softmax(0) @ torch.stack(given_one))
        expected = torch.stack(losses).clamp(min=0).mean()
        assert_close(tree_loss(scores, named, tree), expected, rtol=1e-10, atol=1e-9)
        slope = torch.stack(slopes) / len(scores)
        assert_close(gradient(scores, named, tree), slope, rtol=1e-9, atol=1e-10)

    check()


@given(labelled(bound=1e4))
def test_float32_unions_are_finite_for_huge_scores(labels: Sets) -> None:
    tree, scores, named = labels
    loss = tree_loss(scores.float(), named, tree)
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert loss >= 0
    slope = gradient(scores.float(), named, tree)
    assert slope.isfinite().all()
    assert slope.abs().max() <= 1 + 1e-6


@given(batches())
def test_a_row_that_names_one_node_is_that_node(batch: Batch) -> None:
    tree, scores, targets = batch
    expected = tree_loss(scores, targets, tree)
    for named in (targets[:, None], torch.stack([targets, targets], 1)):
        assert tree_loss(scores, named, tree) == expected


@given(labelled())
def test_a_batch_is_the_mean_of_its_rows_whatever_their_order(labels: Sets) -> None:
    tree, scores, named = labels
    rows = [slice(row, row + 1) for row in range(len(scores))]
    each = torch.stack([tree_loss(scores[r], named[r], tree) for r in rows])
    assert_close(tree_loss(scores, named, tree), each.mean(), rtol=1e-10, atol=1e-13)
    assert_close(tree_loss(scores.flip(0), named.flip(0, 1), tree), each.mean())
    weights = torch.linspace(0.5, 2, len(scores)).double()
    ours = tree_loss(scores, named, tree, weights=8 * weights)
    assert_close(ours, (each * weights).sum() / weights.sum())


def test_unions_worked_out_on_paper() -> None:
    """Five answers: nothing, Fruit, Milk, Apple, Pear."""
    milk_or_apple = tree_loss(torch.zeros(1, 4), torch.tensor([[1, 2]]), FRUIT)
    assert_close(milk_or_apple, torch.tensor(math.log(5 / 2)))


def test_a_union_of_leaves_teaches_their_parent_and_prefers_neither() -> None:
    leaf = torch.zeros(1, 4, requires_grad=True)
    (slope,) = torch.autograd.grad(tree_loss(leaf, torch.tensor([[2, 3]]), FRUIT), leaf)
    assert_close(slope, torch.tensor([[3 / 5 - 1, 1 / 5, 1 / 5 - 1 / 2, 1 / 5 - 1 / 2]]))


def test_second_derivatives_of_unions_are_refused_in_words() -> None:
    scores = torch.zeros(1, 4, requires_grad=True)
    loss = tree_loss(scores, torch.tensor([[1, 2]]), FRUIT)
    (slope,) = torch.autograd.grad(loss, scores, create_graph=True)
    with pytest.raises(HierarchyError, match="first derivative only"):
        (slope.sum() + scores.sum()).backward()


def test_half_precision_unions_are_computed_in_float32() -> None:
    scores, named = torch.tensor([[1.5, -2.0, 0.25, 3.0]]), torch.tensor([[1, 2]])
    assert_close(tree_loss(scores.bfloat16(), named, FRUIT), tree_loss(scores, named, FRUIT))


@pytest.mark.parametrize(
    ("named", "says"),
    [
        ([[2, -1], [-1, -1]], "row 1 names no node"),
        ([[], []], "row 0 names no node"),
        ([[4, 0], [0, 1]], "targets .* 0 to 3, or -1 for none, got 0 to 4"),
        ([[0, 1], [0, -2]], "targets .*got -2 to 1"),
        ([[0, 1]], r"targets must be \(2, K\), got \(1, 2\)"),
        ([[[0, 1]]] * 2, r"targets must be \(2,\), got \(2, 1, 2\)"),
    ],
)
def test_labels_that_cannot_be_are_refused_in_words(named: Any, says: str) -> None:
    with pytest.raises(ShapeError, match=says):
        tree_loss(torch.zeros(2, 4), torch.tensor(named, dtype=torch.int64), FRUIT)


def test_scores_that_are_not_finite_are_not_blamed_on_the_labels() -> None:
    """A run that diverges shall hear of its loss."""
    scores = torch.full((1, 4), torch.nan)
    assert tree_loss(scores, torch.tensor([[1, 2]]), FRUIT).isnan()


def test_a_family_of_many_thousands_loses_no_digits() -> None:
    """Nearly equal scores: added up one by one, each would be rounded the same way."""
    flat = LabelTree.from_paths([(str(number),) for number in range(50_000)])
    scores = torch.full((2, len(flat)), 1e-3) * torch.rand(2, len(flat))
    targets = torch.tensor([0, 49_999])
    exact = tree_loss(scores.double(), targets, flat)
    assert_close(tree_loss(scores, targets, flat).double(), exact, rtol=1e-6, atol=1e-6)
    slope = gradient(scores, targets, flat).double()
    assert_close(slope, gradient(scores.double(), targets, flat), rtol=1e-5, atol=1e-9)
