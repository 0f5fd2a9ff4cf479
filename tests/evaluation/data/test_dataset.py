"""Splits are checked, and cut from each class alike."""

from pathlib import Path

import numpy as np
import pytest

from evaluation.data.dataset import Dataset, Options, Split, cut, make_split
from evaluation.errors import DatasetError
from hierarchy.tree import LabelTree


def split(*targets: int) -> Split:
    return Split(
        tuple(Path(f"{place}.jpg") for place in range(len(targets))),
        np.array(targets, dtype=np.int64),
    )


def test_each_class_loses_its_share_but_never_its_last() -> None:
    stays, gone = cut(split(*[0] * 20, *[1] * 5, 2), 0.3, seed=0)
    assert np.bincount(stays.targets).tolist() == [14, 3, 1]  # floor(1.5 + 0.5) = 2 of 5 go
    assert np.bincount(gone.targets, minlength=3).tolist() == [6, 2, 0]


def test_both_parts_keep_the_order_and_share_nothing() -> None:
    whole = split(*[0, 1] * 10)
    stays, gone = cut(whole, 0.5, seed=3)
    assert set(stays.files) | set(gone.files) == set(whole.files)
    for part in (stays, gone):
        places = [whole.files.index(file) for file in part.files]
        assert places == sorted(places)
        assert part.targets.tolist() == [whole.targets[place] for place in places]


def test_the_seed_decides_who_goes() -> None:
    whole = split(*[0] * 40)
    one, same, other = (cut(whole, 0.5, seed=seed)[1].files for seed in (1, 1, 2))
    assert one == same
    assert one != other


def test_a_share_of_0_cuts_nothing() -> None:
    stays, gone = cut(split(0, 1, 1), 0.0, seed=0)
    assert (len(stays), len(gone)) == (3, 0)


def test_targets_are_one_int64_a_file() -> None:
    with pytest.raises(DatasetError, match=r"expected \(1,\) int64, got \(2,\)"):
        Split((Path("a.jpg"),), np.array([0, 1]))
    with pytest.raises(DatasetError, match="float64"):
        Split((Path("a.jpg"),), np.array([0.0]))


@pytest.mark.parametrize("target", [-1, 2])
def test_targets_are_nodes_of_the_tree(target: int) -> None:
    tree = LabelTree.from_paths([("a",), ("b",)])
    with pytest.raises(DatasetError, match="toy, val: node ids must be 0 to 1"):
        Dataset("toy", tree, split(0), split(target), split(1))


def test_a_missing_photo_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"1 of 1 listed photos are missing.*no\.jpg"):
        make_split([(tmp_path / "no.jpg", 0)])


@pytest.mark.parametrize(("val", "test"), [(1.0, 0.0), (-0.1, 0.0), (0.5, 0.5)])
def test_shares_leave_photos_to_train_on(val: float, test: float) -> None:
    with pytest.raises(DatasetError, match="share"):
        Options(val_share=val, test_share=test)
