"""Figures of a version agree with their definitions, read slowly, on any tree."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hierarchy import LabelTree, log_marginals
from hierarchy.calibration import Evidence, evidence, fit_rule
from hierarchy.choice import DepthRule, candidates, choose_depth, corrected
from models.insight import (
    Record,
    as_tensors,
    branches,
    calibration_bins,
    compare_manifests,
    confusions,
    coverage_curves,
    least_probabilities,
    level_rows,
    node_changes,
    node_figures,
    read_record,
    running,
)
from models.predictor import EVIDENCE
from tests.published import TREE, manifest
from tests.strategies import trees


@st.composite
def cases(draw: st.DrawFn) -> tuple[LabelTree, Record]:
    """A tree, pictures of any of its nodes, and scores that lean towards the truth."""
    tree = draw(trees())
    chance = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    truth = chance.integers(0, len(tree), draw(st.integers(0, 40)))
    scores = chance.normal(0, 2, (len(truth), len(tree)))
    for row, node in enumerate(truth.tolist()):
        scores[row, list(tree.ancestors(node))] += chance.uniform(0, 4)
    log_p = log_marginals(torch.from_numpy(scores), tree).numpy()
    found = candidates(log_p, tree)
    labels = chance.integers(0, 5, len(tree))
    return tree, Record(evidence(found, truth, tree), truth, found.nodes, labels)


def flat(levels: int, price: float = 20.0) -> DepthRule:
    """Leaves probabilities as they are."""
    return DepthRule(0.9, price, ((1.0, 0.0),) * levels)


# --- what is kept ---


@given(cases())
def test_what_was_kept_comes_back(case: tuple[LabelTree, Record]) -> None:
    _, record = case
    assert record.truth is not None
    assert record.nodes is not None
    assert record.labels is not None
    tensors = {
        f"{EVIDENCE}probability": torch.from_numpy(record.seen.probability),
        f"{EVIDENCE}right": torch.from_numpy(record.seen.right),
        **as_tensors(truth=record.truth, nodes=record.nodes, labels=record.labels),
    }
    again = read_record(tensors)
    assert again is not None
    for name in ("truth", "nodes", "labels"):
        assert np.array_equal(getattr(again, name), getattr(record, name))
        assert tensors[f"{EVIDENCE}{name}"].dtype == torch.int32
    assert np.array_equal(again.seen.right, record.seen.right)


def test_an_older_version_has_nothing_recorded_by_node() -> None:
    seen = Evidence(np.array([[0.9, 0.8]]), np.array([[1, 0]]))
    old = read_record(
        {
            f"{EVIDENCE}probability": torch.from_numpy(seen.probability),
            f"{EVIDENCE}right": torch.from_numpy(seen.right),
        }
    )
    assert old is not None
    figures = node_figures(old, TREE)
    assert set(figures.exact.tolist()) == set(figures.checked.tolist()) == {-1}
    assert figures.accuracy(0) is None
    assert confusions(old, TREE) == []
    assert read_record({"weight": torch.zeros(1)}) is None


# --- by node ---


@given(cases())
def test_node_figures_agree_with_counting(case: tuple[LabelTree, Record]) -> None:
    tree, record = case
    assert record.truth is not None
    assert record.nodes is not None
    assert record.labels is not None
    figures = node_figures(record, tree)
    for node in range(len(tree)):
        level = tree.levels[node]
        below = [other for other in range(len(tree)) if other != node and tree.covers(node, other)]
        mine = [row for row, true in enumerate(record.truth.tolist()) if tree.covers(node, true)]
        hits = sum(int(record.nodes[row, level]) == node for row in mine)
        deep = [row for row, true in enumerate(record.truth.tolist()) if tree.levels[true] >= level]
        assert figures.exact[node] == record.labels[node]
        assert figures.below[node] == sum(int(record.labels[other]) for other in below)
        assert figures.checked[node] == len(mine)
        assert figures.right[node] == hits
        assert figures.said[node] == sum(int(record.nodes[row, level]) == node for row in deep)
        assert figures.accuracy(node) == (hits / len(mine) if mine else None)


@given(cases())
def test_confusions_agree_with_counting(case: tuple[LabelTree, Record]) -> None:
    tree, record = case
    assert record.truth is not None
    assert record.nodes is not None
    counted = Counter[tuple[int, int]]()
    for row, true in enumerate(record.truth.tolist()):
        for node in tree.ancestors(true):
            said = int(record.nodes[row, tree.levels[node]])
            if said != node and tree.parents[said] == tree.parents[node]:
                counted[node, said] += 1
    found = confusions(record, tree)
    assert {(one.node, one.taken_for): one.count for one in found} == counted
    assert [one.count for one in found] == sorted(counted.values(), reverse=True)


# --- by level ---


@given(cases(), st.floats(0.5, 100))
def test_levels_agree_with_counting(case: tuple[LabelTree, Record], price: float) -> None:
    tree, record = case
    rule = flat(tree.depth, price)
    depth = choose_depth(corrected(record.seen.probability, rule.platt), rule)
    for row in level_rows(record.seen, rule, tree):
        right = record.seen.right[:, row.level - 1].tolist()
        shown = [one for one, at in zip(right, depth.tolist(), strict=True) if at == row.level]
        known = [one for one in right if one >= 0]
        assert row.nodes == sum(level + 1 == row.level for level in tree.levels)
        assert row.checked == len(known)
        assert row.accuracy == (pytest.approx(sum(known) / len(known)) if known else None)
        assert row.given == (pytest.approx(len(shown) / len(right)) if right else 0)
        assert row.given_checked == sum(one >= 0 for one in shown)


@given(cases())
def test_curves_agree_with_answering_the_surest(case: tuple[LabelTree, Record]) -> None:
    tree, record = case
    rule = flat(tree.depth)
    sure = corrected(record.seen.probability, rule.platt)
    for curve in coverage_curves(record.seen, rule):
        column = curve.level - 1
        known = record.seen.right[:, column] >= 0
        p, right = sure[known, column], record.seen.right[known, column]
        assert list(curve.coverage) == sorted(curve.coverage)
        for coverage, accuracy in zip(curve.coverage, curve.accuracy, strict=True):
            count = round(coverage * len(p))
            least = np.sort(p)[::-1][count - 1]
            assert accuracy == pytest.approx(float(right[p >= least].mean()), abs=1e-3)


def test_a_curve_of_many_pictures_is_thinned_and_keeps_its_end() -> None:
    chance = np.random.default_rng(0)
    p = chance.random((1000, 1))
    right = (chance.random((1000, 1)) < p).astype(np.int64)
    (curve,) = coverage_curves(Evidence(p, right), flat(1), points=50)
    assert len(curve.coverage) == 50
    assert curve.coverage[-1] == 1
    assert curve.accuracy[-1] == pytest.approx(right.mean(), abs=1e-4)


def test_bins_hold_what_was_promised_and_what_came_true() -> None:
    p = np.array([[0.95], [0.97], [0.15], [0.15]])
    seen = Evidence(p, np.array([[1], [0], [0], [-1]]))
    low, high = calibration_bins(seen, flat(1))[0]
    assert (low.count, low.came_true, high.count, high.came_true) == (1, 0.0, 2, 0.5)
    assert low.stated == pytest.approx(0.15)
    assert high.stated == pytest.approx(0.96)


@given(
    price=st.one_of(st.none(), st.floats(0.01, 1000)),
    thresholds=st.one_of(
        st.none(), st.lists(st.one_of(st.none(), st.floats(0.25, 1)), min_size=3, max_size=3)
    ),
    minimum=st.integers(1, 3),
    maximum=st.one_of(st.none(), st.integers(1, 3)),
    level=st.integers(0, 2),
)
def test_a_level_is_shown_from_its_least_probability_on(
    price: float | None,
    thresholds: list[float | None] | None,
    minimum: int,
    maximum: int | None,
    level: int,
) -> None:
    """With the other levels at zero, just above it is shown and just below it is not."""
    levels = ((1.0, 0.0),) * 3
    rule = DepthRule(
        0.9,
        price,
        levels,
        minimum,
        maximum,
        0.5,
        None if thresholds is None else tuple(thresholds),
    )
    least = least_probabilities(rule, 3)[level]
    alone = np.zeros((1, 3))
    if least is None:
        alone[0, level] = 1.0
        assert choose_depth(alone, rule)[0] != level + 1
        return
    alone[0, level] = min(1.0, least + 1e-6)
    assert choose_depth(alone, rule)[0] == level + 1
    alone[0, level] = least - 1e-6
    assert choose_depth(alone, rule)[0] == 0


def test_a_fitted_rule_is_judged_with_each_picture_left_out() -> None:
    chance = np.random.default_rng(3)
    p = chance.beta(6, 1, (600, 1))
    seen = Evidence(p, (chance.random((600, 1)) < p).astype(np.int64))
    fitted = fit_rule(seen, target=0.8)
    tree = LabelTree.from_paths([("a",), ("b",)])
    (row,) = level_rows(seen, fitted.rule, tree)
    assert row.given == pytest.approx(fitted.given)
    assert row.given_checked == fitted.checked
    assert row.given_accuracy == pytest.approx(1 - fitted.wrong / fitted.checked)


# --- since it went live ---


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(-1, 1))), st.integers(1, 10))
def test_the_running_accuracy_is_that_of_the_newest_answers(
    rows: list[tuple[int, int]], window: int
) -> None:
    told = running(
        [{"depth": depth, "verdict": verdict} for depth, verdict in rows], window=window, points=999
    )
    judged = [verdict for depth, verdict in rows if depth and verdict >= 0]
    assert list(told.answers) == list(range(1, len(judged) + 1))
    for count, newest, overall in zip(told.answers, told.accuracy, told.overall, strict=True):
        last = judged[max(0, count - window) : count]
        assert newest == pytest.approx(sum(last) / len(last), abs=1e-4)
        assert overall == pytest.approx(sum(judged[:count]) / count, abs=1e-4)


# --- one picture ---


@given(cases(), st.integers(2, 6))
def test_branches_show_the_way_to_the_leaf_among_the_likeliest_siblings(
    case: tuple[LabelTree, Record], limit: int
) -> None:
    tree, _ = case
    log_p = log_marginals(
        torch.from_numpy(np.random.default_rng(len(tree)).normal(0, 3, (1, len(tree)))), tree
    ).numpy()
    found = candidates(log_p, tree)
    leaf = int(found.leaf[0])
    told = branches(log_p[0], found.probability[0], leaf, tree, flat(tree.depth), limit=limit)
    assert [next(t.node for t in step if t.on_path) for step in told] == list(tree.ancestors(leaf))
    for step in told:
        assert len({tree.parents[twig.node] for twig in step}) == 1
        siblings = [n for n in range(len(tree)) if tree.parents[n] == tree.parents[step[0].node]]
        assert len(step) == min(limit, len(siblings))
        for twig in step:
            assert twig.probability == pytest.approx(float(np.exp(log_p[0, twig.node])), abs=1e-6)


# --- two versions ---


def test_manifests_are_compared_figure_by_figure() -> None:
    first = manifest(TREE, 1.0, "x")
    second = {**manifest(TREE, 1.0, "x"), "labels": {"labels": 50}, "weights_bytes": 10}
    second["metrics"] = {**second["metrics"], "leaf_accuracy": 0.9}
    rows = {row.name: row for row in compare_manifests(first, second)}
    assert rows["Accuracy on level 1"].difference == 0
    assert rows["Leaf accuracy"].difference == pytest.approx(0.1)
    assert rows["Labels learnt from"].difference == 30
    assert rows["Size in bytes"].first is None
    assert rows["Size in bytes"].difference is None
    assert "Log-loss (nats)" not in rows  # neither has it


def test_nodes_that_changed_are_found_by_path_across_trees() -> None:
    grown = LabelTree.from_paths([("Bread",), ("Fruit", "Apple"), ("Fruit", "Pear"), ("Milk",)])

    def figures(tree: LabelTree, right: int) -> Record:
        fruit, apple, milk = (tree.index(p) for p in (("Fruit",), ("Fruit", "Apple"), ("Milk",)))
        truth = np.array([apple] * 10)
        nodes = np.array([[fruit, apple]] * right + [[milk, apple]] * (10 - right))
        seen = Evidence(np.ones((10, 2)), np.ones((10, 2), dtype=np.int64))
        return Record(seen, truth, nodes, np.zeros(len(tree), dtype=np.int64))

    first = (node_figures(figures(TREE, 9), TREE), TREE)
    second = (node_figures(figures(grown, 4), grown), grown)
    (change,) = node_changes(first, second)
    assert change.path == ("Fruit",)
    assert (change.first, change.second, change.checked) == (0.9, 0.4, (10, 10))
    assert node_changes(first, second, least=11) == []
    assert node_changes(first, (replace(first[0]), TREE)) == []
