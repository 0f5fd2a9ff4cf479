"""Stanford Cars: both forms of its MATLAB lists, and the body types that come with the program."""

import csv
from collections import Counter
from pathlib import Path

import pytest
from scipy.io import savemat

from evaluation.data import Options, load
from evaluation.data.treefile import build_tree, shipped
from evaluation.errors import DatasetError
from tests.evaluation.data import collections

NAMES = ["AM General Hummer SUV 2000", "Acura RL Sedan 2012", "Acura TL Sedan 2012"]
WORDS = ("SUV", "Sedan", "Coupe", "Convertible", "Hatchback", "Wagon", "Van", "Minivan", "Cab")


def row(number: int, key: int, *, test: bool) -> dict[str, object]:
    return {"relative_im_path": f"car_ims/{number:06}.jpg", "class": key, "test": int(test)}


def test_the_joint_list_is_parted_by_its_test_flag(tmp_path: Path) -> None:
    rows = [row(1, 1, test=False), row(2, 3, test=False), row(3, 2, test=True)]
    collections.cars(tmp_path, NAMES, rows)
    found = load(tmp_path, options=Options(val_share=0))
    paths = [found.tree.path(target) for target in found.train.targets]
    assert paths == [("SUV", NAMES[0]), ("Sedan", NAMES[2])]
    assert [found.tree.path(target) for target in found.test.targets] == [("Sedan", NAMES[1])]
    assert found.test.files == (tmp_path / "car_ims/000003.jpg",)


def test_the_devkit_reads_the_same(tmp_path: Path) -> None:
    collections.devkit(tmp_path, NAMES, [("1.jpg", 1), ("2.jpg", 3)], [("1.jpg", 2)])
    found = load(tmp_path, options=Options(val_share=0))
    paths = [found.tree.path(target) for target in found.train.targets]
    assert paths == [("SUV", NAMES[0]), ("Sedan", NAMES[2])]
    assert found.test.files == (tmp_path / "cars_test/1.jpg",)
    assert found.tree.path(found.test.targets[0]) == ("Sedan", NAMES[1])


def test_a_list_of_one_photo_is_a_list(tmp_path: Path) -> None:
    collections.devkit(tmp_path, NAMES[:1], [("1.jpg", 1)], [("1.jpg", 1)])
    found = load(tmp_path)
    assert (len(found.train), len(found.val), len(found.test)) == (1, 0, 1)


def test_a_devkit_without_test_labels_says_so(tmp_path: Path) -> None:
    collections.devkit(tmp_path, NAMES, [("1.jpg", 1)], [("1.jpg", 2)])
    (tmp_path / "cars_test_annos_withlabels.mat").unlink()
    with pytest.raises(DatasetError, match=r"withlabels.*own test list has no labels"):
        load(tmp_path)


def test_a_file_that_is_not_matlab_is_told(tmp_path: Path) -> None:
    (tmp_path / "cars_annos.mat").write_text("no")
    with pytest.raises(DatasetError, match=r"cars_annos\.mat: cannot be read as a MATLAB 5 file"):
        load(tmp_path)


def test_a_missing_variable_is_named(tmp_path: Path) -> None:
    savemat(tmp_path / "cars_annos.mat", {"other": 1})
    with pytest.raises(DatasetError, match="expected the variable class_names, got other"):
        load(tmp_path)


def test_a_missing_field_is_named(tmp_path: Path) -> None:
    collections.cars(tmp_path, NAMES, [{"relative_im_path": "car_ims/1.jpg", "class": 1}])
    with pytest.raises(DatasetError, match="annotation 1: expected relative_im_path, class, test"):
        load(tmp_path)


def test_a_class_without_a_name_is_told(tmp_path: Path) -> None:
    collections.cars(tmp_path, NAMES, [row(1, 4, test=False), row(2, 1, test=True)])
    with pytest.raises(DatasetError, match="annotation 1: class 4 is not in class_names"):
        load(tmp_path)


def test_body_types_follow_the_last_body_word_of_the_name() -> None:
    rows = list(csv.DictReader(shipped("cars.csv").read_text(encoding="utf-8").splitlines()))
    by_hand = []
    for one in rows:
        words = [word for word in one["model"].replace("SuperCab", "Cab").split() if word in WORDS]
        if not words or words[-1] != one["body_type"]:
            by_hand.append(one["model"])
    assert len(by_hand) == 14 + 1  # the module says which
    assert "Ford E-Series Wagon Van 2012" in by_hand


def test_the_tree_that_comes_along_has_the_published_sizes() -> None:
    """9 body types and 196 models; smallest, median and largest type as in the published tree."""
    rows = list(csv.DictReader(shipped("cars.csv").read_text(encoding="utf-8").splitlines()))
    tree, _ = build_tree(shipped("cars.csv"), {int(one["class_id"]): one["model"] for one in rows})
    assert [len(tree.level_nodes(level)) for level in range(2)] == [9, 196]
    sizes = sorted(Counter(tree.parents[leaf] for leaf in tree.leaves).values())
    assert (sizes[0], sizes[4], sizes[8]) == (6, 18, 50)
