"""One picture looked at closely: its answer, what else it may be, where the network looked."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from inference.backbone import Preparation
from inference.gallery import Gallery
from inference.heatmap import Box, HeatMap, node_heat_maps, seen_part, spread
from inference.insight import Step, branches, path_of
from inference.predictor import Answer, Predictor
from studio.image_fetcher import FetchedImage

#: Pixels: the square that a shown picture fits into.
PANEL: Final = 320

_LINE: Final = (150, 150, 150)

#: Colour from no heat to the most: it also gets darker, for those who cannot tell red from green.
_RAMP: Final = np.array([(255, 224, 102), (250, 130, 30), (165, 15, 40)], dtype=np.float64)
#: How much of the grey picture the hottest place hides.
_COVER: Final = 0.8


@dataclass(frozen=True, eq=False)
class Looked:
    """One image, and where the network looked for each node on its way down the tree.

    Attributes:
        image: RGB, upright, no larger than a panel.
        part: what of it the network was shown.
        levels: one heat map a node on the path, the top first.
    """

    image: Image.Image
    part: Box
    levels: tuple[HeatMap, ...]


@dataclass(frozen=True, eq=False)
class Sight:
    """Everything there is to say of one image.

    Attributes:
        answer: what is said of it, and why no more.
        steps: down the path, each step's node among its likeliest siblings.
        looked: the image, and the heat of each node on the path.
    """

    answer: Answer
    steps: Sequence[Step]
    looked: Looked


def look(
    predictor: Predictor,
    gallery: Gallery,
    preparation: Preparation,
    picture: FetchedImage,
) -> Sight:
    """Look at one image as the version does.

    Args:
        predictor: the version.
        gallery: features that its head was trained on.
        preparation: of the backbone.
        picture: the file.

    Raises:
        ImageError: the file cannot be decoded.
    """
    image = gallery.decoded(picture, at_least=2 * PANEL)
    maps = gallery.maps_of_picture(picture)
    log_p = predictor.log_probabilities(maps)
    (answer,) = predictor.told(log_p)
    path = path_of(predictor, log_p[0], answer.path)
    names = [predictor.tree.paths[node] for node in path]
    (levels,) = node_heat_maps(predictor, maps.restored(), names)
    looked = Looked(fitted(image), seen_part(image.size, preparation), levels)
    return Sight(answer, branches(predictor, log_p[0], path), looked)


def as_jpeg(image: Image.Image, *, quality: int = 88) -> bytes:
    """A picture's file, without anything the original said of itself."""
    file = io.BytesIO()
    image.convert("RGB").save(file, "JPEG", quality=quality)
    return file.getvalue()


def fitted(image: Image.Image) -> Image.Image:
    """The picture made to fit a panel, its proportions kept."""
    scale = PANEL / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def in_words(probability: float) -> str:
    """A probability as people say it; never 0 or 100 %, which would claim to know.

    Example:
        >>> in_words(0.874), in_words(0.9991), in_words(0.0)
        ('87 % likely', 'over 99 % likely', 'under 1 % likely')
    """
    if probability > 0.99:
        return "over 99 % likely"
    if probability < 0.01:
        return "under 1 % likely"
    return f"{100 * probability:.0f} % likely"


def overlaid(image: Image.Image, heat: NDArray[np.float32], part: Box) -> Image.Image:
    """The picture in light grey with the heat over it, as a share of its own greatest value."""
    grey = np.asarray(image.convert("L"), dtype=np.float64)[..., None] * 0.75 + 64
    laid = spread(heat, part, image.size)
    most = float(heat.max())
    share = (laid / most if most > 0 else laid)[..., None].astype(np.float64)  # (H, W, 1)
    place = np.clip(share[..., 0] * (len(_RAMP) - 1), 0, len(_RAMP) - 1)
    colour = np.stack(
        [np.interp(place, range(len(_RAMP)), _RAMP[:, band]) for band in range(3)], axis=-1
    )
    mixed = grey * (1 - _COVER * share) + colour * _COVER * share
    return Image.fromarray(np.clip(mixed.round(), 0, 255).astype(np.uint8))


def framed(image: Image.Image, part: Box) -> Image.Image:
    """A thin line around the part that the network is shown."""
    width, height = image.size
    left, top = max(0, round(part.left * width)), max(0, round(part.top * height))
    right = max(left, min(width, round(part.right * width)) - 1)
    bottom = max(top, min(height, round(part.bottom * height)) - 1)
    outlined = image.copy()
    ImageDraw.Draw(outlined).rectangle((left, top, right, bottom), outline=_LINE, width=1)
    return outlined
