"""Folders of folders: the path is the label."""

from pathlib import Path

import pytest

from evaluation.data import Dataset, Options, Split, load
from evaluation.errors import DatasetError
from tests.evaluation.data.collections import photos


def labels(dataset: Dataset, split: Split) -> list[tuple[str, ...]]:
    return [dataset.tree.path(target) for target in split.targets]


def test_the_path_of_folders_is_the_label_at_any_depth(tmp_path: Path) -> None:
    photos(tmp_path, ["train/a/x/1.jpg", "train/a/2.jpg", "train/b/3.PNG"])
    photos(tmp_path, ["val/b/1.jpg", "test/a/x/1.jpg"])
    found = load(tmp_path)
    assert labels(found, found.train) == [("a",), ("a", "x"), ("b",)]
    assert labels(found, found.val) == [("b",)]
    assert labels(found, found.test) == [("a", "x")]
    assert found.test.files == (tmp_path / "test/a/x/1.jpg",)


def test_an_inner_label_of_train_may_be_all_that_is_known_in_test(tmp_path: Path) -> None:
    photos(tmp_path, ["train/a/x/1.jpg", "val/a/1.jpg", "test/a/1.jpg"])
    found = load(tmp_path)
    assert labels(found, found.test) == [("a",)]


def test_val_is_cut_from_train_where_there_is_none(tmp_path: Path) -> None:
    photos(tmp_path, [f"train/a/{place}.jpg" for place in range(10)] + ["test/a/1.jpg"])
    found = load(tmp_path, options=Options(val_share=0.2))
    assert (len(found.train), len(found.val), len(found.test)) == (8, 2, 1)
    assert not set(found.train.files) & set(found.val.files)


def test_one_tree_of_folders_is_cut_into_three(tmp_path: Path) -> None:
    photos(tmp_path, [f"{name}/{place}.jpg" for name in "ab" for place in range(10)])
    found = load(tmp_path, options=Options(val_share=0.1, test_share=0.2))
    assert (len(found.train), len(found.val), len(found.test)) == (14, 2, 4)
    assert len({*found.train.files, *found.val.files, *found.test.files}) == 20


def test_other_files_and_hidden_folders_are_passed_over(tmp_path: Path) -> None:
    photos(tmp_path, ["train/a/1.jpg", "train/.cache/2.jpg", "test/a/1.jpg"])
    (tmp_path / "train/a/readme.txt").write_text("no photo")
    found = load(tmp_path)
    assert found.tree.paths == (("a",),)
    assert len(found.train) == 1


def test_a_label_spelled_otherwise_is_named_with_its_match(tmp_path: Path) -> None:
    photos(tmp_path, ["train/Red Apple/1.jpg", "val/red-apple/1.jpg", "test/Red Apple/1.jpg"])
    with pytest.raises(DatasetError, match=r"red-apple \(train has Red Apple\)\. Rename"):
        load(tmp_path)


def test_a_label_that_train_lacks_is_named(tmp_path: Path) -> None:
    photos(tmp_path, ["train/a/1.jpg", "test/a/b/1.jpg"])
    with pytest.raises(DatasetError, match=r"test/ has labels that train/ has not: a/b"):
        load(tmp_path)


def test_a_photo_without_a_label_is_named(tmp_path: Path) -> None:
    photos(tmp_path, ["train/a/1.jpg", "train/loose.jpg", "test/a/1.jpg"])
    with pytest.raises(DatasetError, match=r"loose\.jpg.*move each"):
        load(tmp_path)


def test_train_needs_test(tmp_path: Path) -> None:
    photos(tmp_path, ["train/a/1.jpg", "valid/a/1.jpg"])
    with pytest.raises(DatasetError, match="has train, val/ but no test/"):
        load(tmp_path)


def test_two_folders_for_val_are_one_too_many(tmp_path: Path) -> None:
    photos(tmp_path, ["train/a/1.jpg", "val/a/1.jpg", "valid/a/1.jpg", "test/a/1.jpg"])
    with pytest.raises(DatasetError, match="has val, valid: keep one"):
        load(tmp_path)


def test_folders_without_photos_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(DatasetError, match=r"expected photos \(\.bmp.*got none"):
        load(tmp_path)
