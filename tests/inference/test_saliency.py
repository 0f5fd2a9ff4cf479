"""A version's heat lies where the network was looking in the picture."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from hierarchy import LabelTree
from hierarchy.errors import UnknownLabelError
from inference.backbone import Preparation
from inference.augmentation import prepare
from inference.heatmap import Box, node_heat_maps, seen_part, spread
from inference.predictor import Predictor, load_predictor
from inference.store import ModelStore
from tests.inference.small import CHANNELS, HEAD, head_of, project, publish

TREE = LabelTree.from_paths([("Fruit", "Apple"), ("Fruit", "Pear"), ("Milk",)])
TODAY = LabelTree.from_paths([*TREE.paths, ("Fruit", "Kiwi", "Green")])
RESIDUAL = {"kind": "residual", "channels": CHANNELS, "inner": 4, "features": 4}


@pytest.fixture(params=[HEAD, RESIDUAL], ids=["frozen", "residual"])
def predictor(request: pytest.FixtureRequest, tmp_path: Path) -> Predictor:
    return published(tmp_path, request.param)


def published(folder: Path, network: dict[str, Any], today: LabelTree | None = None) -> Predictor:
    store = ModelStore(folder / "models")
    version = publish(store, project(), TREE, head_of(TREE, network), network=network)
    return load_predictor(store, project(), version, tree=today)


@pytest.fixture(scope="module")
def maps() -> NDArray[np.float16]:
    draw = np.random.default_rng(0)
    return np.asarray(draw.random((11, CHANNELS, 4, 5)) * 4, dtype=np.float16)


# --- what is told of each node ---


def test_a_node_has_the_probability_that_its_answer_states(
    predictor: Predictor, maps: NDArray[np.float16]
) -> None:
    predictor = predictor.under(replace(predictor.rule, price=1e-6))  # shows whatever it is
    found = node_heat_maps(predictor, maps, TREE.paths)
    assert len(found) == len(maps)
    shown = 0
    for levels, answer in zip(found, predictor.answer(maps), strict=True):
        assert [one.path for one in levels] == list(TREE.paths)
        stated = {one.path: one.probability for one in levels}
        if answer.path is not None:
            assert stated[answer.path] == pytest.approx(answer.probability, rel=1e-3)
            shown += 1
        assert all(one.heat.shape == (4, 5) and one.heat.min() >= 0 for one in levels)
    assert shown
    assert any(one.heat.any() for levels in found for one in levels)


def test_a_node_that_is_not_in_the_tree_is_told(
    predictor: Predictor, maps: NDArray[np.float16]
) -> None:
    with pytest.raises(UnknownLabelError, match="Kiwi"):
        node_heat_maps(predictor, maps, [("Fruit", "Kiwi")])


def test_no_maps_have_no_heat(predictor: Predictor, maps: NDArray[np.float16]) -> None:
    assert node_heat_maps(predictor, maps[:0], TREE.paths) == []
    assert node_heat_maps(predictor, maps[:2], []) == [(), ()]


def test_a_node_that_was_not_learnt_has_no_probability(
    tmp_path: Path, maps: NDArray[np.float16]
) -> None:
    predictor = published(tmp_path, HEAD, TODAY)
    asked = node_heat_maps(predictor, maps[:1], [("Fruit",), ("Fruit", "Kiwi", "Green")])[0]
    assert asked[0].probability > 0
    assert asked[1].probability == 0


# --- where it lies in the picture ---


@pytest.mark.parametrize("size", [(400, 300), (300, 400), (256, 256), (90, 1000), (640, 427)])
@pytest.mark.parametrize("preparation", [Preparation(), Preparation(resize=224, crop=224)])
def test_the_seen_part_is_what_preparing_keeps(
    size: tuple[int, int], preparation: Preparation
) -> None:
    """A picture whose red tells the column and whose green the row, before and after."""
    width, height = size
    red, green = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    pixels = np.stack([red, green, np.zeros_like(red)], axis=-1).round().astype(np.uint8)
    kept = prepare(Image.fromarray(pixels), preparation).astype(float) / 255
    part = seen_part(size, preparation)
    near = 2 / 255 + 2 / preparation.resize  # the colours' steps, and prepare's whole pixels
    assert part.left == pytest.approx(kept[0, :, 0].mean(), abs=near)
    assert part.right == pytest.approx(kept[0, :, -1].mean(), abs=near)
    assert part.top == pytest.approx(kept[1, 0].mean(), abs=near)
    assert part.bottom == pytest.approx(kept[1, -1].mean(), abs=near)


def test_heat_lies_in_the_seen_part_only() -> None:
    part = seen_part((400, 200), Preparation(resize=256, crop=224))
    laid = spread(np.ones((7, 7), np.float32), part, (400, 200))
    assert laid.shape == (200, 400)
    rows, columns = np.nonzero(laid)
    side = 200 * 224 / 256
    assert (rows.min(), rows.max()) == (round(100 - side / 2), round(100 + side / 2) - 1)
    assert (columns.min(), columns.max()) == (round(200 - side / 2), round(200 + side / 2) - 1)
    np.testing.assert_allclose(laid[laid > 0], 1)


@pytest.mark.parametrize("cell", [(0, 0), (0, 3), (2, 1), (3, 4)])
def test_a_hot_position_is_hottest_in_its_own_cell(cell: tuple[int, int]) -> None:
    heat = np.zeros((4, 5), np.float32)
    heat[cell] = 2
    laid = spread(heat, Box(0.25, 0.0, 0.75, 1.0), (200, 80))  # cells of 20 x 20 pixels
    row, column = 20 * cell[0], 50 + 20 * cell[1]
    assert laid.max() == pytest.approx(2, rel=0.06)
    hottest = np.argwhere(laid == laid.max())
    assert (hottest >= [row, column]).all()
    assert (hottest < [row + 20, column + 20]).all()


def test_between_positions_heat_changes_evenly() -> None:
    laid = spread(np.array([[0.0, 4.0]], np.float32), Box(0, 0, 1, 1), (8, 1))
    np.testing.assert_allclose(laid, [[0, 0, 0.5, 1.5, 2.5, 3.5, 4, 4]])


def test_a_network_that_sees_more_than_there_is_loses_only_what_lies_outside() -> None:
    part = seen_part((100, 100), Preparation(resize=200, crop=400))
    assert part == Box(-0.5, -0.5, 1.5, 1.5)
    laid = spread(np.arange(4, dtype=np.float32)[None].repeat(4, 0), part, (100, 100))
    assert laid[:, 0].max() < 1 + 1 / 50
    assert laid[:, -1].min() > 2 - 1 / 50


@pytest.mark.parametrize("size", [(1, 1), (1, 301), (301, 1)])
def test_the_smallest_pictures_have_heat_too(size: tuple[int, int]) -> None:
    laid = spread(np.ones((7, 7), np.float32), seen_part(size, Preparation()), size)
    assert laid.shape == size[::-1]
    assert laid.max() == 1
