"""`hrn evaluate`: compare methods on labelled images, print tables, save figures and a plot."""

import argparse
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cli import comparing
from cli.comparing import Planned
from worker.settings import Settings

if TYPE_CHECKING:  # --help does not wait for torch
    from evaluation.protocols import Degradation, Protocol
    from evaluation.results import Figure, Results


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `hrn evaluate`."""
    comparing.add_arguments(parser, out="var/evaluation")
    add = parser.add_argument
    names = "hrn, published, ...; baselines, losses, ablations, all; a wrong one lists them"
    add("--method", nargs="+", default=["hrn"], help=names)
    add("--relabel", type=float, nargs="+", default=[0.0], help="shares of leaf labels made coarse")
    add("--how", choices=["random", "first"], default="random", help="which images lose a leaf")
    add("--low-res", action="store_true", help="relabelled images at a quarter of the size")
    add("--per-leaf", type=int, nargs="+", help="labelled images of each leaf, drawn at random")
    add("--leaves", type=int, help="a small tree: so many leaves, drawn at random")
    add("--noise", type=float, nargs="+", default=[], help="also test with noise, in 8-bit steps")
    add("--blur", type=float, nargs="+", default=[], help="also test with blur, in pixels")
    add("--depth", action="store_true", help="also: how deep answers may be shown")
    add("--fine-tune", action="store_true", help="train the backbone too, on a GPU if there is one")
    add("--steps", type=int, help="with --fine-tune: stop after so many steps, to try it out")
    add("--optimiser", choices=["sgd", "adamw"], help="with --fine-tune: sgd is the published one")
    add("--epochs", type=int, help="with --fine-tune: passes over the labels")


def run(arguments: argparse.Namespace, settings: Settings) -> int:
    """Compare, print, save. Returns the exit status."""
    if arguments.fine_tune:
        from cli import finetuning

        return finetuning.command(arguments, settings)
    from evaluation.features import extract
    from evaluation.results import table

    planned = _comparison(arguments)
    dataset, extraction = comparing.open_data(arguments, settings)
    looks = _looks(arguments)
    features = extract(
        dataset, extraction, poor=_poor(arguments), tests=looks, tell=comparing.Progress()
    )
    shared = comparing.conditions(dataset, extraction) | {"tests": [asdict(look) for look in looks]}
    results = comparing.carry_out(
        planned, features, arguments.out / "results.json", shared, arguments
    )
    text = "\n".join(table(results, one) for one in map(_figure, _figures(dataset.tree.depth)))
    (arguments.out / "results.md").write_text(text, encoding="utf-8")
    _plot(results, arguments.out)
    comparing.show(results, text, as_json=arguments.json)
    return 0


def _figures(levels: int) -> list[tuple[str, str]]:
    """Return what is printed of a comparison; all the rest is in the file."""
    return [
        ("leaf", "leaf"),
        ("siblings leaf", "leaf, siblings"),
        *((f"level {level}", f"level {level}") for level in range(levels - 1, 0, -1)),
        ("prc", "AU(PRC)"),
        ("leaf ece", "leaf ECE"),
        ("seconds", "training, CPU seconds"),
    ]


def _figure(named: tuple[str, str]) -> "Figure":
    from evaluation.results import Figure

    name, title = named
    if name == "seconds":
        return Figure(name, title, better=None, percent=False)
    return Figure(name, title, better="lower" if name.endswith("ece") else "higher")


def _comparison(arguments: argparse.Namespace) -> list[Planned]:
    """Plan every method under every protocol with every seed."""
    from evaluation.comparison import compare
    from evaluation.methods import check_methods

    methods = check_methods(arguments.method)
    return [
        Planned(
            method,
            protocol.name,
            seed,
            partial(
                compare, method=method, protocol=protocol, seed=seed, with_depth=arguments.depth
            ),
        )
        for protocol in _protocols(arguments)
        for method in methods
        for seed in range(arguments.seeds)
    ]


def _protocols(arguments: argparse.Namespace) -> "list[Protocol]":
    from evaluation.protocols import Protocol

    return [
        Protocol(share, arguments.how, arguments.low_res, per_leaf, arguments.leaves)
        for per_leaf in arguments.per_leaf or [None]
        for share in arguments.relabel
    ]


def _poor(arguments: argparse.Namespace) -> "Degradation | None":
    from evaluation.protocols import Degradation

    return Degradation(resolution=0.25) if arguments.low_res else None


def _looks(arguments: argparse.Namespace) -> "list[Degradation]":
    from evaluation.protocols import Degradation

    return [
        Degradation(),
        *(Degradation(noise=sigma) for sigma in arguments.noise),
        *(Degradation(blur=sigma) for sigma in arguments.blur),
    ]


def _plot(results: "Results", out: Path) -> None:
    """Draw leaf accuracy over the share relabelled, if there are several."""
    from evaluation.plots import plot_lines

    lines = {method: 100 * results.line(method, "relabelled", "leaf") for method in results.methods}
    if any(len(line) > 1 for line in lines.values()):
        across = "leaf labels made coarse, %"
        plot_lines(lines, out / "leaf.svg", across=across, up="right leaf on test images, %")
