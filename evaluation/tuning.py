"""`hrn evaluate --fine-tune`: the backbone trains along, under heads that differ in one thing each.

``residual`` is HRN's: a block of features a level, coarser ones added to finer ones. ``shared`` has
one block for all nodes, so the two differ by the levels. ``pooled`` has no block at all, and
``flat`` is the same with a softmax over the leaves in place of the tree: the usual way to fine-tune
a network, which learns nothing from coarse labels. On a GPU all of it runs; on a CPU a few steps
show that it would.

B pictures, N nodes, C channels.
"""

import argparse
import hashlib
import json
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from evaluation import evaluation, report
from evaluation.data import Dataset, Options, Split, load
from evaluation.errors import DatasetError, ExperimentError
from evaluation.protocols import Degradation, How, relabel
from evaluation.report import Figure, Results, Row
from hierarchy import LabelTree
from hierarchy.metrics import evaluate
from hierarchy.network import GranularityBlock, ResidualHead
from hierarchy.rivals.flat import Flat
from inference.backbone import Backbone, load_backbone
from inference.features import prepare
from studio.errors import ImageError
from studio.image_decoder import ImageLimits, decode
from worker import checkpoints
from worker.checkpoints import Checkpoints
from worker.fine_tuning import device_of
from worker.fitting import Rows
from worker.photos import Pixels, Shelf, small, varied
from worker.settings import Settings
from worker.tune_recipe import TuneRecipe
from worker.tuning import Aim, Lessons, Network, Tuned, Tuner, identity, predict, tree_aim

log = logging.getLogger(__name__)

Build = Callable[[LabelTree, int, TuneRecipe], tuple[nn.Module, Aim]]

#: Photos of a split that a trial of a few steps is judged on.
TRIAL_JUDGED: Final = 64

#: Position of a training photo, and whether in its poor form.
Key = tuple[int, bool]


class SharedHead(nn.Module):
    """One of HRN's blocks for all levels, and one linear score a node."""

    def __init__(self, tree: LabelTree, channels: int, *, inner: int, features: int) -> None:
        super().__init__()
        self.block = GranularityBlock(channels, inner, features)
        self.score = nn.Linear(features, len(tree))

    def forward(self, maps: Tensor) -> Tensor:
        """``(B, C, h, w)`` feature maps -> ``(B, N)`` raw scores."""
        scores: Tensor = self.score(torch.relu(self.block(maps)))
        return scores


def _residual(tree: LabelTree, channels: int, recipe: TuneRecipe) -> tuple[nn.Module, Aim]:
    head = ResidualHead(tree, channels, inner=recipe.inner, features=recipe.features)
    return head, tree_aim(tree)


def _shared(tree: LabelTree, channels: int, recipe: TuneRecipe) -> tuple[nn.Module, Aim]:
    head = SharedHead(tree, channels, inner=recipe.inner, features=recipe.features)
    return head, tree_aim(tree)


def _pooled(tree: LabelTree, channels: int, recipe: TuneRecipe) -> tuple[nn.Module, Aim]:
    del recipe
    return nn.Sequential(_pool(), nn.Linear(channels, len(tree))), tree_aim(tree)


def _flat(tree: LabelTree, channels: int, recipe: TuneRecipe) -> tuple[nn.Module, Aim]:
    del recipe
    head = Flat(tree, _pool(), channels)
    return head, Aim(lambda logits, targets, _: head.loss(logits, targets), head.log_probability)


def _pool() -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())


HEADS: Mapping[str, Build] = {
    "residual": _residual,
    "shared": _shared,
    "pooled": _pooled,
    "flat": _flat,
}


@dataclass(frozen=True)
class Plan:
    """What all runs of a comparison share.

    Attributes:
        dataset: the photos.
        backbone: where each run starts from.
        recipe: a run brings its seed.
        device: ``cpu`` or ``cuda``.
        how: who is relabelled.
        low_res: whether relabelled photos are shrunk, as published.
        steps: after which a run stops that only tries things out; None for the whole recipe.
    """

    dataset: Dataset
    backbone: Backbone
    recipe: TuneRecipe
    device: str
    how: How = "random"
    low_res: bool = False
    steps: int | None = None

    def judged(self, split: Split) -> Split:
        """The photos that are judged on: all, or some from all over the list in a trial."""
        if self.steps is None or len(split) <= TRIAL_JUDGED:
            return split
        return split.take(np.linspace(0, len(split) - 1, TRIAL_JUDGED).astype(np.int64))

    def settings(self) -> dict[str, Any]:
        """What the file of results says of all of them."""
        recipe = {name: value for name, value in self.recipe.to_json().items() if name != "seed"}
        told = {
            "data": self.dataset.name,
            "backbone": self.backbone.fingerprint,
            "how": self.how,
            "low_res": self.low_res,
            "device": self.device,
            "recipe": recipe,
        }
        if self.steps is None:
            return told
        return {
            **told,
            "trial": {"steps": self.steps, "judged": len(self.judged(self.dataset.test))},
        }


