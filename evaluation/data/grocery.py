"""The Grocery Store data set (Klasson et al. 2019): fruit, vegetables and cartons in shops.

Labels come from the class ids in the lists, not from the folders: the two disagree (mushrooms lie
a folder deeper in test). The tree has three levels: top folder of the iconic image, coarse
class, class.
"""

from pathlib import Path

from evaluation.data.dataset import Dataset, Options, Split, make_split
from evaluation.data.listfile import read_lines, read_table, whole
from evaluation.errors import DatasetError
from hierarchy.errors import TreeError
from hierarchy.tree import LabelTree

EXPECTED = "classes.csv, train.txt, val.txt, test.txt"

NAME, ID = "Class Name (str)", "Class ID (int)"
COARSE, ICON = "Coarse Class Name (str)", "Iconic Image Path (str)"


def find(path: Path) -> Path | None:
    """The folder with the lists: this one, or ``dataset/`` below it as in the repository."""
    for root in (path, path / "dataset"):
        if all((root / name).is_file() for name in EXPECTED.split(", ")):
            return root
    return None


def read(root: Path, options: Options) -> Dataset:
    """Read the collection with its own three splits; ``options`` has nothing to say here.

    Raises:
        DatasetError: a list or a photo is missing, or a line is not as published.
    """
    del options
    tree, nodes = _tree(root / "classes.csv")
    train, val, test = (
        _split(root, root / f"{name}.txt", nodes) for name in ("train", "val", "test")
    )
    return Dataset("grocery", tree, train, val, test)


def _tree(file: Path) -> tuple[LabelTree, dict[int, int]]:
    """The tree, and of each class id its node."""
    paths: dict[int, tuple[str, str, str]] = {}
    for number, row in enumerate(read_table(file, (NAME, ID, COARSE, ICON)), 1):
        steps = row[ICON].strip("/").split("/")
        if len(steps) < 3:
            raise DatasetError(
                f"{file}, row {number}, {ICON}: expected /folder/top/..., got {row[ICON]!r}"
            )
        paths[whole(row[ID], f"{file}, row {number}, {ID}")] = (steps[1], row[COARSE], row[NAME])
    try:
        tree = LabelTree.from_paths([paths[key] for key in sorted(paths)])
    except TreeError as error:
        raise DatasetError(f"{file}: {error}") from error
    return tree, {key: tree.index(path) for key, path in paths.items()}


def _split(root: Path, file: Path, nodes: dict[int, int]) -> Split:
    rows = []
    for number, line in enumerate(read_lines(file), 1):
        cells = line.rsplit(",", 2)
        if len(cells) != 3:
            raise DatasetError(
                f"{file}, line {number}: expected path, class id, coarse class id, got {line!r}"
            )
        key = whole(cells[1], f"{file}, line {number}, class id")
        if key not in nodes:
            raise DatasetError(f"{file}, line {number}: class {key} is not in classes.csv")
        rows.append((root / cells[0].strip(), nodes[key]))
    return make_split(rows)
