"""How many more answers a version that shows nothing needs: against the fit of the rule itself."""

from dataclasses import replace

import numpy as np
import pytest

from hierarchy.calibration import Evidence, deciding, fit_rule
from inference import insight
from inference.insight import Missing, missing_evidence


def drawn(chance: np.random.Generator, count: int, sure: float) -> Evidence:
    """Images of two levels whose stated probabilities are true, about ``sure`` on level 1."""
    top = chance.beta(10 * sure, 10 * (1 - sure), count)
    both = top * chance.beta(4, 2, count)
    one = chance.random(count)
    right = np.column_stack([one < top, one < both]).astype(np.int64)
    return Evidence(np.column_stack([top, both]), right)


def first(seen: Evidence, count: int) -> Evidence:
    """The evidence as it was after so many answers."""
    return Evidence(seen.probability[:count], seen.right[:count])


def all_right(count: int) -> Evidence:
    """Images that the version is sure of, all of them right."""
    sure = np.linspace(0.95, 0.99, max(count, 1))[:count]
    return Evidence(sure[:, None], np.ones((count, 1), dtype=np.int64))


@pytest.mark.parametrize(("target", "least"), [(0.9, 9), (0.8, 4), (0.95, 19)])
def test_without_a_checked_label_the_least_that_any_promise_needs_is_said(
    target: float, least: int
) -> None:
    told = missing_evidence(all_right(0), target=target)
    assert (told.answers, told.at_least) == (least, True)
    assert told.words == f"too little evidence; at least {least} more answers"
    unknown = Evidence(np.full((5, 1), 0.9), np.full((5, 1), -1, dtype=np.int64))
    assert missing_evidence(unknown, target=target) == told
    # and it is the least: with that many, all of them right, something is shown
    assert fit_rule(all_right(least), target=target).standing != "none"
    assert fit_rule(all_right(least - 1), target=target).standing == "none"


def test_what_goes_on_being_right_needs_only_what_is_left() -> None:
    told = missing_evidence(all_right(5), target=0.9)
    assert (told.checked, told.wrong) == (5, 0)
    assert told.answers is not None
    assert 4 <= told.answers <= 20


def test_too_many_wrong_ones_are_said_instead_of_a_number() -> None:
    right = np.zeros((40, 1), dtype=np.int64)
    right[:10] = 1
    told = missing_evidence(Evidence(np.full((40, 1), 0.3), right), target=0.9)
    assert told.answers is None
    assert "were wrong, too many for 90%: more answers may help, or a lower target" in told.words


def test_one_answer_is_singular_and_large_numbers_are_round() -> None:
    assert Missing(0.9, 8, 0, 1).words == "too little evidence; about 1 more answer"
    sure = drawn(np.random.default_rng(1), 60, 0.6)
    answers = missing_evidence(sure, target=0.9).answers
    assert answers is None or len(str(answers).rstrip("0")) == 1


def test_depths_that_a_project_does_not_want_do_not_count() -> None:
    """Level 1 is right throughout, level 2 hardly ever: with level 2 alone nothing can be shown."""
    seen = Evidence(
        np.column_stack([np.linspace(0.95, 0.99, 8), np.full(8, 0.3)]),
        np.column_stack([np.ones(8, dtype=np.int64), np.zeros(8, dtype=np.int64)]),
    )
    assert missing_evidence(seen, target=0.9).answers is not None
    assert missing_evidence(seen, target=0.9, minimum=2).answers is None
    assert missing_evidence(seen, target=0.9, maximum=1).answers is not None


def test_the_number_that_is_said_is_about_the_number_that_is_needed() -> None:
    """Over campaigns that are drawn: half of what is said lies within a factor of 3.5 of the truth.

    The truth itself is a matter of luck: when the rule first passes hangs on a wrong label more or
    less.
    """
    grid = [*range(10, 100, 5), *range(100, 400, 20)]
    off = []
    for seed in range(40):
        seen = drawn(np.random.default_rng(seed), 400, 0.8)
        shows = [n for n in grid if fit_rule(first(seen, n), target=0.9).standing != "none"]
        now = 50
        later = [n for n in shows if n > now]
        if now in shows or not later:
            continue
        said = missing_evidence(first(seen, now), target=0.9).answers
        if said is not None:
            off.append(np.log2(said / (later[0] - now)))
    assert len(off) >= 8
    assert abs(float(np.median(off))) < np.log2(3.5)


def test_where_random_answers_decide_alone_the_others_come_on_top() -> None:
    """A quarter of the images was drawn at random: four answers bring one of those."""
    every = drawn(np.random.default_rng(5), 400, 0.75)
    alone = np.arange(400) % 4 == 0
    seen = replace(every, drawn=alone)
    assert len(deciding(seen, 0.9)) == 100
    only = missing_evidence(every.some(alone), target=0.9)
    told = missing_evidence(seen, target=0.9)
    assert (told.checked, told.wrong) == (only.checked, only.wrong)
    assert only.answers is not None
    assert told.answers is not None
    assert 3 * only.answers <= told.answers <= 5 * only.answers


def test_a_label_that_is_surer_than_the_target_cannot_be_hidden() -> None:
    """Ten right ones alone would do, but two wrong ones are as sure as the target asks."""
    sure = np.r_[np.full(10, 0.99), np.full(2, 0.95)][:, None]
    right = np.r_[np.ones(10, dtype=np.int64), np.zeros(2, dtype=np.int64)][:, None]
    with pytest.MonkeyPatch.context() as patch:  # probabilities as they are, as of a good version
        patch.setattr(insight, "left_out", lambda seen, _platt: seen.probability)
        told = missing_evidence(Evidence(sure, right), target=0.9)
    assert told.wrong == 2
    assert told.answers is None or told.answers >= 5
