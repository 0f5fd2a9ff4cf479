"""A training small enough for tests; as a program, one that waits to be killed.

``python -m tests.worker.tiny_tuning FOLDER STEP KIND`` trains with checkpoints in FOLDER, says so
when STEP is reached, and waits there.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from hierarchy import LabelTree
from inference.backbone import Backbone, Preparation
from worker.checkpoints import Checkpoints
from worker.fitting import Rows
from worker.photos import Pixels
from worker.tune_recipe import TuneRecipe
from worker.tuning import Lessons, Network, Tuner, tree_aim, tuned_head

TREE = LabelTree.from_paths([("Fruit", "Apple"), ("Fruit", "Pear"), ("Milk",)])

SIDE = 16

PICTURES = 20

#: Both ways of training, each with more parts than one: 20 labels are 3 steps, of 7, 7 and 6.
RECIPES = {
    "sgd": TuneRecipe(hidden=8, epochs=4, batch=7, at_once=4, rate=0.05, precision="f32"),
    "adamw": replace(
        TuneRecipe.adamw(),
        hidden=8,
        epochs=4,
        least_steps=0,
        batch=7,
        precision="f32",
    ),
}


class Small(nn.Module):
    """``(B, 3, 16, 16)`` -> ``(B, 8, 4, 4)``, with a batch norm and a dropout on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.convolve = nn.Conv2d(3, 8, 4, stride=4, bias=False)
        self.normalise = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.2)  # draws from the generator that all of torch shares

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        maps: torch.Tensor = self.drop(torch.relu(self.normalise(self.convolve(pictures))))
        return maps


def backbone(module: nn.Module | None = None) -> Backbone:
    torch.manual_seed(7)
    return Backbone("small", 8, 4, Preparation(SIDE, SIDE), "small-0", module or Small())


def show(picture: int, draw: str) -> Pixels:
    """Noise of its own for each picture, moved by what is drawn."""
    pixels = np.random.default_rng(picture).integers(0, 256, (3, SIDE, SIDE), dtype=np.uint8)
    return np.roll(pixels, sum(draw.encode()), axis=2)


def lessons(pictures: int = PICTURES) -> Lessons:
    at = torch.arange(pictures)
    return Lessons(Rows(at, at % len(TREE), 0.5 + (at % 3).float()), show)


def tuner(recipe: TuneRecipe, checkpoints: Checkpoints | None = None) -> Tuner:
    """The same each time: what it ends with differs only by what happens to it."""
    base = backbone()
    torch.manual_seed(recipe.seed)
    return Tuner(
        Network(base, tuned_head(TREE, base.channels, recipe)),
        tree_aim(TREE),
        lessons(),
        recipe,
        checkpoints=checkpoints,
    )


def main() -> None:
    """Train until the step, then wait for the end."""
    folder, stop, kind = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    torch.set_num_threads(1)

    def report(stage: str, done: int, total: int, **figures: float) -> None:
        if done == stop:
            print(done, flush=True)
            sys.stdin.read()

    tuner(RECIPES[kind], Checkpoints(folder, kind, every_s=0)).run(report)


if __name__ == "__main__":
    main()
