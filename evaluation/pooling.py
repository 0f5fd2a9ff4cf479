"""Two or more comparisons, of other backbones say, answered by all of them together."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from evaluation import report
from evaluation.data.dataset import Dataset
from evaluation.errors import ResultsError
from evaluation.evaluation import flat, shown_figures
from evaluation.report import Results, Row
from hierarchy.metrics import evaluate
from hierarchy.pool import opinion_pool

Floats = NDArray[np.float64]


def pool(folders: Sequence[Path], dataset: Dataset) -> Results:
    """The runs that all of them have, each with the pooled probabilities' figures.

    Args:
        folders: what `hrn evaluate --out` wrote, of one data set.
        dataset: that data set.

    Raises:
        ResultsError: they are of another data set, or have no run in common.
    """
    several = [report.read(folder / "results.json") for folder in folders]
    told = {str(results.settings.get("data")) for results in several}
    if told != {dataset.name}:
        raise ResultsError(f"expected results of {dataset.name}, got {', '.join(sorted(told))}")
    rows = [row for row in several[0].rows if all(_find(row, results) for results in several)]
    if not rows:
        raise ResultsError("expected some method, share and seed in all folders, got none")
    pooled = [_pooled(row, several, folders, dataset) for row in rows]
    backbones = [results.settings.get("backbone") for results in several]
    return Results(tuple(pooled), {**several[0].settings, "backbone": backbones})


def _find(row: Row, results: Results) -> Row | None:
    return next((one for one in results.rows if one.key == row.key), None)


def _pooled(row: Row, several: Sequence[Results], folders: Sequence[Path], dataset: Dataset) -> Row:
    files = [load_file(probabilities(folder, row)) for folder in folders]
    opinions: Mapping[str, Floats] = {
        name: opinion_pool([file[name].astype(np.float64) for file in files], dataset.tree)
        for name in ("val", "test")
    }
    targets = {
        "val": np.asarray(dataset.val.targets, dtype=np.int64),
        "test": np.asarray(dataset.test.targets, dtype=np.int64),
    }
    same = [_find(row, results) for results in several]
    figures = {"seconds": sum(one.figures["seconds"] for one in same if one is not None)}
    for name, prefix in (("val", "val "), ("test", "")):
        scores = evaluate(opinions[name], targets[name], dataset.tree)
        figures |= {f"{prefix}{k}": v for k, v in flat(scores)}
    figures |= shown_figures(
        opinions["val"], targets["val"], opinions["test"], targets["test"], dataset.tree
    )
    return Row(row.method, row.share, row.seed, figures)


def probabilities(folder: Path, row: Row) -> Path:
    """Where a run's probabilities are kept."""
    return folder / "probabilities" / f"{report.file_name(row.method, row.share, row.seed)}"
