"""`hrn evaluate --fine-tune`: compare heads that learn together with a backbone."""

import argparse
import time
from dataclasses import replace

import torch

from cli import comparing
from evaluation.data import Options, load
from evaluation.errors import ExperimentError
from evaluation.finetuning import HEADS, Plan, shelf, tune
from evaluation.harness import machine
from evaluation.protocols import Protocol
from evaluation.results import Figure, Results, table
from inference.backbone import load_backbone
from worker import checkpoints
from worker.fine_tuning import device_of
from worker.settings import Settings
from worker.tune_recipe import TuneRecipe


def command(arguments: argparse.Namespace, settings: Settings) -> int:
    """Do all runs, save each, print tables.

    Runs whose figures are in the file already, under the same settings, are not done again; one
    that was killed goes on from its last checkpoint. A trial has a file of its own.

    Returns:
        The exit status.

    Raises:
        ExperimentError: an argument or an image is not as it should be.
    """
    plan = _plan(arguments, settings)
    methods = list(HEADS) if arguments.method == ["hrn"] else arguments.method
    unknown = sorted(set(methods) - set(HEADS))
    if unknown:
        raise ExperimentError(f"no head {', '.join(unknown)}: expected some of {'; '.join(HEADS)}")
    runs = [
        (method, Protocol(share, arguments.how, arguments.low_res), seed)
        for share in arguments.relabel
        for method in methods
        for seed in range(arguments.seeds)
    ]
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / ("fine-tuning.json" if plan.steps is None else "fine-tuning-trial.json")
    results = replace(Results.read(file, plan.settings()), machine=_machine(plan.device))
    with shelf(plan.dataset, plan.backbone, settings.cache / "tuning") as images:
        for number, (method, protocol, seed) in enumerate(runs, 1):
            where = f"{number} of {len(runs)}: {method}, {protocol.name}, seed {seed}"
            if (method, protocol.name, seed) in {row.key for row in results.rows}:
                comparing.say(f"{where}: is in {file} already")
                continue
            saved = arguments.out / "checkpoints" / f"{method}-{protocol.name}-{seed}"
            row = tune(method, protocol, seed, plan, images, _Voice(where), saved)
            results = results.having([row])
            results.save(file)
            checkpoints.remove(saved)
            comparing.say(f"{where}: leaf {100 * row.figures['leaf']:.1f} %")
    levels = range(plan.dataset.tree.depth - 1, 0, -1)
    figures = (
        Figure("leaf"),
        Figure("siblings leaf", "leaf, siblings"),
        *(Figure(f"level {level}") for level in levels),
        Figure("leaf ece", "leaf ECE", better="lower"),
        Figure("seconds", better=None, percent=False, digits=0),
    )
    text = "\n".join(table(results, figure) for figure in figures)
    comparing.show(results, text, as_json=arguments.json)
    if plan.steps is not None:
        comparing.say(
            f"A trial: no run was longer than {plan.steps} steps, and "
            f"{len(plan.judged(plan.dataset.test))} of {len(plan.dataset.test)} test images were "
            "judged. It shows that everything runs; the accuracies say nothing of the methods."
        )
    return 0


def _plan(arguments: argparse.Namespace, settings: Settings) -> Plan:
    for name in ("steps", "epochs", "seeds"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ExperimentError(f"--{name} must be 1 or more, got {value}")
    device = device_of(settings)
    recipe = TuneRecipe.for_device(device)
    if arguments.optimiser not in (None, recipe.optimiser):
        other = TuneRecipe.adamw() if arguments.optimiser == "adamw" else TuneRecipe()
        kept = {name: getattr(recipe, name) for name in ("hidden", "epochs", "batch", "precision")}
        recipe = replace(other, **kept)  # the device's sizes
    if arguments.epochs is not None:
        recipe = replace(recipe, epochs=arguments.epochs, least_steps=0)
    options = Options() if arguments.tree is None else Options(tree=arguments.tree)
    name, weights = comparing.networks_of(arguments, settings)[-1]
    return Plan(
        load(arguments.data, arguments.layout, options),
        load_backbone(name, weights=weights),
        recipe,
        device,
        arguments.steps,
    )


def _machine(device: str) -> dict[str, str]:
    return {**machine(), "gpu": torch.cuda.get_device_name()} if device == "cuda" else machine()


class _Voice:
    """Says how far a run is, at most every few seconds, and each mean loss."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._said = 0.0

    def __call__(self, stage: str, done: int, total: int, **figures: float) -> None:
        del stage
        if figures or time.monotonic() - self._said > 5:
            self._said = time.monotonic()
            shown = "".join(f", {name} {value:.3f}" for name, value in figures.items())
            comparing.say(f"{self._what}: step {done} of {total}{shown}")
