"""Saliency maps: one image's answer, what else it may be, and where the networks looked.

The backbones run once more on the image, in PyTorch, for the cache keeps no maps. H x W pixels of
the shown image; h, w positions of a network's last map; C_k its channels.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from hierarchy.saliency import channel_gradient
from inference.backbone import Preparation
from inference.feature_extractor import FeatureExtractor
from inference.insight import Step, branches, path_of
from inference.predictor import Answer, Predictor
from inference.torch_engine import Normalised
from studio.image_fetcher import FetchedImage

Floats = NDArray[np.float32]

#: Pixels: the square that a shown image fits into.
PANEL: Final = 320

_LINE: Final = (150, 150, 150)

#: Colour from no heat to the most: it also gets darker, for those who cannot tell red from green.
_RAMP: Final = np.array([(255, 224, 102), (250, 130, 30), (165, 15, 40)], dtype=np.float64)
#: How much of the grey image the hottest place hides.
_COVER: Final = 0.8


@dataclass(frozen=True, eq=False)
class SaliencyMap:
    """The places in one image that speak for one node.

    Attributes:
        path: the node, from the root node.
        probability: of the node, corrected as in answers.
        heat: ``(H, W)`` over the shown image, >= 0, 0 where no network looked. Its unit is nats of
            the node's log-odds, had the whole image looked like this place.
    """

    path: tuple[str, ...]
    probability: float
    heat: Floats


@dataclass(frozen=True)
class Box:
    """A part of an image; each side in shares of the image's width or height.

    Below 0 or above 1 where the network was shown more than there is (it saw black there).
    """

    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True, eq=False)
class Looked:
    """One image, and where the networks looked for each node on its way down the tree.

    Attributes:
        image: RGB, upright, no larger than a panel.
        part: what of it the networks were shown.
        levels: one saliency map per node on the path, the root node first.
    """

    image: Image.Image
    part: Box
    levels: tuple[SaliencyMap, ...]


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


def look(predictor: Predictor, extractor: FeatureExtractor, picture: FetchedImage) -> Sight:
    """Look at one image as the version does.

    Args:
        predictor: the version.
        extractor: of the features that its head was trained on.
        picture: the file.

    Raises:
        ImageError: the file cannot be decoded.
        BackboneError: the weights of a network are not here any more.
    """
    image = extractor.decoded(picture, at_least=2 * PANEL)
    vector = extractor.vectors_of_image(picture)
    log_p = predictor.log_probabilities(vector[None])
    (answer,) = predictor.told(log_p, predictor.likeness(vector[None]))
    path = path_of(predictor, log_p[0], answer.path)
    shown = fitted(image)
    preparations = [network.backbone.preparation for network in extractor.networks]
    heats = node_heats(predictor, vector, path, last_maps(extractor, picture))
    levels = []
    sure = predictor.sure(log_p, np.array([path], dtype=np.int64))[0]
    for number, node in enumerate(path):
        laid = [
            spread(heat[number], seen_part(image.size, one), shown.size)
            for heat, one in zip(heats, preparations, strict=True)
        ]
        both = np.maximum(np.sum(laid, axis=0), 0)  # what speaks against the node is cut off
        levels.append(SaliencyMap(predictor.tree.paths[node], float(sure[number]), both))
    widest = max(preparations, key=lambda one: one.crop / one.resize)
    looked = Looked(shown, seen_part(image.size, widest), tuple(levels))
    return Sight(answer, branches(predictor, log_p[0], path), looked)


def last_maps(extractor: FeatureExtractor, picture: FetchedImage) -> list[Floats]:
    """Compute each network's last feature map of an image, ``(C_k, h, w)``, on the CPU.

    Raises:
        ImageError: the file cannot be decoded.
        BackboneError: the weights of a network are not here any more.
    """
    maps = []
    for network, pixels in zip(extractor.networks, extractor.prepared(picture), strict=True):
        module = Normalised(network.backbone.module, network.backbone.preparation)
        with torch.inference_mode():
            (found,) = module(torch.from_numpy(pixels[None].copy()))
        maps.append(found.numpy())
    return maps


def node_heats(
    predictor: Predictor, vector: NDArray[np.float16], nodes: Sequence[int], maps: Sequence[Floats]
) -> list[Floats]:
    """Find where in an image something speaks for or against nodes.

    A network's vector is the mean of its last map, so the gradient by a map's position is the
    gradient by the vector, and gradient times activation is exact (HiRes-CAM, see
    `hierarchy.saliency`).

    Args:
        predictor: the version.
        vector: ``(C,)`` the image's feature vector, the networks' side by side.
        nodes: K nodes of the version's tree, however improbable they are.
        maps: each network's last map, ``(C_k, h, w)``.

    Returns:
        For each network ``(K, h, w)``: nats of the node's log-odds, had the whole image looked like
        this place; their mean over the grid is what the network adds, to first order.
    """
    if not nodes:
        return [np.zeros((0, *one.shape[1:]), np.float32) for one in maps]
    device = next(predictor.head.parameters()).device
    asked = torch.tensor([list(nodes)], dtype=torch.int64, device=device)
    inputs = torch.from_numpy(vector[None].astype(np.float32)).to(device)
    gradient = channel_gradient(predictor.head, inputs, asked, predictor.tree)[0].cpu().numpy()
    heats, start = [], 0
    for one in maps:
        part = gradient[:, start : start + len(one)]  # (K, C_k)
        heats.append(np.einsum("kc,chw->khw", part, one))
        start += len(one)
    return heats


def seen_part(size: tuple[int, int], preparation: Preparation) -> Box:
    """Find the part of an image that a network is shown: the middle, square.

    Agrees with `inference.augmentation.prepare` but for its rounding to whole pixels.

    Args:
        size: the image's width and height, in any unit.
        preparation: the backbone's.
    """
    width, height = size
    side = min(size) * preparation.crop / preparation.resize
    across, down = side / width / 2, side / height / 2
    return Box(0.5 - across, 0.5 - down, 0.5 + across, 0.5 + down)


def spread(heat: Floats, part: Box, size: tuple[int, int]) -> Floats:
    """Lay heat over an image: bilinear between the grid's positions, 0 outside the part.

    Args:
        heat: ``(h, w)`` over the grid.
        part: where the grid lies, see `seen_part`.
        size: width W and height H of the result, in pixels; the image's or a smaller one's.

    Returns:
        ``(H, W)``, in the unit of ``heat``.
    """
    width, height = size
    down = _weights(height, heat.shape[0], part.top, part.bottom)
    across = _weights(width, heat.shape[1], part.left, part.right)
    laid: Floats = (down @ heat @ across.T).astype(np.float32)
    return laid


def _weights(pixels: int, positions: int, start: float, end: float) -> NDArray[np.float64]:
    """Weigh each position of one axis at each pixel, ``(pixels, positions)``."""
    inside = ((np.arange(pixels) + 0.5) / pixels - start) / (end - start)  # 0 to 1 in the part
    place = np.clip(inside * positions - 0.5, 0, positions - 1)
    weights = np.clip(1 - np.abs(place[:, None] - np.arange(positions)), 0, None)
    return np.where(((inside >= 0) & (inside <= 1))[:, None], weights, 0.0)


def as_jpeg(image: Image.Image, *, quality: int = 88) -> bytes:
    """Write an image's file, without anything the original said of itself."""
    file = io.BytesIO()
    image.convert("RGB").save(file, "JPEG", quality=quality)
    return file.getvalue()


