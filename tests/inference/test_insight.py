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
from hierarchy.decisions import Decisions
from hierarchy.depth_selection import DepthRule, candidates, choose_depth, corrected
from hierarchy.heads import HRNHead
from inference.insight import (
    Record,
    as_tensors,
    branches,
    calibration_bins,
    compare_manifests,
    confusions,
    coverage_curves,
    level_rows,
    node_changes,
    node_figures,
    path_of,
    read_record,
    running,
)
from inference.predictor import EVIDENCE, Predictor, evidence_tensors
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
    seen = evidence(candidates(log_p, tree, Decisions.of(tree).levels), truth, tree)
    labels = chance.integers(0, 5, len(tree))
    return tree, Record(seen, truth, candidates(log_p, tree).nodes, labels)


def alone_record(seen: Evidence, tree: LabelTree) -> Record:
    """Make a record of some evidence, whose images and labels do not matter."""
    none = np.zeros(len(seen), dtype=np.int64)
    nodes = np.tile([tree.level_nodes(level)[0] for level in range(tree.depth)], (len(seen), 1))
    return Record(seen, none, nodes, np.zeros(len(tree), dtype=np.int64))


def flat(levels: int, price: float = 20.0) -> DepthRule:
    """Leaves probabilities as they are."""
    return DepthRule(0.9, price, ((1.0, 0.0),) * levels)


def has_siblings(tree: LabelTree, node: int) -> bool:
    """Can it be wrong where its parent is right?"""
    return tree.parents.count(tree.parents[node]) > 1


# --- what is kept ---


@given(cases())
def test_what_was_kept_comes_back(case: tuple[LabelTree, Record]) -> None:
    _, record = case
    tensors = {
        **evidence_tensors(record.seen),
        **as_tensors(truth=record.truth, nodes=record.nodes, labels=record.labels),
    }
    again = read_record(tensors)
    assert again is not None
    for name in ("truth", "nodes", "labels"):
        assert np.array_equal(getattr(again, name), getattr(record, name))
        assert tensors[f"{EVIDENCE}{name}"].dtype == torch.int32
    assert np.array_equal(again.seen.right, record.seen.right)
    assert np.array_equal(again.seen.at, record.seen.at)


def test_a_version_that_kept_nothing_has_no_record() -> None:
    assert read_record({"weight": torch.zeros(1)}) is None


# --- by node ---


@given(cases())
def test_node_figures_agree_with_counting(case: tuple[LabelTree, Record]) -> None:
    tree, record = case
    figures = node_figures(record, tree)
    for node in range(len(tree)):
        level = tree.levels[node]
        below = [other for other in range(len(tree)) if other != node and tree.covers(node, other)]
        mine = [row for row, true in enumerate(record.truth.tolist()) if tree.covers(node, true)]
        mine = mine if has_siblings(tree, node) else []
        hits = sum(int(record.nodes[row, level]) == node for row in mine)
        deep = [
            row
            for row, true in enumerate(record.truth.tolist())
            if tree.levels[true] >= level and has_siblings(tree, tree.ancestors(true)[level])
        ]
        assert figures.exact[node] == record.labels[node]
        assert figures.below[node] == sum(int(record.labels[other]) for other in below)
        assert figures.checked[node] == len(mine)
        assert figures.right[node] == hits
        assert figures.said[node] == sum(int(record.nodes[row, level]) == node for row in deep)
        assert figures.accuracy(node) == (hits / len(mine) if mine else None)


@given(cases())
def test_confusions_agree_with_counting(case: tuple[LabelTree, Record]) -> None:
    tree, record = case
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
    seen, decisions = record.seen, Decisions.of(tree)
    rule = flat(len(decisions.levels), price)
    depth = choose_depth(corrected(seen.probability, rule.platt), rule, seen.at)
    rows = level_rows(record, rule, decisions)
    at_choice = [tree.levels[node] + 1 for node in range(len(tree)) if has_siblings(tree, node)]
    assert [row.level for row in rows] == sorted(set(at_choice))
    for row in rows:
        shown = [
            int(seen.right[at, deep - 1])
            for at, deep in enumerate(depth.tolist())
            if deep and seen.at[at, deep - 1] == row.level
        ]
        lines = [tree.ancestors(true) for true in record.truth.tolist()]
        reach = [
            int(record.nodes[at, row.level - 1] == line[row.level - 1])
            for at, line in enumerate(lines)
            if len(line) >= row.level and has_siblings(tree, line[row.level - 1])
        ]
        assert row.nodes == sum(level + 1 == row.level for level in tree.levels)
        assert (row.checked, row.right) == (len(reach), sum(reach))
        assert row.accuracy == (pytest.approx(sum(reach) / len(reach)) if reach else None)
        assert row.given == (pytest.approx(len(shown) / len(seen)) if len(seen) else 0)
        assert row.given_checked == sum(one >= 0 for one in shown)
    assert sum(row.given for row in rows) == pytest.approx((depth > 0).mean() if len(seen) else 0)


