"""The sheet shows each picture beside a panel a level, whatever the names and shapes are."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFont

from cli.__main__ import main
from cli.heatmap import (
    ACROSS,
    GAP,
    LARGE,
    MOST_IMAGES,
    Letters,
    check_request,
    draw_sheet,
    write_heatmap,
)
from cli.projects import UsageError
from inference.saliency import PANEL, Box, Looked, SaliencyMap, fitted, in_words, overlaid, spread
from inference.store import ModelStore, Project
from tests.inference.small import HEAD, NAME, extractors, head_of, png, publish, weights_file
from tests.published import TREE, project
from worker.parts import Parts
from worker.settings import Settings

Put = Callable[..., None]

WHOLE = Box(0.0, 0.0, 1.0, 1.0)


def corner() -> NDArray[np.float32]:
    """Hot at the top left, cold elsewhere."""
    heat = np.zeros((4, 4), np.float32)
    heat[0, 0] = 3
    return heat


def looked(names: list[str], size: tuple[int, int] = (400, 300), part: Box = WHOLE) -> Looked:
    image = Image.new("RGB", size, (40, 90, 200))
    shown = fitted(image)
    heat = spread(corner(), part, shown.size)
    return Looked(shown, part, tuple(SaliencyMap((name,), 0.5, heat) for name in names))


def pixels(image: Image.Image) -> NDArray[np.int64]:
    return np.asarray(image).astype(np.int64)


def warmth(image: Image.Image) -> NDArray[np.int64]:
    """Red less blue: 0 where the picture is grey."""
    values = pixels(image)
    return np.asarray(values[..., 0] - values[..., 2])


# --- the overlay ---


def test_hot_places_are_coloured_and_cold_ones_are_grey() -> None:
    heat = spread(corner(), WHOLE, (80, 80))
    warm = warmth(overlaid(Image.new("RGB", (80, 80), (90, 90, 90)), heat))
    assert warm[5, 5] > 80
    assert not warm[40:].any()
    assert not warm[:, 40:].any()


def test_outside_the_seen_part_nothing_is_coloured() -> None:
    image = Image.new("RGB", (100, 60), (90, 90, 90))
    heat = spread(np.ones((3, 3), np.float32), Box(0.3, 0.0, 0.7, 1.0), image.size)
    warm = warmth(overlaid(image, heat))
    assert (warm[:, 30:70] > 50).all()
    assert not warm[:, :30].any()
    assert not warm[:, 70:].any()


def test_without_any_heat_the_picture_is_grey() -> None:
    image = Image.new("RGB", (40, 40), (200, 30, 30))
    assert not warmth(overlaid(image, np.zeros((40, 40), np.float32))).any()


# --- the sheet ---


@pytest.mark.parametrize("size", [(400, 300), (300, 400), (20, 20), (2000, 100)])
def test_a_row_has_the_picture_and_one_panel_a_level(size: tuple[int, int]) -> None:
    one = looked(["Fruit", "Apple"], size)
    row = draw_sheet([one])
    assert row.width == 3 * (PANEL + GAP) + GAP
    assert row.height > PANEL + 2 * GAP
    assert max(one.image.size) == PANEL
    panels = [
        row.crop((left, GAP, left + PANEL, GAP + PANEL))
        for left in range(GAP, row.width - GAP, PANEL + GAP)
    ]
    middle = (PANEL // 2, PANEL // 2)
    assert panels[0].getpixel(middle) != (255, 255, 255)
    assert (warmth(panels[0]) <= 0).all()  # the blue picture itself
    for panel in panels[1:]:
        assert (warmth(panel) > 20).any()


def test_the_thinnest_picture_can_be_drawn() -> None:
    one = looked(["Fruit"], (1, 900))
    assert one.image.size == (1, PANEL)
    assert draw_sheet([one]).width == 2 * (PANEL + GAP) + GAP


def test_a_deep_tree_goes_on_below() -> None:
    shallow, deep = looked(["a"] * (ACROSS - 1)), looked(["a"] * ACROSS)
    first, second = draw_sheet([shallow]), draw_sheet([deep])
    assert second.width == first.width
    assert second.height - GAP == 2 * (first.height - GAP)


def test_images_stand_one_below_the_other() -> None:
    one, other = looked(["a", "b"]), looked(["c"])
    rows = [draw_sheet([row]) for row in (one, other)]
    sheet = draw_sheet([one, other])
    assert sheet.size == (rows[0].width, rows[0].height + rows[1].height - GAP)
    assert (pixels(sheet)[: rows[0].height - GAP] == pixels(rows[0])[:-GAP]).all()


def test_the_words_differ_with_name_and_probability() -> None:
    one = looked(["Fruit"])
    sure = replace(one, levels=(replace(one.levels[0], probability=0.9),))
    rows = [pixels(draw_sheet([row])) for row in (one, sure, looked(["Milky"]))]
    differ = [np.argwhere((rows[0] != row).any(axis=-1)) for row in rows[1:]]
    for places in differ:
        assert len(places)
        assert (places[:, 0] >= GAP + PANEL).all()  # below the picture
        assert (places[:, 1] >= PANEL + 2 * GAP).all()  # in the second column


def test_a_node_that_nothing_speaks_for_says_so() -> None:
    one = looked(["Fruit"])
    nothing = np.zeros_like(one.levels[0].heat)
    cold = replace(one, levels=(replace(one.levels[0], heat=nothing),))
    assert draw_sheet([cold]).height > draw_sheet([one]).height


def test_probabilities_never_claim_to_be_certain() -> None:
    assert [in_words(p) for p in (1.0, 0.87, 0.0)] == [
        "over 99 % likely",
        "87 % likely",
        "under 1 % likely",
    ]


# --- letters ---


@pytest.mark.parametrize(
    "name",
    [
        "Apple",
        "Garant-Ecological-Medium-Fat-Milk",
        "An apple of a kind that somebody described at length",
        "W" * 200,
        "苹果" * 60,
        "-",
    ],
)
def test_long_names_are_wrapped_and_nothing_of_them_is_lost(name: str) -> None:
    letters = Letters(LARGE)
    lines = letters.wrapped(name, PANEL)
    font = letters.font_for(name)
    assert "".join(lines).replace(" ", "") == name.replace(" ", "")
    assert all(line and font.getlength(line) <= PANEL for line in lines)


def test_names_are_cut_between_words_where_they_can_be() -> None:
    lines = Letters(LARGE).wrapped("Garant-Ecological-Medium-Fat-Milk of today", 200)
    assert len(lines) > 2
    assert all(line.endswith(("-", "Milk", "of", "today")) for line in lines)


def test_a_font_that_has_the_letters_is_preferred() -> None:
    """Pillow's own has hardly more than ASCII; the image brings another."""
    best, own = Letters(LARGE).font_for("Äpfel"), ImageFont.load_default(LARGE)
    assert isinstance(best, ImageFont.FreeTypeFont)
    assert isinstance(own, ImageFont.FreeTypeFont)
    assert best.getname() != own.getname()
    assert Letters(LARGE).wrapped("Äpfel", 900) == ["Äpfel"]


