"""FGVC-Aircraft (Maji et al. 2013): makers, families and variants, all from its own lists.

The published protocol trains on ``trainval`` (6,667 photos); val is cut from that, per class, so
that ``val_share`` 0 is the published training set to the photo.
"""

from pathlib import Path

from evaluation.data.dataset import Dataset, Options, cut, make_split, some
from evaluation.data.listfile import read_pairs
from evaluation.data.treefile import number_nodes
from evaluation.errors import DatasetError
from hierarchy.tree import Path as LabelPath

EXPECTED = "data/ with images_{variant,family,manufacturer}_{trainval,test}.txt and images/"

#: Top first.
LEVELS = ("manufacturer", "family", "variant")

Labels = dict[str, LabelPath]


def find(path: Path) -> Path | None:
    """The folder with the lists: this one, ``data/`` or ``fgvc-aircraft-2013b/data/`` below it."""
    for root in (path, path / "data", path / "fgvc-aircraft-2013b" / "data"):
        if (root / "images_variant_test.txt").is_file():
            return root
    return None


def read(root: Path, options: Options) -> Dataset:
    """Read the collection.

    Raises:
        DatasetError: a list or a photo is missing, the three lists of a split name different
            photos, or a variant lies in two families.
    """
    fit, test = _trainval(root), _labels(root, "test")
    paths = sorted({*fit.values(), *test.values()})
    _check_tree(root, paths)
    tree, nodes = number_nodes({path: path for path in paths}, str(root))

    def rows(labels: Labels) -> list[tuple[Path, int]]:
        return [(root / "images" / f"{key}.jpg", nodes[path]) for key, path in labels.items()]

    train, val = cut(make_split(rows(fit)), options.val_share, options.seed)
    return Dataset("FGVC-Aircraft", tree, train, val, make_split(rows(test)))


def _trainval(root: Path) -> Labels:
    """Labels of train and val together, in the order of the joint list if there is one."""
    if (root / "images_variant_trainval.txt").is_file():
        return _labels(root, "trainval")
    return {**_labels(root, "train"), **_labels(root, "val")}


def _labels(root: Path, split: str) -> Labels:
    """Return each photo's path, from the three lists of a split."""
    lists = {level: read_pairs(root / f"images_{level}_{split}.txt") for level in LEVELS}
    for level in LEVELS:
        other = sorted(lists[level].keys() ^ lists["variant"].keys())
        if other:
            raise DatasetError(
                f"{root}: images_{level}_{split}.txt and images_variant_{split}.txt must name the "
                f"same photos; only one of them has {some(other)}"
            )
    return {key: tuple(lists[level][key] for level in LEVELS) for key in lists["variant"]}


def _check_tree(root: Path, paths: list[LabelPath]) -> None:
    """See that each variant has one family, and each family one maker."""
    for level in range(1, len(LEVELS)):
        above: dict[str, str] = {}
        for path in paths:
            if above.setdefault(path[level], path[level - 1]) != path[level - 1]:
                raise DatasetError(
                    f"{root}: {LEVELS[level]} {path[level]!r} is listed under both "
                    f"{above[path[level]]!r} and {path[level - 1]!r}; fix the lists"
                )
