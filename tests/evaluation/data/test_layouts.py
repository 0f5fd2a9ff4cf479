"""A folder's layout is recognised, or the message says what was looked for."""

from pathlib import Path

import pytest

from evaluation.data import LAYOUTS, load
from evaluation.errors import DatasetError
from tests.evaluation.data import collections


def test_a_folder_with_nothing_known_says_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(
        DatasetError, match=r"none of the layouts known.*it has notes\.txt"
    ) as error:
        load(tmp_path)
    assert all(name in str(error.value) for name in LAYOUTS)


def test_a_layout_that_was_asked_for_is_the_only_one_tried(tmp_path: Path) -> None:
    collections.photos(tmp_path, ["train/a/1.jpg", "test/a/1.jpg"])
    assert load(tmp_path, "folders").tree.paths == (("a",),)
    with pytest.raises(DatasetError, match=r"\(grocery: classes\.csv"):
        load(tmp_path, "grocery")


def test_a_layout_nobody_knows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"layout must be one of grocery, cub.*got 'birds'"):
        load(tmp_path, "birds")


def test_a_path_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="is none"):
        load(tmp_path / "nowhere")
