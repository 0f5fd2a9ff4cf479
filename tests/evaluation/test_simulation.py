"""Campaigns replayed on vectors that a small head learns in a moment."""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.errors import ExperimentError
from evaluation.harness import run_all
from evaluation.results import Results, Row
from evaluation.simulation import STRATEGIES, Coarse, Plan, answers, replay, summary
from hierarchy import LabelTree
from tests.evaluation.stand import features
from tests.strategies import trees

PLAN = Plan(start=8, batch=6, rounds=2)


def campaign(
    strategy: str, plan: Plan, seed: int = 0, *, coarse: Coarse = "use", count: int = 60
) -> list[Row]:
    whole = features(count, noise=0.4)
    return replay(whole, strategy=strategy, plan=plan, seed=seed, coarse=coarse)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_asks_and_learns(strategy: str) -> None:
    rows = campaign(strategy, PLAN)
    assert [row.figures["questions"] for row in rows] == [8, 14, 20]
    assert [row.protocol for row in rows] == ["8", "14", "20"]
    first, last = rows[0].figures, rows[-1].figures
    assert last["leaf"] > 0.6  # chance is 0.2
    assert last["level 1"] > 0.7
    assert 0 <= last["val leaf"] <= 1
    assert 2 <= first["classes"] <= last["classes"] <= 5


@pytest.mark.usefixtures("quick")
def test_the_mix_starts_with_every_group() -> None:
    (row,) = campaign("mix", replace(PLAN, start=5, rounds=0))
    assert row.figures["classes"] == 5


@pytest.mark.usefixtures("quick")
def test_equal_seeds_give_equal_rows() -> None:
    plan = replace(PLAN, rounds=1, know=0.7)
    first, again, other = (campaign("mix", plan, seed) for seed in (1, 1, 2))
    assert first == again
    assert [row.figures for row in first] != [row.figures for row in other]


@pytest.mark.usefixtures("quick")
def test_a_campaign_ends_when_everything_has_been_asked() -> None:
    rows = campaign("random", Plan(start=8, batch=5, rounds=9), count=20)
    assert [row.figures["questions"] for row in rows] == [8, 13, 18, 20]


@pytest.mark.usefixtures("quick")
def test_coarse_answers_are_used_or_dropped() -> None:
    plan = replace(PLAN, start=30, rounds=0, know=0.5)
    (used,), (dropped,) = (campaign("random", plan, 3, coarse=how) for how in ("use", "drop"))
    assert (used.method, dropped.method) == ("random", "random, coarse dropped")
    assert used.figures["level 1"] != dropped.figures["level 1"]
    with pytest.raises(ExperimentError, match=r"first 3 answers leave . to learn from"):
        campaign("random", Plan(start=3, know=0.0), coarse="drop")


def test_a_summary_says_how_many_questions_reach_randoms_end() -> None:
    def rows(method: str, seed: int, *leaf: float) -> list[Row]:
        return [
            Row(method, str(at), seed, {"questions": at, "leaf": value, "classes": 3.0})
            for at, value in zip((100, 200, 300), leaf, strict=True)
        ]

    results = Results(
        (
            *rows("random", 0, 0.4, 0.5, 0.6),
            *rows("random", 1, 0.4, 0.5, 0.6),
            *rows("mix", 0, 0.5, 0.6, 0.7),
            *rows("mix", 1, 0.3, 0.5, 0.7),
        )
    )
    assert summary(results, "leaf").splitlines()[2:] == [
        "| random | 50.0 | +0.0 | +0.0 | 300 (300, 300) | 3.0 |",
        "| mix | 55.0 | +5.0 | +0.0 | 233 (200, 250) | 3.0 |",
    ]
    never = Results((*rows("random", 0, 0.4, 0.5, 0.9), *rows("mix", 0, 0.4, 0.5, 0.6)))
    assert "| not reached (not reached) |" in summary(never, "leaf")


@pytest.mark.slow
def test_processes_of_their_own_find_the_same() -> None:
    whole, plan = features(60), Plan(start=6, rounds=0)
    runs = [partial(replay, strategy="random", plan=plan, seed=seed) for seed in (0, 1)]
    found = list(run_all(runs, whole, jobs=2))
    for run, rows in zip(runs, found, strict=True):
        (expected,), (row,) = run(whole), rows
        assert row.key == expected.key
        assert row.figures == pytest.approx(expected.figures, abs=0.02)


@given(trees(), st.floats(0, 1), st.integers(0, 9))
@settings(deadline=None)
def test_annotators_answer_on_the_true_path(tree: LabelTree, know: float, seed: int) -> None:
    targets = np.arange(len(tree))
    found = answers(targets, tree, know, seed)
    assert all(tree.covers(a, t) for a, t in zip(found.tolist(), targets.tolist(), strict=True))
    assert answers(targets, tree, 1.0, seed).tolist() == targets.tolist()
    tops = [tree.ancestors(node)[0] for node in targets.tolist()]
    assert answers(targets, tree, 0.0, seed).tolist() == tops


def test_each_node_is_known_with_the_probability_that_was_asked_for() -> None:
    tree = LabelTree.from_paths([("a", "b", "c")])
    found = answers(np.full(8000, 2), tree, 0.5, 0)
    shares = np.bincount(found, minlength=3) / 8000
    np.testing.assert_allclose(shares, [0.25, 0.25, 0.5], atol=0.03)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"start": 1}, "a start of 2 images or more"),
        ({"batch": 0}, "a batch of 1 or more"),
        ({"know": 1.1}, "know must be 0 to 1, got 1.1"),
        ({"random_share": -1}, "random_share must be 0 to 1"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ExperimentError, match=message):
        replace(PLAN, **wrong)


def test_an_unknown_strategy_is_told_the_others() -> None:
    with pytest.raises(ExperimentError, match="no strategy 'mixed': expected one of random, mix"):
        campaign("mixed", PLAN)
