"""Small collections written in the layouts of the published ones."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat


def photo(file: Path) -> None:
    """Write a photo of one pixel."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (1, 1)).save(file)


def photos(root: Path, files: Sequence[str]) -> None:
    for file in files:
        photo(root / file)


def lines(file: Path, text: Sequence[str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(text) + "\n", encoding="utf-8")


def cub(root: Path, classes: Mapping[int, str], *, each: int = 4) -> None:
    """Each class has this many photos, the first half of them for training."""
    images: list[str] = []
    labels: list[str] = []
    parts: list[str] = []
    for number, name in classes.items():
        for place in range(each):
            key = len(images) + 1
            file = f"{number:03}.{name}/{name}_{place}.jpg"
            images.append(f"{key} {file}")
            labels.append(f"{key} {number}")
            parts.append(f"{key} {int(place < each / 2)}")
            photo(root / "images" / file)
    lines(root / "images.txt", images)
    lines(root / "image_class_labels.txt", labels)
    lines(root / "train_test_split.txt", parts)
    lines(
        root / "classes.txt", [f"{number} {number:03}.{name}" for number, name in classes.items()]
    )


def aircraft(root: Path, split: str, labels: Mapping[str, tuple[str, str, str]]) -> None:
    """One split's three lists, and its photos; labels are maker, family, variant."""
    for place, level in enumerate(("manufacturer", "family", "variant")):
        rows = [f"{key} {path[place]}" for key, path in labels.items()]
        lines(root / "data" / f"images_{level}_{split}.txt", rows)
    photos(root / "data" / "images", [f"{key}.jpg" for key in labels])


def structs(rows: Sequence[Mapping[str, object]]) -> np.ndarray:
    """A MATLAB struct array."""
    found = np.empty(len(rows), dtype=[(name, object) for name in rows[0]])
    for place, row in enumerate(rows):
        found[place] = tuple(row.values())
    return found


def cars(root: Path, names: Sequence[str], rows: Sequence[Mapping[str, object]]) -> None:
    """The one list with a test flag, and its photos."""
    root.mkdir(parents=True, exist_ok=True)
    cells = np.array(names, dtype=object)
    savemat(root / "cars_annos.mat", {"annotations": structs(rows), "class_names": cells})
    photos(root, [str(row["relative_im_path"]) for row in rows])


def devkit(
    root: Path,
    names: Sequence[str],
    train: Sequence[tuple[str, int]],
    test: Sequence[tuple[str, int]],
) -> None:
    """The devkit's lists, and the photos: file name and class id each."""
    (root / "devkit").mkdir(parents=True)
    meta = {"class_names": np.array(names, dtype=object)}
    savemat(root / "devkit" / "cars_meta.mat", meta)
    for name, folder, rows in (
        ("devkit/cars_train_annos.mat", "cars_train", train),
        ("cars_test_annos_withlabels.mat", "cars_test", test),
    ):
        records = structs([{"bbox_x1": 1, "class": key, "fname": file} for file, key in rows])
        savemat(root / name, {"annotations": records})
        photos(root / folder, [file for file, _ in rows])
