"""A folder of folders: the path of folders is the label, any depth.

With ``train/`` and ``test/`` (and ``val/``, or it is cut from train) the splits are as given.
Without them the whole is one tree, and test and val are cut from each class. Photos may lie in a
folder that has folders, too: then only the coarser label is known.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

from evaluation.data.dataset import Dataset, Options, Split, cut, make_split, some
from evaluation.errors import DatasetError
from hierarchy.errors import TreeError
from hierarchy.tree import LabelTree
from hierarchy.tree import Path as LabelPath

log = logging.getLogger(__name__)

EXPECTED = "train/ and test/ with a folder for each label, or such folders alone"

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})

#: Of each split the names its folder may have.
SPLITS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}

Photos = list[tuple[Path, LabelPath]]


def find(path: Path) -> Path | None:
    """The folder itself, if it has folders."""
    return path if any(_visible(entry) for entry in path.iterdir() if entry.is_dir()) else None


def read(root: Path, options: Options) -> Dataset:
    """Read a folder of folders.

    Raises:
        DatasetError: there is no photo, a photo lies in no label's folder, train or test is
            missing, or val or test have labels that train has not.
    """
    folders = _split_folders(root)
    if not folders:
        return _cut_whole(root, options)
    for name in ("train", "test"):
        if name not in folders:
            raise DatasetError(
                f"{root} has {some(sorted(folders))}/ but no {name}/: add it, or put all photos "
                "in one tree of folders and let the splits be cut"
            )
    photos = {name: _photos(folder) for name, folder in folders.items()}
    _check_names(photos)
    tree = _tree(photos["train"], root)
    splits = {name: _split(found, tree) for name, found in photos.items()}
    if "val" not in splits:
        splits["train"], splits["val"] = cut(splits["train"], options.val_share, options.seed)
    return Dataset(root.resolve().name, tree, splits["train"], splits["val"], splits["test"])


def _cut_whole(root: Path, options: Options) -> Dataset:
    photos = _photos(root)
    tree = _tree(photos, root)
    rest, test = cut(_split(photos, tree), options.test_share, options.seed)
    # val_share is a share of all; the seed differs, so that the two cuts are independent.
    train, val = cut(rest, options.val_share / (1 - options.test_share), options.seed + 1)
    return Dataset(root.resolve().name, tree, train, val, test)


def _split_folders(root: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for name, aliases in SPLITS.items():
        there = [root / alias for alias in aliases if (root / alias).is_dir()]
        if len(there) > 1:
            raise DatasetError(f"{root} has {some([one.name for one in there])}: keep one of them")
        if there:
            found[name] = there[0]
    return found


def _photos(folder: Path) -> Photos:
    """Photos below a folder with their labels, by name."""
    files = sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in SUFFIXES
        and file.is_file()
        and all(map(_visible, map(Path, file.relative_to(folder).parts)))
    )
    found = [(file, file.relative_to(folder).parts[:-1]) for file in files]
    loose = [file for file, label in found if not label]
    if loose:
        raise DatasetError(
            f"{len(loose)} photos lie in {folder} itself, such as {loose[0].name}: the folder's "
            "name is the label, so move each into a folder of its label"
        )
    if not found:
        raise DatasetError(f"{folder}: expected photos ({', '.join(sorted(SUFFIXES))}), got none")
    return found


def _tree(photos: Photos, root: Path) -> LabelTree:
    try:
        return LabelTree.from_paths(sorted({label for _, label in photos}))
    except TreeError as error:
        raise DatasetError(f"{root}: {error}") from error


def _split(photos: Photos, tree: LabelTree) -> Split:
    ids = {path: node for node, path in enumerate(tree.paths)}
    return make_split([(file, ids[label]) for file, label in photos])


def _check_names(photos: Mapping[str, Photos]) -> None:
    """See that train has every label of the other splits."""
    known = _labels(photos["train"])
    spelled = {_folded(label): label for label in known}
    for name in sorted(photos.keys() - {"train"}):
        unknown = sorted(_labels(photos[name]) - known)
        if not unknown:
            continue
        meant = [
            f"{'/'.join(label)} (train has {'/'.join(spelled[_folded(label)])})"
            for label in unknown
            if _folded(label) in spelled
        ]
        if meant:
            raise DatasetError(
                f"{name}/ spells labels otherwise than train/: {some(meant)}. Rename them"
            )
        raise DatasetError(
            f"{name}/ has labels that train/ has not: {some(['/'.join(one) for one in unknown])}. "
            "Add training photos, or move these to the folder of a label that train/ has"
        )
    for name in sorted(photos.keys() - {"train"}):
        absent = known - _labels(photos[name])
        if absent:
            log.info("split=%s labels_without_photos=%d", name, len(absent))


def _labels(photos: Photos) -> set[LabelPath]:
    """All labels of these photos and those above them."""
    return {label[:end] for _, label in photos for end in range(1, len(label) + 1)}


def _folded(label: LabelPath) -> LabelPath:
    """The label as a person reads it: case, blanks and hyphens apart."""
    return tuple(
        name.casefold().replace("-", "").replace("_", "").replace(" ", "") for name in label
    )


def _visible(entry: Path) -> bool:
    return not entry.name.startswith(".")
