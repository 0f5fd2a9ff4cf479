"""CUB-200-2011: its lists, and the orders and families that come with the program."""

from pathlib import Path

import numpy as np
import pytest

from evaluation.data import Options, load
from evaluation.data.treefile import build_tree, shipped
from evaluation.errors import DatasetError
from tests.evaluation.data import collections

CLASSES = {1: "Black_footed_Albatross", 2: "Laysan_Albatross", 200: "Common_Yellowthroat"}


def test_photos_get_their_species_and_split(tmp_path: Path) -> None:
    collections.cub(tmp_path / "CUB_200_2011", CLASSES)
    found = load(tmp_path, options=Options(val_share=0))
    assert (len(found.train), len(found.val), len(found.test)) == (6, 0, 6)
    assert [found.tree.path(target) for target in found.test.targets[::2]] == [
        ("Procellariiformes", "Diomedeidae", "Black footed Albatross"),
        ("Procellariiformes", "Diomedeidae", "Laysan Albatross"),
        ("Passeriformes", "Parulidae", "Common Yellowthroat"),
    ]
    assert found.train.files[0].name == "Black_footed_Albatross_0.jpg"


def test_val_comes_from_train_alone(tmp_path: Path) -> None:
    collections.cub(tmp_path, CLASSES, each=8)
    found = load(tmp_path, options=Options(val_share=0.25))
    assert found.val.targets.tolist() == list(found.tree.leaves)  # 1 of 4 of each
    assert not set(found.val.files) & set(found.test.files)


def test_a_tree_file_of_ones_own_is_taken_ragged_as_it_may_be(tmp_path: Path) -> None:
    collections.cub(tmp_path / "data", CLASSES)
    rows = [f"{key},{name},{'Bird' if key == 1 else ''}" for key, name in CLASSES.items()]
    collections.lines(tmp_path / "own.csv", ["class_id,species,kind", *rows])
    found = load(tmp_path / "data", options=Options(tree=tmp_path / "own.csv"))
    assert found.tree.path(found.test.targets[0]) == ("Bird", "Black footed Albatross")
    assert found.tree.path(found.test.targets[-1]) == ("Common Yellowthroat",)


def test_classes_of_another_release_are_refused(tmp_path: Path) -> None:
    collections.cub(tmp_path, {1: "Laysan_Albatross"})
    with pytest.raises(DatasetError, match="class 1 is 'Laysan_Albatross', 'Black_footed"):
        load(tmp_path)


def test_a_class_that_the_tree_file_lacks_is_named(tmp_path: Path) -> None:
    collections.cub(tmp_path, {201: "Dodo"})
    with pytest.raises(DatasetError, match="a row for each class, none for 201 Dodo"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["class_id,species"], "expected a first line"),
        (["class_id,species,family", "1,a"], "line 2: expected 3 cells"),
        (["class_id,species", "1,a", "1,b"], "line 3: class 1 was given before"),
        (["class_id,species", "one,a"], "class id: expected a whole number, got 'one'"),
    ],
)
def test_a_bad_tree_file_is_told_what_is_wrong(
    tmp_path: Path, rows: list[str], message: str
) -> None:
    collections.lines(tmp_path / "own.csv", rows)
    with pytest.raises(DatasetError, match=message):
        build_tree(tmp_path / "own.csv", {1: "a"})


def test_a_missing_list_is_named(tmp_path: Path) -> None:
    collections.cub(tmp_path, CLASSES)
    (tmp_path / "classes.txt").unlink()
    with pytest.raises(DatasetError, match=r"expected the list classes\.txt"):
        load(tmp_path)


def test_a_photo_without_a_split_is_named(tmp_path: Path) -> None:
    collections.cub(tmp_path, CLASSES)
    collections.lines(tmp_path / "train_test_split.txt", ["1 1"])
    with pytest.raises(DatasetError, match=r"image 2 .* needs a 0 or 1"):
        load(tmp_path)


def test_the_tree_that_comes_along_is_the_published_one(shared: Path) -> None:
    """Equal but for the numbers: node for node a family is a family, an order an order."""
    golden = np.load(shared / "golden" / "treeloss_cub.npz")["parent"].tolist()
    rows = shipped("cub.csv").read_text(encoding="utf-8").splitlines()[1:]
    classes = {int(row.split(",")[0]): row.split(",")[1] for row in rows}
    tree, nodes = build_tree(shipped("cub.csv"), classes)
    assert [len(tree.level_nodes(level)) for level in range(3)] == [13, 38, 200]
    pairs = set()
    for number, node in nodes.items():
        ours, theirs = node, 50 + number
        while ours != -1:
            pairs.add((ours, theirs))
            ours, theirs = tree.parents[ours], golden[theirs]
        assert theirs == -1
    assert len(pairs) == len(tree) == len(golden) == 251
    assert len({ours for ours, _ in pairs}) == len({theirs for _, theirs in pairs}) == 251
    assert [nodes[number] for number in sorted(nodes)] == list(range(51, 251))
