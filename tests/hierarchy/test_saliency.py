"""Heat lies where the evidence lies, as autograd and plain deletion say."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from hierarchy import LabelTree, log_marginals
from hierarchy.errors import ShapeError
from hierarchy.heatmap import level_heat, log_odds_gradient, node_heat
from hierarchy.network import FrozenHead, ResidualHead
from tests.strategies import trees

TREE = LabelTree.from_paths([("Fruit", "Apple", "Gala"), ("Fruit", "Pear"), ("Milk",)])


def frozen(channels: int = 6) -> FrozenHead:
    head = FrozenHead(TREE, channels, reduced=5, width=8).eval()
    for value in head.parameters():
        if value.ndim == 2:  # fresh scores hardly differ
            value.data.mul_(3)
    return head


def residual(channels: int = 6) -> ResidualHead:
    return ResidualHead(TREE, channels, inner=5, features=4).eval()


@pytest.fixture(params=[frozen, residual], ids=["frozen", "residual"])
def head(request: pytest.FixtureRequest) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        made: nn.Module = request.param()
    return made


def some_maps(pictures: int = 3, height: int = 5, width: int = 4) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.rand(pictures, 6, height, width, generator=draw) * 4


def log_odds(scores: Tensor, nodes: Tensor, tree: LabelTree) -> Tensor:
    """Read from the marginals, as one would write it down: exact only well below 1."""
    log_p = log_marginals(scores.double(), tree).gather(1, nodes[:, None])[:, 0]
    return log_p - torch.log1p(-log_p.exp())


class Sum(nn.Module):
    """Scores are the map's channels, summed over the grid: each position speaks for itself."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps.sum(dim=(2, 3))


