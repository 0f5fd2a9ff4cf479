"""How long a training takes once features are cached, and where its seconds go.

    python -m benchmarks.training --data ../shared/data/grocery
    python -m benchmarks.training --data ../shared/data/grocery --labels 300

Runs the product's own training from labels to a published version that answers, held-out part,
depth rule and files included, on training images with their leaves. The cache is filled first,
untimed. Wall seconds, so on an otherwise idle machine; those of processors tell how busy it was.
"""

import os
import tempfile
import time
from pathlib import Path
from typing import Final

import numpy as np
import torch

from benchmarks.common import arguments, report
from evaluation.data import Split, load
from evaluation.features import open_image, reference_of
from evaluation.protocols import Degradation
from hierarchy import LabelTree
from inference.answers import answers
from inference.extractors import FeatureExtractors
from inference.predictor import load_predictor
from inference.store import Project
from studio.annotations import Label, TaskLabels
from studio.label_config import LabelConfig, parse_label_config
from studio.label_config_writer import taxonomy_config
from worker import training
from worker.dataset import build_dataset
from worker.order import Order
from worker.parts import Parts
from worker.settings import Settings
from worker.snapshot import Snapshot, take
from worker.training_config import TrainingConfig

KEY: Final = "benchmark"


class Clock:
    """Adds up each stage's seconds as the training reports it, by the wall and of processors."""

    def __init__(self) -> None:
        self.seconds: dict[str, tuple[float, float]] = {}
        self._stage = ""
        self._since = now()

    def __call__(self, stage: str, done: int, total: int, **figures: float) -> None:
        """Note that a stage goes on, or that another begins."""
        del done, total, figures
        wall, cpu = now()
        if self._stage:
            before = self.seconds.get(self._stage, (0.0, 0.0))
            self.seconds[self._stage] = (
                before[0] + wall - self._since[0],
                before[1] + cpu - self._since[1],
            )
        self._stage, self._since = stage, (wall, cpu)


def now() -> tuple[float, float]:
    """Return seconds by the wall, and of all processors together."""
    return time.monotonic(), time.process_time()


def labels(split: Split, tree: LabelTree, config: LabelConfig) -> Snapshot:
    """Make a project's labels of images, each with its leaf."""
    tasks = []
    for at, (file, target) in enumerate(zip(split.files, split.targets.tolist(), strict=True)):
        node = config.tree.index(tree.paths[target])
        label = Label(
            at, at, node, (node,), 1, "", ground_truth=False, origin=None, parent_prediction=None
        )
        tasks.append(TaskLabels(at, reference_of(file), (label,), (), {}))
    return take(tasks, config.tree)


def measure(
    parts: Parts, config: LabelConfig, snapshot: Snapshot
) -> dict[str, tuple[float, float]]:
    """Return wall and processor seconds of each stage, and of the whole to the first new answer."""
    extractor = parts.extractors.base()
    augmentations = TrainingConfig().augmentations
    build_dataset(snapshot, extractor, "", lambda *_, **__: None, augmentations)  # untimed
    project = parts.store.register(Project(KEY, 1, "1.0", "http://localhost", ""))
    clock, started = Clock(), now()
    order = Order(KEY, force=True)
    ended = training.learn(order, project, config, snapshot, parts, clock)
    clock("answer", 0, 1)
    assert ended.version is not None, ended
    predictor = load_predictor(parts.store, project, ended.version, tree=config.tree)
    answers(extractor, predictor, [(str(snapshot.tasks[0].image), None)])
    clock("", 0, 0)
    wall, cpu = now()
    return {**clock.seconds, "whole": (wall - started[0], cpu - started[1])}


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__)
    parser.add_argument("--labels", type=int, help="so many images, drawn at random; all if not")
    given = parser.parse_args()
    torch.set_num_threads(1)  # runs go side by side, as in a worker
    ours = Settings.from_environ(os.environ)
    dataset = load(given.data)
    split = dataset.train
    if given.labels is not None:
        drawn = np.random.default_rng(0).permutation(len(split))[: given.labels]
        split = split.take(np.sort(drawn))
    config = parse_label_config(taxonomy_config(dataset.tree))
    with tempfile.TemporaryDirectory() as home:
        parts = Parts(Settings(home=Path(home), device="cpu"))
        parts.extractors = FeatureExtractors(
            ours.cache,
            lambda ref, _: open_image(ref, Degradation()),
            networks=ours.networks,
            device="cpu",
        )
        found = measure(parts, config, labels(split, dataset.tree, config))
    seconds = {name: {"wall": wall, "processors": cpu} for name, (wall, cpu) in found.items()}
    report({"images": len(split), "seconds": seconds}, given.json)


if __name__ == "__main__":
    main()
