"""The HRN head: residual sums, columns in node order, and what survives a change of the tree."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hierarchy import LabelTree, log_marginals, tree_loss
from hierarchy.errors import ShapeError
from hierarchy.heads import UNSEEN_SCORE, HRNHead, transfer_weights
from tests.strategies import trees

GROCERY = LabelTree.from_paths([("Fruit", "Apple"), ("Fruit", "Pear"), ("Milk",)])
CHANNELS = 5

FORMS: list[dict[str, Any]] = [
    {},
    {"networks": [2, 3]},
    {"residual": False},
    {"side_by_side": True},
    {"shared": True},
    {"sigmoid": True},
]
EACH_FORM = pytest.mark.parametrize("form", FORMS)


def head_of(tree: LabelTree, seed: int = 0, **form: Any) -> HRNHead:
    """A head as training leaves it: every weight, and what batch norm has seen, is something."""
    head = HRNHead(tree, CHANNELS, hidden=4, members=2, seed=seed, **form)
    draw = torch.Generator().manual_seed(seed)
    for name, value in head.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.randn(value.shape, generator=draw) * 0.5)
            if name.endswith(("running_var", "std")):
                value.abs_().add_(0.5)
    return head.eval()


def some_vectors(images: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(images, CHANNELS, generator=torch.Generator().manual_seed(seed))


def scored(head: HRNHead) -> Tensor:
    with torch.inference_mode():
        scores: Tensor = head(some_vectors())
    return scores


def grown(
    old: LabelTree, new: LabelTree, seed: int = 0, form: Mapping[str, Any] | None = None
) -> tuple[Tensor, Tensor]:
    """Scores before and after a change of the tree."""
    before, after = (head_of(tree, seed + at, **(form or {})) for at, tree in enumerate((old, new)))
    transfer_weights(before.state_dict(), old, after)
    return scored(before), scored(after)


def kept(old: LabelTree, new: LabelTree) -> tuple[list[int], list[int]]:
    """Ids of the nodes that stay, in both trees."""
    stay = [path for path in old.paths if path in set(new.paths)]
    return [old.index(path) for path in stay], [new.index(path) for path in stay]


def test_finer_levels_add_coarser_features_before_the_relu() -> None:
    """As in Chen et al. (2022), section 3.2, worked out by hand."""
    head, vectors = head_of(GROCERY, seed=3), some_vectors()
    with torch.inference_mode():
        standard = (vectors - head.mean) / head.std
        first, second = (block(standard) for block in head.blocks)
        for member in range(2):
            units = slice(4 * member, 4 * member + 4)
            tops, leaves = head.score_layers
            on_tops = torch.relu(first[:, units]) @ tops.weight[member].T + tops.bias[member]
            total = torch.relu(first + second)[:, units]
            on_leaves = total @ leaves.weight[member].T + leaves.bias[member]
            columns = [*GROCERY.level_nodes(0), *GROCERY.level_nodes(1)]
            expected = torch.cat([on_tops, on_leaves], dim=1)
            torch.testing.assert_close(head.each(vectors)[member][:, columns], expected)


def test_levels_side_by_side_are_read_by_a_linear_combination() -> None:
    """Of each member's own features, coarser levels' first, worked out by hand."""
    head, vectors = head_of(GROCERY, seed=3, side_by_side=True), some_vectors()
    with torch.inference_mode():
        standard = (vectors - head.mean) / head.std
        first, second = (torch.relu(block(standard)) for block in head.blocks)
        leaves = head.score_layers[1]
        for member in range(2):
            units = slice(4 * member, 4 * member + 4)
            read = torch.cat([first[:, units], second[:, units]], dim=1)
            expected = read @ leaves.weight[member].T + leaves.bias[member]
            found = head.each(vectors)[member][:, list(GROCERY.level_nodes(1))]
            torch.testing.assert_close(found, expected)


@EACH_FORM
@settings(max_examples=25)
@given(tree=trees(), images=st.integers(2, 5))
def test_any_tree_gets_one_score_per_node(
    form: dict[str, Any], tree: LabelTree, images: int
) -> None:
    """Ragged trees, chains, several roots, one level."""
    head, vectors = HRNHead(tree, CHANNELS, hidden=3, members=2, **form), some_vectors(images)
    assert head(vectors).shape == (images, len(tree))
    members = 4 if "networks" in form else 2
    assert head.eval().each(vectors).shape == (members, images, len(tree))
    assert head.log_probabilities(vectors.numpy()).shape == (images, len(tree))
    targets = torch.arange(images) % len(tree)
    head.train().objective(vectors, targets, torch.ones(images)).backward()
    grads = [value.grad for value in head.parameters()]
    assert all(grad is not None and grad.isfinite().all() for grad in grads)


@settings(max_examples=40)
@given(tree=trees(), seed=st.integers(0, 99))
def test_columns_are_nodes_whatever_order_their_ids_have(tree: LabelTree, seed: int) -> None:
    """The same head under level-by-level ids scores each path the same."""
    ordered = LabelTree.from_paths(sorted(tree.paths))
    before, after = grown(ordered, tree, seed)
    torch.testing.assert_close(after[:, [tree.index(path) for path in ordered.paths]], before)


@EACH_FORM
@settings(max_examples=40)
@given(old=trees(), new=trees(), seed=st.integers(0, 99))
def test_nodes_that_stay_keep_their_scores(
    form: dict[str, Any], old: LabelTree, new: LabelTree, seed: int
) -> None:
    """Whatever came, went or moved: nodes added and removed, a level more, a level fewer."""
    before, after = grown(old, new, seed, form)
    was, now = kept(old, new)
    torch.testing.assert_close(after[:, now], before[:, was])


@settings(max_examples=40)
@given(old=trees(), new=trees(), seed=st.integers(0, 99))
def test_what_is_new_is_practically_impossible(old: LabelTree, new: LabelTree, seed: int) -> None:
    _, after = grown(old, new, seed)
    known = set(old.paths)
    fresh = [node for node, path in enumerate(new.paths) if path not in known]
    assert (after[:, fresh] == UNSEEN_SCORE).all()
    assert (log_marginals(after.double(), new)[:, fresh] < UNSEEN_SCORE).all()


@settings(max_examples=40)
@given(tree=trees(), data=st.data(), seed=st.integers(0, 99))
def test_growth_leaves_the_probabilities_of_kept_nodes(
    tree: LabelTree, data: st.DataObject, seed: int
) -> None:
    under = data.draw(st.lists(st.integers(-1, len(tree) - 1), min_size=1, max_size=4))
    names = [*tree.names, *(f"new {i}" for i in range(len(under)))]
    new = LabelTree.from_parents([*tree.parents, *under], names)
    before, after = grown(tree, new, seed)
    was, now = kept(tree, new)
    torch.testing.assert_close(
        log_marginals(after.double(), new)[:, now],
        log_marginals(before.double(), tree)[:, was],
        atol=1e-5,
        rtol=1e-5,
    )


def test_a_level_more_and_the_way_back_restore_the_head() -> None:
    deeper = LabelTree.from_paths([*GROCERY.paths, ("Fruit", "Apple", "Gala")])
    before, between, back = (
        head_of(tree, at) for at, tree in enumerate((GROCERY, deeper, GROCERY))
    )
    transfer_weights(before.state_dict(), GROCERY, between)
    transfer_weights(between.state_dict(), deeper, back)
    expected = before.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in back.state_dict().items())


def test_a_node_that_moved_is_a_new_one() -> None:
    moved = LabelTree.from_paths([("Fruit", "Apple"), ("Milk", "Pear")])
    _, after = grown(GROCERY, moved)
    assert (after[:, moved.index(("Milk", "Pear"))] == UNSEEN_SCORE).all()


def test_maps_are_read_by_their_means() -> None:
    head, maps = head_of(GROCERY), torch.randn(3, CHANNELS, 2, 4)
    torch.testing.assert_close(head(maps), head(maps.mean(dim=(2, 3))))


def test_channels_are_standardised_by_what_was_fitted() -> None:
    head, vectors = HRNHead(GROCERY, CHANNELS, hidden=4).eval(), some_vectors(50) * 3 + 2
    plain = head(((vectors - vectors.mean(0)) / vectors.std(0)).float())
    head.set_standardisation(vectors.mean(0), vectors.std(0))
    torch.testing.assert_close(head(vectors), plain, atol=0.02, rtol=0.02)


def test_a_constant_channel_stays_near_zero_in_other_images() -> None:
    head, vectors = HRNHead(GROCERY, CHANNELS, hidden=4).eval(), some_vectors(50)
    vectors[:, 2] = 1.0
    head.set_standardisation(vectors.mean(0), vectors.std(0))
    assert (head.std > 0).all()
    assert head(vectors).isfinite().all()


def test_each_network_has_members_that_see_nothing_else() -> None:
    head, vectors = head_of(GROCERY, networks=[2, 3]), some_vectors()
    changed = vectors.clone()
    changed[:, 2:] += 5
    before, after = head.each(vectors), head.each(changed)
    torch.testing.assert_close(after[:2], before[:2])
    assert (after[2:] - before[2:]).abs().amax(dim=(1, 2)).gt(0.1).all()


def test_a_shared_block_scores_all_levels_from_one_layer() -> None:
    head = head_of(GROCERY, shared=True)
    assert len(head.blocks) == len(head.score_layers) == 1


def test_without_residual_sums_a_level_ignores_the_coarser_ones() -> None:
    heads = [head_of(GROCERY, residual=residual) for residual in (False, True)]
    leaves = GROCERY.level_nodes(1)
    before = [scored(head)[:, leaves] for head in heads]
    for head in heads:
        with torch.no_grad():
            for value in head.blocks[0].parameters():
                value.add_(1)
    after = [scored(head)[:, leaves] for head in heads]
    assert torch.equal(after[0], before[0])
    assert not torch.equal(after[1], before[1])


def test_published_scores_lie_between_0_and_1() -> None:
    scores = scored(head_of(GROCERY, sigmoid=True))
    assert ((scores > 0) & (scores < 1)).all()


def test_each_member_learns_by_a_loss_of_its_own() -> None:
    """The objective is the mean of the members' losses, not the loss of their mean."""
    head, vectors = head_of(GROCERY), some_vectors()
    targets, weights = torch.tensor([0, 1, 2, 3]), torch.rand(4)
    losses = [tree_loss(own, targets, GROCERY, weights=weights) for own in head.each(vectors)]
    found = head.objective(vectors, targets, weights)
    torch.testing.assert_close(found, torch.stack(losses).mean())
    unions = torch.tensor([[0, -1], [2, 3], [1, 2], [3, -1]])
    assert head.objective(vectors, unions, weights) > 0