def fitted(image: Image.Image) -> Image.Image:
    """Make the image fit a panel, its proportions kept."""
    scale = PANEL / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def in_words(probability: float) -> str:
    """Say a probability as people do; never 0 or 100 %, which would claim to know.

    Example:
        >>> in_words(0.874), in_words(0.9991), in_words(0.0)
        ('87 % likely', 'over 99 % likely', 'under 1 % likely')
    """
    if probability > 0.99:
        return "over 99 % likely"
    if probability < 0.01:
        return "under 1 % likely"
    return f"{100 * probability:.0f} % likely"


def overlaid(image: Image.Image, heat: Floats) -> Image.Image:
    """Draw the image in light grey with heat over it, as a share of its own greatest value.

    Args:
        image: W x H pixels.
        heat: ``(H, W)``, >= 0.
    """
    grey = np.asarray(image.convert("L"), dtype=np.float64)[..., None] * 0.75 + 64
    most = float(heat.max())
    share = (heat / most if most > 0 else heat)[..., None].astype(np.float64)  # (H, W, 1)
    place = np.clip(share[..., 0] * (len(_RAMP) - 1), 0, len(_RAMP) - 1)
    colour = np.stack(
        [np.interp(place, range(len(_RAMP)), _RAMP[:, band]) for band in range(3)], axis=-1
    )
    mixed = grey * (1 - _COVER * share) + colour * _COVER * share
    return Image.fromarray(np.clip(mixed.round(), 0, 255).astype(np.uint8))


def framed(image: Image.Image, part: Box) -> Image.Image:
    """Draw a thin line around the part that the networks are shown."""
    width, height = image.size
    left, top = max(0, round(part.left * width)), max(0, round(part.top * height))
    right = max(left, min(width, round(part.right * width)) - 1)
    bottom = max(top, min(height, round(part.bottom * height)) - 1)
    outlined = image.copy()
    ImageDraw.Draw(outlined).rectangle((left, top, right, bottom), outline=_LINE, width=1)
    return outlined
