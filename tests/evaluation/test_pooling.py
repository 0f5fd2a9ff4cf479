"""Two comparisons answered together."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from evaluation import report
from evaluation.data.dataset import Dataset, Split
from evaluation.errors import ResultsError
from evaluation.pooling import pool, probabilities
from evaluation.report import Results, Row
from hierarchy import LabelTree

TREE = LabelTree.from_paths([("a", "b"), ("a", "c"), ("d",)])
TARGETS = np.array([TREE.index(("a", "b")), TREE.index(("a", "c")), TREE.index(("d",))] * 4)


def _dataset() -> Dataset:
    split = Split(tuple(Path(f"{at}.jpg") for at in range(len(TARGETS))), TARGETS)
    return Dataset("small", TREE, split, split, split)


def _opinion(strength: dict[int, float]) -> np.ndarray:
    """Every picture's own leaf with a given probability, the others share the rest."""
    p = np.zeros((len(TARGETS), len(TREE)))
    for at, node in enumerate(TARGETS):
        for leaf in TREE.leaves:
            sure = strength[int(node)]
            p[at, leaf] = sure if leaf == node else (1 - sure) / (len(TREE.leaves) - 1)
        for leaf in TREE.leaves:
            if TREE.parents[leaf] >= 0:
                p[at, TREE.parents[leaf]] += p[at, leaf]
    return np.log(p).astype(np.float32)


def _folder(folder: Path, strength: dict[int, float], *, data: str = "small") -> Path:
    folder.mkdir()
    row = Row("hrn", 0.5, 1, {"seconds": 2.0, "leaf": 0.0})
    report.save(Results((row,), {"data": data, "backbone": folder.name}), folder / "results.json")
    file = probabilities(folder, row)
    file.parent.mkdir()
    said = _opinion(strength)
    save_file({"val": said, "test": said}, file)
    return folder


def _strengths(*values: float) -> dict[int, float]:
    return dict(zip(TREE.leaves, values, strict=True))


def test_each_makes_good_what_the_other_has_wrong(tmp_path: Path) -> None:
    """One is wrong on one leaf, one on another: together they are right on all."""
    one = _folder(tmp_path / "one", _strengths(0.9, 0.3, 0.9))
    other = _folder(tmp_path / "other", _strengths(0.9, 0.9, 0.3))
    row = pool([one, other], _dataset()).rows[0]
    assert row.figures["leaf"] == 1.0
    assert row.figures["val leaf"] == 1.0
    assert row.figures["seconds"] == 4.0
    assert (row.method, row.share, row.seed) == ("hrn", 0.5, 1)


def test_results_of_other_photos_are_refused(tmp_path: Path) -> None:
    """Their rows would not be the same pictures."""
    one = _folder(tmp_path / "one", _strengths(0.9, 0.9, 0.9), data="other")
    with pytest.raises(ResultsError, match="expected results of small, got other"):
        pool([one], _dataset())


def test_nothing_in_common_is_told(tmp_path: Path) -> None:
    """Rather than an empty table."""
    one = _folder(tmp_path / "one", _strengths(0.9, 0.9, 0.9))
    other = _folder(tmp_path / "other", _strengths(0.9, 0.9, 0.9))
    told = report.read(other / "results.json")
    changed = Results((Row("hrn", 0.5, 2, {"seconds": 1.0}),), told.settings)
    report.save(changed, other / "results.json")
    with pytest.raises(ResultsError, match="in all folders"):
        pool([one, other], _dataset())