def test_the_mean_score_of_the_members_answers() -> None:
    head, vectors = head_of(GROCERY), some_vectors()
    torch.testing.assert_close(head(vectors), head.each(vectors).mean(0))
    expected = log_marginals(head(vectors).double(), GROCERY).detach().numpy()
    np.testing.assert_allclose(head.log_probabilities(vectors.numpy()), expected)


def test_many_vectors_are_scored_as_few(monkeypatch: pytest.MonkeyPatch) -> None:
    head, vectors = head_of(GROCERY), some_vectors(11).numpy()
    whole = head.log_probabilities(vectors)
    monkeypatch.setattr("hierarchy.heads.AT_ONCE", 4)
    np.testing.assert_allclose(head.log_probabilities(vectors), whole, atol=1e-6)
    assert head.log_probabilities(vectors[:0]).shape == (0, len(GROCERY))


def test_weights_and_dropout_follow_from_the_seed_alone() -> None:
    """Not from what else draws in this process, as heads are trained side by side."""
    runs = []
    for seed in (1, 1, 2):
        torch.rand(seed)
        head = HRNHead(GROCERY, CHANNELS, hidden=8, seed=seed).train()
        head.seed(seed)
        runs.append((head.state_dict(), head.each(some_vectors())))
    (first, drawn), (again, drawn_again), (other, drawn_other) = runs
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert torch.equal(drawn, drawn_again)
    assert not torch.equal(first["blocks.0.connect.0.weight"], other["blocks.0.connect.0.weight"])
    assert not torch.equal(drawn, drawn_other)


