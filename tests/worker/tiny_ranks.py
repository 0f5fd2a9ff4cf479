"""A training shared by the processes that torchrun starts: `... -m tests.worker.tiny_ranks FILE`.

The leading one writes the mean loss of each epoch and the weights' sum into the file, as JSON.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from tests.worker.tiny_tuning import RECIPES, TREE, Small, backbone, lessons
from worker.ranks import Ranks, gathered
from worker.tune_recipe import TuneRecipe
from worker.tuning import Network, Tuner, tree_aim, tuned_head

#: Labels that each process takes of a step.
EACH = 5

#: So that what a process alone does in two parts is what two do side by side.
RECIPE = replace(RECIPES["adamw"], batch=2 * EACH, at_once=EACH, epochs=6)


def losses(recipe: TuneRecipe, ranks: Ranks | None = None) -> tuple[list[float], dict[str, float]]:
    """Mean loss of each epoch, and a number for each tensor of the trained network."""
    torch.manual_seed(recipe.seed)
    module = Small()
    module.drop = nn.Dropout(0.0)  # drawn by each process for itself, so never alike
    base = backbone(module)
    torch.manual_seed(recipe.seed)
    head, told = tuned_head(TREE, base.channels, recipe), list[float]()
    network = Network(base, head)
    tuner = Tuner(network, tree_aim(TREE), lessons(), recipe, ranks=ranks)
    tuner.run(lambda *_, **figures: told.extend(figures[n] for n in ("loss",) if figures))
    return told, {name: float(value.double().sum()) for name, value in network.state_dict().items()}


def main() -> None:
    """Train this process's share."""
    torch.set_num_threads(1)
    with gathered() as (ranks, _):
        told, sums = losses(RECIPE, ranks)
        if ranks.leads:
            Path(sys.argv[1]).write_text(json.dumps([told, sums]), encoding="utf-8")


if __name__ == "__main__":
    main()
