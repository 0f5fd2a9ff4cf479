"""Shared by `hrn evaluate` and `hrn simulate`: data, runs and the file of results."""

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worker.settings import Settings

if TYPE_CHECKING:  # --help does not wait for torch
    from evaluation.data import Dataset
    from evaluation.features import Extraction, Features
    from evaluation.harness import Run
    from evaluation.results import Results


@dataclass(frozen=True)
class Planned:
    """A run and the rows that it will give.

    Attributes:
        method: of those rows, or of one of them.
        protocol: of those rows; None if there are several.
        seed: of those rows.
        run: what to do.
    """

    method: str
    protocol: str | None
    seed: int
    run: "Run"

    def is_in(self, results: "Results") -> bool:
        """Look whether its rows are there already."""
        return any(
            (row.method, row.seed) == (self.method, self.seed)
            and self.protocol in (None, row.protocol)
            for row in results.rows
        )


def add_arguments(parser: argparse.ArgumentParser, *, out: str) -> None:
    """Add the options of both commands."""
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder of labelled images")
    add("--layout", help="folders, grocery, cub, aircraft or cars; recognised if left out")
    add("--tree", type=Path, help="CSV file with the tree, for cub and cars")
    add("--seeds", type=int, default=3, help="runs of each, with seeds 0, 1, ...")
    add("--backbone", help='networks joined by "+" (HRN_BACKBONE)')
    weights = "a file of weights for each network, where they are not installed"
    add("--weights", type=Path, nargs="+", help=weights)
    add("--jobs", type=int, default=2, help="runs at a time")
    add("--out", type=Path, default=Path(out), help="folder for figures and plots")
    add("--again", action="store_true", help="also runs that stand in --out already")
    add("--json", action="store_true", help="print the results as JSON")


def open_data(arguments: argparse.Namespace, settings: Settings) -> "tuple[Dataset, Extraction]":
    """Read the lists of images and start the networks.

    Raises:
        ExperimentError: a number is out of range, or the data set is not as it should be.
        BackboneError: a network cannot be had.
    """
    from evaluation.data import Options, load
    from evaluation.errors import ExperimentError
    from evaluation.features import Extraction

    for name in ("seeds", "jobs"):
        if getattr(arguments, name) < 1:
            raise ExperimentError(f"--{name} must be 1 or more, got {getattr(arguments, name)}")
    options = Options() if arguments.tree is None else Options(tree=arguments.tree)
    dataset = load(arguments.data, arguments.layout, options)
    networks = networks_of(arguments, settings)
    return dataset, Extraction(networks, settings.cache)


def networks_of(arguments: argparse.Namespace, settings: Settings) -> list[tuple[str, Path | None]]:
    """Return the networks asked for, each with its file of weights, or those of the settings."""
    if arguments.backbone is None:
        return list(settings.networks)
    names = arguments.backbone.split("+")
    return list(zip_longest(names, (arguments.weights or ())[: len(names)]))


def conditions(dataset: "Dataset", extraction: "Extraction") -> dict[str, Any]:
    """Describe what all runs of one file of results share."""
    from worker.training_config import TrainingConfig

    config = TrainingConfig.for_networks(extraction.channels).to_json()
    return {"data": dataset.name, "backbone": extraction.fingerprint, "config": config}


def carry_out(
    planned: Sequence[Planned],
    features: "Features",
    file: Path,
    shared: Mapping[str, Any],
    arguments: argparse.Namespace,
) -> "Results":
    """Do the runs that the file has no rows of, and save after each.

    Raises:
        ResultsError: the file holds runs of other conditions.
    """
    from evaluation.harness import machine, run_all
    from evaluation.results import Results

    file.parent.mkdir(parents=True, exist_ok=True)
    results = replace(Results.read(file, shared), machine=machine())
    todo = [one for one in planned if arguments.again or not one.is_in(results)]
    rows = run_all([one.run for one in todo], features, jobs=arguments.jobs)
    for number, (one, found) in enumerate(zip(todo, rows, strict=True), 1):
        results = results.having(found)
        results.save(file)
        leaf = found[-1].figures.get("leaf")
        told = "" if leaf is None else f": leaf {100 * leaf:.1f} %"
        where = [one.method, one.protocol, f"seed {one.seed}"]
        say(f"{number} of {len(todo)}: {', '.join(filter(None, where))}{told}")
    return results


def show(results: "Results", text: str, *, as_json: bool) -> None:
    """Print tables, or everything as JSON."""
    if as_json:
        rows = [
            {"method": row.method, "protocol": row.protocol, "seed": row.seed, **row.figures}
            for row in results.rows
        ]
        text = json.dumps({"settings": results.settings, "rows": rows})
    print(text.rstrip())


def say(text: str) -> None:
    """Tell the person at the terminal."""
    print(text, file=sys.stderr, flush=True)


class Progress:
    """Says how far the feature extraction is, at most once a second."""

    def __init__(self) -> None:
        self._said = 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Say it, if it is time."""
        if time.monotonic() - self._said > 1 or done == total:
            self._said = time.monotonic()
            say(f"{stage}: {done} of {total}")
