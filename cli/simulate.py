"""`hrn simulate`: replay a labelling campaign on labelled photos, print tables, save and draw."""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.evaluate import Progress
from worker.recipe import Recipe
from worker.settings import Settings

if TYPE_CHECKING:
    from evaluation.curves import Campaign, Curve, Curves
    from evaluation.data import Dataset
    from evaluation.simulation import Plan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `hrn simulate`."""
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder of labelled photos")
    add("--layout", help="folders, grocery, cub, aircraft or cars; recognised if left out")
    add("--tree", type=Path, help="CSV file with the tree, for cub and cars")
    names = "mix (the product's), random, typiclust, margin, ...; a wrong one lists them"
    add("--strategy", nargs="+", default=["random", "mix"], help=names)
    add("--start", type=int, help="pictures before the first training (default: one a leaf)")
    add("--batch", type=int, default=100, help="pictures between two trainings")
    add("--rounds", type=int, default=10, help="batches")
    know = "how probably an annotator knows a node; else the parent, as probably, and so on"
    add("--know", type=float, default=1.0, metavar="P", help=know)
    coarse = "learn from answers above the leaf, or drop them; both may be given"
    add("--coarse", nargs="+", choices=["use", "drop"], default=["use"], help=coarse)
    pseudo = "label open pictures as deep as the head gives at least P, and learn from that too"
    add("--pseudo", type=float, metavar="P", help=pseudo)
    chance = "share of a batch of the mix that is drawn at random"
    add("--random-share", type=float, default=0.05, metavar="P", help=chance)
    add("--seeds", type=int, default=3, help="runs of each, with seeds 0, 1, ...")
    recipe = "fast: one pooled network, seconds a training (default); default: the product's"
    add("--recipe", choices=["fast", "default"], default="fast", help=recipe)
    add("--fast", dest="recipe", action="store_const", const="fast", help="--recipe fast")
    add("--backbone", help="a timm name (HRN_BACKBONE)")
    add("--weights", type=Path, help="its weights, where they are not installed")
    add("--jobs", type=int, default=2, help="campaigns at a time")
    add("--out", type=Path, default=Path("var/simulation"), help="folder for curves and plots")
    add("--again", action="store_true", help="also campaigns that stand in --out already")
    add("--json", action="store_true", help="print the curves as JSON")


def run(arguments: argparse.Namespace, settings: Settings) -> int:
    """Replay, print, save. Returns the exit status."""
    wanted = _campaigns(arguments)
    from evaluation import curves
    from evaluation.album import Album
    from evaluation.data import Options, load
    from evaluation.evaluation import machine
    from evaluation.material import gather
    from evaluation.simulation import replay_all
    from inference.backbone import load_backbone

    options = Options() if arguments.tree is None else Options(tree=arguments.tree)
    dataset = load(arguments.data, arguments.layout, options)
    recipe = Recipe.fast() if arguments.recipe == "fast" else Recipe()
    plan = _plan(arguments, dataset)
    backbone = load_backbone(arguments.backbone or settings.backbone, weights=arguments.weights)
    conditions = {
        "data": dataset.name,
        "backbone": backbone.fingerprint,
        "recipe": recipe.to_json(),
        **asdict(plan),
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    found = replace(_known(arguments.out / "results.json", conditions), machine=machine())
    known = set() if arguments.again else {curve.campaign for curve in found.curves}
    wanted = [one for one in wanted if one not in known]
    with tempfile.TemporaryDirectory(dir=arguments.out) as folder:
        if wanted:
            album = Album(backbone, settings.home / "evaluation")
            gather(dataset, album, recipe, tell=Progress()).save(Path(folder))
        each = replay_all(wanted, plan, Path(folder), recipe, jobs=arguments.jobs)
        for number, curve in enumerate(each):
            found = found.having(curve)
            curves.save(found, arguments.out / "results.json")
            _say(f"{number + 1} of {len(wanted)}: {_told(curve)}")
    _show(found, arguments.out, as_json=arguments.json)
    return 0


def _campaigns(arguments: argparse.Namespace) -> "list[Campaign]":
    """Every strategy, way with coarse answers, and seed.

    Raises:
        ExperimentError: there is no such strategy, or a number is out of range.
    """
    from evaluation.curves import Campaign
    from evaluation.errors import ExperimentError
    from evaluation.simulation import check_strategy

    for name in arguments.strategy:
        check_strategy(name)
    if arguments.pseudo is not None and not 0.5 < arguments.pseudo <= 1:
        raise ExperimentError(f"--pseudo must be above 0.5 and at most 1, got {arguments.pseudo}")
    for name in ("seeds", "jobs"):
        if getattr(arguments, name) < 1:
            raise ExperimentError(f"--{name} must be 1 or more, got {getattr(arguments, name)}")
    return [
        Campaign(strategy, seed, coarse, arguments.pseudo)
        for seed in range(arguments.seeds)
        for strategy in dict.fromkeys(arguments.strategy)
        for coarse in dict.fromkeys(arguments.coarse)
    ]


def _plan(arguments: argparse.Namespace, dataset: "Dataset") -> "Plan":
    from evaluation.simulation import Plan

    return Plan(
        start=arguments.start if arguments.start is not None else max(2, len(dataset.tree.leaves)),
        batch=arguments.batch,
        rounds=arguments.rounds,
        know=arguments.know,
        random_share=arguments.random_share,
    )


def _known(file: Path, conditions: Mapping[str, Any]) -> "Curves":
    """What stands there already.

    Raises:
        ResultsError: it was made under other conditions.
    """
    from evaluation.curves import Curves, read
    from evaluation.errors import ResultsError

    if not file.exists():
        return Curves((), conditions)
    found = read(file)
    names = found.settings.keys() | conditions.keys()
    differ = sorted(name for name in names if found.settings.get(name) != conditions.get(name))
    if differ:
        raise ResultsError(
            f"{file} holds campaigns with another {', '.join(differ)}, which do not compare: "
            "choose another --out, or the settings of that one"
        )
    return found


def _show(found: "Curves", out: Path, *, as_json: bool) -> None:
    from evaluation import curves, plots

    figures = ["leaf", *_levels(found)]
    tables = "\n".join(curves.table(found, figure) for figure in figures)
    (out / "tables.md").write_text(tables, encoding="utf-8")
    for file in ("curves.svg", "curves.png"):
        lines = {name: found.mean(name, "leaf") for name in found.names}
        plots.plot_lines(
            {name: (x, 100 * y) for name, (x, y) in lines.items() if len(x)},
            out / file,
            across="pictures asked about",
            up="right leaf on test pictures, %",
        )
    print(json.dumps(found.to_json()) if as_json else tables)


def _levels(found: "Curves") -> Sequence[str]:
    """The levels that test has figures of, deepest first."""
    names = {name for curve in found.curves for point in curve.points for name in point.figures}
    return sorted((name for name in names if name.startswith("level ")), reverse=True)


def _told(curve: "Curve") -> str:
    last = curve.points[-1]
    leaf = f", leaf {100 * last.figures['leaf']:.1f} %" if "leaf" in last.figures else ""
    asked = f"{last.questions} questions"
    return f"{curve.campaign.name}, seed {curve.campaign.seed}: {asked}{leaf}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
