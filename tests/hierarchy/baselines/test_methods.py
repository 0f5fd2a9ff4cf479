"""Every baseline agrees with its paper's formula read slowly, and learns what it is shown."""

import math
from collections.abc import Callable
from statistics import fmean
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from hierarchy import LabelTree
from hierarchy.baselines.base import Baseline
from hierarchy.baselines.chang import Chang
from hierarchy.baselines.chmcnn import Chmcnn
from hierarchy.baselines.hmcn import Hmcn, HmcnOutputs
from hierarchy.baselines.lmlp import Lmlp
from hierarchy.errors import ShapeError
from tests.hierarchy.baselines.small import (
    FRUIT,
    RAGGED,
    learn,
    logit,
    says,
    sigmoid,
    slow_level_losses,
    surprise,
    unknown,
    wrong_levels,
)
from tests.strategies import batches, trees

Batch = tuple[LabelTree, Tensor, Tensor]

#: By name: how to build it, and how many steps and which share of its first loss it learns in.
METHODS: dict[str, tuple[Callable[..., Baseline[Any]], int, float]] = {
    "chang": (Chang, 40, 0.1),
    "chmcnn": (Chmcnn, 150, 0.25),
    "hmcn": (Hmcn, 60, 0.2),
    "lmlp": (Lmlp, 60, 0.1),
}

EACH = pytest.mark.parametrize("name", METHODS)


def bare(name: str, tree: LabelTree, **sizes: float) -> Baseline[Any]:
    """A baseline whose outputs are made up, so that its weights do not matter."""
    return METHODS[name][0](tree, nn.Identity(), 1, **sizes)


def outputs(name: str, scores: Tensor) -> Any:
    """What a method could have computed: scores, or two answers that differ."""
    return HmcnOutputs(scores, scores.flip(1) * 0.7) if name == "hmcn" else scores


def slow_chang(scores: Tensor, targets: list[int], tree: LabelTree) -> float:
    """Cross-entropy of each level, over the images whose label has a node there."""
    total = 0.0
    for level in range(tree.depth):
        found = []
        for row, target in zip(scores.tolist(), targets, strict=True):
            path = tree.ancestors(target)
            if level < len(path):
                whole = sum(math.exp(row[node]) for node in tree.level_nodes(level))
                found.append(math.log(whole) - row[path[level]])
        total += fmean(found) if found else 0
    return total


def slow_chmcnn(scores: Tensor, targets: list[int], tree: LabelTree) -> float:
    """MCLoss node by node, as the paper defines it."""
    found = []
    nodes = range(len(tree))
    for row, target in zip(scores.tolist(), targets, strict=True):
        h = [sigmoid(score) for score in row]
        y = [says(tree, target, node) for node in nodes]
        for a in nodes:
            below = [b for b in nodes if tree.covers(a, b)]
            if y[a]:
                found.append(-math.log(max(h[b] * bool(y[b]) for b in below)))
            elif y[a] is not None:
                found.append(-math.log(1 - max(h[b] for b in below)))
    return sum(found) / len(found)


def slow_hmcn(scores: Tensor, targets: list[int], tree: LabelTree) -> float:
    """The three losses by loops over images, nodes and edges."""
    both: HmcnOutputs = outputs("hmcn", scores)
    local, overall = both.local.tolist(), both.overall.tolist()
    settled = [
        surprise(row[node], truth)
        for row, target in zip(overall, targets, strict=True)
        for node in range(len(tree))
        if (truth := says(tree, target, node)) is not None
    ]
    violation = 0.0
    for one, other in zip(local, overall, strict=True):
        answer = [(sigmoid(p) + sigmoid(q)) / 2 for p, q in zip(one, other, strict=True)]
        for node, parent in enumerate(tree.parents):
            if parent >= 0:
                violation += max(0, answer[node] - answer[parent]) ** 2 / len(targets)
    return slow_level_losses(local, targets, tree) + sum(settled) / len(settled) + 0.1 * violation


def slow_lmlp(scores: Tensor, targets: list[int], tree: LabelTree) -> float:
    return slow_level_losses(scores.tolist(), targets, tree)


SLOW = {"chang": slow_chang, "chmcnn": slow_chmcnn, "hmcn": slow_hmcn, "lmlp": slow_lmlp}


@EACH
def test_loss_agrees_with_loops_over_the_papers_formula(name: str) -> None:
    @given(batches())
    def check(batch: Batch) -> None:
        tree, scores, targets = batch
        found = bare(name, tree).loss(outputs(name, scores), targets).item()
        assert_close(found, SLOW[name](scores, targets.tolist(), tree), rtol=1e-9, atol=1e-12)

    check()


@EACH
def test_loss_has_the_gradient_of_its_value(name: str) -> None:
    draw = torch.Generator().manual_seed(0)
    scores = torch.randn(3, len(RAGGED), dtype=torch.float64, generator=draw).requires_grad_()
    targets = torch.tensor([0, RAGGED.leaves[0], RAGGED.leaves[-1]])
    baseline = bare(name, RAGGED)
    assert torch.autograd.gradcheck(lambda s: baseline.loss(outputs(name, s), targets), scores)


