"""The tree loss agrees with its definition and the published code, and stays fast and small."""

import math
import subprocess
import sys
from decimal import Decimal, localcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.tree_loss import grow
from hierarchy import LabelTree, log_marginals, tree_loss
from hierarchy.errors import HierarchyError, ShapeError
from tests.hierarchy.golden import read_goldens
from tests.strategies import DIGITS, batches, slow_rows

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


@given(batches())
def test_agrees_with_the_list_of_answers(batch: Batch) -> None:
    tree, scores, targets = batch
    expected = -slow_rows(scores, tree).gather(1, targets[:, None]).mean()
    assert_close(tree_loss(scores, targets, tree), expected, rtol=1e-10, atol=1e-13)


@given(batches(bound=1e4))
def test_agrees_with_the_list_of_answers_for_huge_scores(batch: Batch) -> None:
    tree, scores, targets = batch
    expected = -slow_rows(scores, tree).gather(1, targets[:, None]).mean()
    assert_close(tree_loss(scores, targets, tree), expected, rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("bound", [5, 1e4])
def test_gradient_agrees_with_the_list_of_answers(bound: float) -> None:
    """Mean of P(i) - P(i | target), also where P(target) is too small to write down."""

    @given(batches(bound=bound))
    def check(batch: Batch) -> None:
        tree, scores, targets = batch
        held = slow_rows(scores, tree, targets.tolist()).exp()
        expected = (slow_rows(scores, tree).exp() - held) / len(scores)
        assert_close(gradient(scores, targets, tree), expected, rtol=1e-9, atol=1e-10)

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


@given(batches())
def test_is_the_mean_of_minus_the_log_marginals(batch: Batch) -> None:
    """Both ways to the same number, and to the same gradient."""
    tree, scores, targets = batch
    leaf = scores.requires_grad_()
    other = -log_marginals(leaf, tree).gather(1, targets[:, None]).mean()
    (slope,) = torch.autograd.grad(other, leaf)
    assert_close(tree_loss(scores, targets, tree), other)
    assert_close(gradient(scores, targets, tree), slope, rtol=1e-9, atol=1e-13)


@given(batches(max_size=5), st.data())
def test_order_of_the_pictures_does_not_matter(batch: Batch, data: st.DataObject) -> None:
    tree, scores, targets = batch
    order = data.draw(st.permutations(range(len(scores))))
    assert_close(tree_loss(scores[order], targets[order], tree), tree_loss(scores, targets, tree))
    turned = gradient(scores[order], targets[order], tree)
    assert_close(turned, gradient(scores, targets, tree)[order])


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


def test_a_picture_of_no_weight_teaches_nothing() -> None:
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
    with pytest.raises(ShapeError, match="at least one picture"):
        tree_loss(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), FRUIT)


@pytest.mark.slow
def test_memory_is_linear_in_the_nodes() -> None:
    """16 pictures x 100,000 nodes x 4 bytes are 6.4 MB; a table of nodes x nodes is 10 GB."""
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
    assert touched.numbers <= 12 * scores.numel()
    assert touched.calls <= 40 + 12 * tree.depth


# Several nodes named, nodes excluded


Sets = tuple[LabelTree, Tensor, Tensor, Tensor]


@st.composite
def labelled(draw: st.DrawFn, *, bound: float = 5) -> Sets:
    """A tree, scores (B, N), nodes named (B, 4) and excluded (B, 3), -1 anywhere in between.

    Every row says something and allows something.
    """
    tree, scores, targets = draw(batches(bound=bound))
    node = st.integers(0, len(tree) - 1)
    named, excluded = [], []
    for target in targets.tolist():
        ban = draw(st.lists(node, max_size=3))
        free = not any(tree.covers(one, target) for one in ban)
        some = [target] if free else []
        if some:
            some += draw(st.lists(node, max_size=3))
        named.append(draw(st.permutations(some + [-1] * (4 - len(some)))))
        excluded.append(draw(st.permutations(ban + [-1] * (3 - len(ban)))))
    return tree, scores, torch.tensor(named), torch.tensor(excluded)


