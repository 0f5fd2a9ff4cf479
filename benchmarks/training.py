"""How long a training takes once features are cached, and where its seconds go.

    python -m benchmarks.training --data ../shared/data/grocery

Runs the product's own training from labels to a published version that answers, held-out part,
depth rule and files included, on all training photos with their leaves. The cache is filled first,
untimed. Wall seconds, so on an otherwise idle machine; those of processors tell how busy it was.
Features are read from memory, where the
operating system keeps files that were read lately, if they fit there.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Final

import torch

from evaluation.album import open_photo, ref_of
from evaluation.data import Dataset, load
from evaluation.evaluation import machine
from inference.answers import answers
from inference.galleries import Galleries
from inference.predictor import load_predictor
from inference.store import Project
from studio.annotations import Label, TaskLabels
from studio.label_config import LabelConfig, parse_label_config
from studio.label_config_writer import taxonomy_config
from worker import training
from worker.gathering import gather
from worker.order import Order
from worker.parts import Parts
from worker.recipe import Recipe
from worker.settings import Settings
from worker.snapshot import Snapshot, take

KEY: Final = "benchmark"

#: What a training reports -> what it is called here.
STAGES: Final = {
    "fetching pictures": "look up",
    "reducing": "read and reduce",
    "fitting": "fit",
    "calibrating": "calibrate",
    "publishing": "publish",
}


class Clock:
    """Adds up each stage's seconds as the training reports it, by the wall and of processors."""

    def __init__(self) -> None:
        self.seconds: dict[str, tuple[float, float]] = {}
        self._stage = ""
        self._since = now()

    def __call__(self, stage: str, done: int, total: int, **figures: float) -> None:
        """A stage goes on, or another begins."""
        del done, total, figures
        wall, cpu = now()
        if self._stage:
            before = self.seconds.get(self._stage, (0.0, 0.0))
            self.seconds[self._stage] = (
                before[0] + wall - self._since[0],
                before[1] + cpu - self._since[1],
            )
        self._stage, self._since = STAGES.get(stage, stage), (wall, cpu)


def now() -> tuple[float, float]:
    """Seconds by the wall, and of all processors together."""
    return time.monotonic(), time.process_time()


def labels(dataset: Dataset, config: LabelConfig) -> Snapshot:
    """All training photos, each with its leaf, as a project's labels."""
    tasks = []
    for at, (file, target) in enumerate(
        zip(dataset.train.files, dataset.train.targets.tolist(), strict=True)
    ):
        node = config.tree.index(dataset.tree.paths[target])
        label = Label(
            at, at, node, (node,), 1, "", ground_truth=False, origin=None, parent_prediction=None
        )
        tasks.append(TaskLabels(at, ref_of(file), (label,), (), {}))
    return take(tasks, config.tree)


def measure(
    parts: Parts, config: LabelConfig, snapshot: Snapshot, *, fast: bool
) -> dict[str, tuple[float, float]]:
    """Wall and processor seconds of each stage, and of the whole to the first new answer."""
    recipe = Recipe.fast() if fast else Recipe()
    gallery = parts.galleries.base()
    gather(snapshot, gallery, "", lambda *_, **__: None, recipe.views)  # into the cache, untimed
    project = parts.store.register(Project(KEY, 1, "1.0", "http://localhost", ""))
    clock, started = Clock(), now()
    order = Order(KEY, force=True, fast=fast)
    ended = training.learn(order, project, config, snapshot, parts, clock)
    clock("answer", 0, 1)
    assert ended.version is not None, ended
    predictor = load_predictor(parts.store, project, ended.version, tree=config.tree)
    answers(gallery, predictor, [(str(snapshot.tasks[0].image), None)])
    clock("", 0, 0)
    wall, cpu = now()
    return {**clock.seconds, "whole": (wall - started[0], cpu - started[1])}


def main() -> None:
    """Measure both recipes and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=Path("var/evaluation"))
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # runs go side by side, as in a worker
    dataset = load(arguments.data)
    config = parse_label_config(taxonomy_config(dataset.tree))
    snapshot = labels(dataset, config)
    found = {}
    with tempfile.TemporaryDirectory() as home:
        for name in ("default", "fast"):
            parts = Parts(Settings(home=Path(home) / name, device="cpu"))
            parts.galleries = Galleries(
                arguments.cache,
                lambda ref, _: open_photo(ref),
                backbone=arguments.backbone,
                device="cpu",
            )
            found[name] = measure(parts, config, snapshot, fast=name == "fast")
    for name, seconds in found.items():
        stages = ", ".join(
            f"{stage} {wall:.1f} ({cpu:.1f})" for stage, (wall, cpu) in seconds.items()
        )
        print(f"{name}, {len(dataset.train)} pictures, seconds (of processors): {stages}")
    print(json.dumps({"machine": machine(), "cores": os.cpu_count(), "seconds": found}))


if __name__ == "__main__":
    main()
