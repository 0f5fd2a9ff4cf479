"""A version's heat lies where the networks were looking in the image."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from hierarchy import LabelTree, log_marginals
from inference.augmentation import prepare
from inference.backbone import Preparation
from inference.extractors import FeatureExtractors
from inference.feature_extractor import FeatureExtractor
from inference.predictor import Predictor, load_predictor
from inference.saliency import Box, last_maps, look, node_heats, seen_part, spread
from inference.store import ModelStore
from studio.errors import ImageError
from studio.image_fetcher import FetchedImage
from tests.inference.small import (
    HEAD,
    NAME,
    VIT,
    fetch,
    head_of,
    png,
    project,
    publish,
    weights_file,
)

TREE = LabelTree.from_paths([("Fruit", "Apple"), ("Fruit", "Pear"), ("Milk",)])


@pytest.fixture(scope="module")
def extractor(tmp_path_factory: pytest.TempPathFactory) -> FeatureExtractor:
    """Of a convolutional network beside one of tokens."""
    folder = tmp_path_factory.mktemp("extractor")
    networks = [(name, weights_file(folder, network=name)) for name in (NAME, VIT)]
    return FeatureExtractors(folder, fetch, networks=networks, device="cpu").base()


@pytest.fixture(scope="module")
def predictor(extractor: FeatureExtractor, tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    network = {**HEAD, "channels": extractor.channels}
    store = ModelStore(tmp_path_factory.mktemp("models"))
    publish(store, project(), TREE, head_of(TREE, network), network=network)
    return load_predictor(store, project(), "v1")


def picture(seed: int = 1) -> FetchedImage:
    return FetchedImage(hashlib.sha256(png(seed)).hexdigest(), png(seed))


# --- what is told of each node ---


def test_each_network_looks_by_itself_and_their_means_are_the_vector(
    extractor: FeatureExtractor,
) -> None:
    maps = last_maps(extractor, picture())
    assert [one.shape for one in maps] == [(256, 5, 5), (128, 10, 10)]
    pooled = np.concatenate([one.mean(axis=(1, 2)) for one in maps])
    vector = extractor.vectors_of_image(picture())
    off = np.linalg.norm(vector - pooled) / np.linalg.norm(pooled)
    assert off < 0.1  # bfloat16


def test_heat_adds_up_to_what_the_networks_add(
    extractor: FeatureExtractor, predictor: Predictor
) -> None:
    """Its mean over a grid is gradient times vector, network by network."""
    maps = last_maps(extractor, picture())
    vector = np.concatenate([one.mean(axis=(1, 2)) for one in maps]).astype(np.float16)
    nodes = [TREE.index(("Fruit",)), TREE.index(("Milk",))]
    heats = node_heats(predictor, vector, nodes, maps)
    assert [one.shape for one in heats] == [(2, 5, 5), (2, 10, 10)]
    inputs = torch.from_numpy(vector[None].astype(np.float32)).requires_grad_()
    for k, node in enumerate(nodes):
        log_p = torch.as_tensor(predictor.log_probabilities(vector[None]))[0, node]
        scores = predictor.head(inputs)
        odds = _log_odds(scores, node)
        assert odds.detach().item() == pytest.approx(
            (log_p - torch.log1p(-log_p.exp())).item(), abs=1e-3
        )
        (gradient,) = torch.autograd.grad(odds, inputs)
        start = 0
        for heat, one in zip(heats, maps, strict=True):
            part = slice(start, start := start + len(one))
            each = (gradient[0, part] * inputs[0, part]).detach()
            near = 2e-3 * float(each.abs().sum())  # the vector is rounded to float16
            assert heat[k].mean() == pytest.approx(float(each.sum()), abs=near)


def _log_odds(scores: torch.Tensor, node: int) -> torch.Tensor:
    log_p = log_marginals(scores.double(), TREE)[0, node]
    return log_p - torch.log1p(-log_p.exp())


def test_a_look_tells_what_predicting_tells(
    extractor: FeatureExtractor, predictor: Predictor
) -> None:
    bold = predictor.under(replace(predictor.rule, price=1e-6))  # shows whatever it is
    shown = 0
    for seed in range(8):
        sight = look(bold, extractor, picture(seed))
        (answer,) = bold.answer(extractor.vectors_of_image(picture(seed))[None])
        assert sight.answer == answer
        levels = sight.looked.levels
        assert [len(level.path) for level in levels] == list(range(1, len(levels) + 1))
        stated = {level.path: level.probability for level in levels}
        if answer.path is not None:
            assert stated[answer.path] == pytest.approx(answer.probability, rel=1e-3)
            shown += 1
        width, height = sight.looked.image.size
        for level in levels:
            assert level.heat.shape == (height, width)
            assert level.heat.min() >= 0
    assert shown


def test_heat_is_only_where_a_network_looked(
    extractor: FeatureExtractor, predictor: Predictor
) -> None:
    sight = look(predictor, extractor, picture())
    width, _ = sight.looked.image.size
    left = round(sight.looked.part.left * width)
    assert left > 0
    hot = [level.heat for level in sight.looked.levels if level.heat.any()]
    assert hot
    for heat in hot:
        assert not heat[:, :left].any()


def test_a_file_that_is_no_image_is_told(extractor: FeatureExtractor, predictor: Predictor) -> None:
    with pytest.raises(ImageError):
        look(predictor, extractor, FetchedImage("0" * 64, b"no picture"))


def test_no_nodes_have_no_heat(extractor: FeatureExtractor, predictor: Predictor) -> None:
    maps = last_maps(extractor, picture())
    heats = node_heats(predictor, extractor.vectors_of_image(picture()), [], maps)
    assert [one.shape for one in heats] == [(0, 5, 5), (0, 10, 10)]


# --- where it lies in the image ---


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