@dataclass(frozen=True)
class TuneRun:
    """One head, share and seed; ``name`` is what its checkpoints are kept under."""

    head: str
    share: float
    seed: int

    @property
    def name(self) -> str:
        """Fit for a folder."""
        return f"{self.head}-{100 * self.share:g}-{self.seed}"


def shelf(dataset: Dataset, backbone: Backbone, folder: Path) -> Shelf[Key]:
    """The training photos, read when they are first shown and then kept, whole and poor."""

    def make(key: Key) -> bytes:
        at, poor = key
        file = dataset.train.files[at]
        if not poor:
            return small(_read(file, 2 * backbone.preparation.resize), backbone.preparation)
        shrunk = Degradation(resolution=0.25).apply(_read(file, None), file.name)
        return small(shrunk, backbone.preparation)

    return Shelf(folder, make)


def tune(
    run: TuneRun, plan: Plan, photos: Shelf[Key], say: Callable[..., None], saved_in: Path
) -> Row:
    """Do one run: train, judge on val and test.

    Args:
        run: which.
        plan: what it shares with the others.
        photos: see `shelf`.
        say: told of progress as ``worker.fitting.Report``.
        saved_in: a folder for its checkpoints, from which it goes on if it was killed.

    Raises:
        ExperimentError: there is no such head.
        FloatingPointError: the loss is not finite.
    """
    if run.head not in HEADS:
        raise ExperimentError(f"no head {run.head!r}: expected some of {', '.join(HEADS)}")
    tree, train = plan.dataset.tree, plan.dataset.train
    recipe = replace(plan.recipe, seed=run.seed)
    targets = relabel(train.targets, tree, run.share, how=plan.how, seed=run.seed)
    poor = (targets != train.targets) & plan.low_res
    torch.manual_seed(run.seed)
    head, aim = HEADS[run.head](tree, plan.backbone.channels, recipe)
    network = Network(plan.backbone, head)

    def show(at: int, draw: str) -> Pixels:
        return varied(photos[at, bool(poor[at])], plan.backbone.preparation, draw)

    rows = Rows(torch.arange(len(targets)), torch.from_numpy(targets), torch.ones(len(targets)))
    known = Checkpoints(
        saved_in, identity(network, recipe, plan.device, _facts(run, plan, targets))
    )
    tuner = Tuner(
        network,
        aim,
        Lessons(rows, show),
        recipe,
        device=plan.device,
        checkpoints=known if plan.steps is None else None,
    )
    tuned = tuner.run(say, limit=plan.steps)
    return Row(run.head, run.share, run.seed, _figures(network, aim, plan, tuned))


def _facts(run: TuneRun, plan: Plan, targets: NDArray[np.int64]) -> dict[str, Any]:
    files = "\n".join(str(file) for file in plan.dataset.train.files)
    labels = hashlib.sha256(files.encode() + targets.tobytes()).hexdigest()
    return {
        "head": run.head,
        "backbone": plan.backbone.fingerprint,
        "labels": labels,
        "low_res": plan.low_res,
    }


def _figures(network: Network, aim: Aim, plan: Plan, tuned: Tuned) -> dict[str, float]:
    """All figures of one run, by name."""
    figures = {
        "seconds": tuned.seconds,
        "steps": float(tuned.steps),
        "labels a second": tuned.labels_a_second,
    }
    if plan.device == "cuda":  # the most of all runs so far
        figures["GPU GB"] = torch.cuda.max_memory_allocated() / 1e9
    tree, test = plan.dataset.tree, plan.judged(plan.dataset.test)
    val = plan.judged(plan.dataset.val)
    on_test = _log_probabilities(network, aim, plan, test)
    figures |= evaluation.flat(evaluate(on_test, test.targets, tree))
    if len(val):
        on_val = _log_probabilities(network, aim, plan, val)
        scores = evaluate(on_val, val.targets, tree)
        figures |= {f"val {name}": value for name, value in evaluation.flat(scores)}
        figures |= evaluation.shown_figures(on_val, val.targets, on_test, test.targets, tree)
    return figures


def _log_probabilities(network: Network, aim: Aim, plan: Plan, split: Split) -> NDArray[np.float64]:
    """``(n, N)`` of a split's photos, prepared as served ones are."""
    preparation = plan.backbone.preparation

    def look(at: int) -> Pixels:
        return prepare(_read(split.files[at], 2 * preparation.resize), preparation)

    return predict(network, aim, look, range(len(split)), device=plan.device)


def _read(file: Path, at_least: int | None) -> Image.Image:
    try:
        return decode(file.read_bytes(), limits=ImageLimits(), at_least=at_least)
    except (OSError, ImageError) as error:
        raise DatasetError(f"{file}: {error}") from error


