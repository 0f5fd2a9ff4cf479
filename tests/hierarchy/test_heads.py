"""The heads: residual sums, columns in node order, and what survives a change of the tree."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hierarchy import LabelTree, log_marginals, tree_loss
from hierarchy.errors import ShapeError
from hierarchy.network import (
    UNSEEN_SCORE,
    Features,
    FrozenHead,
    Reduction,
    ResidualHead,
    carry_over,
)
from tests.strategies import trees

Build = Callable[[LabelTree], nn.Module]

GROCERY = LabelTree.from_paths([("Fruit", "Apple"), ("Fruit", "Pear"), ("Milk",)])
CHANNELS = 5


def frozen(tree: LabelTree) -> FrozenHead:
    return FrozenHead(tree, CHANNELS, reduced=4, width=6, spatial=2, hidden=5, pooled=1)


def residual(tree: LabelTree) -> ResidualHead:
    return ResidualHead(tree, CHANNELS, inner=4, features=3)


HEADS = pytest.mark.parametrize("build", [frozen, residual])


def settled(head: nn.Module, seed: int) -> nn.Module:
    """A head as training leaves it: every weight, and what batch norm has seen, is something."""
    draw = torch.Generator().manual_seed(seed)
    for name, value in head.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.randn(value.shape, generator=draw) * 0.5)
            if name.endswith("running_var"):
                value.abs_().add_(0.5)
    return head.eval()


def scored(head: nn.Module, seed: int = 0) -> Tensor:
    maps = torch.randn(4, CHANNELS, 4, 4, generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        scores: Tensor = head(maps)
    return scores


def grown(build: Build, old: LabelTree, new: LabelTree, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Scores before and after a change of the tree."""
    before = settled(build(old), seed)
    after = build(new)
    after.load_state_dict(carry_over(before.state_dict(), old, new, after.state_dict()))
    return scored(before), scored(after.eval())


def shared(old: LabelTree, new: LabelTree) -> tuple[list[int], list[int]]:
    """Ids of the nodes that stay, in both trees."""
    stay = [path for path in old.paths if path in set(new.paths)]
    return [old.index(path) for path in stay], [new.index(path) for path in stay]


def test_finer_levels_add_coarser_features_before_the_relu() -> None:
    head = settled(residual(GROCERY), seed=3)
    assert isinstance(head, ResidualHead)
    maps = torch.randn(2, CHANNELS, 4, 4)
    with torch.inference_mode():
        first, second = (block(maps) for block in head.blocks)
        tops = head.classify[0](torch.relu(first))
        leaves = head.classify[1](torch.relu(first + second))
        torch.testing.assert_close(head(maps), torch.cat([tops, leaves], dim=1))


@HEADS
@settings(max_examples=40)
@given(tree=trees(), seed=st.integers(0, 99))
def test_columns_are_nodes_whatever_order_their_ids_have(
    build: Build, tree: LabelTree, seed: int
) -> None:
    """The same head under level-by-level ids scores each path the same."""
    ordered = LabelTree.from_paths(sorted(tree.paths))
    before, after = grown(build, ordered, tree, seed)
    torch.testing.assert_close(after[:, [tree.index(path) for path in ordered.paths]], before)


@HEADS
@settings(max_examples=40)
@given(old=trees(), new=trees(), seed=st.integers(0, 99))
def test_nodes_that_stay_keep_their_scores(
    build: Build, old: LabelTree, new: LabelTree, seed: int
) -> None:
    """Whatever came, went or moved: nodes added and removed, a level more, a level fewer."""
    before, after = grown(build, old, new, seed)
    kept, now = shared(old, new)
    torch.testing.assert_close(after[:, now], before[:, kept])


