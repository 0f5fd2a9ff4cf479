"""Images are answered in order, each for itself, whoever asks at the same time."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from hierarchy import LabelTree
from hierarchy.calibration import Evidence
from inference.answers import FEW, answers
from inference.engine import Engine, EngineVectors, Pixels
from inference.feature_extractor import FeatureExtractor, Item, Network
from inference.predictor import Answer, Predictor, load_predictor
from inference.store import ModelStore
from studio.errors import ImageError
from tests.inference.small import (
    HEAD,
    extractors,
    fetch,
    head_of,
    project,
    publish,
    weights_file,
)

TREE = LabelTree.from_paths([("Milk",), ("Fruit", "Apple"), ("Fruit", "Pear")])

EASY = Evidence(np.full((300, 2), 0.6), np.ones((300, 2), dtype=np.int64))


@pytest.fixture(scope="module")
def extractor(tmp_path_factory: pytest.TempPathFactory) -> FeatureExtractor:
    folder = tmp_path_factory.mktemp("extractor")
    return extractors(folder, weights_file(folder)).base()


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    store = ModelStore(tmp_path_factory.mktemp("models"))
    publish(store, project(), TREE, head_of(TREE, HEAD), known=EASY)
    return load_predictor(store, project(), "v1")


def items(count: int) -> list[Item]:
    return [(f"{seed}.png", seed) for seed in range(count)]


@pytest.mark.parametrize("count", [FEW, 3 * FEW])
def test_each_image_gets_the_answer_it_would_get_alone(
    extractor: FeatureExtractor, predictor: Predictor, count: int
) -> None:
    together = answers(extractor, predictor, items(count))
    assert len({answer.confidence for answer in together if isinstance(answer, Answer)}) == count
    for item, answer in zip(items(count), together, strict=True):
        [alone] = answers(extractor, predictor, [item])
        assert isinstance(answer, Answer)
        assert isinstance(alone, Answer)
        assert answer.path == alone.path
        assert answer.confidence == pytest.approx(alone.confidence, rel=1e-4)


@pytest.mark.parametrize("count", [2, 2 * FEW])
def test_a_bad_image_is_its_own_error(
    extractor: FeatureExtractor, predictor: Predictor, count: int
) -> None:
    mixed = [item for number in range(count) for item in (items(2)[number % 2], ("gone.png", None))]
    found = answers(extractor, predictor, mixed)
    assert [isinstance(one, ImageError) for one in found] == [False, True] * count
    assert "404" in str(found[1])


def test_only_bad_images_are_only_errors(extractor: FeatureExtractor, predictor: Predictor) -> None:
    for count in (3, FEW + 1):
        found = answers(extractor, predictor, [("gone.png", None)] * count)
        assert [isinstance(one, ImageError) for one in found] == [True] * count


def test_nothing_asked_is_nothing_answered(
    extractor: FeatureExtractor, predictor: Predictor
) -> None:
    assert answers(extractor, predictor, []) == []


def test_calls_of_few_images_at_the_same_time_share_the_networks_passes(
    extractor: FeatureExtractor, predictor: Predictor, tmp_path: Path
) -> None:
    backbone, passes = extractor.networks[0].backbone, list[int]()

    class Slow(Engine):
        """Waits in its first pass until all calls wait for it."""

        name = "slow"

        def vectors(self, batch: Pixels) -> EngineVectors:
            passes.append(len(batch))
            while len(passes) == 1 and len(network.batched._waiting) < 11:
                pass
            return extractor.networks[0].engine.vectors(batch)

    network = Network(backbone, Slow())
    own = FeatureExtractor(fetch, [network])
    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(lambda item: answers(own, predictor, [item])[0], items(12)))
    assert passes == [1, 11]
    for one, other in zip(found, answers(extractor, predictor, items(12)), strict=True):
        assert isinstance(one, Answer)
        assert isinstance(other, Answer)
        assert one.confidence == pytest.approx(other.confidence, rel=1e-3)
