"""What belongs together is held out together."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from worker.folds import assign_folds


def points(count: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(count, 8)).astype(np.float32)


def folds(
    features: NDArray[np.float32],
    target: list[int],
    groups: list[str | None] | None = None,
    *,
    count: int = 4,
    seed: int = 0,
) -> NDArray[np.int64]:
    which = groups or [None] * len(target)
    return assign_folds(features, np.array(target), which, folds=count, seed=seed)


@settings(max_examples=50)
@given(
    st.lists(
        st.tuples(st.integers(-1, 3), st.sampled_from([None, None, "a", "b", "c"])),
        min_size=1,
        max_size=40,
    ),
    st.integers(2, 5),
    st.integers(0, 50),
)
def test_every_picture_has_a_fold_and_no_group_is_parted(
    pictures: list[tuple[int, str | None]], count: int, seed: int
) -> None:
    target, groups = [t for t, _ in pictures], [g for _, g in pictures]
    found = folds(points(len(pictures), seed), target, groups, count=count)
    assert found.shape == (len(pictures),)
    assert ((found >= 0) & (found < count)).all()
    for group in set(groups) - {None}:
        assert len({found[at] for at, g in enumerate(groups) if g == group}) == 1


def test_look_alikes_of_a_label_stay_together() -> None:
    """Four scenes of ten near-duplicates each: a fold holds whole scenes."""
    scenes = np.repeat(points(4) * 10, 10, axis=0)
    found = folds(scenes + points(40, 1) * 0.01, [0] * 40)
    assert sorted(set(found.tolist())) == [0, 1, 2, 3]
    for scene in range(4):
        assert len(set(found[scene * 10 : scene * 10 + 10].tolist())) == 1


def test_each_label_is_spread_over_the_folds() -> None:
    found = folds(points(80), [0, 1] * 40)
    for label in (0, 1):
        assert set(found[label::2].tolist()) == {0, 1, 2, 3}


def test_folds_are_about_as_large_as_each_other() -> None:
    sizes = np.bincount(folds(points(400), [at % 20 for at in range(400)]), minlength=4)
    assert sizes.min() > 60


@pytest.mark.filterwarnings("error")
def test_the_same_picture_many_times_is_one_cluster_without_a_warning() -> None:
    found = folds(np.repeat(points(1), 12, axis=0), [0] * 12)
    assert len(set(found.tolist())) == 1


def test_pictures_without_features_do_no_harm() -> None:
    assert folds(np.zeros((5, 8), np.float32), [0, 0, 1, 1, 2]).shape == (5,)


def test_the_same_seed_gives_the_same_folds() -> None:
    one, two = (folds(points(60), [0, 1, 2] * 20, seed=5) for _ in range(2))
    assert (one == two).all()


def test_a_few_new_labels_leave_the_others_where_they_were() -> None:
    """Ten images more, five times: dealt out each time, most images would change places."""
    features, target = points(150), [at % 6 for at in range(150)]
    moved: dict[bool, int] = {False: 0, True: 0}
    for goes_on in moved:
        before = folds(features[:100], target[:100])
        for count in range(110, 151, 10):
            known = np.full(count, -1)
            known[: len(before)] = before
            found = assign_folds(
                features[:count],
                np.array(target[:count]),
                [None] * count,
                folds=4,
                seed=0,
                before=known if goes_on else None,
            )
            moved[goes_on] += int((found[: len(before)] != before).sum())
            before = found
        assert np.bincount(before, minlength=4).min() > 20
    assert moved[True] < 0.2 * moved[False]


def test_a_group_stays_where_it_was() -> None:
    groups: list[str | None] = ["a", "a", "b", "b", "c", "c"]
    before = np.array([2, 2, 0, 0, -1, -1])
    found = assign_folds(
        points(6), np.zeros(6, dtype=np.int64), groups, folds=3, seed=0, before=before
    )
    assert found.tolist() == [2, 2, 0, 0, 1, 1]


def test_folds_of_another_number_of_parts_are_forgotten() -> None:
    """A backbone that learns has five parts, a head on its own four."""
    before = np.array([4] * 20)
    found = assign_folds(
        points(20), np.zeros(20, dtype=np.int64), [None] * 20, folds=4, seed=0, before=before
    )
    assert set(found.tolist()) == {0, 1, 2, 3}


def test_one_group_of_everything_is_one_fold() -> None:
    assert set(folds(points(9), [0, 1, 2] * 3, ["store"] * 9).tolist()) == {0}
