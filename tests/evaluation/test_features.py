"""Vectors for a comparison: the product's own, cached, saved whole, and poor where asked for."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation.data import load
from evaluation.errors import DatasetError
from evaluation.features import Extraction, Features, extract
from evaluation.protocols import Degradation
from inference.augmentation import prepare
from tests.evaluation.stand import TREE, draw, features
from tests.inference.small import NAME, weights_file

POOR = Degradation(resolution=0.25)


def quiet(stage: str, done: int, total: int) -> None:
    """Nobody listens."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("images"), {"train": 6, "val": 2, "test": 3}, side=180)


@pytest.fixture(scope="module")
def extraction(tmp_path_factory: pytest.TempPathFactory) -> Extraction:
    cache = tmp_path_factory.mktemp("cache")
    networks = [(NAME, weights_file(cache, seed)) for seed in (0, 1)]
    return Extraction(networks, cache)


@pytest.fixture(scope="module")
def found(folder: Path, extraction: Extraction) -> Features:
    tests = [Degradation(), Degradation(blur=2)]
    return extract(
        load(folder), extraction, augmentations=(0, 1, 2), poor=POOR, tests=tests, tell=quiet
    )


def test_vectors_are_the_networks_side_by_side(folder: Path, extraction: Extraction) -> None:
    files = load(folder).test.files[:2]
    found = extraction.vectors(files)
    assert found.shape == (2, 1, 512)
    for number, network in enumerate(extraction.networks):
        pixels = [prepare(Image.open(file), network.backbone.preparation) for file in files]
        right = network.engine.vectors(np.stack(pixels))
        part = found[:, 0, 256 * number : 256 * (number + 1)]
        np.testing.assert_allclose(part, right, atol=0.02)


def test_everything_is_there_in_the_sizes_it_says(found: Features) -> None:
    assert found.train.shape == (24, 3, 512)
    assert found.poor is not None
    assert found.poor.shape == (24, 3, 512)
    assert found.networks == (256, 256)
    assert set(found.judged) == {"val", "test", "test blur2"}
    assert found.judged["val"].vectors.shape == (8, 512)
    assert len(found.judged["test blur2"].targets) == 12
    for one, other in (
        (found.poor, found.train),
        (found.judged["test blur2"].vectors, found.judged["test"].vectors),
    ):
        assert np.abs(one - other).mean() > 0


def test_what_is_cached_is_not_computed_again(
    folder: Path, extraction: Extraction, found: Features
) -> None:
    told = list[int]()
    files = load(folder).train.files
    again = extraction.vectors(files, (0, 1, 2), tell=lambda done, _: told.append(done))
    assert np.array_equal(again, found.train)
    assert told == list(range(1, 25))


def test_other_processes_read_what_was_saved(found: Features, tmp_path: Path) -> None:
    found.save(tmp_path)
    again = Features.load(tmp_path)
    assert (again.tree, again.networks) == (found.tree, found.networks)
    assert np.array_equal(again.train, found.train)
    assert again.poor is not None
    assert np.array_equal(again.poor, found.poor if found.poor is not None else [])
    assert np.array_equal(again.targets, found.targets)
    for name, judged in found.judged.items():
        assert np.array_equal(again.judged[name].vectors, judged.vectors)
        assert np.array_equal(again.judged[name].targets, judged.targets)


def test_a_small_tree_keeps_the_images_of_its_leaves() -> None:
    whole = features(20)
    small = whole.small(3, seed=0)
    assert len(small.tree.leaves) == 3
    kept = [at for at, node in enumerate(whole.targets) if TREE.paths[node] in small.tree.paths]
    assert np.array_equal(small.train, whole.train[kept])
    for before, after in zip(whole.targets[kept], small.targets, strict=True):
        assert small.tree.paths[after] == TREE.paths[before]
    assert set(small.judged["test"].targets.tolist()) == set(small.tree.leaves)


def test_a_file_that_is_no_image_is_named(extraction: Extraction, tmp_path: Path) -> None:
    bad = tmp_path / "broken.png"
    bad.write_bytes(b"not an image")
    with pytest.raises(DatasetError, match=r"broken\.png"):
        extraction.vectors([bad])