def slow_sets(labels: Sets) -> tuple[Tensor, Tensor]:
    """Loss (B,) and P(i) - P(i | allowed) (B, N), by listing every answer, in 60 digits."""
    tree, scores, named, excluded = labels
    losses, slopes = [], []
    for row, some, ban in zip(scores.tolist(), named.tolist(), excluded.tolist(), strict=True):
        yes, no = {n for n in some if n >= 0}, {n for n in ban if n >= 0}
        with localcontext() as context:
            context.prec = DIGITS
            answers = [(), *(tree.ancestors(node) for node in range(len(tree)))]
            weights = [sum((Decimal(row[n]) for n in path), Decimal(0)).exp() for path in answers]
            legal = [
                (not yes or not yes.isdisjoint(path)) and no.isdisjoint(path) for path in answers
            ]
            nil = Decimal(0)
            whole = sum(weights, nil)
            part = sum((w for w, free in zip(weights, legal, strict=True) if free), nil)
            losses.append(float((whole / part).ln()))
            slope = []
            for node in range(len(tree)):
                held = [
                    (w, free)
                    for w, free, p in zip(weights, legal, answers, strict=True)
                    if node in p
                ]
                inside = sum((w for w, free in held if free), nil)
                slope.append(float(sum((w for w, _ in held), nil) / whole - inside / part))
            slopes.append(slope)
    return torch.tensor(losses, dtype=torch.float64), torch.tensor(slopes, dtype=torch.float64)


def set_gradient(labels: Sets, dtype: torch.dtype = torch.float64) -> Tensor:
    """Of the summed loss, (B, N)."""
    tree, scores, named, excluded = labels
    leaf = scores.to(dtype).requires_grad_()
    loss = tree_loss(leaf, named, tree, excluded=excluded) * len(scores)
    (found,) = torch.autograd.grad(loss, leaf)
    return found


@pytest.mark.parametrize("bound", [5, 1e4])
def test_sets_agree_with_the_list_of_answers(bound: float) -> None:
    @given(labelled(bound=bound))
    def check(labels: Sets) -> None:
        tree, scores, named, excluded = labels
        losses, slopes = slow_sets(labels)
        ours = tree_loss(scores, named, tree, excluded=excluded)
        assert_close(ours, losses.mean(), rtol=1e-10, atol=1e-9)
        assert_close(set_gradient(labels), slopes, rtol=1e-9, atol=1e-10)

    check()


@given(labelled(bound=1e4))
def test_float32_sets_are_finite_for_huge_scores(labels: Sets) -> None:
    tree, scores, named, excluded = labels
    loss = tree_loss(scores.float(), named, tree, excluded=excluded)
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert loss >= 0
    slope = set_gradient(labels, torch.float32)
    assert slope.isfinite().all()
    assert slope.abs().max() <= 1 + 1e-6


