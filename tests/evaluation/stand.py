"""Drawings that a small network can tell apart, and vectors made of patterns."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from evaluation.features import Features, Judged, Vectors
from hierarchy import LabelTree

#: Colour of each leaf's squares; root nodes share a hue.
LEAVES = {
    ("Warm", "Red"): (220, 30, 30),
    ("Warm", "Orange"): (240, 150, 20),
    ("Cold", "Blue"): (30, 40, 220),
    ("Cold", "Green"): (20, 190, 60),
}

TREE = LabelTree.from_paths(
    [("Fruit", "Apple"), ("Fruit", "Pear"), ("Fruit", "Fig"), ("Milk", "Oat"), ("Milk", "Cow")]
)
CHANNELS = 12


def draw(folder: Path, counts: dict[str, int], *, side: int = 64) -> Path:
    """``counts`` images of each leaf for each split; each a little different."""
    rng = np.random.default_rng(0)
    for split, count in counts.items():
        for path, colour in LEAVES.items():
            target = folder.joinpath(split, *path)
            target.mkdir(parents=True)
            for number in range(count):
                base = np.full((4, 4, 3), colour) + rng.normal(0, 25, (4, 4, 3))
                image = Image.fromarray(np.clip(base, 0, 255).astype(np.uint8))
                image.resize((side, side), Image.Resampling.NEAREST).save(target / f"{number}.png")
    return folder


def vectors(leaves: NDArray[np.int64], seed: int, noise: float, augmentations: int = 1) -> Vectors:
    """``(n, V, C)``: each node on an image's path adds a pattern of its own."""
    patterns = np.random.default_rng(7).normal(size=(len(TREE), CHANNELS))
    signal = patterns[leaves] + patterns[np.array(TREE.parents)[leaves]]
    size = (len(leaves), augmentations, CHANNELS)
    drawn = np.random.default_rng(seed).normal(size=size) * noise
    found: Vectors = (signal[:, None] + drawn).astype(np.float16)
    return found


def features(count: int = 100, *, noise: float = 0.7) -> Features:
    """Vectors of so many training images, and of others to judge on."""
    leaves = np.resize(np.array(TREE.leaves), count)
    held = np.resize(np.array(TREE.leaves), 150)
    return Features(
        TREE,
        vectors(leaves, 0, noise, 2),
        None,
        leaves,
        {
            name: Judged(vectors(held, seed, noise)[:, 0], held)
            for seed, name in enumerate(("val", "test"), 1)
        },
        (CHANNELS,),
    )
