"""Campaigns replayed on vectors that a small head learns in a moment."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hierarchy.network import Features, Reduction
from hypothesis import given, settings
from hypothesis import strategies as st
from worker.recipe import Recipe

from evaluation import curves
from evaluation.curves import Campaign, Curves
from evaluation.errors import ExperimentError
from evaluation.material import Judged, Material
from evaluation.simulation import STRATEGIES, Plan, answers, replay, replay_all
from hierarchy import LabelTree
from tests.strategies import trees

TREE = LabelTree.from_paths(
    [("Fruit", "Apple"), ("Fruit", "Pear"), ("Fruit", "Fig"), ("Milk", "Oat"), ("Salt",)]
)
CHANNELS = 12
RECIPE = replace(
    Recipe.fast(), pooled_rate=2e-2, views=(0, 1), hidden=32, epochs=4, least_steps=60, batch=16
)
PLAN = Plan(start=8, batch=6, rounds=2)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Networks this small wait for each other's threads longer than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def seen(leaf: np.ndarray, seed: int) -> Features:
    """Each leaf has a pattern of its own."""
    patterns = np.random.default_rng(7).normal(size=(len(TREE), CHANNELS))
    noise = np.random.default_rng(seed).normal(size=(len(leaf), CHANNELS))
    means = torch.from_numpy((patterns[leaf] + 0.4 * noise).astype(np.float32))
    return Features(torch.empty(len(leaf), 0, 1, 1, dtype=torch.bfloat16), means)


def material(count: int = 60) -> Material:
    leaf = np.resize(np.array(TREE.leaves), count)
    ones = torch.ones(CHANNELS)
    judged = {name: Judged(seen(leaf, at), leaf) for at, name in enumerate(("val", "test"))}
    return Material(
        TREE,
        Reduction(torch.zeros(0, CHANNELS), torch.zeros(0), 0 * ones, ones),
        [seen(leaf, 2), seen(leaf, 3)],
        [],
        leaf,
        judged,
    )


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_asks_and_learns(strategy: str) -> None:
    curve = replay(Campaign(strategy, 0), PLAN, material(), RECIPE)
    assert [point.questions for point in curve.points] == [8, 14, 20]
    first, last = curve.points[0].figures, curve.points[-1].figures
    assert last["leaf"] > 0.6  # chance is 0.2
    assert last["level 1"] > 0.7
    assert 0 <= last["val leaf"] <= 1
    assert last["used"] == 20
    assert 2 <= first["classes"] <= last["classes"] <= 5


def test_the_mix_starts_with_every_group() -> None:
    curve = replay(Campaign("mix", 0), replace(PLAN, start=5, rounds=0), material(), RECIPE)
    assert curve.points[0].figures["classes"] == 5


def test_equal_seeds_give_equal_curves() -> None:
    plan = replace(PLAN, rounds=1, know=0.7)
    first, again, other = (
        replay(Campaign("mix", seed), plan, material(), RECIPE) for seed in (1, 1, 2)
    )
    assert first == again
    assert first.points != other.points


def test_a_campaign_ends_when_everything_has_been_asked() -> None:
    curve = replay(Campaign("random", 0), Plan(start=8, batch=5, rounds=9), material(20), RECIPE)
    assert [point.questions for point in curve.points] == [8, 13, 18, 20]


def test_coarse_answers_are_used_or_dropped() -> None:
    plan = replace(PLAN, start=20, rounds=0, know=0.5)
    used, dropped = (
        replay(Campaign("random", 3, coarse), plan, material(), RECIPE).points[0].figures["used"]
        for coarse in ("use", "drop")
    )
    assert used == 20
    assert 0 < dropped < 20


def test_pseudo_labels_join_in_and_are_judged() -> None:
    plan = replace(PLAN, start=20, rounds=0)
    figures = replay(Campaign("random", 0, pseudo=0.7), plan, material(), RECIPE).points[0].figures
    assert 0 < figures["pseudo"] <= 40
    assert figures["pseudo right"] > 0.5


def test_a_certainty_that_nobody_has_changes_nothing() -> None:
    plan = replace(PLAN, start=20, rounds=0)
    plain, none = (
        replay(Campaign("random", 0, pseudo=pseudo), plan, material(), RECIPE).points[0].figures
        for pseudo in (None, 1.0)
    )
    assert none == {**plain, "pseudo": 0.0}


def test_too_few_answers_to_learn_from_are_named() -> None:
    plan = Plan(start=3, know=0.0)
    with pytest.raises(ExperimentError, match=r"first 3 answers leave . to learn from"):
        replay(Campaign("random", 0, "drop"), plan, material(), RECIPE)


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
        ({"start": 1}, "a start of 2 pictures or more"),
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
        replay(Campaign("mixed", 0), PLAN, material(), RECIPE)


@pytest.mark.slow
def test_processes_of_their_own_find_the_same(tmp_path: Path) -> None:
    whole = material()
    whole.save(tmp_path)
    wanted = [Campaign("mix", 0), Campaign("random", 1)]
    plan = replace(PLAN, rounds=1)
    found = {one.campaign: one for one in replay_all(wanted, plan, tmp_path, RECIPE, jobs=2)}
    assert found == {one: replay(one, plan, whole, RECIPE) for one in wanted}


def test_curves_survive_their_file(tmp_path: Path) -> None:
    curve = replay(Campaign("mix", 0, "drop", 0.9), replace(PLAN, rounds=0), material(), RECIPE)
    whole = Curves((curve,), {"start": 8}, {"cores": "1"})
    curves.save(whole, tmp_path / "results.json")
    assert curves.read(tmp_path / "results.json") == whole
    assert json.loads((tmp_path / "results.json").read_text())["campaigns"][0]["pseudo"] == 0.9