@given(labelled())
def test_float32_sets_agree_with_float64(labels: Sets) -> None:
    tree, scores, named, excluded = labels
    single = tree_loss(scores.float(), named, tree, excluded=excluded)
    assert_close(
        single.double(), tree_loss(scores, named, tree, excluded=excluded), rtol=1e-5, atol=1e-5
    )
    assert_close(
        set_gradient(labels, torch.float32).double(), set_gradient(labels), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("bound", [5, 1e4])
def test_a_set_of_one_node_is_that_node(bound: float) -> None:
    """Both ways of working it out: with nothing to exclude, and with an empty list of that."""

    @given(batches(bound=bound))
    def check(batch: Batch) -> None:
        tree, scores, targets = batch
        nobody = torch.full((len(scores), 2), -1)
        expected, slope = tree_loss(scores, targets, tree), gradient(scores, targets, tree)
        for named in (targets, targets[:, None], torch.stack([targets, targets], 1)):
            assert tree_loss(scores, named, tree) == expected
            ours = tree_loss(scores, named, tree, excluded=nobody)
            assert_close(ours, expected, rtol=1e-10, atol=1e-9)
            labels = (tree, scores, named, nobody)
            assert_close(set_gradient(labels) / len(scores), slope, rtol=1e-9, atol=1e-10)

    check()


@given(batches(), st.data())
def test_naming_what_is_named_already_changes_nothing(batch: Batch, data: st.DataObject) -> None:
    """Again, or a node below it: the union of the subtrees is the same."""
    tree, scores, targets = batch
    below = [
        data.draw(st.sampled_from([n for n in range(len(tree)) if tree.covers(target, n)]))
        for target in targets.tolist()
    ]
    named = torch.stack([torch.tensor(below), targets], 1)
    assert_close(tree_loss(scores, named, tree), tree_loss(scores, targets, tree))


@settings(max_examples=40)
@given(labelled(), st.data())
def test_order_within_a_row_does_not_matter(labels: Sets, data: st.DataObject) -> None:
    tree, scores, named, excluded = labels
    turn = data.draw(st.permutations(range(named.shape[1])))
    twist = data.draw(st.permutations(range(excluded.shape[1])))
    turned = tree_loss(scores, named[:, turn], tree, excluded=excluded[:, twist])
    assert_close(turned, tree_loss(scores, named, tree, excluded=excluded))


@given(batches(), st.data())
def test_naming_more_costs_less_and_excluding_more_costs_more(
    batch: Batch, data: st.DataObject
) -> None:
    tree, scores, targets = batch
    other = data.draw(st.integers(0, len(tree) - 1))
    pair = torch.stack([targets, torch.full_like(targets, other)], 1)
    one = tree_loss(scores, targets, tree)
    assert tree_loss(scores, pair, tree) <= one + 1e-12
    if not any(tree.covers(other, target) for target in targets.tolist()):
        assert tree_loss(scores, targets, tree, excluded=pair[:, 1:]) >= one - 1e-12


@settings(max_examples=40)
@given(batches())
def test_all_children_and_the_excluded_rest_make_the_whole(batch: Batch) -> None:
    """P(v) and P(anything but v) sum to 1."""
    tree, scores, targets = batch
    for row in range(len(scores)):
        score, target = scores[row : row + 1], targets[row : row + 1]
        nobody = torch.full((1, 1), -1)
        inside = tree_loss(score, target, tree)
        outside = tree_loss(score, nobody, tree, excluded=target[:, None])
        assert_close(inside.neg().exp() + outside.neg().exp(), torch.tensor(1.0).double())


def test_unions_and_exclusions_worked_out_on_paper() -> None:
    """Five answers: nothing, Fruit, Milk, Apple, Pear."""
    scores, nobody = torch.zeros(1, 4), torch.tensor([[-1]])
    losses = [
        tree_loss(scores, torch.tensor([[1, 2]]), FRUIT),  # Milk or Apple
        tree_loss(scores, torch.tensor([[0]]), FRUIT, excluded=torch.tensor([[2]])),
        tree_loss(scores, nobody, FRUIT, excluded=torch.tensor([[0]])),  # nothing or Milk
        tree_loss(scores, nobody, FRUIT, excluded=torch.tensor([[0, 1]])),  # nothing
    ]
    expected = [math.log(5 / 2), math.log(5 / 2), math.log(5 / 2), math.log(5)]
    assert_close(torch.stack(losses), torch.tensor(expected))


def test_a_union_of_leaves_teaches_their_parent_and_prefers_neither() -> None:
    leaf = torch.zeros(1, 4, requires_grad=True)
    (slope,) = torch.autograd.grad(tree_loss(leaf, torch.tensor([[2, 3]]), FRUIT), leaf)
    assert_close(slope, torch.tensor([[3 / 5 - 1, 1 / 5, 1 / 5 - 1 / 2, 1 / 5 - 1 / 2]]))


@settings(max_examples=40)
@given(labelled(), st.data())
def test_a_weight_split_over_equal_rows_changes_nothing(labels: Sets, data: st.DataObject) -> None:
    """Two annotators who say the same count as one of twice the weight."""
    tree, scores, named, excluded = labels
    weight = st.floats(0.125, 4)
    weights = torch.tensor(data.draw(st.lists(weight, min_size=len(scores), max_size=len(scores))))
    share = data.draw(st.floats(0.125, 0.875))
    whole = tree_loss(scores, named, tree, weights=weights, excluded=excluded)
    split = tree_loss(
        scores.repeat(2, 1),
        named.repeat(2, 1),
        tree,
        weights=torch.cat([weights * share, weights * (1 - share)]),
        excluded=excluded.repeat(2, 1),
    )
    assert_close(split, whole, rtol=1e-5, atol=1e-7)  # the weights are float32


@settings(max_examples=40)
@given(labelled(), st.data())
def test_order_of_the_annotators_does_not_matter(labels: Sets, data: st.DataObject) -> None:
    tree, scores, named, excluded = labels
    weights = torch.linspace(0.5, 2, len(scores))
    turn = data.draw(st.permutations(range(len(scores))))
    turned = tree_loss(
        scores[turn], named[turn], tree, weights=weights[turn], excluded=excluded[turn]
    )
    assert_close(turned, tree_loss(scores, named, tree, weights=weights, excluded=excluded))


@settings(max_examples=40)
@given(labelled())
def test_only_the_ratio_of_weights_matters(labels: Sets) -> None:
    tree, scores, named, excluded = labels
    weights = torch.linspace(0.5, 2, len(scores))
    one = tree_loss(scores, named, tree, weights=weights, excluded=excluded)
    assert_close(tree_loss(scores, named, tree, weights=8 * weights, excluded=excluded), one)
    plain = tree_loss(scores, named, tree, excluded=excluded)
    even = torch.full((len(scores),), 3.0)
    assert_close(tree_loss(scores, named, tree, weights=even, excluded=excluded), plain)


@settings(max_examples=40)
@given(labelled())
def test_a_batch_is_the_mean_of_its_rows(labels: Sets) -> None:
    """No row's set leaks into another's."""
    tree, scores, named, excluded = labels
    rows = [slice(row, row + 1) for row in range(len(scores))]
    each = [tree_loss(scores[r], named[r], tree, excluded=excluded[r]) for r in rows]
    ours = tree_loss(scores, named, tree, excluded=excluded)
    assert_close(ours, torch.stack(each).mean(), rtol=1e-10, atol=1e-13)


def test_the_gradient_of_sets_passes_torchs_own_check() -> None:
    scores = torch.linspace(-2, 3, 16, dtype=torch.float64).reshape(4, 4).requires_grad_()
    named = torch.tensor([[0, 1], [2, 3], [-1, -1], [0, -1]])
    excluded = torch.tensor([[2], [-1], [0], [3]])
    weights = torch.tensor([1.0, 2.0, 0.5, 1.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x: tree_loss(x, named, FRUIT, weights=weights, excluded=excluded), (scores,)
    )


def test_second_derivatives_of_sets_are_refused_in_words() -> None:
    scores = torch.zeros(1, 4, requires_grad=True)
    loss = tree_loss(scores, torch.tensor([[1, 2]]), FRUIT)
    (slope,) = torch.autograd.grad(loss, scores, create_graph=True)
    with pytest.raises(HierarchyError, match="first derivative only"):
        (slope.sum() + scores.sum()).backward()


def test_half_precision_sets_are_worked_out_in_float32() -> None:
    scores, named = torch.tensor([[1.5, -2.0, 0.25, 3.0]]), torch.tensor([[1, 2]])
    assert_close(tree_loss(scores.bfloat16(), named, FRUIT), tree_loss(scores, named, FRUIT))


def test_a_union_on_a_chain_of_1000_nodes_works() -> None:
    chain = LabelTree.from_parents(range(-1, 999), ["x"] * 1000)
    scores = torch.zeros(1, 1000, dtype=torch.float64)
    loss = tree_loss(scores, torch.tensor([[199, 800]]), chain, excluded=torch.tensor([[400]]))
    assert_close(loss.item(), math.log(1001 / 201))


@pytest.mark.parametrize(
    ("named", "excluded", "says"),
    [
        ([[2, -1], [-1, -1]], None, "row 1 names no node and excludes none"),
        ([[2, -1], [-1, -1]], [[3], [-1]], "row 1 names no node and excludes none"),
        ([[2, 3], [0, 1]], [[0], [-1]], "row 0 allows no answer"),
        ([[0, -1], [2, -1]], [[-1], [2]], "row 1 allows no answer"),
        ([[4, 0], [0, 1]], None, "targets .* 0 to 3, or -1 for none, got 0 to 4"),
        ([[0, 1], [0, -2]], None, "targets .*got -2 to 1"),
        ([[0, 1], [0, 1]], [[4], [-1]], "excluded .* 0 to 3, or -1 for none, got -1 to 4"),
        ([[0, 1], [0, 1]], [-1, -1], r"excluded must be \(2, J\), got \(2,\)"),
        ([[0, 1], [0, 1]], [[-1]], r"excluded must be \(2, J\), got \(1, 1\)"),
        ([[0, 1]], None, r"targets must be \(2, K\), got \(1, 2\)"),
        ([[[0, 1]]] * 2, None, r"targets must be \(2,\), got \(2, 1, 2\)"),
    ],
)
def test_labels_that_cannot_be_are_refused_in_words(named: Any, excluded: Any, says: str) -> None:
    ban = None if excluded is None else torch.tensor(excluded)
    with pytest.raises(ShapeError, match=says):
        tree_loss(torch.zeros(2, 4), torch.tensor(named), FRUIT, excluded=ban)


def test_excluded_of_another_kind_is_named() -> None:
    with pytest.raises(ShapeError, match="excluded must be int64"):
        tree_loss(torch.zeros(1, 4), torch.tensor([0]), FRUIT, excluded=torch.zeros(1, 1))


def test_no_node_at_all_is_refused() -> None:
    with pytest.raises(ShapeError, match="row 0 names no node"):
        tree_loss(torch.zeros(2, 4), torch.zeros(2, 0, dtype=torch.int64), FRUIT)


def test_scores_that_are_not_finite_are_not_blamed_on_the_labels() -> None:
    """A run that diverges shall hear of its loss."""
    scores = torch.full((1, 4), torch.nan)
    assert tree_loss(scores, torch.tensor([[1, 2]]), FRUIT).isnan()


@pytest.mark.slow
def test_memory_of_sets_is_linear_in_the_nodes() -> None:
    script = MEASURE.replace("torch.arange(16)", "torch.arange(32).view(16, 2)")
    command = [sys.executable, "-c", script]
    told = subprocess.run(
        command, check=True, capture_output=True, text=True, cwd=ROOT, timeout=300
    )
    assert int(told.stdout) <= 16 * 16 * 100_000 * 4 / 1024
