"""Caltech-UCSD Birds-200-2011 (Wah et al. 2011): 200 species, with orders and families from a file.

The collection's own files have no taxonomy. ``trees/cub.csv`` has the 13 orders and 38 families of
the published protocol (Chen et al. 2022, after Chang et al. 2021). Its one oddity is kept so that
figures compare: the red-legged kittiwake, a gull, is a family of its own among the kingfishers'
order (*Kittiwake* in the file); give a file with ``Laridae,Charadriiformes`` there to fix it.
"""

from pathlib import Path

from evaluation.data.dataset import Dataset, Options, cut, make_split
from evaluation.data.listfile import read_pairs, whole
from evaluation.data.treefile import build_tree, shipped
from evaluation.errors import DatasetError

EXPECTED = "images.txt, image_class_labels.txt, train_test_split.txt, classes.txt and images/"


def find(path: Path) -> Path | None:
    """The folder with the lists: this one, or ``CUB_200_2011/`` below it as unpacked."""
    for root in (path, path / "CUB_200_2011"):
        if (root / "images.txt").is_file() and (root / "train_test_split.txt").is_file():
            return root
    return None


def read(root: Path, options: Options) -> Dataset:
    """Read the collection; val is cut from train, per class.

    Raises:
        DatasetError: a list or a photo is missing, the lists disagree, or the tree file has other
            classes.
    """
    names = {
        whole(key, f"{root / 'classes.txt'}, class id"): name.partition(".")[2]
        for key, name in read_pairs(root / "classes.txt").items()
    }
    tree, nodes = build_tree(options.tree or shipped("cub.csv"), names)
    images = read_pairs(root / "images.txt")
    labels = read_pairs(root / "image_class_labels.txt")
    parts = read_pairs(root / "train_test_split.txt")
    rows: dict[str, list[tuple[Path, int]]] = {"1": [], "0": []}
    for key, file in images.items():
        part, label = parts.get(key), labels.get(key)
        if part not in rows or label is None:
            raise DatasetError(
                f"{root}: image {key} ({file}) needs a 0 or 1 in train_test_split.txt and a class "
                f"in image_class_labels.txt, got {part} and {label}"
            )
        node = nodes.get(whole(label, f"{root / 'image_class_labels.txt'}, image {key}"))
        if node is None:
            raise DatasetError(f"{root}: image {key} has class {label}, not in classes.txt")
        rows[part].append((root / "images" / file, node))
    train, val = cut(make_split(rows["1"]), options.val_share, options.seed)
    return Dataset("CUB-200-2011", tree, train, val, make_split(rows["0"]))
