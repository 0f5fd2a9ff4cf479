"""FGVC-Aircraft: the tree follows from its three lists."""

from pathlib import Path

import pytest

from evaluation.data import Options, load
from evaluation.errors import DatasetError
from tests.evaluation.data import collections

BOEING, OTHER = ("Boeing", "Boeing 707", "707-320"), ("Boeing", "Boeing 737", "737-200")
HORNET = ("McDonnell Douglas", "F/A-18", "F/A-18")
TRAIN = {"002": BOEING, "001": OTHER, "003": HORNET}


def test_labels_are_maker_family_variant_in_the_order_of_the_list(tmp_path: Path) -> None:
    collections.aircraft(tmp_path, "trainval", TRAIN)
    collections.aircraft(tmp_path, "test", {"009": HORNET})
    found = load(tmp_path, options=Options(val_share=0))
    assert [found.tree.path(target) for target in found.train.targets] == [BOEING, OTHER, HORNET]
    assert [file.name for file in found.train.files] == ["002.jpg", "001.jpg", "003.jpg"]
    assert found.tree.path(found.test.targets[0]) == HORNET
    assert len(found.tree) == 2 + 3 + 3


def test_train_and_val_are_joined_where_there_is_no_joint_list(tmp_path: Path) -> None:
    collections.aircraft(tmp_path, "train", TRAIN)
    collections.aircraft(tmp_path, "val", {"004": BOEING})
    collections.aircraft(tmp_path, "test", {"009": HORNET})
    found = load(tmp_path, options=Options(val_share=0))
    assert [file.stem for file in found.train.files] == ["002", "001", "003", "004"]


def test_lists_that_name_different_photos_are_refused(tmp_path: Path) -> None:
    collections.aircraft(tmp_path, "trainval", TRAIN)
    collections.aircraft(tmp_path, "test", {"009": HORNET})
    collections.lines(tmp_path / "data/images_family_test.txt", ["008 F/A-18"])
    with pytest.raises(DatasetError, match="only one of them has 008, 009"):
        load(tmp_path)


def test_a_family_of_two_makers_is_refused(tmp_path: Path) -> None:
    collections.aircraft(tmp_path, "trainval", TRAIN)
    collections.aircraft(tmp_path, "test", {"009": ("Airbus", "Boeing 707", "707-120")})
    with pytest.raises(DatasetError, match="family 'Boeing 707' is listed under both 'Airbus'"):
        load(tmp_path)


def test_it_needs_no_tree_of_ones_own(tmp_path: Path) -> None:
    collections.aircraft(tmp_path, "trainval", TRAIN)
    collections.aircraft(tmp_path, "test", {"009": HORNET})
    with pytest.raises(DatasetError, match="leave the tree out"):
        load(tmp_path, options=Options(tree=tmp_path / "own.csv"))
