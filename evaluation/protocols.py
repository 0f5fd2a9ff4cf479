"""Protocols: how many labels, how many of them coarse, and images made poorer.

The published protocols (Chen et al. 2022, and its code) are marked as such; all are pure functions.
"""

import math
import zlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from evaluation.errors import ProtocolError
from hierarchy.metrics import sibling_leaves
from hierarchy.tree import TOP, LabelTree

How = Literal["random", "first"]

#: Leaves of one family in a small tree, at most.
FAMILY = 4


def relabel(
    targets: NDArray[np.int64], tree: LabelTree, share: float, *, how: How = "random", seed: int = 0
) -> NDArray[np.int64]:
    """Give a share of each leaf class's images their parent's label instead.

    Of n images of a leaf ``ceil((1 - share) * n)`` keep their label, as published. A leaf without
    siblings loses nothing by it, since its parent's label says as much: figures over leaves with
    siblings are the telling ones where a tree has chains. Leaves that are root nodes, and images
    that are labelled on an inner node already, stay as they are.

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


def _kept(images: int, share: float) -> int:
    """Count those that keep their label."""
    # Rounded first: (1 - 0.7) * 30 is a hair above 9, and 9 is meant.
    return math.ceil(round((1 - share) * images, 9))


def lower_resolution(image: Image.Image, factor: float = 0.25) -> Image.Image:
    """Shrink a image in each direction by nearest neighbour, without anti-aliasing, as published.

    The same pixels as ``torch.nn.functional.interpolate(..., scale_factor=factor)`` picks. The
    network's own preparation blows the image up again.

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
    """Return the former place of each pixel that stays; torch counts in 32 bit here, so do we."""
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
    """Blur a image with a Gaussian of this standard deviation, in its own pixels.

    Raises:
        ProtocolError: sigma is below 0.
    """
    if sigma < 0:
        raise ProtocolError(f"the blur must be 0 pixels or more, got {sigma}")
    return image.convert("RGB").filter(ImageFilter.GaussianBlur(sigma))


@dataclass(frozen=True)
class Protocol:
    """A choice of training labels.

    Attributes:
        share: of each leaf's images, the share that get their parent's label instead.
        how: who is relabelled, see :func:`relabel`.
        low_res: whether relabelled images are shrunk, as published.
        per_leaf: images of each leaf that are labelled at all, drawn at random; None for all.
        leaves: leaves of a small tree, see :func:`small_tree`; the others and their images are
            left out. None for all.

    Raises:
        ProtocolError: a number is out of range.

    Example:
        >>> Protocol(0.5, per_leaf=4).name
        '50 %, 4 per leaf'
    """

    share: float = 0.0
    how: How = "random"
    low_res: bool = False
    per_leaf: int | None = None
    leaves: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ProtocolError(f"the share to relabel must be 0 to 1, got {self.share}")
        if self.how not in ("random", "first"):
            raise ProtocolError(f"how must be random or first, got {self.how!r}")
        for name, least in (("per_leaf", 1), ("leaves", 2)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ProtocolError(f"{name} must be {least} or more, got {value}")

    @property
    def name(self) -> str:
        """Name in tables: the share relabelled, and whatever else is not usual."""
        parts = [
            f"{100 * self.share:g} %",
            "first keep theirs" if self.how == "first" else "",
            "low resolution" if self.low_res else "",
            f"{self.per_leaf} per leaf" if self.per_leaf is not None else "",
            f"{self.leaves} leaves" if self.leaves is not None else "",
        ]
        return ", ".join(filter(None, parts))

    def labels(
        self, targets: NDArray[np.int64], tree: LabelTree, seed: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Draw the labelled images and relabel them.

        Args:
            targets: ``(P,)`` node ids of all training images.
            tree: their tree.
            seed: of the draws.

        Returns:
            ``(n,)`` positions of the labelled images, ascending, and their ``(n,)`` labels.
        """
        chosen = np.arange(len(targets))
        if self.per_leaf is not None:
            rng = np.random.default_rng([seed, 2])
            of_each = [rng.permutation(np.flatnonzero(targets == n)) for n in np.unique(targets)]
            chosen = np.sort(np.concatenate([one[: self.per_leaf] for one in of_each]))
        return chosen, relabel(targets[chosen], tree, self.share, how=self.how, seed=seed)


def small_tree(tree: LabelTree, leaves: int, seed: int) -> tuple[LabelTree, NDArray[np.int64]]:
    """Draw leaves family by family, up to four siblings of each, and keep the nodes above them.

    Leaves without siblings are left out: who knows their parent knows them.

    Returns:
        The small tree, and of each node its id there, -1 for those left out, ``(N,)``.

    Raises:
        ProtocolError: the tree has not so many.
    """
    families: dict[int, list[int]] = {}
    for leaf in sibling_leaves(tree):
        families.setdefault(tree.parents[leaf], []).append(leaf)
    rng = np.random.default_rng([seed, 3])
    order = [families[parent] for parent in rng.permutation(sorted(families)).tolist()]
    drawn = [leaf for family in order for leaf in family[:FAMILY]][:leaves]
    if len(drawn) < leaves:
        raise ProtocolError(f"leaves must be at most {len(drawn)} of this tree, got {leaves}")
    stay = sorted({node for leaf in drawn for node in tree.ancestors(leaf)})
    place = np.full(len(tree) + 1, TOP)  # the last for the parent of root nodes
    place[stay] = np.arange(len(stay))
    parents = [place[tree.parents[node]] for node in stay]
    return LabelTree.from_parents(parents, [tree.names[node] for node in stay]), place[:-1]


@dataclass(frozen=True)
class Degradation:
    """A way of making images poorer: in the order of a camera, blur, shrinking, noise.

    Attributes:
        blur: standard deviation in pixels of the image as it comes; 0 for none.
        resolution: factor by which each side is shrunk, as published; 1 for none.
        noise: standard deviation in steps of 8 bit; 0 for none.
        seed: of the noise; each image has its own by its name.

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
    seed: int = 0

    def __post_init__(self) -> None:
        self.apply(Image.new("RGB", (1, 1)), "")  # each step checks its own number

    @property
    def key(self) -> str:
        """A description fit for a file name: equal keys, equal images."""
        parts = [
            f"blur{self.blur:.12g}" if self.blur else "",
            f"resolution{self.resolution:.12g}" if self.resolution != 1 else "",
            f"noise{self.noise:.12g}-seed{self.seed}" if self.noise else "",
        ]
        return "-".join(filter(None, parts)) or "plain"

    def apply(self, image: Image.Image, name: str) -> Image.Image:
        """Return the poorer image, RGB; the same for the same image and name each time.

        Args:
            image: any mode.
            name: the image's own, such as its file's name: it seeds the noise.
        """
        found = image.convert("RGB")
        if self.blur:
            found = gaussian_blur(found, self.blur)
        if self.resolution != 1:
            found = lower_resolution(found, self.resolution)
        if self.noise:
            rng = np.random.default_rng([self.seed, zlib.crc32(name.encode())])
            found = gaussian_noise(found, self.noise, rng)
        return found


def _pixels(image: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(image.convert("RGB"))
