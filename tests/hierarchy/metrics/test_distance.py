"""Hierarchical precision, recall and F are hiclass's; severity is what walking the tree says."""

from statistics import fmean

import numpy as np
import pytest
from hiclass import metrics as hiclass  # type: ignore[import-untyped]
from hypothesis import assume, given

from hierarchy import LabelTree
from hierarchy.errors import UnknownLabelError
from hierarchy.metrics.distance import Overlap, Severity, overlap, severity
from hierarchy.metrics.lines import Ints
from tests.hierarchy.metrics.cases import (
    APPLE,
    FRUIT,
    FUJI,
    GALA,
    MILK,
    NOTHING,
    PAPER,
    PEAR,
    PLAIN,
    Answers,
    answers,
    path,
)


def known_part(tree: LabelTree, said: int, target: int) -> tuple[int, ...]:
    """The answer's path, cut at the target if it goes on below."""
    line, truth = path(tree, said), path(tree, target)
    return truth if line[: len(truth)] == truth else line


def named(tree: LabelTree, paths: list[tuple[int, ...]]) -> np.ndarray:
    """Paths as hiclass has them: a column a level, empty strings below the end."""
    return np.array([[*map(str, p), *[""] * (tree.depth - len(p))] for p in paths])


@given(answers())
def test_precision_recall_and_f_are_those_of_hiclass(case: Answers) -> None:
    tree, said, targets = case
    pairs = list(zip(said.tolist(), targets.tolist(), strict=True))
    cut = [known_part(tree, a, b) for a, b in pairs]
    assume(any(cut))  # hiclass divides by what was answered
    truth, answered = named(tree, [path(tree, b) for _, b in pairs]), named(tree, cut)
    found = overlap(said, targets, tree)
    assert found.precision == pytest.approx(hiclass.precision(truth, answered), abs=1e-12)
    assert found.recall == pytest.approx(hiclass.recall(truth, answered), abs=1e-12)
    if found.recall:  # hiclass divides by precision + recall
        assert found.f == pytest.approx(hiclass.f1(truth, answered), abs=1e-12)
    else:
        assert found.f == 0


def test_overlap_by_hand() -> None:
    """Answered 3 + 1 + 1 nodes, true 3 + 2 + 3 nodes, common 2 + 1 + 0."""
    found = overlap(np.array([FUJI, FRUIT, MILK]), np.array([GALA, PEAR, GALA]), PAPER)
    expected = {"precision": 3 / 5, "recall": 3 / 8, "f": 2 * 0.6 * 0.375 / 0.975}
    assert found.to_json() == pytest.approx(expected)


def test_an_answer_below_its_target_counts_down_to_the_target() -> None:
    assert overlap(np.array([GALA]), np.array([FRUIT]), PAPER) == Overlap(1, 1, 1)


def test_no_answer_has_no_precision() -> None:
    assert overlap(np.array([NOTHING]), np.array([GALA]), PAPER) == Overlap(None, 0, 0)
    none = np.empty(0, dtype=np.int64)
    assert overlap(none, none, PAPER).to_json() == {"precision": None, "recall": None, "f": None}


def slow_height(tree: LabelTree, node: int | None) -> int:
    """Edges down to the furthest leaf; None is the root."""
    if node is None:
        return tree.depth
    return max(len(path(tree, n)) for n in range(len(tree)) if tree.covers(node, n)) - len(
        path(tree, node)
    )


def slow_severity(tree: LabelTree, said: Ints, targets: Ints) -> Severity:
    heights, edges, wrong = [], [], []
    for a, b in zip(said.tolist(), targets.tolist(), strict=True):
        line, truth = path(tree, a), path(tree, b)
        if len(line) > len(truth) and line[: len(truth)] == truth:
            continue
        common = tree.common_ancestor([a, b]) if a >= 0 else None
        wrong.append(truth[: len(line)] != line)
        heights.append(slow_height(tree, common) if wrong[-1] else 0)
        edges.append(len(set(line) ^ set(truth)))
    bad = [i for i, one in enumerate(wrong) if one]
    return Severity(
        mistakes=len(bad),
        height=fmean(heights[i] for i in bad) if bad else None,
        height_of_all=fmean(heights) if heights else None,
        edges=fmean(edges[i] for i in bad) if bad else None,
        edges_of_all=fmean(edges) if edges else None,
    )


@given(answers())
def test_severity_is_what_walking_says(case: Answers) -> None:
    tree, said, targets = case
    found, slow = severity(said, targets, tree), slow_severity(tree, said, targets)
    assert found.to_json() == pytest.approx(slow.to_json())


def test_severity_by_hand() -> None:
    """Fuji for Gala: Apple, height 1, 2 edges. Pear: Fruit, 2, 3. Plain: the root, 3, 6. Right."""
    found = severity(np.array([FUJI, PEAR, PLAIN, GALA]), np.full(4, GALA), PAPER)
    assert found == Severity(3, 2.0, 1.5, 11 / 3, 11 / 4)


def test_stopping_above_the_target_is_no_mistake_but_a_distance() -> None:
    found = severity(np.array([APPLE, NOTHING]), np.array([GALA, GALA]), PAPER)
    assert found == Severity(0, None, 0.0, None, 2.0)


def test_an_answer_below_its_target_is_left_out() -> None:
    assert severity(np.array([GALA]), np.array([APPLE]), PAPER).edges_of_all is None


@pytest.mark.parametrize("measure", [overlap, severity])
def test_unknown_nodes_are_refused(measure: object) -> None:
    assert callable(measure)
    with pytest.raises(UnknownLabelError):
        measure(np.array([8]), np.array([0]), PAPER)
    with pytest.raises(UnknownLabelError):
        measure(np.array([0]), np.array([NOTHING]), PAPER)
