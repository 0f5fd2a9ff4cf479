"""Stanford Cars (Krause et al. 2013): 196 models under 9 body types from a file.

The collection has no body types. ``trees/cars.csv`` takes the last body word of each model's name
(SUV, Sedan, Coupe, Convertible, Hatchback, Wagon, Van, Minivan, or Cab for pickups). Fourteen
names have no such word and were placed by hand; so was the Ford E-Series *Wagon Van* (Wagon). The
resulting sizes agree with what is known of the published tree, whose rows could not be compared.
"""

from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from evaluation.data.dataset import Dataset, Options, cut, make_split
from evaluation.data.treefile import build_tree, shipped
from evaluation.errors import DatasetError

EXPECTED = (
    "cars_annos.mat and car_ims/, or devkit/ (cars_train_annos.mat, cars_meta.mat), "
    "cars_test_annos_withlabels.mat, cars_train/ and cars_test/"
)

Record = dict[str, Any]
Rows = list[tuple[Path, int]]


def find(path: Path) -> Path | None:
    """The folder with ``cars_annos.mat`` or the devkit: this one, or ``stanford_cars/`` below."""
    for root in (path, path / "stanford_cars"):
        if (root / "cars_annos.mat").is_file() or _devkit(root, "cars_train_annos.mat"):
            return root
    return None


def read(root: Path, options: Options) -> Dataset:
    """Read the collection; val is cut from train, per class.

    Raises:
        DatasetError: a file is missing or is no such MATLAB file, test labels are missing, or the
            tree file has other classes.
    """
    one = root / "cars_annos.mat"
    names = _names(one if one.is_file() else _needed(root, "cars_meta.mat"))
    tree, nodes = build_tree(options.tree or shipped("cars.csv"), dict(enumerate(names, 1)))
    train, test = _joint(root, one, nodes) if one.is_file() else _devkit_rows(root, nodes)
    kept, val = cut(make_split(train), options.val_share, options.seed)
    return Dataset("Stanford Cars", tree, kept, val, make_split(test))


def _joint(root: Path, file: Path, nodes: dict[int, int]) -> tuple[Rows, Rows]:
    """Train and test rows of the one list with a ``test`` flag."""
    rows: tuple[Rows, Rows] = ([], [])
    for number, record in enumerate(_records(file, ("relative_im_path", "class", "test")), 1):
        node = _node(record, nodes, f"{file}, annotation {number}")
        rows[int(record["test"] != 0)].append((root / str(record["relative_im_path"]), node))
    return rows


def _devkit_rows(root: Path, nodes: dict[int, int]) -> tuple[Rows, Rows]:
    """Train and test rows of the devkit's two lists."""
    found = []
    for name, folder in (
        ("cars_train_annos.mat", "cars_train"),
        ("cars_test_annos_withlabels.mat", "cars_test"),
    ):
        file = _needed(root, name)
        found.append(
            [
                (
                    root / folder / str(record["fname"]),
                    _node(record, nodes, f"{file}, annotation {number}"),
                )
                for number, record in enumerate(_records(file, ("fname", "class")), 1)
            ]
        )
    return found[0], found[1]


def _devkit(root: Path, name: str) -> Path | None:
    return next((file for file in (root / "devkit" / name, root / name) if file.is_file()), None)


def _needed(root: Path, name: str) -> Path:
    found = _devkit(root, name)
    if found is None:
        raise DatasetError(
            f"expected {name} in {root} or {root / 'devkit'}, and it is not there"
            + (": the devkit's own test list has no labels" if "withlabels" in name else "")
        )
    return found


def _records(file: Path, fields: tuple[str, ...]) -> list[Record]:
    """The structs of ``annotations``, each with at least these fields."""
    records = [dict(one) for one in np.atleast_1d(_variable(file, "annotations"))]
    for number, record in enumerate(records, 1):
        missing = [name for name in fields if name not in record]
        if missing:
            raise DatasetError(
                f"{file}, annotation {number}: expected {', '.join(fields)}, "
                f"got {', '.join(record)}"
            )
    return records


def _names(file: Path) -> list[str]:
    return [str(name) for name in np.atleast_1d(_variable(file, "class_names"))]


def _variable(file: Path, name: str) -> Any:  # noqa: ANN401 - a MATLAB variable may be anything
    try:
        found = loadmat(str(file), simplify_cells=True)
    except (OSError, ValueError, NotImplementedError, MatReadError) as error:
        raise DatasetError(f"{file}: cannot be read as a MATLAB 5 file ({error})") from error
    if name not in found:
        there = ", ".join(key for key in found if not key.startswith("__")) or "none"
        raise DatasetError(f"{file}: expected the variable {name}, got {there}")
    return found[name]


def _node(record: Record, nodes: dict[int, int], where: str) -> int:
    node = nodes.get(int(record["class"]))
    if node is None:
        raise DatasetError(f"{where}: class {record['class']} is not in class_names")
    return node
