"""A comparison: methods, shares relabelled and seeds -> results, several runs at a time.

Each run is a process of its own with one thread, so that seeds mean what they say and seconds are
comparable; the maps are read from one file that all of them share.
"""

import logging
import math
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from evaluation import methods
from evaluation.material import Material
from evaluation.protocols import How, relabel
from evaluation.report import Row
from hierarchy import LabelTree
from hierarchy.calibration import evidence, fit_rule
from hierarchy.choice import candidates, choose_depth, corrected
from hierarchy.decisions import Decisions
from hierarchy.metrics import Scores, evaluate
from worker.recipe import Recipe

log = logging.getLogger(__name__)

Floats = NDArray[np.float64]

#: Targets at which the share that gets a label is reported.
TARGETS = (0.9, 0.95)


@dataclass(frozen=True)
class Run:
    """One method, share and seed.

    Attributes:
        method: one of ``methods.METHODS``.
        share: of each leaf's training pictures that get their parent's label.
        seed: of relabelling and training.
        how: who is relabelled.
    """

    method: str
    share: float
    seed: int
    how: How = "random"


@dataclass(frozen=True)
class Done:
    """A run and what came of it.

    Attributes:
        run: which.
        row: its figures.
        log_probability: ``(n, N)`` of each judged set, float32.
    """

    run: Run
    row: Row
    log_probability: Mapping[str, NDArray[np.float32]]


def compare(runs: Sequence[Run], folder: Path, recipe: Recipe, *, jobs: int) -> Iterator[Done]:
    """Do the runs, ``jobs`` at a time, and yield each as it is done.

    Args:
        runs: what to do.
        folder: where `Material.save` wrote.
        recipe: views, trunk and loop of all of them; a run brings its seed.
        jobs: processes.
    """
    pool = ProcessPoolExecutor(
        jobs, mp_context=get_context("spawn"), initializer=_start, initargs=(folder,)
    )
    try:
        under_way = [pool.submit(_do, run, recipe) for run in runs]
        for future in as_completed(under_way):
            yield future.result()
    finally:  # one run that fails ends the comparison now, not after all the others
        pool.shutdown(cancel_futures=True)


_material: Material | None = None


def _start(folder: Path) -> None:
    """Once a process: the one place of this room that keeps anything between calls."""
    global _material  # noqa: PLW0603 - a pool's initialiser has no other way to hand things over
    torch.set_num_threads(1)
    _material = Material.load(folder)


def _do(run: Run, recipe: Recipe) -> Done:
    assert _material is not None  # noqa: S101 - the pool started us
    return do(run, _material, recipe)


def do(run: Run, material: Material, recipe: Recipe) -> Done:
    """One run, in this process."""
    targets = relabel(material.targets, material.tree, run.share, how=run.how, seed=run.seed)
    learnt = methods.learn(run.method, material, targets, replace(recipe, seed=run.seed))
    figures = {"seconds": learnt.seconds}
    for name, log_p in learnt.log_probability.items():
        prefix = "" if name == "test" else f"{name} "
        judged = material.judged[name].targets
        figures |= {f"{prefix}{k}": v for k, v in flat(evaluate(log_p, judged, material.tree))}
    figures |= shown_figures(
        learnt.log_probability["val"],
        material.judged["val"].targets,
        learnt.log_probability["test"],
        material.judged["test"].targets,
        material.tree,
    )
    kept = {name: log_p.astype(np.float32) for name, log_p in learnt.log_probability.items()}
    return Done(run, Row(run.method, run.share, run.seed, figures), kept)


def flat(scores: Scores) -> Iterable[tuple[str, float]]:
    """The figures that tables are made of, by name; what has no finite value is left out."""
    found: dict[str, float | None] = {
        "leaf": scores.leaf,
        "leaf ece": scores.leaf_calibration.ece,
        "leaf nll": scores.leaf_calibration.nll,
        "path": scores.path,
        "consistency": scores.consistency,
        "prc": scores.prc,
        "h-precision": scores.overlap.precision,
        "h-recall": scores.overlap.recall,
        "h-f": scores.overlap.f,
        "severity": scores.severity.height,
        "aurc": scores.aurc,
        "haurc": scores.haurc,
    }
    for level in scores.levels:
        found[f"level {level.level}"] = level.accuracy
        found[f"level {level.level} ece"] = level.calibration.ece
    if scores.siblings is not None:
        found |= {f"siblings {name}": value for name, value in flat(scores.siblings)}
    # A method that gives the truth no chance at all has no finite loss to report.
    return [
        (name, float(value))
        for name, value in found.items()
        if value is not None and math.isfinite(value)
    ]


def shown_figures(
    val: Floats,
    val_targets: NDArray[np.int64],
    test: Floats,
    test_targets: NDArray[np.int64],
    tree: LabelTree,
) -> dict[str, float]:
    """What pre-labels would be shown on test with a rule calibrated on val only."""
    levels = Decisions.of(tree).levels
    seen = evidence(candidates(val, tree, levels), val_targets, tree)
    found = candidates(test, tree, levels)
    truth = evidence(found, test_targets, tree)
    figures = {}
    for target in TARGETS:
        rule = fit_rule(seen, target=target).rule
        depth = choose_depth(corrected(found.probability, rule.platt), rule)
        right = truth.right[np.arange(len(depth)), np.maximum(depth - 1, 0)][depth > 0]
        name = f"{100 * target:g} %"
        figures[f"given at {name}"] = float((depth > 0).mean())
        figures[f"mean depth at {name}"] = float(depth.mean())
        if (right >= 0).any():
            figures[f"accuracy of shown at {name}"] = float((right[right >= 0] == 1).mean())
    return figures


def machine() -> dict[str, str]:
    """Where this runs, for the results' file."""
    return {
        "processor": _processor(),
        "cores": str(torch.get_num_threads()),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _processor() -> str:
    """The processor's name on Linux, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
