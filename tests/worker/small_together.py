"""A small training for several processes; as a program, one whose job waits to be killed.

``python -m tests.worker.small_together FOLDER`` trains for long and makes FOLDER/began.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from inference.backbone import load_backbone
from tests.inference.small import NAME, weights_file
from tests.worker.tiny_tuning import TREE
from worker.fitting import Rows
from worker.photos import small
from worker.together import Task, train_together
from worker.tune_recipe import TuneRecipe
from worker.tuning import Network, tuned_head

LABELS = 24

#: 3 steps of 8 labels an epoch.
RECIPE = TuneRecipe(hidden=8, epochs=3, batch=8, precision="f32")


class Training:
    """Everything that `train_together` takes.

    Attributes:
        network: as it begins.
        task: in plain data.
        rows: the labels.
        room: where the processes meet.
    """

    def __init__(self, folder: Path, epochs: int = 3) -> None:
        weights, recipe = weights_file(folder), replace(RECIPE, epochs=epochs)
        base = load_backbone(NAME, weights=weights)
        self._preparation = base.preparation
        self.network = Network(base, tuned_head(TREE, base.channels, recipe))
        saved = str(folder / "checkpoints")
        self.task = Task(NAME, str(weights), recipe.to_json(), TREE.to_json(), saved, "one")
        at = torch.arange(LABELS)
        self.rows = Rows(at, at % len(TREE), torch.ones(LABELS))
        self.room = folder / "room"

    def picture(self, at: int) -> bytes:
        """One of its own for each position."""
        pixels = np.random.default_rng(at).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        return small(Image.fromarray(pixels), self._preparation)


def main() -> None:
    """Train until killed."""
    folder = Path(sys.argv[1])
    made = Training(folder, epochs=100_000)

    def began(*_: object, **__: object) -> None:
        (folder / "began").touch()

    train_together(
        made.task, made.network, made.rows, made.picture, began, processes=2, room=made.room
    )


if __name__ == "__main__":
    main()
