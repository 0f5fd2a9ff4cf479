"""The form that every layout is read into: files, a label tree and a node id for each file.

Where a collection has no val split, one is cut from train by :func:`cut`, the one rule for all.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evaluation.errors import DatasetError
from hierarchy.tree import LabelTree

#: Shown of a long list of names or files.
SHOWN = 5


@dataclass(frozen=True, eq=False)
class Split:
    """Photos with their labels, in the order in which the collection lists them.

    Attributes:
        files: n paths.
        targets: ``(n,)`` int64, of each photo the deepest node known, an id of the tree.
    """

    files: tuple[Path, ...]
    targets: NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.targets.shape != (len(self.files),) or self.targets.dtype != np.int64:
            raise DatasetError(
                f"a split needs one int64 node id a file: expected ({len(self.files)},) int64, "
                f"got {self.targets.shape} {self.targets.dtype}"
            )

    def __len__(self) -> int:
        return len(self.files)

    def take(self, places: NDArray[np.int64]) -> "Split":
        """The photos at these places, in the order given."""
        return Split(tuple(self.files[place] for place in places), self.targets[places])


@dataclass(frozen=True, eq=False)
class Dataset:
    """A collection of labelled photos: train to fit on, val to choose on, test to report.

    Attributes:
        name: what results are filed under.
        tree: the label tree; every target is one of its ids.
    """

    name: str
    tree: LabelTree
    train: Split
    val: Split
    test: Split

    def __post_init__(self) -> None:
        for name in ("train", "val", "test"):
            targets = getattr(self, name).targets
            if len(targets) and not 0 <= targets.min() <= targets.max() < len(self.tree):
                raise DatasetError(
                    f"{self.name}, {name}: node ids must be 0 to {len(self.tree) - 1}, "
                    f"got {targets.min()} to {targets.max()}"
                )


@dataclass(frozen=True)
class Options:
    """Options for reading a collection.

    Attributes:
        tree: a CSV file with the tree, for the collections whose own files have none (see
            :mod:`evaluation.data.treefile`); None for the one that comes with this program.
        val_share: of each class's training photos, the share that becomes val where the
            collection has no val split; 0 leaves val empty and trains on all, as published.
        test_share: likewise for test, where one folder tree holds everything.
        seed: of the two cuts.
    """

    tree: Path | None = None
    val_share: float = 0.1
    test_share: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("val_share", "test_share"):
            if not 0 <= getattr(self, name) < 1:
                raise DatasetError(
                    f"{name} must be 0 or more and below 1, got {self.__dict__[name]}"
                )
        if self.val_share + self.test_share >= 1:
            raise DatasetError("val_share and test_share together must leave photos to train on")


def cut(split: Split, share: float, seed: int) -> tuple[Split, Split]:
    """Cut a share of each class's photos off, at random; what stays and what goes keep their order.

    Of n photos with the same target ``floor(share * n + 0.5)`` go, but one always stays.

    Args:
        split: what to cut.
        share: 0 to below 1.
        seed: equal seeds cut alike.

    Returns:
        What stays, and what was cut off.
    """
    rng = np.random.default_rng(seed)
    gone = np.zeros(len(split), dtype=bool)
    for target in np.unique(split.targets):
        places = rng.permutation(np.flatnonzero(split.targets == target))
        gone[places[: min(math.floor(share * len(places) + 0.5), len(places) - 1)]] = True
    return split.take(np.flatnonzero(~gone)), split.take(np.flatnonzero(gone))


def make_split(rows: Sequence[tuple[Path, int]]) -> Split:
    """Put files and their node ids together, once every file is seen to be there.

    Raises:
        DatasetError: a file is missing; the message counts them and names the first.
    """
    missing = [file for file, _ in rows if not file.is_file()]
    if missing:
        raise DatasetError(
            f"{len(missing)} of {len(rows)} listed photos are missing, the first is {missing[0]}: "
            "unpack the collection's photos beside its lists"
        )
    return Split(
        tuple(file for file, _ in rows), np.array([node for _, node in rows], dtype=np.int64)
    )


def some(names: Sequence[object]) -> str:
    """The first few of a list, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(str, names[:SHOWN])) + more