@pytest.mark.parametrize("name", ["chang", "chmcnn", "lmlp"])
def test_nodes_below_the_label_get_no_gradient(name: str) -> None:
    @given(batches())
    def check(batch: Batch) -> None:
        tree, scores, targets = batch
        bare(name, tree).loss(scores.requires_grad_(), targets).backward()
        assert scores.grad is not None
        assert not scores.grad[unknown(targets, tree)].any()

    check()


def test_hmcn_without_its_penalty_gives_nodes_below_the_label_no_gradient() -> None:
    @given(batches())
    def check(batch: Batch) -> None:
        tree, scores, targets = batch
        local, overall = (part.clone().requires_grad_() for part in (scores, scores * 0.7))
        bare("hmcn", tree, penalty=0).loss(HmcnOutputs(local, overall), targets).backward()
        free = unknown(targets, tree)
        for part in (local, overall):
            assert part.grad is not None
            assert not part.grad[free].any()
            assert part.grad[~free].all()

    check()


@EACH
def test_answers_are_finite_for_huge_scores_and_no_probability_is_above_1(name: str) -> None:
    @given(batches(bound=1e4))
    def check(batch: Batch) -> None:
        tree, scores, targets = batch
        baseline = bare(name, tree)
        found = baseline.log_probability(outputs(name, scores))
        assert found.shape == scores.shape
        assert found.isfinite().all()
        assert (found <= 1e-9).all()
        assert baseline.loss(outputs(name, scores), targets).isfinite()

    check()


@EACH
def test_learns_a_separable_problem_and_that_a_leaf_ends_early(name: str) -> None:
    build, steps, share = METHODS[name]
    baseline, losses, vectors = learn(build, RAGGED, steps)
    assert losses[-1] < losses[0] * share
    assert wrong_levels(baseline, vectors) == []
    if name != "chang":  # its softmax of a level must choose a node there
        early = RAGGED.leaves.index(RAGGED.index(("b",)))
        deeper = [node for level in (1, 2) for node in RAGGED.level_nodes(level)]
        log_p = baseline.log_probability(baseline(vectors))
        assert log_p[early, deeper].max() < math.log(0.5)


@EACH
def test_any_tree_goes_from_vectors_to_a_loss_and_an_answer(name: str) -> None:
    @settings(max_examples=15)
    @given(trees(), st.data())
    def check(tree: LabelTree, data: st.DataObject) -> None:
        baseline = METHODS[name][0](tree, nn.Identity(), 4)
        target = st.integers(0, len(tree) - 1)
        targets = torch.tensor(data.draw(st.lists(target, min_size=2, max_size=3)))
        found = baseline(torch.randn(len(targets), 4))
        loss = baseline.loss(found, targets)
        loss.backward()
        assert loss.isfinite()
        assert baseline.log_probability(found).shape == (len(targets), len(tree))

    check()


@EACH
def test_targets_of_another_batch_are_refused(name: str) -> None:
    with pytest.raises(ShapeError, match="one per image"):
        bare(name, FRUIT).loss(outputs(name, torch.zeros(2, 4)), torch.tensor([0]))


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (["Fruit"], -math.log(0.75)),
        (["Apple"], -math.log(0.75) - math.log(0.8)),
        (["Milk"], -math.log(0.25)),
        (["Apple", "Milk"], -(math.log(0.75) + math.log(0.25)) / 2 - math.log(0.8)),
    ],
)
def test_changs_loss_by_hand(targets: list[str], expected: float) -> None:
    """Softmax of Fruit and Milk is 0.75 and 0.25, of Apple and Pear 0.8 and 0.2."""
    logits = torch.tensor([[3.0, 1.0, 4.0, 1.0]] * len(targets), dtype=torch.float64).log()
    nodes = torch.tensor([FRUIT.names.index(target) for target in targets])
    assert_close(bare("chang", FRUIT).loss(logits, nodes).item(), expected)


@pytest.mark.parametrize(
    ("target", "shares"),
    [
        ("Fruit", [0.25, 0.5]),  # Fruit by itself, not Milk; nothing of Apple and Pear
        ("Apple", [0.75, 0.5, 0.75, 0.8]),  # Fruit may lean on Apple
        ("Pear", [0.25, 0.5, 0.25, 0.2]),  # but not on Apple where that is false
        ("Milk", [0.25, 0.5, 0.25, 0.8]),  # not Fruit: nor what Apple makes of it
    ],
)
def test_chmcnns_loss_by_hand(target: str, shares: list[float]) -> None:
    logits = logit(0.25, 0.5, 0.75, 0.2)  # Fruit, Milk, Apple, Pear
    found = bare("chmcnn", FRUIT).loss(logits, torch.tensor([FRUIT.names.index(target)]))
    assert_close(found.item(), sum(-math.log(share) for share in shares) / len(shares))


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("Fruit", (math.log(1 / 0.75) + math.log(2)) / 2),  # nothing of Apple and Pear
        ("Apple", (math.log(1 / 0.75) + math.log(2)) / 2 + (math.log(4) + math.log(1.25)) / 2),
        ("Milk", (math.log(4) + math.log(2)) / 2 + (math.log(1 / 0.75) + math.log(1.25)) / 2),
    ],
)
def test_lmlps_loss_by_hand(target: str, expected: float) -> None:
    logits = logit(0.75, 0.5, 0.25, 0.2)  # Fruit, Milk, Apple, Pear
    found = bare("lmlp", FRUIT).loss(logits, torch.tensor([FRUIT.names.index(target)]))
    assert_close(found.item(), expected)


