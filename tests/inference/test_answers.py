"""A batch of pictures is answered in order, each for itself."""

import numpy as np
import pytest

from hierarchy import LabelTree
from hierarchy.calibration import Evidence
from inference.answers import answers, maps_of
from inference.gallery import Gallery, Item
from inference.predictor import BATCH, Answer, Predictor, load_predictor
from inference.store import ModelStore
from inference.views import MIRRORED, PLAIN
from studio.errors import ImageError
from tests.inference.small import FROZEN, galleries, head_of, project, publish, weights_file

TREE = LabelTree.from_paths([("Milk",), ("Fruit", "Apple"), ("Fruit", "Pear")])

EASY = Evidence(np.full((300, 2), 0.6), np.ones((300, 2), dtype=np.int64))


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    folder = tmp_path_factory.mktemp("gallery")
    return galleries(folder, weights_file(folder)).base()


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    store = ModelStore(tmp_path_factory.mktemp("models"))
    publish(store, project(), TREE, head_of(TREE, FROZEN), known=EASY)
    return load_predictor(store, project(), "v1")


def items(count: int) -> list[Item]:
    return [(f"{seed}.png", seed) for seed in range(count)]


def test_each_picture_gets_the_answer_it_would_get_alone(
    gallery: Gallery, predictor: Predictor
) -> None:
    together = answers(gallery, predictor, items(6))
    assert len({answer.confidence for answer in together if isinstance(answer, Answer)}) == 6
    for item, answer in zip(items(6), together, strict=True):
        [alone] = answers(gallery, predictor, [item])
        assert isinstance(answer, Answer)
        assert isinstance(alone, Answer)
        assert answer.path == alone.path
        assert answer.confidence == pytest.approx(alone.confidence, rel=1e-4)


def test_a_bad_picture_is_its_own_error(gallery: Gallery, predictor: Predictor) -> None:
    mixed = [("0.png", 0), ("gone.png", 1), ("1.png", 2), ("lost.png", 3)]
    found = answers(gallery, predictor, mixed)
    assert [isinstance(one, ImageError) for one in found] == [False, True, False, True]
    assert "404" in str(found[1])


def test_only_bad_pictures_are_only_errors(gallery: Gallery, predictor: Predictor) -> None:
    found = answers(gallery, predictor, [("gone.png", None)] * 3)
    assert all(isinstance(one, ImageError) for one in found)
    assert len(found) == 3


def test_nothing_asked_is_nothing_answered(gallery: Gallery, predictor: Predictor) -> None:
    assert answers(gallery, predictor, []) == []


def test_more_pictures_than_a_batch_keep_their_order(
    gallery: Gallery, predictor: Predictor
) -> None:
    """Two pictures in turns, the features of which are known by then."""
    asked = [items(2)[at % 2] for at in range(2 * BATCH + 3)]
    found = answers(gallery, predictor, asked)
    assert len(found) == len(asked)
    sure = [one.confidence for one in found if isinstance(one, Answer)]
    assert np.ptp(sure[::2]) < 1e-6
    assert np.ptp(sure[1::2]) < 1e-6
    assert sure[0] != pytest.approx(sure[1], rel=1e-3)


def test_maps_come_stacked_in_order(gallery: Gallery) -> None:
    both = maps_of(gallery, items(3))
    assert both.dtype == np.float16
    for at, item in enumerate(items(3)):
        np.testing.assert_array_equal(both[at], maps_of(gallery, [item])[0])


def test_mirrored_maps_are_others(gallery: Gallery) -> None:
    plain, mirrored = (maps_of(gallery, items(1), view=view) for view in (PLAIN, MIRRORED))
    assert plain.shape == mirrored.shape
    assert np.abs(plain - mirrored).max() > 0.01


def test_a_picture_that_vanished_is_told(gallery: Gallery) -> None:
    with pytest.raises(ImageError, match="404"):
        maps_of(gallery, [("0.png", 0), ("gone.png", 1)])