class OnePosition(nn.Module):
    """Looks at row 1, column 2, and nowhere else."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps[:, : len(TREE), 1, 2]


# --- the gradient ---


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


def test_heat_is_gradient_times_activation_by_finite_differences(head: nn.Module) -> None:
    maps, step = some_maps(1), 1e-2
    nodes = torch.tensor([[TREE.index(("Fruit", "Apple"))]])
    expected = torch.zeros(maps.shape[2:])
    for c, y, x in torch.cartesian_prod(*(torch.arange(size) for size in maps.shape[1:])).tolist():
        up, down = maps.clone(), maps.clone()
        up[0, c, y, x] += step
        down[0, c, y, x] -= step
        with torch.no_grad():
            rise = log_odds(head(up), nodes[0], TREE) - log_odds(head(down), nodes[0], TREE)
        expected[y, x] += rise.item() / (2 * step) * maps[0, c, y, x]
    found = node_heat(head, maps, nodes, TREE)
    assert expected.max() > 0 > expected.min()
    torch.testing.assert_close(
        found[0, 0], expected.relu(), atol=2e-3 * expected.max().item(), rtol=0
    )


# --- where it lies ---


def test_a_head_that_uses_one_position_lights_that_one_only() -> None:
    maps = some_maps()
    nodes = torch.tensor([[TREE.index(("Fruit",))]] * len(maps))
    heat = node_heat(OnePosition().eval(), maps, nodes, TREE)[:, 0]
    assert (heat[:, 1, 2] > 0).all()
    heat[:, 1, 2] = 0
    assert not heat.any()


def test_heat_is_in_nats_of_log_odds() -> None:
    """Where scores are sums over positions, heat adds up to what the activations contribute."""
    tree = LabelTree.from_paths([("One",)])  # its log-odds are its score
    maps = torch.tensor([[[[0.5, 0.0], [1.25, -2.0]]]])
    heat = node_heat(Sum().eval(), maps, torch.tensor([[0]]), tree)
    torch.testing.assert_close(heat[0, 0], torch.tensor([[0.5, 0.0], [1.25, 0.0]]))


def test_without_the_hottest_position_a_node_loses_more_than_without_the_coldest(
    head: nn.Module,
) -> None:
    maps = some_maps(40)
    nodes = level_heat(head, maps, TREE).nodes[:, 0]
    heat = node_heat(head, maps, nodes[:, None], TREE)[:, 0].flatten(1)

    def without(position: Tensor) -> Tensor:
        kept = torch.ones_like(heat).scatter_(1, position[:, None], 0)
        with torch.no_grad():
            return log_odds(head(maps * kept.view(-1, 1, *maps.shape[2:])), nodes, TREE)

    assert (without(heat.argmax(1)) < without(heat.argmin(1))).float().mean() > 0.8


def test_levels_look_apart_where_their_evidence_does() -> None:
    """Fruit is told by the left column, which fruit it is by the right one."""
    tree = LabelTree.from_paths([("Fruit", "Apple"), ("Fruit", "Pear")])
    maps = torch.zeros(1, 3, 1, 2)
    maps[0, tree.index(("Fruit",)), 0, 0] = 9
    maps[0, tree.index(("Fruit", "Apple")), 0, 1] = 9
    maps[0, tree.index(("Fruit", "Pear")), 0, 1] = 5
    found = level_heat(Sum().eval(), maps, tree)
    assert found.nodes.tolist() == [[tree.index(("Fruit",)), tree.index(("Fruit", "Apple"))]]
    top, leaf = found.heat[0, :, 0]
    assert top[0] > 0
    assert leaf[1] > 100 * leaf[0]


# --- levels ---


def test_each_level_is_its_most_probable_node(head: nn.Module) -> None:
    maps = some_maps(20)
    found = level_heat(head, maps, TREE)
    with torch.no_grad():
        log_p = log_marginals(head(maps).double(), TREE)
    for row, nodes in enumerate(found.nodes.tolist()):
        for level, node in enumerate(nodes):
            assert node == max(TREE.level_nodes(level), key=lambda one: log_p[row, one].item())
            assert found.log_probability[row, level].item() == pytest.approx(
                log_p[row, node].item()
            )
    torch.testing.assert_close(found.heat, node_heat(head, maps, found.nodes, TREE))


def test_a_picture_has_the_same_heat_in_any_batch(head: nn.Module) -> None:
    maps = some_maps(3)
    together = level_heat(head, maps, TREE).heat
    for row in range(3):
        torch.testing.assert_close(level_heat(head, maps[[row]], TREE).heat[0], together[row])


@pytest.mark.parametrize("grid", [(1, 1), (2, 5), (3, 3), (9, 4)])
def test_heat_has_the_grid_of_the_map(head: nn.Module, grid: tuple[int, int]) -> None:
    heat = level_heat(head, some_maps(2, *grid), TREE).heat
    assert heat.shape == (2, TREE.depth, *grid)
    assert heat.isfinite().all()


def test_no_pictures_have_no_heat(head: nn.Module) -> None:
    assert level_heat(head, some_maps(0), TREE).heat.shape == (0, TREE.depth, 5, 4)


def test_no_nodes_have_no_heat(head: nn.Module) -> None:
    nodes = torch.empty(3, 0, dtype=torch.int64)
    assert node_heat(head, some_maps(), nodes, TREE).shape == (3, 0, 5, 4)


def test_heat_leaves_no_trace(head: nn.Module) -> None:
    """It works inside inference mode, and neither the head nor the maps gain a gradient."""
    with torch.inference_mode():
        maps = some_maps()
        heat = level_heat(head, maps, TREE).heat
    torch.testing.assert_close(heat, level_heat(head, some_maps(), TREE).heat)
    assert not heat.requires_grad
    assert all(value.grad is None for value in head.parameters())


# --- refusals ---


def test_maps_of_another_shape_are_refused(head: nn.Module) -> None:
    with pytest.raises(ShapeError, match=r"maps must be \(B, C, H, W\) floats, got \(6, 5, 4\)"):
        level_heat(head, some_maps()[0], TREE)


@pytest.mark.parametrize("nodes", [torch.zeros(3), torch.zeros(2, 1), torch.zeros(3, 1).double()])
def test_nodes_of_another_shape_or_kind_are_refused(head: nn.Module, nodes: Tensor) -> None:
    with pytest.raises(ShapeError, match=r"nodes must be \(3, K\) int64"):
        node_heat(head, some_maps(), nodes, TREE)


def test_a_head_in_training_mode_is_refused(head: nn.Module) -> None:
    with pytest.raises(ShapeError, match="training mode"):
        level_heat(head.train(), some_maps(), TREE)