def test_hmcns_loss_and_answer_by_hand() -> None:
    """The answer is Fruit 0.375, Apple 0.625, Pear 0.35: Apple claims 0.25 too much."""
    found = HmcnOutputs(logit(0.25, 0.5, 0.75, 0.2), logit(0.5, 0.5, 0.5, 0.5))
    local, overall = (math.log(4) + math.log(2)) / 2, math.log(2)
    loss = bare("hmcn", FRUIT).loss(found, torch.tensor([0]))
    assert_close(loss.item(), local + overall + 0.1 * 0.25**2)
    for beta, apple in ((0.5, 0.625), (0.25, 0.5625), (1.0, 0.75), (0.0, 0.5)):
        answer = bare("hmcn", FRUIT, beta=beta).log_probability(found).exp()
        assert_close(answer[0, 2].item(), apple)


@given(batches(bound=1e4))
def test_chmcnns_parents_are_at_least_as_sure_as_their_children(batch: Batch) -> None:
    tree, scores, _ = batch
    found = bare("chmcnn", tree).log_probability(scores)
    for node, parent in enumerate(tree.parents):
        assert parent < 0 or (found[:, parent] >= found[:, node]).all()


@pytest.mark.parametrize("level", range(RAGGED.depth))
def test_changs_level_reads_finer_parts_and_trains_its_own_alone(level: int) -> None:
    """The paper's gradient controller; coarser parts are not even read."""
    torch.manual_seed(0)
    part = 7
    baseline = Chang(RAGGED, nn.Identity(), 5, part=part)
    vectors = torch.randn(6, 5)
    nodes = list(RAGGED.level_nodes(level))
    before = baseline(vectors)
    before[:, nodes].square().sum().backward()
    linear = baseline.features[1]
    assert isinstance(linear, nn.Linear)
    assert linear.weight.grad is not None
    trained = linear.weight.grad.reshape(RAGGED.depth, -1).any(1).tolist()
    assert trained == [other == level for other in range(RAGGED.depth)]
    for other in range(RAGGED.depth):
        with torch.no_grad():
            linear.weight[other * part : (other + 1) * part].add_(torch.randn(part, 5))
        after = baseline(vectors)
        assert torch.equal(after[:, nodes], before[:, nodes]) == (other < level)
        before = after


def trained(part: nn.Module) -> list[bool]:
    """Of each weight whether a loss that was sent back would change it."""
    return [p.grad is not None and bool(p.grad.any()) for p in part.parameters()]


def test_lmlps_level_reads_the_answers_above_it_but_sends_them_no_gradient() -> None:
    torch.manual_seed(0)
    baseline = Lmlp(FRUIT, nn.Identity(), 5)
    vectors = torch.randn(2, 5)
    first, second = baseline.perceptrons
    before = baseline(vectors)
    before[:, [2, 3]].sum().backward()
    assert not any(trained(first))
    assert all(trained(second))
    with torch.no_grad():
        for weight in first.parameters():
            weight.add_(1)
    assert not torch.equal(baseline(vectors)[:, [2, 3]], before[:, [2, 3]])


def test_lmlps_and_hmcns_lower_levels_read_the_features_again() -> None:
    torch.manual_seed(0)
    second = list(RAGGED.level_nodes(1))
    vectors = torch.randn(2, 5)
    lmlp, hmcn = Lmlp(RAGGED, nn.Identity(), 5), Hmcn(RAGGED, nn.Identity(), 5, hidden=16).eval()
    with torch.no_grad():
        for part in (lmlp.perceptrons[0], hmcn.path[0]):  # what comes from above says nothing
            for weight in part.parameters():
                weight.zero_()
    assert not torch.equal(*lmlp(vectors)[:, second])
    assert not torch.equal(*hmcn(vectors).local[:, second])


def test_hmcns_local_losses_reach_the_global_path_down_to_their_level_and_no_further() -> None:
    torch.manual_seed(0)
    baseline = Hmcn(RAGGED, nn.Identity(), 5, hidden=16)
    baseline(torch.randn(4, 5)).local[:, list(RAGGED.level_nodes(1))].sum().backward()
    assert [any(trained(part)) for part in baseline.path] == [True, True, False]
