"""A folder of labelled drawings that a small network can tell apart."""

from pathlib import Path

import numpy as np
from PIL import Image

#: Colour of each leaf's squares; tops share a hue.
LEAVES = {
    ("Warm", "Red"): (220, 30, 30),
    ("Warm", "Orange"): (240, 150, 20),
    ("Cold", "Blue"): (30, 40, 220),
    ("Cold", "Green"): (20, 190, 60),
}


def draw(folder: Path, counts: dict[str, int], *, side: int = 64) -> Path:
    """``counts`` pictures of each leaf for each split; each a little different."""
    rng = np.random.default_rng(0)
    for split, count in counts.items():
        for path, colour in LEAVES.items():
            target = folder.joinpath(split, *path)
            target.mkdir(parents=True)
            for number in range(count):
                base = np.full((4, 4, 3), colour) + rng.normal(0, 25, (4, 4, 3))
                picture = Image.fromarray(np.clip(base, 0, 255).astype(np.uint8))
                picture.resize((side, side), Image.Resampling.NEAREST).save(
                    target / f"{number}.png"
                )
    return folder