@given(cases())
def test_curves_agree_with_answering_the_surest(case: tuple[LabelTree, Record]) -> None:
    tree, record = case
    rule = flat(len(Decisions.of(tree).levels))
    sure = corrected(record.seen.probability, rule.platt)
    for column, curve in enumerate(coverage_curves(record.seen, rule)):
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
    tree = LabelTree.from_paths([("a", "c", "e"), ("a", "c", "f"), ("a", "d"), ("b",)])
    seen = Evidence(np.zeros((0, 3)), np.zeros((0, 3), dtype=np.int64))
    least = level_rows(alone_record(seen, tree), rule, Decisions.of(tree))[level].least
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
    (row,) = level_rows(alone_record(seen, tree), fitted.rule, Decisions.of(tree))
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


def knowing(tree: LabelTree) -> Predictor:
    """A version of that tree whose probabilities need no correction; its head is not asked."""
    return Predictor(
        version="v1",
        tree=tree,
        head=HRNHead(tree, 4, hidden=2, members=1),
        rule=flat(len(Decisions.of(tree).levels)),
        backbone=("none", "none"),
        backbone_weights={},
    )


@given(cases(), st.integers(2, 6), st.sampled_from(["answered", "nothing shown"]))
def test_branches_show_the_way_through_the_answer_and_what_is_left(
    case: tuple[LabelTree, Record], limit: int, answered: str
) -> None:
    """Every step's bars, with what is hidden and "none of these", are the node above."""
    tree, _ = case
    chance = np.random.default_rng(len(tree))
    log_p = log_marginals(torch.from_numpy(chance.normal(0, 3, (1, len(tree)))), tree).numpy()
    predictor = knowing(tree)
    shown = tree.paths[int(chance.integers(len(tree)))] if answered == "answered" else None
    path = path_of(predictor, log_p[0], shown)
    assert tree.paths[path[-1]][: len(shown or ())] == (shown or ())
    below = [leaf for leaf in tree.leaves if shown is None or tree.covers(tree.index(shown), leaf)]
    assert path == list(tree.ancestors(max(below, key=lambda leaf: log_p[0, leaf])))
    whole = 1.0
    steps = branches(predictor, log_p[0], path, limit=limit)
    assert [next(t.node for t in step.twigs if t.on_path) for step in steps] == path
    for node, step in zip(path, steps, strict=True):
        siblings = [n for n in range(len(tree)) if tree.parents[n] == tree.parents[node]]
        assert {tree.parents[twig.node] for twig in step.twigs} == {tree.parents[node]}
        assert len(step.twigs) + step.others == len(siblings)
        for twig in step.twigs:
            assert twig.probability == pytest.approx(float(np.exp(log_p[0, twig.node])), abs=1e-6)
        bars = sum(twig.probability for twig in step.twigs) + step.other
        assert bars + step.none == pytest.approx(whole, abs=1e-6)
        whole = float(np.exp(log_p[0, node]))


# --- two versions ---


def test_manifests_are_compared_figure_by_figure() -> None:
    first = manifest(TREE, 1.0, "x")
    metrics = {**first.metrics, "leaf_accuracy": 0.9}
    second = replace(first, metrics=metrics, labels={"labels": 50}, weights_bytes=10)
    rows = {row.name: row for row in compare_manifests(first, second)}
    assert rows["Accuracy on level 1"].difference == 0
    assert rows["Accuracy on level 1"].of == (10, 10)
    assert rows["Accuracy of the best leaf"].difference == pytest.approx(0.1)
    assert rows["Labels learnt from"].difference == 30
    assert (rows["Size in bytes"].first, rows["Size in bytes"].second) == (0, 10)
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
