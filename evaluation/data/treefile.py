"""Label trees from a CSV file, for collections whose own files only number the classes.

The first column is the class id, the second the class's name as the collection spells it, the
others its ancestors from the nearest up: ``class_id,species,family,order``. Two such files come
with this program, ``trees/cub.csv`` and ``trees/cars.csv``; another one may be given instead.
"""

import csv
from collections.abc import Hashable, Mapping
from importlib import resources
from pathlib import Path
from typing import TypeVar

from evaluation.data.dataset import some
from evaluation.data.listfile import read_lines, whole
from evaluation.errors import DatasetError
from hierarchy.errors import TreeError
from hierarchy.tree import LabelTree
from hierarchy.tree import Path as LabelPath

K = TypeVar("K", bound=Hashable)


def shipped(name: str) -> Path:
    """Return the tree file of this name that comes with the program."""
    return Path(str(resources.files("evaluation") / "trees" / name))


def build_tree(file: Path, classes: Mapping[int, str]) -> tuple[LabelTree, dict[int, int]]:
    """Build the tree over these classes.

    Ids go level by level; inner nodes are numbered by their names, leaves by their class ids, as
    published. The file may have classes that the collection lacks: they are left out.

    Args:
        file: the CSV file.
        classes: of each class id the name that the collection gives it; a blank and an underscore
            are the same.

    Returns:
        The tree, and of each class id its node.

    Raises:
        DatasetError: a class is missing from the file or called otherwise there, or the paths do
            not make a tree.
    """
    rows = _read(file)
    missing = [f"{number} {classes[number]}" for number in sorted(classes.keys() - rows.keys())]
    if missing:
        raise DatasetError(f"{file}: expected a row for each class, none for {some(missing)}")
    other = [
        f"{number} is {classes[number]!r}, {rows[number][-1]!r} in the file"
        for number in sorted(classes)
        if _plain(rows[number][-1]) != _plain(classes[number])
    ]
    if other:
        raise DatasetError(
            f"{file} is another collection's tree, or an older one's: class {some(other)}. "
            "Mend the names or give a tree file of your own"
        )
    paths = {number: tuple(map(_plain, rows[number])) for number in sorted(classes)}
    return number_nodes(paths, str(file))


def number_nodes(paths: Mapping[K, LabelPath], where: str) -> tuple[LabelTree, dict[K, int]]:
    """Build the tree in which inner nodes are numbered by name, leaves in the order given.

    Raises:
        DatasetError: two classes have the same path; ``where`` says in which file.
    """
    inner = sorted({path[:end] for path in paths.values() for end in range(1, len(path))})
    inside = set(inner)
    try:
        tree = LabelTree.from_paths(
            [*inner, *(path for path in paths.values() if path not in inside)]
        )
    except TreeError as error:
        raise DatasetError(f"{where}: {error}") from error
    return tree, {key: tree.index(path) for key, path in paths.items()}


def _read(file: Path) -> dict[int, LabelPath]:
    """Return each class id's path from its root node down."""
    lines = read_lines(file)
    rows = list(csv.reader(lines))
    if len(rows) < 2 or len(rows[0]) < 2:
        raise DatasetError(
            f"{file}: expected a first line such as class_id,species,family,order and a row a class"
        )
    found: dict[int, LabelPath] = {}
    for number, row in enumerate(rows[1:], 2):
        cells = [cell.strip() for cell in row]
        if len(cells) != len(rows[0]) or not cells[1]:
            raise DatasetError(
                f"{file}, line {number}: expected {len(rows[0])} cells, the name not empty, "
                f"got {cells}"
            )
        key = whole(cells[0], f"{file}, line {number}, class id")
        if key in found:
            raise DatasetError(f"{file}, line {number}: class {key} was given before")
        # An empty cell is a level that this class does without: trees may be ragged.
        found[key] = tuple(name for name in reversed(cells[1:]) if name)
    return found


def _plain(name: str) -> str:
    return name.replace("_", " ")