@HEADS
@settings(max_examples=40)
@given(old=trees(), new=trees(), seed=st.integers(0, 99))
def test_what_is_new_is_practically_impossible(
    build: Build, old: LabelTree, new: LabelTree, seed: int
) -> None:
    _, after = grown(build, old, new, seed)
    known = set(old.paths)
    fresh = [node for node, path in enumerate(new.paths) if path not in known]
    assert (after[:, fresh] == UNSEEN_SCORE).all()
    assert (log_marginals(after.double(), new)[:, fresh] < UNSEEN_SCORE).all()


@HEADS
@settings(max_examples=40)
@given(tree=trees(), data=st.data(), seed=st.integers(0, 99))
def test_growth_leaves_the_probabilities_of_kept_nodes(
    build: Build, tree: LabelTree, data: st.DataObject, seed: int
) -> None:
    under = data.draw(st.lists(st.integers(-1, len(tree) - 1), min_size=1, max_size=4))
    names = [*tree.names, *(f"new {i}" for i in range(len(under)))]
    new = LabelTree.from_parents([*tree.parents, *under], names)
    before, after = grown(build, tree, new, seed)
    kept, now = shared(tree, new)
    torch.testing.assert_close(
        log_marginals(after.double(), new)[:, now],
        log_marginals(before.double(), tree)[:, kept],
        atol=1e-5,
        rtol=1e-5,
    )


@HEADS
def test_a_level_more_and_the_way_back_restore_the_head(build: Build) -> None:
    deeper = LabelTree.from_paths([*GROCERY.paths, ("Fruit", "Apple", "Gala")])
    before = settled(build(GROCERY), 1).state_dict()
    between = carry_over(before, GROCERY, deeper, build(deeper).state_dict())
    back = carry_over(between, deeper, GROCERY, build(GROCERY).state_dict())
    assert back.keys() == before.keys()
    assert all(torch.equal(back[name], before[name]) for name in before)


def test_a_node_that_moved_is_a_new_one() -> None:
    moved = LabelTree.from_paths([("Fruit", "Apple"), ("Milk", "Pear")])
    _, after = grown(frozen, GROCERY, moved)
    assert (after[:, moved.index(("Milk", "Pear"))] == UNSEEN_SCORE).all()


def fitted() -> Reduction:
    draw = torch.Generator().manual_seed(4)
    return Reduction(
        torch.randn(4, CHANNELS, generator=draw),
        torch.randn(4, generator=draw),
        torch.randn(CHANNELS, generator=draw),
        torch.rand(CHANNELS, generator=draw) + 0.5,
    )


def test_the_reduction_is_the_linear_map_it_was_given() -> None:
    """Training works from features that were reduced before; serving from maps as they come."""
    head = settled(frozen(GROCERY), 0)
    assert isinstance(head, FrozenHead)
    maps = torch.randn(2, CHANNELS, 3, 3)
    head.set_reduction(fitted())
    torch.testing.assert_close(
        head(maps), head.from_features(fitted().of(maps)), atol=1e-5, rtol=1e-5
    )


def test_the_means_are_standardised_by_what_was_fitted() -> None:
    reduction, maps = fitted(), torch.randn(2, CHANNELS, 3, 3)
    seen = reduction.of(maps)
    expected = (maps.flatten(2).mean(2) - reduction.centre) / reduction.spread
    torch.testing.assert_close(seen.means, expected)
    assert seen[1:].maps.shape == (1, 4, 3, 3)
    assert len(seen) == 2


def test_the_reduction_is_not_trained() -> None:
    trained = {name for name, value in frozen(GROCERY).named_parameters() if value.requires_grad}
    assert not {name for name in trained if name.startswith(("reduce", "centre", "spread"))}
    assert {"trunk.convolve.weight", "hidden.connect.weight"} <= trained


