"""`hrn predict --heatmap`: images beside where the network looked, down the tree, as one PNG."""

import re
import secrets
import unicodedata
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeAlias

from PIL import Image, ImageDraw, ImageFont

from cli.projects import UsageError, live_version, read_image
from inference.saliency import PANEL, Looked, framed, in_words, look, overlaid
from inference.store import Project
from studio.errors import ImageError
from worker.parts import Parts

Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont

#: Sheets of more images could not be opened by many viewers.
MOST_IMAGES: Final = 50

#: Pixels: the space around a panel, letters.
GAP: Final = 20
LARGE: Final = 22
SMALL: Final = 16

#: Panels side by side; a deeper tree goes on below.
ACROSS: Final = 5

#: Looked for where the system keeps fonts, in this order; Pillow's own has hardly more than ASCII.
_FONTS: Final = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "LiberationSans-Regular.ttf",
    "Arial.ttf",
    "Arial Unicode.ttf",
    "NotoSansCJK-Regular.ttc",
    "wqy-zenhei.ttc",
    "msyh.ttc",
    "PingFang.ttc",
)

#: Where a name may go on in the next line: behind spaces and what joins words.
_PIECES: Final = re.compile(r"[^\s/_-]+[/_-]*\s*|[/_-]+\s*")

_INK: Final = (30, 30, 30)
_PALE: Final = (95, 95, 95)


def check_request(out: Path, files: Sequence[Path]) -> None:
    """Refuse early what could not be written later.

    Raises:
        UsageError: not a .png, no such folder, or too many images.
    """
    if out.suffix.lower() != ".png":
        raise UsageError(f"--heatmap writes a PNG: give a name that ends in .png, not {out.name!r}")
    if not out.parent.is_dir():
        raise UsageError(f"--heatmap: there is no folder {out.parent}; make it first")
    if len(files) > MOST_IMAGES:
        raise UsageError(
            f"--heatmap draws at most {MOST_IMAGES} images on a sheet, got {len(files)}: "
            "ask in several calls"
        )


def write_heatmap(parts: Parts, project: Project, files: Sequence[Path], out: Path) -> list[Path]:
    """Draw a row per image into ``out``; an image that cannot be read is left out.

    Returns:
        The files that were drawn. With none of them, nothing is written.

    Raises:
        UsageError: the project has no version yet.
        ModelError: the version cannot be used here.
    """
    predictor = parts.predictors.get(project, live_version(parts, project))
    extractor = parts.extractors.of(predictor)
    looked, drawn = [], []
    for file in files:
        with suppress(ImageError):  # its answer says why
            looked.append(look(predictor, extractor, read_image(file)).looked)
            drawn.append(file)
    if looked:
        part = out.with_name(f".{secrets.token_hex(8)}.part")
        try:
            draw_sheet(looked).save(part, "png")
            part.replace(out)
        finally:
            part.unlink(missing_ok=True)
    return drawn


def draw_sheet(looked: Sequence[Looked]) -> Image.Image:
    """Draw all images, each with a row of panels: itself, then one per level."""
    letters = Letters(LARGE), Letters(SMALL)
    lines = [
        panels[start : start + ACROSS]
        for panels in (draw_panels(one, letters) for one in looked)
        for start in range(0, len(panels), ACROSS)
    ]
    heights = [max(panel.height for panel in line) + GAP for line in lines]
    width = max(map(len, lines)) * (PANEL + GAP) + GAP
    sheet, top = Image.new("RGB", (width, sum(heights) + GAP), "white"), GAP
    for line, height in zip(lines, heights, strict=True):
        for column, panel in enumerate(line):
            sheet.paste(panel, (GAP + column * (PANEL + GAP), top))
        top += height
    return sheet


def draw_panels(one: Looked, letters: tuple["Letters", "Letters"]) -> list[Image.Image]:
    """Draw the image, then each level: the heat, the node's name and its probability.

    Args:
        one: what is drawn.
        letters: large ones for names, small ones for the rest.
    """
    words = ["the network sees what is in the frame"]
    panels = [_panel(framed(one.image, one.part), "The image", words, letters)]
    for number, level in enumerate(one.levels, start=1):
        words = [f"level {number}: {in_words(level.probability)}"]
        if not level.heat.any():
            words.append("nothing in it speaks for this")
        heated = framed(overlaid(one.image, level.heat), one.part)
        panels.append(_panel(heated, level.path[-1], words, letters))
    return panels


def _panel(
    image: Image.Image, title: str, lines: Sequence[str], letters: tuple["Letters", "Letters"]
) -> Image.Image:
    """Draw an image in the middle of its square, words below, as high as they need."""
    large, small = letters
    words = [(large, line, _INK) for line in large.wrapped(title, PANEL)]
    words += [(small, line, _PALE) for text in lines for line in small.wrapped(text, PANEL)]
    height = PANEL + sum(kind.height for kind, _, _ in words) + GAP // 2
    panel = Image.new("RGB", (PANEL, height), "white")
    panel.paste(image, ((PANEL - image.width) // 2, (PANEL - image.height) // 2))
    pen, top = ImageDraw.Draw(panel), PANEL + GAP // 2
    for kind, line, colour in words:
        pen.text((0, top), line, fill=colour, font=kind.font_for(line))
        top += kind.height
    return panel


class Letters:
    """Fonts of one size, and which of them can write what."""

    def __init__(self, size: int) -> None:
        self.height = round(size * 1.35)
        self._fonts: list[Font] = []
        for name in _FONTS:
            with suppress(OSError):
                self._fonts.append(ImageFont.truetype(name, size))
        self._fonts.append(ImageFont.load_default(size))

    def font_for(self, text: str) -> Font:
        """Return the font that lacks the fewest of the text's letters."""
        return min(self._fonts, key=lambda font: sum(_lacks(font, one) for one in set(text)))

    def wrapped(self, text: str, width: int) -> list[str]:
        """Return lines no wider than ``width`` pixels, cut within words only where it must be."""
        text = "".join(one for one in " ".join(text.split()) if unicodedata.category(one) != "Cc")
        font, lines, line = self.font_for(text), [], ""
        for piece in _PIECES.findall(text):
            if line and font.getlength(line + piece.rstrip()) > width:
                lines.append(line.rstrip())
                line = ""
            for letter in piece:  # a piece that is too long is cut
                if font.getlength(line + letter.rstrip()) > width:
                    lines.append(line)
                    line = ""
                line += letter
        return [*lines, line.rstrip()]


def _lacks(font: Font, letter: str) -> bool:
    """Whether a letter is drawn as the box that stands for all that a font does not have."""
    return not letter.isspace() and _drawn(font, letter) == _drawn(font, "\uffff")


def _drawn(font: Font, letter: str) -> bytes:
    image = Image.new("L", (2 * LARGE, 2 * LARGE))
    ImageDraw.Draw(image).text((0, 0), letter, fill=255, font=font)
    return image.tobytes()
