"""What is done to labels and pictures before a rival sees them: relabelling, and poorer pictures.

The published protocols (Chen et al. 2022, and its code) are marked as such; all are pure functions.
"""

import io
import math
import zlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from evaluation.errors import ProtocolError
from hierarchy.tree import TOP, LabelTree

How = Literal["random", "first"]


def relabel(
    targets: NDArray[np.int64], tree: LabelTree, share: float, *, how: How = "random", seed: int = 0
) -> NDArray[np.int64]:
    """Give a share of each leaf class's pictures their parent's label instead.

    Of n pictures of a leaf ``ceil((1 - share) * n)`` keep their label, as published. A leaf without
    siblings loses nothing by it, since its parent's label says as much: figures over leaves with
    siblings are the telling ones where a tree has chains. Leaves that are tops, and pictures that
    are labelled on an inner node already, stay as they are.

    Args:
        targets: ``(n,)`` node ids.
        tree: their tree.
        share: 0 (all keep their label) to 1 (none does).
        how: ``random`` draws who keeps it; ``first`` lets the first in order keep it, as published.
        seed: of the draw.

    Returns:
        ``(n,)`` node ids; ``targets`` itself is unchanged.

    Raises:
        ProtocolError: the share is not 0 to 1, or ``how`` is neither.
    """
    if not 0 <= share <= 1:
        raise ProtocolError(f"the share to relabel must be 0 to 1, got {share}")
    if how not in ("random", "first"):
        raise ProtocolError(f"how must be random or first, got {how!r}")
    rng = np.random.default_rng(seed)
    found = np.array(targets, dtype=np.int64)
    for leaf in sorted(set(tree.leaves) & set(np.unique(targets).tolist())):
        places = np.flatnonzero(targets == leaf)
        if how == "random":
            rng.shuffle(places)
        if tree.parents[leaf] != TOP:
            found[places[_kept(len(places), share) :]] = tree.parents[leaf]
    return found


def _kept(pictures: int, share: float) -> int:
    """How many keep their label."""
    # Rounded first: (1 - 0.7) * 30 is a hair above 9, and 9 is meant.
    return math.ceil(round((1 - share) * pictures, 9))


def is_coarse(targets: NDArray[np.int64], tree: LabelTree) -> NDArray[np.bool_]:
    """Of each picture whether its label is no leaf; those are shrunk in the published protocol."""
    leaf = np.zeros(len(tree), dtype=bool)
    leaf[list(tree.leaves)] = True
    return ~leaf[targets]


def lower_resolution(image: Image.Image, factor: float = 0.25) -> Image.Image:
    """Shrink a picture in each direction by nearest neighbour, without anti-aliasing, as published.

    The same pixels as ``torch.nn.functional.interpolate(..., scale_factor=factor)`` picks. The
    network's own preparation blows the picture up again.

    Args:
        image: any mode; read as RGB, 8 bit.
        factor: above 0, at most 1; at least one pixel stays.

    Raises:
        ProtocolError: the factor is out of range.
    """
    if not 0 < factor <= 1:
        raise ProtocolError(f"the factor must be above 0 and at most 1, got {factor}")
    pixels = _pixels(image)  # (H, W, 3)
    rows, columns = (_nearest(size, factor) for size in pixels.shape[:2])
    return Image.fromarray(pixels[rows][:, columns])  # (factor H, factor W, 3)


def _nearest(size: int, factor: float) -> NDArray[np.int64]:
    """Of each pixel that stays its place before; torch counts in 32 bit here, so do we."""
    steps = np.arange(max(1, math.floor(size * factor)), dtype=np.float32)
    places: NDArray[np.int64] = np.floor(steps * np.float32(1 / factor)).astype(np.int64)
    return np.clip(places, 0, size - 1)


def gaussian_noise(image: Image.Image, sigma: float, rng: np.random.Generator) -> Image.Image:
    """Add independent normal noise to each channel of each pixel, rounded and clipped to 8 bit.

    Args:
        image: any mode; read as RGB.
        sigma: standard deviation in steps of 8 bit, 0 to 255.
        rng: where the noise comes from.

    Raises:
        ProtocolError: sigma is below 0.
    """
    if sigma < 0:
        raise ProtocolError(f"the noise must be 0 or more, got {sigma}")
    pixels = _pixels(image)
    noisy = pixels + rng.normal(0.0, sigma, pixels.shape)  # (H, W, 3)
    return Image.fromarray(np.clip(np.rint(noisy), 0, 255).astype(np.uint8))


def gaussian_blur(image: Image.Image, sigma: float) -> Image.Image:
    """Blur a picture with a Gaussian of this standard deviation, in its own pixels.

    Raises:
        ProtocolError: sigma is below 0.
    """
    if sigma < 0:
        raise ProtocolError(f"the blur must be 0 pixels or more, got {sigma}")
    return image.convert("RGB").filter(ImageFilter.GaussianBlur(sigma))


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    """Send a picture through JPEG.

    Raises:
        ProtocolError: the quality is not 1 to 95, where the encoder's scale is meaningful.
    """
    if not 1 <= quality <= 95:
        raise ProtocolError(f"the JPEG quality must be 1 to 95, got {quality}")
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=quality)
    buffer.seek(0)
    with Image.open(buffer) as packed:
        return packed.convert("RGB")


@dataclass(frozen=True)
class Degradation:
    """How pictures are made poorer: in the order of a camera, blur, shrinking, noise, JPEG.

    Attributes:
        blur: standard deviation in pixels of the picture as it comes; 0 for none.
        resolution: factor by which each side is shrunk, as published; 1 for none.
        noise: standard deviation in steps of 8 bit; 0 for none.
        jpeg_quality: 1 to 95; None for no JPEG.
        seed: of the noise; each picture has its own by its name.

    Raises:
        ProtocolError: a number is out of range.

    Example:
        >>> Degradation(resolution=0.25, noise=8).key
        'resolution0.25-noise8-seed0'
        >>> Degradation().key
        'plain'
    """

    blur: float = 0.0
    resolution: float = 1.0
    noise: float = 0.0
    jpeg_quality: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        self.apply(Image.new("RGB", (1, 1)), "")  # each step checks its own number

    @property
    def key(self) -> str:
        """What is done, in a form fit for a file name: equal keys, equal pictures."""
        parts = [
            f"blur{self.blur:.12g}" if self.blur else "",
            f"resolution{self.resolution:.12g}" if self.resolution != 1 else "",
            f"noise{self.noise:.12g}-seed{self.seed}" if self.noise else "",
            f"jpeg{self.jpeg_quality}" if self.jpeg_quality is not None else "",
        ]
        return "-".join(filter(None, parts)) or "plain"

    def apply(self, image: Image.Image, name: str) -> Image.Image:
        """The poorer picture, RGB; the same for the same picture and name each time.

        Args:
            image: any mode.
            name: the picture's own, such as its file's name: it seeds the noise.
        """
        found = image.convert("RGB")
        if self.blur:
            found = gaussian_blur(found, self.blur)
        if self.resolution != 1:
            found = lower_resolution(found, self.resolution)
        if self.noise:
            rng = np.random.default_rng([self.seed, zlib.crc32(name.encode())])
            found = gaussian_noise(found, self.noise, rng)
        return found if self.jpeg_quality is None else jpeg(found, self.jpeg_quality)


def _pixels(image: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(image.convert("RGB"))
