"""Feedback moves the rule towards its target, counts once, and survives being written down."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from hierarchy.calibration import PRICES, Evidence, fit_rule, preview
from hierarchy.depth_selection import DepthRule, choose_depth, corrected
from hierarchy.online_calibration import (
    CORRECT_FROM,
    FURTHEST,
    GAIN,
    KEEP,
    REFIT_EVERY,
    REFIT_FROM,
    Feedback,
    Follower,
    begin,
    follow,
)

OWN = DepthRule(target=0.9, price=10.0, platt=((1.0, 0.0), (1.0, 0.0)))


def answer(
    number: int, *, shown: int = 1, verdict: int = 1, right: tuple[int, int] = (1, 1)
) -> Feedback:
    return Feedback(number, (0.95, 0.9), right, shown, verdict)


def arriving(seed: int, count: int, *, off: float = 0.0) -> Evidence:
    """Nested levels whose stated probabilities are too sure by ``off`` in logit."""
    draw = np.random.default_rng(seed)
    steps = np.stack([draw.beta(12, 1, count), draw.beta(4, 1, count)], axis=1)
    reached = (draw.random((count, 2)) < steps).cumprod(axis=1)
    return Evidence(corrected(steps.cumprod(axis=1), ((1.0, off),)), reached.astype(np.int64))


def walked(
    state: Follower, seen: Evidence, start: int = 0
) -> tuple[Follower, list[int], list[int]]:
    """Show each image by the rule in force, and let it be answered."""
    depths, verdicts = [], []
    for at in range(len(seen)):
        row, rule = seen.probability[at : at + 1], state.rule
        shown = int(choose_depth(corrected(row, rule.platt), rule)[0])
        verdict = int(seen.right[at, shown - 1]) if shown else -1
        depths.append(shown)
        verdicts.append(verdict)
        right = tuple(seen.right[at].tolist())
        told = Feedback(start + at, tuple(row[0].tolist()), right, shown, verdict)
        state = follow(state, [told])
    return state, depths, verdicts


def same(one: Follower, other: Follower) -> bool:
    return json.dumps(one.to_json()) == json.dumps(other.to_json())


def test_a_new_version_is_served_by_its_own_rule() -> None:
    state = begin(OWN)
    assert state.rule == OWN
    assert [one.checked for one in state.accuracy] == [0, 0, 0]


def test_an_error_raises_the_price_and_a_right_label_lowers_it_a_little() -> None:
    after = follow(begin(OWN), [answer(1, verdict=0)])
    assert after.offset == pytest.approx(GAIN * 0.9)
    assert after.rule.price == pytest.approx(10 * np.exp(GAIN * 0.9))
    assert follow(begin(OWN), [answer(1)]).offset == pytest.approx(-GAIN * 0.1)


def test_as_many_errors_as_the_target_allows_leave_the_price_alone() -> None:
    answers = [answer(n, verdict=int(n % 10 != 0)) for n in range(40)]
    assert follow(begin(OWN), answers).offset == pytest.approx(0, abs=1e-12)


def test_only_labels_that_were_shown_and_judged_move_the_offset() -> None:
    unseen = [answer(1, shown=0, verdict=-1), answer(2, shown=2, verdict=-1)]
    assert follow(begin(OWN), unseen).offset == 0


@pytest.mark.parametrize("verdict", [0, 1])
def test_the_offset_has_an_end(verdict: int) -> None:
    answers = [answer(n, verdict=verdict) for n in range(45)]
    state = follow(begin(OWN), answers)
    assert state.offset == pytest.approx(FURTHEST if verdict == 0 else -FURTHEST, abs=0.02)
    more = follow(state, [answer(n, verdict=verdict) for n in range(50, 90)])
    assert abs(more.offset) <= FURTHEST


def test_the_same_answer_twice_counts_once() -> None:
    answers = [answer(n, verdict=n % 3 % 2) for n in range(70)]
    once = follow(begin(OWN), answers)
    assert same(follow(once, answers), once)
    assert same(follow(begin(OWN), [one for one in answers for _ in range(2)]), once)


def test_a_changed_answer_replaces_what_it_said() -> None:
    state = follow(begin(OWN), [answer(1), answer(2)])
    state = follow(state, [answer(1, verdict=0, right=(0, 0))])
    assert state.accuracy[0].checked == 2
    assert state.accuracy[0].right == 1
    assert state.seen.right.tolist() == [[0, 0], [1, 1]]


def test_answers_come_in_bits_or_at_once() -> None:
    seen = arriving(0, 120)
    answers = [
        Feedback(n, tuple(p), tuple(r), 1, r[0])
        for n, (p, r) in enumerate(zip(seen.probability.tolist(), seen.right.tolist(), strict=True))
    ]
    at_once = follow(begin(OWN), answers)
    assert same(follow(follow(begin(OWN), answers[:33]), answers[33:]), at_once)


def test_nothing_is_changed_in_place() -> None:
    state = follow(begin(OWN), [answer(1)])
    before = json.dumps(state.to_json())
    follow(state, [answer(1, verdict=0, right=(0, 0)), answer(2)])
    assert json.dumps(state.to_json()) == before


def test_the_rule_is_refitted_once_there_is_enough() -> None:
    seen = arriving(1, REFIT_FROM)
    before, *_ = walked(begin(OWN), Evidence(seen.probability[:-1], seen.right[:-1]))
    assert before.refitted is None
    after, *_ = walked(begin(OWN), seen)
    assert after.refitted is not None
    assert after.since == 0
    assert after.refitted.platt == OWN.platt


def test_refits_happen_every_few_answers() -> None:
    state, *_ = walked(begin(OWN), arriving(1, REFIT_FROM + REFIT_EVERY - 1))
    assert state.since == REFIT_EVERY - 1
    later, *_ = walked(state, arriving(2, 1), start=1000)
    assert later.since == 0


def test_answers_that_say_nothing_are_not_enough() -> None:
    unknown = [answer(n, verdict=-1, right=(-1, -1)) for n in range(REFIT_FROM + 20)]
    assert follow(begin(OWN), unknown).refitted is None


def test_with_more_answers_the_probabilities_are_corrected_too() -> None:
    state, *_ = walked(begin(OWN), arriving(3, CORRECT_FROM, off=2.0))
    assert state.refitted is not None
    stated = arriving(4, 4000, off=2.0)
    own = corrected(stated.probability, OWN.platt).mean(axis=0) - stated.right.mean(axis=0)
    now = corrected(stated.probability, state.rule.platt).mean(axis=0) - stated.right.mean(axis=0)
    assert (own > 0.05).all()
    assert (abs(now) < 0.04).all()


def test_the_target_is_reached_again_after_a_drift() -> None:
    """Calibrated on images that resemble the arriving ones but are 2 logits less overstated."""
    own = fit_rule(arriving(5, 1000), target=0.9).rule
    new = arriving(6, 1500, off=2.0)
    depth = choose_depth(corrected(new.probability, own.platt), own)
    static = new.right[np.arange(1500), depth - 1][depth > 0]
    assert static.mean() < 0.85
    state, _, verdicts = walked(begin(own), new)
    late = [verdict for verdict in verdicts[300:] if verdict >= 0]
    assert np.mean(late) == pytest.approx(0.9, abs=0.012)
    assert len(late) > 1000  # not by showing little
    assert state.accuracy[0].low < 0.9 < state.accuracy[0].high


def test_what_50_answers_cannot_bear_is_shown_at_the_strictest_price() -> None:
    answers = [answer(n, verdict=0, right=(0, 0)) for n in range(REFIT_FROM)]
    state = follow(begin(OWN), answers)
    assert state.refitted is not None
    assert state.refitted.price == pytest.approx(PRICES[0])
    strict = replace(OWN, price=0.0, thresholds=(0.5, 0.5))
    assert follow(begin(strict), answers).rule.price is None


def test_a_strict_rule_is_followed_too() -> None:
    strict = replace(OWN, price=0.0, thresholds=(0.5, None))
    state = follow(begin(strict), [answer(1, verdict=0)])
    assert state.rule.thresholds is not None
    assert state.rule.thresholds[0] == pytest.approx(1 / (1 + np.exp(-GAIN * 0.9)))
    assert state.rule.thresholds[1] is None
    state, *_ = walked(begin(strict), arriving(8, 300))
    assert state.refitted is not None
    assert state.refitted.strict


def test_a_version_that_shows_nothing_learns_to_from_answers() -> None:
    state, depths, _ = walked(begin(replace(OWN, price=None)), arriving(9, 200))
    assert set(depths[:REFIT_FROM]) == {0}
    assert max(depths) > 0
    assert state.rule.price is not None


def test_only_the_newest_answers_are_kept_and_old_ones_do_not_return() -> None:
    answers = [answer(n) for n in range(KEEP + 5)]
    state = follow(begin(OWN), answers)
    assert state.ids.tolist() == list(range(5, KEEP + 5))
    assert same(follow(state, answers[:5]), state)


def test_the_running_estimate_is_told_level_by_level() -> None:
    """Three of four right on level 1, and an exact interval: each end has 5 % beyond it."""
    judged = [answer(n, verdict=int(n > 0)) for n in range(4)]
    state = follow(
        begin(OWN), [*judged, answer(8, shown=2, verdict=-1), answer(9, shown=0, verdict=-1)]
    )
    together, top, deep = state.accuracy
    assert (top.level, top.shown, top.checked, top.right, top.accuracy) == (1, 4, 4, 3, 0.75)
    assert binom.sf(2, 4, top.low) == pytest.approx(0.05)
    assert binom.cdf(3, 4, top.high) == pytest.approx(0.05)
    assert (deep.shown, deep.checked, deep.accuracy, deep.low, deep.high) == (1, 0, None, 0, 1)
    assert (together.level, together.shown, together.checked) == (0, 5, 4)


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), count=st.integers(0, 130), strict=st.booleans())
def test_a_state_survives_being_written_down(*, seed: int, count: int, strict: bool) -> None:
    own = replace(OWN, price=0.0, thresholds=(0.6, 0.8)) if strict else OWN
    seen = arriving(seed, count + 5)
    first = Evidence(seen.probability[:count].round(6), seen.right[:count])
    state, *_ = walked(begin(own), first)
    back = Follower.from_json(json.loads(json.dumps(state.to_json())))
    assert same(back, state)
    assert back.rule == state.rule
    last = Evidence(seen.probability[count:], seen.right[count:])
    assert same(walked(back, last, start=count)[0], walked(state, last, start=count)[0])


def test_answers_about_another_tree_are_refused() -> None:
    with pytest.raises(ValueError, match=r"answer 7 speaks of 1 levels: expected 2"):
        follow(begin(OWN), [Feedback(7, (0.9,), (1,), 1, 1)])


def test_a_preview_is_what_the_fit_then_shows() -> None:
    seen = arriving(10, 400)
    told = preview(seen, target=0.9)
    fitted = fit_rule(seen, target=0.9)
    assert sum(told.depths) == pytest.approx(1)
    assert told.given == pytest.approx(fitted.given)
    assert told.mean_depth == pytest.approx(fitted.mean_depth)
    assert (told.standing, told.checked, told.wrong) == ("certified", fitted.checked, fitted.wrong)
    assert json.loads(json.dumps(told.to_json()))["depths"] == [round(x, 4) for x in told.depths]


def test_a_preview_obeys_limits_and_a_higher_target_goes_less_deep() -> None:
    seen = arriving(10, 400)
    assert preview(seen, target=0.9, maximum=1).depths[2] == 0
    assert preview(seen, target=0.9, minimum=2).depths[1] == 0
    means = [preview(seen, target=target).mean_depth for target in (0.8, 0.9, 0.97)]
    assert means == sorted(means, reverse=True)
    assert preview(seen, target=0.9, strict=True).mean_depth < means[1]


def test_without_pictures_a_preview_shows_nothing() -> None:
    none = Evidence(np.empty((0, 2)), np.empty((0, 2), dtype=np.int64))
    told = preview(none, target=0.9)
    assert (told.standing, told.depths, told.given) == ("none", (1.0, 0.0, 0.0), 0.0)
