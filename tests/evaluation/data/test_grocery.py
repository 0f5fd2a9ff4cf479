"""Grocery: labels by class id, three levels, the official splits."""

from pathlib import Path

import numpy as np
import pytest

from evaluation.data import load
from evaluation.errors import DatasetError
from tests.evaluation.data.collections import lines, photos

HEAD = (
    "Class Name (str),Class ID (int),Coarse Class Name (str),Coarse Class ID (int),"
    "Iconic Image Path (str),Product Description Path (str)"
)


def write(root: Path, *, test: str = "test/Veg/Shroom/Flat/1.jpg, 1, 1") -> None:
    rows = [
        "Red,0,Apple,0,/icons/Fruit/Apple/Red/i.jpg,x",
        "Flat,1,Shroom,1,/icons/Veg/Flat/i.jpg,x",
    ]
    lines(root / "classes.csv", [HEAD, *rows])
    lines(root / "train.txt", ["train/Fruit/Apple/Red/1.jpg, 0, 0", "train/Veg/Flat/1.jpg, 1, 1"])
    lines(root / "val.txt", ["val/Fruit/Apple/Red/1.jpg, 0, 0"])
    lines(root / "test.txt", [test])
    photos(root, ["train/Fruit/Apple/Red/1.jpg", "train/Veg/Flat/1.jpg"])
    photos(root, ["val/Fruit/Apple/Red/1.jpg", "test/Veg/Shroom/Flat/1.jpg"])


def test_labels_follow_the_class_id_not_the_folder(tmp_path: Path) -> None:
    write(tmp_path)
    found = load(tmp_path)
    assert found.name == "grocery"
    assert found.tree.path(found.test.targets[0]) == ("Veg", "Shroom", "Flat")
    assert found.tree.paths[:2] == (("Fruit",), ("Veg",))


def test_a_class_that_is_not_listed_is_named(tmp_path: Path) -> None:
    write(tmp_path, test="test/Veg/Shroom/Flat/1.jpg, 7, 1")
    with pytest.raises(DatasetError, match=r"test\.txt, line 1: class 7 is not in classes\.csv"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("test/1.jpg", "expected path, class id"),
        ("test/1.jpg, one, 1", "a whole number, got 'one'"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    write(tmp_path, test=line)
    with pytest.raises(DatasetError, match=message):
        load(tmp_path)


def test_a_list_without_the_columns_says_which_it_wants(tmp_path: Path) -> None:
    write(tmp_path)
    lines(tmp_path / "classes.csv", ["name,id", "Red,0"])
    with pytest.raises(DatasetError, match=r"expected the columns Class Name.*got name, id"):
        load(tmp_path)


def test_the_collection_itself_has_the_published_sizes(shared: Path) -> None:
    found = load(shared / "data" / "grocery")
    assert (len(found.train), len(found.val), len(found.test)) == (2640, 296, 2485)
    assert [len(found.tree.level_nodes(level)) for level in range(3)] == [3, 43, 81]
    assert np.isin(found.test.targets, found.tree.leaves).all()
    deeper = next(i for i, file in enumerate(found.test.files) if "Mushroom" in file.parts)
    path = found.tree.path(found.test.targets[deeper])
    assert path == ("Vegetables", "Mushroom", "Brown-Cap-Mushroom")
