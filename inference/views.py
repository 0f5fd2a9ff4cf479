"""The ways of looking at one picture: as it is, mirrored, and crops to learn from.

A head learns from a frozen backbone's features, so pictures are varied before the backbone runs and
the features of each variant are kept. View 0 is what answers are read from; labelled pictures are
also seen in the others. C channels; h, w positions of the map; H, W pixels.
"""

import hashlib
import math
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance

if TYPE_CHECKING:  # a recipe is read without waiting for torch
    from inference.backbone import Preparation

PLAIN: Final = 0
MIRRORED: Final = 1

#: What a head learns from unless told otherwise: both of the above and six crops. Beside the first
#: two alone they were worth 3 points of leaf accuracy (docs/decisions/0012).
LEARNT_FROM: Final = tuple(range(8))

#: Share of the area that a crop keeps, and its width over its height: both drawn, as in Szegedy et
#: al., "Going deeper with convolutions" (2015), section 6.
_AREA: Final = (0.3, 1.0)
_RATIO: Final = (3 / 4, 4 / 3)
#: Brightness, contrast and colour are each multiplied by up to so much more or less.
_JITTER: Final = 0.3


def name_of(view: int) -> str:
    """What tells the view's file from the plain one's: ``""``, ``"-mirrored"``, ``"-crop1"``, ...

    Raises:
        ValueError: there is no such view.
    """
    if view < 0:
        raise ValueError(f"views are numbered from 0, got {view}")
    return ("", "-mirrored")[view] if view <= MIRRORED else f"-crop{view - MIRRORED}"


def crop(
    image: Image.Image, preparation: "Preparation", view: int, digest: str
) -> npt.NDArray[np.uint8]:
    """A crop of the picture, at times mirrored, its light changed: always the same for one digest.

    Args:
        image: RGB, upright.
        preparation: gives the side and the filter.
        view: 2 or more.
        digest: of the picture's content; what is drawn follows from it and the view.

    Returns:
        ``(3, H, W)``, H = W = ``preparation.crop``, 0 to 255.
    """
    if view <= MIRRORED:
        raise ValueError(f"crops are the views from {MIRRORED + 1}, got {view}")
    seed = hashlib.sha256(f"{digest}{name_of(view)}".encode()).digest()[:8]
    draw = np.random.default_rng(int.from_bytes(seed, "big"))
    image = image.convert("RGB")
    side = preparation.crop
    cut = image.resize(
        (side, side),
        Image.Resampling[preparation.interpolation.upper()],
        box=_box(image.size, draw),
    )
    if draw.random() < 0.5:
        cut = cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for change in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        cut = change(cut).enhance(draw.uniform(1 - _JITTER, 1 + _JITTER))
    return np.ascontiguousarray(np.asarray(cut).transpose(2, 0, 1))


def _box(size: tuple[int, int], draw: np.random.Generator) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a rectangle in the picture; the whole when none fits."""
    width, height = size
    for _ in range(10):  # a long, narrow picture may not hold what was drawn
        area = width * height * draw.uniform(*_AREA)
        ratio = math.exp(draw.uniform(math.log(_RATIO[0]), math.log(_RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(draw.integers(width - w + 1)), int(draw.integers(height - h + 1))
            return left, top, left + w, top + h
    return 0, 0, width, height
