"""Hierarchical precision, recall and F are hiclass's; severity is what walking the tree says."""

from statistics import fmean

import numpy as np
import pytest
from hiclass import metrics as hiclass  # type: ignore[import-untyped]
from hypothesis import assume, given

from hierarchy import LabelTree
from hierarchy.errors import UnknownLabelError
from hierarchy.metrics.hierarchical import Overlap, overlap, severity
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
    expected = (3 / 5, 3 / 8, 2 * 0.6 * 0.375 / 0.975)
    assert (found.precision, found.recall, found.f) == pytest.approx(expected)


def test_an_answer_below_its_target_counts_down_to_the_target() -> None:
    assert overlap(np.array([GALA]), np.array([FRUIT]), PAPER) == Overlap(1, 1, 1)


def test_no_answer_has_no_precision() -> None:
    assert overlap(np.array([NOTHING]), np.array([GALA]), PAPER) == Overlap(None, 0, 0)
    none = np.empty(0, dtype=np.int64)
    assert overlap(none, none, PAPER) == Overlap(None, None, None)


def slow_height(tree: LabelTree, node: int | None) -> int:
    """Edges down to the furthest leaf; None is the root."""
    if node is None:
        return tree.depth
    return max(len(path(tree, n)) for n in range(len(tree)) if tree.covers(node, n)) - len(
        path(tree, node)
    )


@given(answers())
def test_severity_is_what_walking_says(case: Answers) -> None:
    tree, said, targets = case
    heights = []
    for a, b in zip(said.tolist(), targets.tolist(), strict=True):
        line, truth = path(tree, a), path(tree, b)
        if line[: len(truth)] != truth[: len(line)]:
            heights.append(slow_height(tree, tree.common_ancestor([a, b])))
    expected = pytest.approx(fmean(heights)) if heights else None
    assert severity(said, targets, tree) == expected


def test_severity_by_hand() -> None:
    """Fuji for Gala: Apple, height 1. Pear: Fruit, 2. Plain: the root, 3. Gala is right."""
    assert severity(np.array([FUJI, PEAR, PLAIN, GALA]), np.full(4, GALA), PAPER) == 2


def test_stopping_above_the_target_and_answers_below_it_are_no_mistakes() -> None:
    said = np.array([APPLE, NOTHING, GALA])
    assert severity(said, np.array([GALA, GALA, APPLE]), PAPER) is None


@pytest.mark.parametrize("measure", [overlap, severity])
def test_unknown_nodes_are_refused(measure: object) -> None:
    assert callable(measure)
    with pytest.raises(UnknownLabelError):
        measure(np.array([8]), np.array([0]), PAPER)
    with pytest.raises(UnknownLabelError):
        measure(np.array([0]), np.array([NOTHING]), PAPER)