@pytest.mark.parametrize(("spatial", "pooled"), [(0, 1), (0, 2), (1, 0), (2, 3)])
def test_either_kind_of_network_may_be_left_out(spatial: int, pooled: int) -> None:
    head = FrozenHead(GROCERY, CHANNELS, reduced=4, width=6, spatial=spatial, pooled=pooled).eval()
    scores = head(torch.randn(2, CHANNELS, 4, 4))
    assert scores.shape == (2, len(GROCERY))
    assert (head.reduce is None) == (spatial == 0)


def test_a_head_of_no_network_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one network, got 0 spatial and 0 pooled"):
        FrozenHead(GROCERY, CHANNELS, spatial=0, pooled=0)


@pytest.mark.parametrize("grid", [(1, 1), (2, 3), (1, 7), (3, 3)])
def test_small_grids_score_too(grid: tuple[int, int]) -> None:
    scores = settled(frozen(GROCERY), 0)(torch.randn(2, CHANNELS, *grid))
    assert scores.shape == (2, len(GROCERY))
    assert scores.isfinite().all()


def test_maps_of_another_backbone_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"\(B, 5, H, W\), got \(2, 6, 4, 4\)"):
        frozen(GROCERY)(torch.zeros(2, 6, 4, 4))


def some_features(pictures: int) -> Features:
    return Features(torch.randn(pictures, 4, 5, 5), torch.randn(pictures, CHANNELS))


def test_each_kind_of_network_has_half_a_say() -> None:
    head = settled(frozen(GROCERY), 0)
    assert isinstance(head, FrozenHead)
    seen = some_features(3)
    each = head.each(seen)
    assert each.shape == (3, 3, len(GROCERY))
    spatial, pooled = (each[:, 0] + each[:, 1]) / 2, each[:, 2]
    torch.testing.assert_close(head.from_features(seen), (spatial + pooled) / 2)


@pytest.mark.parametrize("side", [4, 7, 9])
def test_a_settled_head_answers_the_same(side: int) -> None:
    head = settled(frozen(GROCERY), 3)
    assert isinstance(head, FrozenHead)
    maps = torch.randn(12, CHANNELS, side, side, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        before = head(maps)
        head.settle(side, side)
        torch.testing.assert_close(head(maps), before, atol=1e-4, rtol=1e-4)
        assert torch.equal(head(maps[:4]), head.train().eval()(maps[:4]))


def test_training_ends_what_was_settled() -> None:
    """The transformed weights are those of before."""
    head = settled(frozen(GROCERY), 3)
    assert isinstance(head, FrozenHead)
    maps = torch.randn(12, CHANNELS, 7, 7, generator=torch.Generator().manual_seed(1))
    head.settle(7, 7)
    head.train().settle(7, 7)  # not while it trains
    assert head.trunk is not None
    with torch.no_grad():
        head.trunk.convolve.weight.mul_(2)
        found = head.eval()(maps)
        right = torch.cat([head(some) for some in maps.split(4)])  # too few for another way
    torch.testing.assert_close(found, right)


def test_each_network_learns_by_a_loss_of_its_own() -> None:
    """The objective is the mean of the networks' losses, not the loss of their mean."""
    head = settled(frozen(GROCERY), 0)
    assert isinstance(head, FrozenHead)
    seen, targets, weights = some_features(4), torch.tensor([0, 1, 2, 3]), torch.rand(4)
    own = head.each(seen).unbind(1)
    losses = torch.stack([tree_loss(s, targets, GROCERY, weights=weights) for s in own])
    found = head.objective(seen, targets, weights)
    torch.testing.assert_close(found, losses.mean())
    unions = torch.tensor([[0, -1], [2, 3], [1, 2], [3, -1]])
    assert head.objective(seen, unions, weights) > 0


def test_dropout_draws_from_the_heads_own_seed() -> None:
    head = frozen(GROCERY).train()
    seen = some_features(6)
    runs = []
    for seed in (1, 1, 2):
        head.seed(seed)
        runs.append(head.each(seen))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0][:, 0], runs[2][:, 0])
    assert not torch.equal(runs[0][:, 2], runs[2][:, 2])
