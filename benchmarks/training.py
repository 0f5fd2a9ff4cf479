"""How long a training takes once features are cached, and where its seconds go.

    python -m benchmarks.training --data ../shared/data/grocery

Reads the training photos' features from the cache (computing them first if need be), then runs the
product's whole training, held-out part and depth rule included, with the default recipe and with
the fast one. Wall seconds on an otherwise idle machine.
"""

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from experiments.album import Album
from experiments.data import Dataset, load
from experiments.evaluation import machine
from experiments.protocols import Degradation
from models.backbone import load_backbone
from worker import trainer
from worker.recipe import Recipe


class Clock:
    """Adds up the seconds of each stage that the training reports."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._stage = ""
        self._since = time.monotonic()

    def __call__(self, stage: str, done: int, total: int, **figures: float) -> None:
        """A stage goes on, or another begins."""
        del done, total, figures
        now = time.monotonic()
        if self._stage:
            self.seconds[self._stage] = self.seconds.get(self._stage, 0.0) + now - self._since
        self._stage, self._since = stage, now


def examples(dataset: Dataset, album: Album, views: tuple[int, ...]) -> trainer.Examples:
    """All training photos, each with its leaf."""
    files, targets = dataset.train.files, dataset.train.targets

    def read(positions: Sequence[int], view: int) -> NDArray[np.float16]:
        some = [files[at] for at in positions]
        chunks = album.maps(some, views=(view,), degradation=Degradation())
        return np.concatenate([maps[0] for _, maps in chunks])

    return trainer.Examples(
        read=read,
        views=views,
        pictures=len(files),
        picture=np.arange(len(files)),
        target=targets,
        weight=np.ones(len(files), np.float32),
        truth=targets,
        groups=[None] * len(files),
    )


def measure(dataset: Dataset, album: Album, recipe: Recipe) -> dict[str, float]:
    """Wall seconds of each stage and of the whole."""
    given = examples(dataset, album, recipe.views)
    for view in recipe.views:  # into the cache, untimed
        given.read(range(given.pictures), view)
    clock, started = Clock(), time.monotonic()
    trainer.train(dataset.tree, given, recipe, target=0.95, report=clock)
    total = time.monotonic() - started
    clock("", 0, 0)
    return {**clock.seconds, "whole": total}


def main() -> None:
    """Measure both recipes and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=Path("var/evaluation"))
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # runs go side by side, as in a worker
    dataset = load(arguments.data)
    album = Album(load_backbone(arguments.backbone), arguments.cache)
    found = {
        name: measure(dataset, album, recipe)
        for name, recipe in (("default", Recipe()), ("fast", Recipe.fast()))
    }
    for name, seconds in found.items():
        stages = ", ".join(f"{stage} {value:.1f} s" for stage, value in seconds.items())
        print(f"{name}: {len(dataset.train)} pictures: {stages}")
    print(json.dumps({"machine": machine(), "cores": os.cpu_count(), "seconds": found}))


if __name__ == "__main__":
    main()
