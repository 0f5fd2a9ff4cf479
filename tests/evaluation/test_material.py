"""Maps for a comparison: the product's own, cached, saved whole, and poor where asked for."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hierarchy.quantised import QuantisedMaps
from PIL import Image
from worker.recipe import Recipe

from evaluation.album import Album
from evaluation.data import load
from evaluation.errors import DatasetError
from evaluation.material import Material, gather
from evaluation.protocols import Degradation
from inference.augmentation import prepare
from inference.backbone import RandomWeights, load_backbone
from tests.evaluation.stand import draw
from tests.inference.small import NAME

RECIPE = Recipe(views=(0, 1, 2), reduced=8)
POOR = Degradation(resolution=0.25)


def quiet(stage: str, done: int, total: int) -> None:
    """Nobody listens."""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("photos"), {"train": 6, "val": 2, "test": 3})


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> Album:
    return Album(load_backbone(NAME, weights=RandomWeights(0)), tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def material(photos: Path, album: Album) -> Material:
    tests = [Degradation(), Degradation(blur=2)]
    return gather(load(photos), album, RECIPE, poor=POOR, tests=tests, tell=quiet)


def test_maps_are_the_backbones_of_each_file(photos: Path, album: Album) -> None:
    files = load(photos).test.files[:2]
    ((start, (maps,)),) = album.maps(files, views=(0,), degradation=Degradation())
    assert start == 0
    for file, found in zip(files, maps, strict=True):
        pixels = prepare(Image.open(file), album.backbone.preparation)
        right = QuantisedMaps.of(album._engine.maps(pixels[None])).restored()[0]
        np.testing.assert_allclose(found, right, atol=0.05)


def test_everything_is_there_in_the_sizes_it_says(material: Material) -> None:
    assert len(material.views) == len(material.poor) == len(RECIPE.views)
    assert all(view.maps.shape[:2] == (24, 8) for view in material.views)
    assert set(material.judged) == {"val", "test", "test blur2"}
    assert len(material.judged["val"].seen) == len(material.judged["val"].targets) == 8
    assert len(material.judged["test blur2"].seen) == 12
    blurred, sharp = (material.judged[name].seen.maps.float() for name in ("test blur2", "test"))
    assert (blurred - sharp).abs().mean() > 0


def test_only_relabelled_pictures_are_poor(material: Material) -> None:
    relabelled = np.arange(24) % 3 == 0
    seen = material.seen_at(relabelled)
    for view, (good, poor) in enumerate(zip(material.views, material.poor, strict=True)):
        for part in ("maps", "means"):
            found, rich, bad = (getattr(one, part) for one in (seen[view], good, poor))
            assert torch.equal(found[~relabelled], rich[~relabelled])
            assert torch.equal(found[relabelled], bad[relabelled])
            assert not torch.equal(rich, bad)


def test_other_processes_read_what_was_saved(material: Material, tmp_path: Path) -> None:
    material.save(tmp_path)
    again = Material.load(tmp_path)
    assert again.tree == material.tree
    for name in ("weight", "bias", "centre", "spread"):
        assert torch.equal(getattr(again.reduction, name), getattr(material.reduction, name))
    for name in ("views", "poor"):
        for one, other in zip(getattr(again, name), getattr(material, name), strict=True):
            assert torch.equal(one.maps, other.maps)
            assert torch.equal(one.means, other.means)
    assert again.targets.tolist() == material.targets.tolist()
    assert {k: v.targets.tolist() for k, v in again.judged.items()} == {
        k: v.targets.tolist() for k, v in material.judged.items()
    }


def test_a_file_that_is_no_picture_is_named(album: Album, tmp_path: Path) -> None:
    bad = tmp_path / "broken.png"
    bad.write_bytes(b"not a picture")
    with pytest.raises(DatasetError, match=r"broken\.png"):
        list(album.maps([bad], views=(0,), degradation=Degradation()))