@settings(max_examples=40)
@given(tree=trees())
def test_delta_weakens_every_answer_above_the_leaves(tree: LabelTree) -> None:
    """The start is that of a tree whose answers at inner nodes weigh e^-3, listed one by one."""
    plain, moved = (HRNHead(tree, CHANNELS, hidden=4, delta=delta).eval() for delta in (0.0, 3.0))
    before, after = scored(plain).double(), scored(moved).double()
    paths = [list(tree.ancestors(node)) for node in range(len(tree))]
    states = torch.stack([before[:, path].sum(1) for path in paths], dim=1)
    inner = [node for node, below in enumerate(tree.children) if below]
    states[:, inner] -= 3.0
    whole = torch.cat([states, torch.zeros(len(states), 1)], dim=1).exp().sum(1)
    found = log_marginals(after, tree).exp()
    for node in range(len(tree)):
        under = [state for state, path in enumerate(paths) if node in path]
        expected = states[:, under].exp().sum(1) / whole
        torch.testing.assert_close(found[:, node], expected, atol=1e-5, rtol=1e-5)


def test_members_start_apart() -> None:
    head = HRNHead(GROCERY, CHANNELS, hidden=8, members=2)
    first, second = head.state_dict()["blocks.0.connect.0.weight"].chunk(2)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("shape", [(2, 6), (2, 6, 4, 4), (2, 5, 4)])
def test_vectors_of_another_network_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"\(B, 5\), or maps \(B, 5, h, w\), got \(2, "):
        head_of(GROCERY)(torch.zeros(shape))


@pytest.mark.parametrize(
    ("form", "told"),
    [
        ({"members": 0}, "at least 1, got 5, 256 and 0"),
        ({"hidden": 0}, "at least 1, got 5, 0 and 2"),
        ({"networks": [2, 2]}, r"add up to 5, got \[2, 2\]"),
        ({"networks": [6, -1]}, r"add up to 5, got \[6, -1\]"),
    ],
)
def test_sizes_that_cannot_be_are_refused(form: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        HRNHead(GROCERY, CHANNELS, **form)
