"""`hrn evaluate`: compare methods on labelled photos, print a table, save figures and plots."""

import argparse
import json
import logging
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluation.report import Figure, file_name
from worker.recipe import Recipe
from worker.settings import Settings

if TYPE_CHECKING:
    from evaluation.evaluation import Done
    from evaluation.material import Material
    from evaluation.protocols import Degradation
    from evaluation.report import Results, Row

log = logging.getLogger(__name__)

#: Orders of arrival a head in the study of depth; each takes some seconds.
ORDERS = 5

#: What is printed; all the rest is in the file.
FIGURES = (
    Figure("leaf"),
    Figure("siblings leaf", "leaf, siblings"),
    Figure("level 2"),
    Figure("level 1"),
    Figure("leaf ece", better="lower"),
    Figure("seconds", better=None, percent=False, digits=0),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `hrn evaluate`."""
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder of labelled photos")
    add("--layout", help="folders, grocery, cub, aircraft or cars; recognised if left out")
    add("--tree", type=Path, help="CSV file with the tree, for cub and cars")
    names = "hrn, hrn-fast, published, flat, ...; rivals, ablations or all; a wrong one lists them"
    add("--method", nargs="+", default=["hrn"], help=names)
    add("--relabel", type=float, nargs="+", default=[0.0], help="shares of leaf labels made coarse")
    add("--how", choices=["random", "first"], default="random", help="which pictures lose a leaf")
    add("--low-res", action="store_true", help="relabelled pictures at a quarter of the size")
    add("--noise", type=float, nargs="+", default=[], help="also test with noise, in 8-bit steps")
    add("--blur", type=float, nargs="+", default=[], help="also test with blur, in pixels")
    add("--seeds", type=int, default=3, help="runs of each, with seeds 0, 1, ...")
    add("--backbone", help="a timm name (HRN_BACKBONE)")
    add("--weights", type=Path, help="its weights, where they are not installed")
    add("--jobs", type=int, default=2, help="runs at a time")
    add("--out", type=Path, default=Path("var/evaluation"), help="folder for figures and plots")
    add("--again", action="store_true", help="also runs whose figures stand in --out already")
    add("--json", action="store_true", help="print the results as JSON")
    add("--fine-tune", action="store_true", help="train the backbone too, on a GPU if there is one")
    add("--pool", type=Path, nargs="+", metavar="OUT", help="answer by several --out together")
    add("--depth", action="store_true", help="also: how deep the answers of hrn may be shown")
    add("--grow", type=int, metavar="N", help="N leaves come late: growing against training anew")
    add("--steps", type=int, help="with --fine-tune: stop after so many steps, to try it out")
    add("--heads", nargs="+", help="with --fine-tune: residual, shared, pooled, flat")
    add("--optimiser", choices=["sgd", "adamw"], help="with --fine-tune: sgd is the published one")
    add("--epochs", type=int, help="with --fine-tune: passes over the labels")


def run(arguments: argparse.Namespace, settings: Settings) -> int:
    """Compare, print, save. Returns the exit status."""
    names = _methods(arguments.method)
    if arguments.fine_tune:
        from evaluation import tuning

        return tuning.command(arguments, settings)
    if arguments.pool:
        return _pool(arguments)
    from evaluation import evaluation, report
    from evaluation.album import Album
    from evaluation.data import Options, load
    from evaluation.material import gather
    from inference.backbone import load_backbone

    options = Options() if arguments.tree is None else Options(tree=arguments.tree)
    dataset = load(arguments.data, arguments.layout, options)
    recipe = Recipe()
    backbone = load_backbone(arguments.backbone or settings.backbone, weights=arguments.weights)
    arguments.out.mkdir(parents=True, exist_ok=True)
    results_file = arguments.out / "results.json"
    runs = [
        evaluation.Run(method, share, seed, arguments.how)
        for share in arguments.relabel
        for seed in range(arguments.seeds)
        for method in names
    ]
    results = report.Results((), _conditions(arguments, dataset.name, backbone.fingerprint))
    if results_file.exists():  # more methods or seeds of the same comparison
        results = report.merge([report.read(results_file), results])
    known = set() if arguments.again else {row.key for row in results.rows}
    runs = [run for run in runs if (run.method, run.share, run.seed) not in known]
    with tempfile.TemporaryDirectory(dir=arguments.out) as folder:
        album = Album(backbone, settings.home / "evaluation")
        material = gather(
            dataset, album, recipe, poor=_poor(arguments), tests=_tests(arguments), tell=Progress()
        )
        if arguments.grow:
            return _grow(arguments, material, recipe)
        material.save(Path(folder))
        found = evaluation.compare(runs, Path(folder), recipe, jobs=arguments.jobs)
        for number, done in enumerate(found):
            fresh = replace(results, rows=(done.row,), machine=evaluation.machine())
            results = report.merge([results, fresh])
            report.save(results, results_file)
            _keep(done, arguments.out)
            _say(f"{number + 1} of {len(runs)}: {_told(done.row)}")
        _plots(results, material, arguments.out)
        if arguments.depth:
            _depth(arguments, material)
    print(json.dumps(results.to_json()) if arguments.json else report.text(results, FIGURES))
    return 0


def _pool(arguments: argparse.Namespace) -> int:
    """Several comparisons' probabilities together; nothing is trained."""
    from evaluation import pooling, report
    from evaluation.data import Options, load

    options = Options() if arguments.tree is None else Options(tree=arguments.tree)
    dataset = load(arguments.data, arguments.layout, options)
    results = pooling.pool(arguments.pool, dataset)
    print(json.dumps(results.to_json()) if arguments.json else report.text(results, FIGURES))
    return 0


def _depth(arguments: argparse.Namespace, material: "Material") -> None:
    """Both studies of `evaluation.depth` on what `hrn` said of the photos, by share relabelled."""
    from safetensors.numpy import load_file

    from evaluation import depth

    told = {}
    for share in arguments.relabel:
        files = [
            arguments.out / "probabilities" / f"hrn-{100 * share:g}-{seed}.safetensors"
            for seed in range(arguments.seeds)
        ]
        found = [load_file(file) for file in files]

        def held(name: str, found: "list[dict[str, Any]]" = found) -> "list[depth.Held]":
            targets = material.judged[name].targets
            return [
                depth.held(one[name].astype("float64"), targets, material.tree) for one in found
            ]

        val, test = held("val"), held("test")
        rows: list[depth.Bootstrap | depth.Stream] = [
            *depth.bootstrap(test),
            *depth.bootstrap(test, strict=True),
        ]
        for feedback in (1.0, 0.2):
            for target in depth.TARGETS:
                one = depth.stream(val, test, target=target, feedback=feedback, orders=ORDERS)
                rows.append(one)
                _say(f"{100 * share:g} % relabelled, {100 * feedback:g} % answered, {target}: done")
        told[f"{100 * share:g}"] = depth.to_json(rows)
    (arguments.out / "depth.json").write_text(json.dumps(told, indent=1), encoding="utf-8")


def _grow(arguments: argparse.Namespace, material: "Material", recipe: Recipe) -> int:
    """Leaves that come late: what growing the head costs those that were there."""
    from evaluation import growth

    judged = {name: (one.seen, one.targets) for name, one in material.judged.items()}
    bench = growth.Bench(
        material.tree, material.targets, material.views, material.reduction, judged, recipe
    )
    plan = growth.Plan(leaves=arguments.grow)
    seeds = range(arguments.seeds)
    study = growth.Study(plan, tuple(bench.compare(plan, seed) for seed in seeds))
    text = json.dumps(study.to_json(), indent=1)
    (arguments.out / "growth.json").write_text(f"{text}\n", encoding="utf-8")
    print(text)
    return 0


def _methods(asked: Sequence[str]) -> list[str]:
    from evaluation import methods
    from evaluation.errors import ExperimentError

    groups = {
        "rivals": [name for name in methods.OTHERS if name not in methods.ABLATIONS],
        "ablations": ["published", *methods.ABLATIONS],
        "all": list(methods.METHODS),
    }
    names = [name for one in asked for name in groups.get(one, [one])]
    unknown = sorted(set(names) - set(methods.METHODS))
    if unknown:
        raise ExperimentError(
            f"no method {', '.join(unknown)}: expected some of {', '.join(methods.METHODS)}, "
            f"or {', '.join(groups)}"
        )
    return list(dict.fromkeys(names))


def _conditions(arguments: argparse.Namespace, data: str, backbone: str) -> dict[str, object]:
    """What all runs of one file of results must share."""
    return {
        "data": data,
        "backbone": backbone,
        "how": arguments.how,
        "low_res": arguments.low_res,
        "noise": arguments.noise,
        "blur": arguments.blur,
    }


def _poor(arguments: argparse.Namespace) -> "Degradation | None":
    from evaluation.protocols import Degradation

    return Degradation(resolution=0.25) if arguments.low_res else None


def _tests(arguments: argparse.Namespace) -> "list[Degradation]":
    from evaluation.protocols import Degradation

    return [
        Degradation(),
        *(Degradation(noise=sigma) for sigma in arguments.noise),
        *(Degradation(blur=sigma) for sigma in arguments.blur),
    ]


def _told(row: "Row") -> str:
    figures = row.figures
    level = max(int(n.split()[1]) for n in figures if n.startswith("level ") and n.count(" ") == 1)
    upper = f", level {level - 1} {100 * figures[f'level {level - 1}']:.1f} %" if level > 1 else ""
    return (
        f"{row.method}, {100 * row.share:g} % relabelled, seed {row.seed}: "
        f"leaf {100 * figures['leaf']:.1f} %{upper}, {figures['seconds']:.0f} s"
    )


def _keep(done: "Done", out: Path) -> None:
    """Each run's probabilities, for studies of depth and calibration that come after."""
    from safetensors.numpy import save_file

    folder = out / "probabilities"
    folder.mkdir(exist_ok=True)
    run = done.run
    file = folder / file_name(run.method, run.share, run.seed)
    save_file({key.replace(" ", "_"): value for key, value in done.log_probability.items()}, file)


def _plots(results: "Results", material: "Material", out: Path) -> None:
    from evaluation import plots
    from evaluation.report import Figure

    if len(results.shares) > 1:
        plots.plot_by_share(results, Figure("leaf"), out / "leaf.svg", title="Leaf accuracy")
    log.info("plots written nodes=%d", len(material.tree))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Progress:
    """Says how far the backbone is, at most once a second."""

    def __init__(self) -> None:
        self._said = 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Say it, if it is time."""
        if time.monotonic() - self._said > 1 or done == total:
            self._said = time.monotonic()
            _say(f"{stage}: {done} of {total}")
