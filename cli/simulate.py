"""`hrn simulate`: replay a labelling campaign on labelled images, print tables, save and draw."""

import argparse
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING

from cli import comparing
from cli.comparing import Planned
from worker.settings import Settings

if TYPE_CHECKING:  # --help does not wait for torch
    from evaluation.data import Dataset
    from evaluation.results import Results
    from evaluation.simulation import Plan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `hrn simulate`."""
    comparing.add_arguments(parser, out="var/simulation")
    add = parser.add_argument
    names = "mix (the product's), random, typiclust, margin, ...; a wrong one lists them"
    add("--strategy", nargs="+", default=["random", "mix"], help=names)
    add("--start", type=int, help="images before the first training (default: one per leaf)")
    add("--batch", type=int, default=100, help="images between two trainings")
    add("--rounds", type=int, default=10, help="batches")
    know = "how probably an annotator knows a node; else the parent, as probably, and so on"
    add("--know", type=float, default=1.0, metavar="P", help=know)
    coarse = "learn from answers above the leaf, or drop them; both may be given"
    add("--coarse", nargs="+", choices=["use", "drop"], default=["use"], help=coarse)
    chance = "share of a batch of the mix that is drawn at random"
    add("--random-share", type=float, default=0.05, metavar="P", help=chance)


def run(arguments: argparse.Namespace, settings: Settings) -> int:
    """Replay, print, save. Returns the exit status."""
    from evaluation.features import extract
    from evaluation.simulation import check_strategy

    for name in arguments.strategy:
        check_strategy(name)
    dataset, extraction = comparing.open_data(arguments, settings)
    plan = _plan(arguments, dataset)
    features = extract(dataset, extraction, tell=comparing.Progress())
    shared = comparing.conditions(dataset, extraction) | asdict(plan)
    file = arguments.out / "results.json"
    planned = _campaigns(arguments, plan)
    results = comparing.carry_out(planned, features, file, shared, arguments)
    _show(results, arguments)
    return 0


def _plan(arguments: argparse.Namespace, dataset: "Dataset") -> "Plan":
    from evaluation.simulation import Plan

    return Plan(
        start=arguments.start if arguments.start is not None else max(2, len(dataset.tree.leaves)),
        batch=arguments.batch,
        rounds=arguments.rounds,
        know=arguments.know,
        random_share=arguments.random_share,
    )


def _campaigns(arguments: argparse.Namespace, plan: "Plan") -> list[Planned]:
    """Plan every strategy, way with coarse answers, and seed."""
    from evaluation.simulation import campaign_name, replay

    return [
        Planned(
            campaign_name(strategy, coarse),
            None,
            seed,
            partial(replay, strategy=strategy, plan=plan, seed=seed, coarse=coarse),
        )
        for strategy in dict.fromkeys(arguments.strategy)
        for coarse in dict.fromkeys(arguments.coarse)
        for seed in range(arguments.seeds)
    ]


def _show(results: "Results", arguments: argparse.Namespace) -> None:
    from evaluation.plots import plot_lines
    from evaluation.results import Figure, table
    from evaluation.simulation import summary

    figures = ["leaf", *_levels(results)]
    text = "\n".join(f"{table(results, Figure(one))}\n{summary(results, one)}" for one in figures)
    (arguments.out / "tables.md").write_text(text, encoding="utf-8")
    lines = {name: results.line(name, "questions", "leaf") for name in results.methods}
    for ending in ("svg", "png"):
        plot_lines(
            {name: line * [1, 100] for name, line in lines.items() if len(line)},
            arguments.out / f"curves.{ending}",
            across="images asked about",
            up="right leaf on test images, %",
        )
    comparing.show(results, text, as_json=arguments.json)


def _levels(results: "Results") -> list[str]:
    """Return the levels that test has figures of, deepest first."""
    names = {name for row in results.rows for name in row.figures}
    return sorted((name for name in names if name.startswith("level ")), reverse=True)
