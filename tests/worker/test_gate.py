"""A version that is worse stays out; chance alone refuses nobody; the words say which."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from hierarchy.calibration import Evidence, Fitted, fit_rule
from worker.gate import (
    LEAST,
    LEAST_SHOWN,
    HeldOut,
    compare,
    compare_held_out,
    compare_shown,
)

TOO_FEW = "too few to tell apart, so the newer one goes live"
TOO_CLOSE = "too close to tell apart, so the newer one goes live"


def pair(
    won: int, lost: int, both: int = 0, neither: int = 0
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Right or wrong of the new and the live version."""
    cases = [(True, False)] * won + [(False, True)] * lost
    cases += [(True, True)] * both + [(False, False)] * neither
    table = np.array(cases, dtype=bool).reshape(-1, 2)
    return table[:, 0], table[:, 1]


@pytest.mark.parametrize(
    ("won", "lost", "passed"),
    [
        (0, 4, True),  # 1/16
        (0, 5, False),  # 1/32
        (1, 7, False),  # 9/256 = 0.035
        (1, 6, True),  # 8/128 = 0.063
        (2, 8, True),  # 56/1024 = 0.055
        (2, 9, False),  # 67/2048 = 0.033
        (5, 0, True),
        (0, 0, True),
        (50, 50, True),
    ],
)
def test_mcnemar_on_paper(won: int, lost: int, passed: bool) -> None:  # noqa: FBT001
    new, live = pair(won, lost, both=30)
    verdict = compare(new, live, "v3")
    assert verdict.passed is passed
    assert verdict.why.endswith("worse by more than chance explains") is not passed


def test_images_that_both_get_right_or_wrong_decide_nothing() -> None:
    assert not compare(*pair(0, 5, both=1000, neither=1000), "v3").passed
    assert compare(*pair(0, 4, both=1000, neither=1000), "v3").passed


def test_too_few_images_say_nothing() -> None:
    verdict = compare(*pair(0, LEAST - 1), "v3")
    assert verdict.passed
    assert verdict.why == "only 9 images are new since v3: not compared"
    assert not compare(*pair(0, LEAST), "v3").passed


def test_no_image_at_all_says_nothing() -> None:
    assert compare(*pair(0, 0), "v3").passed


@pytest.mark.parametrize(
    ("won", "lost", "both", "neither", "figures", "end"),
    [
        (3, 1, 12, 4, "15 of 20 right against 13 of 20", ""),
        (0, 2, 7, 1, "7 of 10 right against 9 of 10", TOO_FEW),
        (1, 2, 150, 0, "151 of 153 right against 152 of 153", TOO_CLOSE),
        (0, 6, 4, 0, "4 of 10 right against 10 of 10", "worse by more than chance explains"),
    ],
)
def test_the_reason_counts_images(
    won: int, lost: int, both: int, neither: int, figures: str, end: str
) -> None:
    why = compare(*pair(won, lost, both, neither), "v14").why
    assert why == f"{figures} for v14 on images labelled since" + (f": {end}" if end else "")


# On images that several versions held out


def held_out(right: NDArray[np.bool_], drawn: int = 0, first: int = 0) -> HeldOut:
    """Images one after the other, the first of which were drawn at random."""
    count = len(right)
    seen = Evidence(np.full((count, 1), 0.8), right[:, None].astype(np.int64))
    seen = replace(seen, drawn=np.arange(count) < drawn)
    return HeldOut(np.arange(first, first + count), np.zeros(count, dtype=np.int64), right, seen)


def wrong(count: int, *places: int) -> NDArray[np.bool_]:
    """All right but these."""
    return ~np.isin(np.arange(count), places)


def test_a_slow_slide_is_seen_against_an_earlier_version() -> None:
    """Three images more are wrong in each version: no step tells, all of them together do."""
    versions = {f"v{n}": held_out(wrong(40, *range(3 * n))) for n in range(4)}
    new = versions.pop("v3")
    verdicts = {name: compare_held_out(new, one, name) for name, one in versions.items()}
    assert [one.passed for one in verdicts.values()] == [False, False, True]
    assert verdicts["v1"].why == (
        "31 of 40 right against 37 of 40 for v1 on images that both held out: worse by more than "
        "chance explains"
    )


def test_images_drawn_at_random_are_looked_at_by_themselves() -> None:
    """Gains on what was asked about because it was hard do not make up for losses elsewhere."""
    before = held_out(wrong(60, *range(20, 40)), drawn=20)
    after = held_out(wrong(60, *range(8)), drawn=20)
    verdict = compare_held_out(after, before, "v2")
    assert not verdict.passed
    assert verdict.why.startswith(
        "12 of 20 right against 20 of 20 for v2 on images drawn at random"
    )


def test_only_images_that_both_held_out_and_that_are_labelled_alike_are_compared() -> None:
    bad, good = held_out(wrong(30, *range(30))), held_out(wrong(30))
    assert not compare_held_out(bad, good, "v2").passed
    others = held_out(wrong(30), first=25)
    assert compare_held_out(bad, others, "v2").why == "nothing to compare with v2"
    relabelled = replace(good, truth=good.truth + 1)
    assert compare_held_out(bad, relabelled, "v2").passed


def test_what_was_held_out_lines_up_by_image() -> None:
    one = held_out(wrong(20, 3))
    two = one.some(np.random.default_rng(0).permutation(20)).joined(held_out(wrong(5), first=50))
    ours, theirs = one.shared_with(two)
    assert ours.marks.tolist() == theirs.marks.tolist() == list(range(20))
    assert theirs.right.tolist() == one.right.tolist()


# On what annotators would see


def fitted(given: float, depth: float) -> Fitted:
    rule = fit_rule(Evidence(np.empty((0, 1)), np.empty((0, 1), dtype=np.int64)), target=0.9).rule
    return Fitted(rule, "estimated", 40, 1, given, depth)


def test_fewer_pre_labels_are_refused_and_said_so() -> None:
    """What a training of fewer steps did: 58 % of images had a pre-label, then 45 %."""
    verdict = compare_shown(fitted(0.45, 0.92), fitted(0.58, 1.3), 146, "v12")
    assert not verdict.passed
    assert verdict.why == "it would pre-label 45 of 100 images, v12 58 of 100"


def test_shallower_pre_labels_are_refused_and_said_so() -> None:
    verdict = compare_shown(fitted(0.6, 1.0), fitted(0.6, 1.3), 146, "v12")
    assert not verdict.passed
    assert verdict.why == "its pre-labels would be 1.00 levels deep on average, those of v12 1.30"


@pytest.mark.parametrize("given", [0.47, 0.58, 0.9])
def test_a_little_less_is_no_reason(given: float) -> None:
    assert compare_shown(fitted(given, 1.2), fitted(0.58, 1.3), 146, "v12").passed


def test_few_images_say_nothing_of_pre_labels() -> None:
    assert compare_shown(fitted(0.0, 0.0), fitted(1.0, 2.0), LEAST_SHOWN - 1, "v12").passed
    assert not compare_shown(fitted(0.0, 0.0), fitted(1.0, 2.0), LEAST_SHOWN, "v12").passed


# Of versions of earlier releases