@pytest.mark.parametrize("name", ["苹果 🍎", "تفاح", "Жито", "a\nb\x00", " "])
def test_any_name_can_be_drawn(name: str) -> None:
    assert draw_sheet([looked([name])]).width == 2 * (PANEL + GAP) + GAP


# --- the command ---


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return weights_file(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def known(tmp_path: Path, weights: Path) -> Project:
    """A project whose live version stands on the small network, in the home of the command."""
    store = ModelStore(tmp_path / "models")
    owner = store.register(project("http://studio"))
    mark = extractors(tmp_path / "other", weights).backbone().fingerprint
    version = publish(store, owner, TREE, head_of(TREE, HEAD, seed=2), backbone=(NAME, mark))
    store.point(owner.key, version, reason="test")
    return owner


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    file = tmp_path / "photo.png"
    file.write_bytes(png(1))
    return file


def test_predicting_draws_a_sheet_on_the_way(
    known: Project,
    weights: Path,
    photo: Path,
    clean: Put,
    capsys: pytest.CaptureFixture[str],
) -> None:
    clean(HRN_BACKBONE=NAME, HRN_BACKBONE_WEIGHTS=weights, HRN_DEVICE="cpu")
    out = photo.with_name("heat.PNG")
    missing = photo.with_name("missing.png")
    text = photo.with_name("text.jpg")
    text.write_bytes(b"no picture")
    files = [str(file) for file in (missing, photo, text)]
    assert main(["predict", *files, "--json", "--heatmap", str(out)]) == 1
    rows = json.loads(capsys.readouterr().out)
    assert ["problem" in row for row in rows] == [True, False, True]
    with Image.open(out) as sheet:
        assert sheet.format == "PNG"
        assert sheet.width == (1 + TREE.depth) * (PANEL + GAP) + GAP
        shown = sheet.crop((GAP, GAP, GAP + PANEL, GAP + PANEL)).convert("RGB")
    with Image.open(photo) as original:
        expected = pixels(fitted(original.convert("RGB")))
    differs = (pixels(shown) != expected).any(axis=-1)
    assert differs.mean() < 0.02  # the frame
    assert not list(out.parent.glob("*.part"))


def test_of_no_picture_nothing_is_drawn(known: Project, weights: Path, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, device="cpu", backbone=NAME, backbone_weights=(weights,))
    out = tmp_path / "heat.png"
    assert write_heatmap(Parts(settings), known, [tmp_path / "missing.png"], out) == []
    assert not out.exists()


def test_an_untrained_project_has_looked_nowhere(tmp_path: Path, photo: Path) -> None:
    owner = ModelStore(tmp_path / "models").register(project("http://studio"))
    with pytest.raises(UsageError, match="untrained"):
        write_heatmap(Parts(Settings(home=tmp_path)), owner, [photo], tmp_path / "heat.png")


@pytest.mark.parametrize("out", ["heat.jpg", "heat", "nowhere/heat.png"])
def test_what_cannot_be_written_is_refused_before_any_work(
    out: str, tmp_path: Path, clean: Put, capsys: pytest.CaptureFixture[str]
) -> None:
    clean()
    assert main(["predict", "cat.jpg", "--heatmap", str(tmp_path / out)]) == 1
    assert "--heatmap" in capsys.readouterr().err


def test_too_many_pictures_for_a_sheet_are_refused(tmp_path: Path) -> None:
    files = [Path("cat.jpg")] * (MOST_IMAGES + 1)
    with pytest.raises(UsageError, match=f"at most {MOST_IMAGES}"):
        check_request(tmp_path / "heat.png", files)
