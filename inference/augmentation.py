"""Changed copies of an image to learn from: as it is, mirrored, and random crops.

A head learns from the features of a frozen backbone, so images are changed before the backbone runs
and the features of each copy are kept. Augmentation 0 is what pre-labels are read from; labelled
images are learnt from in the others, too. H, W: pixels of the network's input.
"""

import hashlib
import math
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance

from studio.image_decoder import fitted

if TYPE_CHECKING:  # a training config is read without waiting for torch
    from inference.backbone import Preparation

PLAIN: Final = 0
MIRRORED: Final = 1

#: What a head learns from by default: both of the above and six crops. Beside the first
#: two alone they were worth 3 points of leaf accuracy (docs/decisions/0012).
LEARNT_FROM: Final = tuple(range(8))

#: Share of the area that a crop keeps, and its width over its height: both drawn, as in Szegedy et
#: al., "Going deeper with convolutions" (2015), section 6.
_AREA: Final = (0.3, 1.0)
_RATIO: Final = (3 / 4, 4 / 3)
#: Brightness, contrast and colour are each multiplied by up to so much more or less.
_JITTER: Final = 0.3


def prepare(image: Image.Image, preparation: "Preparation") -> npt.NDArray[np.uint8]:
    """Resize the short side and cut the centre: pixel for pixel what torchvision does with Pillow.

    Args:
        image: RGB, upright, any size. Of one longer than 8 times its width (or wider), the middle
            is taken first.
        preparation: which sizes and filter.

    Returns:
        ``(3, H, W)``, H = W = ``preparation.crop``, 0 to 255.
    """
    square = np.asarray(fitted(image.convert("RGB"), preparation.fit()))
    return np.ascontiguousarray(square.transpose(2, 0, 1))


def crop(
    image: Image.Image, preparation: "Preparation", augmentation: int, image_key: str
) -> npt.NDArray[np.uint8]:
    """Cut a random part of the image, mirror it at times and change its light.

    Args:
        image: RGB, upright.
        preparation: gives the side and the filter.
        augmentation: 2 or more.
        image_key: what is drawn follows from it and from the augmentation, for every network alike.

    Returns:
        ``(3, H, W)``, H = W = ``preparation.crop``, 0 to 255.

    Raises:
        ValueError: the augmentation is no crop.
    """
    if augmentation <= MIRRORED:
        raise ValueError(f"crops are the augmentations from {MIRRORED + 1}, got {augmentation}")
    seed = hashlib.sha256(f"{image_key}-crop{augmentation - MIRRORED}".encode()).digest()[:8]
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
    """Left, top, right and bottom of a rectangle in the image; the whole image if none fits."""
    width, height = size
    for _ in range(10):  # a long, narrow image may not hold what was drawn
        area = width * height * draw.uniform(*_AREA)
        ratio = math.exp(draw.uniform(math.log(_RATIO[0]), math.log(_RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(draw.integers(width - w + 1)), int(draw.integers(height - h + 1))
            return left, top, left + w, top + h
    return 0, 0, width, height
