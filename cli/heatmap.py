"""`hrn predict --heatmap`: images beside where the network looked, down the tree, as one PNG."""

import hashlib
import re
import secrets
import unicodedata
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeAlias

from PIL import Image, ImageDraw, ImageFont

from cli.projects import UsageError
from inference.predictor import Predictor
from inference.saliency import PANEL, Looked, framed, in_words, look, overlaid
from inference.store import Project
from studio.errors import ImageError
from studio.image_fetcher import FetchedImage
from worker.parts import Parts

Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont

#: Sheets of more pictures could not be opened by many viewers.
MOST_PICTURES: Final = 50

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


def check_wish(out: Path, files: Sequence[Path]) -> None:
    """Refuse early what could not be written later.

    Raises:
        UsageError: not a .png, no such folder, or too many pictures.
    """
    if out.suffix.lower() != ".png":
        raise UsageError(f"--heatmap writes a PNG: give a name that ends in .png, not {out.name!r}")
    if not out.parent.is_dir():
        raise UsageError(f"--heatmap: there is no folder {out.parent}; make it first")
    if len(files) > MOST_PICTURES:
        raise UsageError(
            f"--heatmap draws at most {MOST_PICTURES} pictures on a sheet, got {len(files)}: "
            "ask in several calls"
        )


def write_heatmap(parts: Parts, project: Project, files: Sequence[Path], out: Path) -> list[Path]:
    """Draw one row a picture into ``out``; a picture that cannot be read is left out.

    Returns:
        The files that were drawn. With none of them, nothing is written.

    Raises:
        UsageError: as `check_wish`, or the project has no version yet.
        ModelError: the version cannot be used here.
    """
    check_wish(out, files)
    predictor = _version(parts, project)
    extractor = parts.extractors.of(predictor)
    looked, drawn = [], []
    for file in files:
        with suppress(OSError, ImageError):  # its answer says why
            data = file.read_bytes()
            picture = FetchedImage(hashlib.sha256(data).hexdigest(), data)
            looked.append(look(predictor, extractor, picture).looked)
            drawn.append(file)
    if looked:
        part = out.with_name(f".{secrets.token_hex(8)}.part")
        try:
            draw_sheet(looked).save(part, "png")
            part.replace(out)
        finally:
            with suppress(OSError):
                part.unlink()
    return drawn


def _version(parts: Parts, project: Project) -> Predictor:
    """Load the live version.

    Raises:
        UsageError: the project has no version yet.
        ModelError: the version cannot be used here.
    """
    version = parts.store.current(project.key)
    if version is None:
        raise UsageError(f"{project.key} is untrained: label some pictures, then `hrn train`")
    return parts.predictors.get(project, version)


# --- drawing ---


def draw_sheet(looked: Sequence[Looked]) -> Image.Image:
    """All pictures, each with a row of panels: itself, then one a level."""
    letters = Letters(LARGE), Letters(SMALL)
    rows = [draw_row(one, letters) for one in looked]
    size = (max(row.width for row in rows), sum(row.height for row in rows) + GAP)
    sheet = Image.new("RGB", size, "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    return sheet


def draw_row(one: Looked, letters: tuple["Letters", "Letters"]) -> Image.Image:
    """The picture, then each level: the heat, the node's name and its probability.

    Args:
        one: what is drawn.
        letters: large ones for names, small ones for the rest.
    """
    told = ["the network sees what is in the frame"]
    panels = [_panel(framed(one.image, one.part), "The picture", told, letters)]
    for number, level in enumerate(one.levels, start=1):
        told = [f"level {number}: {in_words(level.probability)}"]
        if not level.heat.any():
            told.append("nothing in it speaks for this")
        heated = framed(overlaid(one.image, level.heat), one.part)
        panels.append(_panel(heated, level.path[-1], told, letters))
    lines = [panels[start : start + ACROSS] for start in range(0, len(panels), ACROSS)]
    heights = [max(panel.height for panel in line) for line in lines]
    width = min(len(panels), ACROSS) * (PANEL + GAP) + GAP
    row = Image.new("RGB", (width, sum(heights) + GAP * len(lines)), "white")
    top = GAP
    for line, height in zip(lines, heights, strict=True):
        for column, panel in enumerate(line):
            row.paste(panel, (GAP + column * (PANEL + GAP), top))
        top += height + GAP
    return row


def _panel(
    image: Image.Image, title: str, lines: Sequence[str], letters: tuple["Letters", "Letters"]
) -> Image.Image:
    """A picture in the middle of its square, words below, as high as they need."""
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

    def __init__(self, size: int, names: Sequence[str] = _FONTS) -> None:
        self.height = round(size * 1.35)
        self._size = size
        self._fonts: list[Font] = []
        for name in names:
            with suppress(OSError):
                self._fonts.append(ImageFont.truetype(name, size))
        self._fonts.append(ImageFont.load_default(size))

    def font_for(self, text: str) -> Font:
        """The font that lacks the fewest of the text's letters."""
        return min(self._fonts, key=lambda font: sum(self._lacks(font, one) for one in set(text)))

    def wrapped(self, text: str, width: int) -> list[str]:
        """Lines no wider than ``width`` pixels, cut within words only where it must be."""
        text = self._writable(text)
        font = self.font_for(text)
        lines, line = [], ""
        for piece in _PIECES.findall(text):
            if font.getlength(line + piece.rstrip()) <= width:
                line += piece
                continue
            lines += [line.rstrip()] if line else []
            line = ""
            for letter in piece:
                if font.getlength(line + letter.rstrip()) > width:
                    lines.append(line)
                    line = ""
                line += letter
        return [*lines, line.rstrip()]

    def _writable(self, text: str) -> str:
        """One line of what can be written; of an accented letter that cannot, the letter alone."""
        text = " ".join(text.split())
        text = "".join(one for one in text if unicodedata.category(one) != "Cc")
        font = self.font_for(text)
        plain = (
            unicodedata.normalize("NFKD", one)[0] if self._lacks(font, one) else one for one in text
        )
        return "".join(plain)

    def _lacks(self, font: Font, letter: str) -> bool:
        """Whether it is drawn as the box that stands for all that a font does not have."""
        return not letter.isspace() and self._drawn(font, letter) == self._drawn(font, "\uffff")

    def _drawn(self, font: Font, letter: str) -> bytes:
        image = Image.new("L", (2 * self._size, 2 * self._size))
        ImageDraw.Draw(image).text((0, 0), letter, fill=255, font=font)
        return image.tobytes()
