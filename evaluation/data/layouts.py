"""The layouts there are, and which one a folder has."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from evaluation.data import aircraft, cars, cub, folders, grocery
from evaluation.data.dataset import Dataset, Options, some
from evaluation.errors import DatasetError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Layout:
    """A way of keeping labelled photos on disk.

    Attributes:
        find: the folder to read, given the folder a person named; None if it is another layout.
        read: the collection in that folder.
        expected: what ``find`` looks for, for people.
        has_tree: whether the collection's files say which class lies under which.
    """

    find: Callable[[Path], Path | None]
    read: Callable[[Path, Options], Dataset]
    expected: str
    has_tree: bool


#: By name, in the order in which they are tried: any folder of folders fits the last.
LAYOUTS = {
    "grocery": Layout(grocery.find, grocery.read, grocery.EXPECTED, has_tree=True),
    "cub": Layout(cub.find, cub.read, cub.EXPECTED, has_tree=False),
    "aircraft": Layout(aircraft.find, aircraft.read, aircraft.EXPECTED, has_tree=True),
    "cars": Layout(cars.find, cars.read, cars.EXPECTED, has_tree=False),
    "folders": Layout(folders.find, folders.read, folders.EXPECTED, has_tree=True),
}


def load(path: Path, layout: str | None = None, options: Options | None = None) -> Dataset:
    """Read labelled photos from a folder.

    Args:
        path: the folder.
        layout: a name in :data:`LAYOUTS`; recognised from the files if not given.
        options: tree file, shares and seed of the splits that have to be cut.

    Raises:
        DatasetError: the folder has no such layout, or its files are not as they should be.
    """
    options = options or Options()
    if not path.is_dir():
        raise DatasetError(f"expected a folder with photos, and {path} is none")
    name, root = _recognise(path, layout)
    if options.tree is not None and LAYOUTS[name].has_tree:
        raise DatasetError(f"{path} ({name}) says itself how its labels lie: leave the tree out")
    dataset = LAYOUTS[name].read(root, options)
    log.info(
        "dataset=%s layout=%s train=%d val=%d test=%d tree=%s",
        *(dataset.name, name, len(dataset.train), len(dataset.val), len(dataset.test)),
        dataset.tree,
    )
    return dataset


def _recognise(path: Path, layout: str | None) -> tuple[str, Path]:
    if layout is not None and layout not in LAYOUTS:
        raise DatasetError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    names = [layout] if layout is not None else list(LAYOUTS)
    for name in names:
        root = LAYOUTS[name].find(path)
        if root is not None:
            return name, root
    wanted = "; ".join(f"{name}: {LAYOUTS[name].expected}" for name in names)
    there = some(sorted(entry.name for entry in path.iterdir())) or "nothing"
    raise DatasetError(f"{path} has none of the layouts known ({wanted}); it has {there}")
