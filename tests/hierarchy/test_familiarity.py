"""How unlike an image is the labelled ones: what holds for any vectors."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hierarchy.depth_selection import Floats, Ints
from hierarchy.familiarity import (
    CENTRES,
    LEAST_OPEN,
    USUAL,
    Familiarity,
    fit_familiarity,
    more_than_usual,
)

CHANNELS = 40


def images(count: int, seed: int, *, first: int = 0) -> Floats:
    """``(n, C)``: five kinds of things, each with six channels of its own from ``first`` on."""
    draw = np.random.default_rng(seed)
    found = draw.gamma(1.0, 0.05, (count, CHANNELS))
    for row, kind in enumerate(draw.integers(0, 5, count).tolist()):
        start = first + 3 * kind
        found[row, start : start + 6] += draw.gamma(4.0, 0.5, 6)
    return np.asarray(found, dtype=np.float64)


def parts_of(count: int) -> Ints:
    return np.arange(count) % 4


@pytest.fixture(scope="module")
def known() -> Familiarity:
    return fit_familiarity(images(600, 1), parts_of(600))[0]


def test_new_images_of_the_same_kind_are_as_like_as_those_held_out(known: Familiarity) -> None:
    like = known.likeness(images(2000, 2))
    for share in (0.05, 0.2, 0.5):
        assert (like < share).mean() == pytest.approx(share, abs=0.04)


def test_things_that_were_never_labelled_are_unlike(known: Familiarity) -> None:
    others = known.likeness(images(300, 3, first=20))
    assert (others < USUAL).mean() > 0.95


def test_held_out_images_are_ranked_among_themselves() -> None:
    parts = np.where(np.arange(600) < 200, parts_of(600), -1)
    known, like = fit_familiarity(images(600, 1), parts)
    assert len(known.distances) == 200
    assert np.isnan(like[200:]).all()
    assert sorted(like[:200]) == pytest.approx(np.arange(1, 201) / 200)
    assert (like < 0.02).sum() == 3


def test_what_is_kept_is_small() -> None:
    known, _ = fit_familiarity(images(600, 1), parts_of(600))
    assert known.centres.shape == (CENTRES, CHANNELS)
    assert np.linalg.norm(known.centres, axis=1) == pytest.approx(1)


def test_where_all_are_held_out_together_nothing_is_known() -> None:
    known, like = fit_familiarity(images(20, 1), np.zeros(20, dtype=np.int64))
    assert not len(known.distances)
    assert np.isnan(like).all()
    assert known.likeness(images(3, 2)) == pytest.approx(1)  # no image counts as unlike


def test_the_same_image_many_times_is_no_trouble() -> None:
    known, like = fit_familiarity(np.tile(images(1, 1), (12, 1)), parts_of(12))
    assert len(known.centres) == 1
    assert like == pytest.approx(1)


@given(st.integers(0, 2**32 - 1), st.floats(0.1, 50))
def test_neither_brightness_nor_order_of_channels_matters(
    known: Familiarity, seed: int, factor: float
) -> None:
    order, new = np.random.default_rng(seed).permutation(CHANNELS), images(20, seed)
    turned = Familiarity(known.centres[:, order], known.distances)
    assert turned.distance(new[:, order] * factor) == pytest.approx(known.distance(new), abs=1e-5)


@given(st.integers(0, 2**32 - 1))
def test_what_is_farther_is_never_more_like(known: Familiarity, seed: int) -> None:
    new = np.random.default_rng(seed).gamma(0.5, 1, (30, CHANNELS))
    like = known.likeness(new)[np.argsort(known.distance(new))]
    assert (np.diff(like) <= 0).all()
    assert ((like >= 1 / 601) & (like <= 1)).all()


# Alarms


@pytest.mark.parametrize("held_out", [60, 200, 700])
@pytest.mark.parametrize("among", [30, 300])
def test_an_alarm_is_rare_where_all_is_as_usual(held_out: int, among: int) -> None:
    """Distances of both from one distribution, whichever: ranks decide."""
    draw, alarms = np.random.default_rng(held_out + among), 0
    for _ in range(400):
        before, after = np.sort(draw.random(held_out)), draw.random(among)
        known = Familiarity(np.eye(1, dtype=np.float32), before.astype(np.float32))
        nearer = np.searchsorted(known.distances, after)
        like = (held_out - nearer + 1) / (held_out + 1)
        alarms += more_than_usual(int((like < USUAL).sum()), among, held_out)
    assert alarms <= 12  # 4 expected at most; a chance of 1 in 1000 for more than 11


def test_an_alarm_needs_images_and_more_than_twice_the_usual_share() -> None:
    assert more_than_usual(60, 200, 600)
    assert not more_than_usual(LEAST_OPEN - 1, LEAST_OPEN - 1, 600)
    assert not more_than_usual(900, 10_000, 6000)  # 9 %, however sure
    assert more_than_usual(1100, 10_000, 6000)


def test_few_labelled_images_raise_no_alarm() -> None:
    assert not more_than_usual(200, 200, 18)
    assert not more_than_usual(30, 200, 25)
    assert more_than_usual(190, 200, 60)