# The command


def command(arguments: argparse.Namespace, settings: Settings) -> int:
    """Do all runs, save each as it is done, print a table. Returns the exit status.

    Runs whose figures are in the file already, under the same settings, are not done again; one
    that was killed goes on from its last checkpoint. Trials are never mixed with either.

    Args:
        arguments: data, layout, tree, relabel, how, low_res, seeds, backbone, weights, out, json,
            steps, heads, optimiser and epochs of `hrn evaluate`.
        settings: backbone, device and home.

    Raises:
        ExperimentError: an argument or a photo is not as it should be.
    """
    plan = _plan(arguments, settings)
    runs = [
        TuneRun(head, share, seed)
        for share in arguments.relabel
        for seed in range(arguments.seeds)
        for head in arguments.heads or HEADS
    ]
    arguments.out.mkdir(parents=True, exist_ok=True)
    trial = plan.steps is not None
    file = arguments.out / ("fine-tuning-trial.json" if trial else "fine-tuning.json")
    results = Results((), plan.settings(), _machine(plan.device))
    if file.exists() and not trial:
        results = report.merge([report.read(file), results])
    done = {row.key for row in results.rows}
    with shelf(plan.dataset, plan.backbone, settings.cache / "tuning") as photos:
        for number, run in enumerate(runs):
            where = (
                f"{number + 1} of {len(runs)}: {run.head}, {100 * run.share:g} %, seed {run.seed}"
            )
            if (run.head, run.share, run.seed) in done:
                _say(f"{where}: is in {file} already")
                continue
            saved = arguments.out / "checkpoints" / run.name
            row = tune(run, plan, photos, _Voice(where), saved)
            results = report.merge([results, replace(results, rows=(row,))])
            report.save(results, file)
            checkpoints.remove(saved)
            _say(f"{where}: leaf {100 * row.figures['leaf']:.1f} %")
    _print(results, plan, as_json=arguments.json)
    return 0


def _plan(arguments: argparse.Namespace, settings: Settings) -> Plan:
    for name in ("steps", "epochs", "seeds"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ExperimentError(f"--{name} must be 1 or more, got {value}")
    unknown = sorted(set(arguments.heads or ()) - set(HEADS))
    if unknown:
        raise ExperimentError(f"no head {', '.join(unknown)}: expected some of {', '.join(HEADS)}")
    device = device_of(settings)
    options = Options() if arguments.tree is None else Options(tree=arguments.tree)
    return Plan(
        load(arguments.data, arguments.layout, options),
        load_backbone(arguments.backbone or settings.backbone, weights=arguments.weights),
        _recipe(device, arguments.optimiser, arguments.epochs),
        device,
        arguments.how,
        arguments.low_res,
        arguments.steps,
    )


def _recipe(device: str, optimiser: str | None, epochs: int | None) -> TuneRecipe:
    """The device's, or the one that was asked for in the device's sizes."""
    own = TuneRecipe.for_device(device)
    if optimiser is not None and optimiser != own.optimiser:
        other = TuneRecipe.adamw() if optimiser == "adamw" else TuneRecipe()
        own = replace(
            other,
            inner=own.inner,
            features=own.features,
            epochs=own.epochs,
            batch=own.batch,
            precision=own.precision,
        )
    return own if epochs is None else replace(own, epochs=epochs, least_steps=0)


def _machine(device: str) -> dict[str, str]:
    known = evaluation.machine()
    return {**known, "gpu": torch.cuda.get_device_name()} if device == "cuda" else known


def _print(results: Results, plan: Plan, *, as_json: bool) -> None:
    levels = range(plan.dataset.tree.depth - 1, 0, -1)
    figures: Sequence[Figure] = (
        Figure("leaf"),
        Figure("siblings leaf", "leaf, siblings"),
        *(Figure(f"level {level}") for level in levels),
        Figure("leaf ece", better="lower"),
        Figure("seconds", better=None, percent=False, digits=0),
        Figure("labels a second", better=None, percent=False),
    )
    text = json.dumps(results.to_json()) if as_json else report.text(results, figures)
    sys.stdout.write(f"{text.rstrip()}\n")
    if plan.steps is not None:
        _say(
            f"A trial: no run was longer than {plan.steps} steps, and "
            f"{len(plan.judged(plan.dataset.test))} of {len(plan.dataset.test)} test photos were "
            "judged. It shows that everything runs; the accuracies say nothing of the methods."
        )


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


class _Voice:
    """Says how far a run is, at most every few seconds, and each mean loss."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._said = 0.0

    def __call__(self, stage: str, done: int, total: int, **figures: float) -> None:
        del stage
        if figures or time.monotonic() - self._said > 5:
            self._said = time.monotonic()
            told = "".join(f", {name} {value:.3f}" for name, value in figures.items())
            _say(f"{self._what}: step {done} of {total}{told}")
