"""Labels at one moment: what teaches, what does not, and when two moments teach the same."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hierarchy import LabelTree
from studio.annotations import EMPTY, NOTHING_THERE, Ignored, Label, TaskLabels
from tests.strategies import trees
from worker.snapshot import agreed, left_out, take

TREE = LabelTree.from_paths([("Fruit", "Apple", "Gala"), ("Fruit", "Pear"), ("Milk",)])
FRUIT, MILK, APPLE, PEAR, GALA = (TREE.index(path) for path in TREE.paths)


def label(target: int, *, annotation: int = 1, at: str = "2026-01-01T00:00:00Z") -> Label:
    return Label(1, annotation, target, (target,), 7, at, False, None, None)  # noqa: FBT003


def task(number: int, *labels: Label, picture: str | None = "a.png") -> TaskLabels:
    return TaskLabels(number, picture, labels, (), {})


def test_only_tasks_that_teach_are_kept_in_order() -> None:
    tasks = [task(3, label(MILK)), task(2), task(1, label(APPLE))]
    found = take(tasks, TREE)
    assert [one.task_id for one in found.tasks] == [1, 3]
    assert [one.target for one in found.labels] == [APPLE, MILK]


def test_what_teaches_nothing_is_counted_by_reason() -> None:
    skipped = Ignored(9, "skipped by the annotator")
    tasks = [
        replace(task(1), ignored=(skipped, skipped)),
        replace(task(2, label(MILK)), ignored=(skipped,)),
        task(3, label(MILK), label(MILK, annotation=2), picture=None),
    ]
    found = take(tasks, TREE)
    assert found.ignored == {"skipped by the annotator": 3, "the task has no image": 2}
    assert len(found.labels) == 1


def test_trained_through_is_the_newest_label() -> None:
    tasks = [
        task(1, label(MILK, at="2026-03-01T00:00:00Z"), label(MILK, annotation=2, at="")),
        task(2, label(MILK, at="2026-02-01T00:00:00Z")),
    ]
    assert take(tasks, TREE).trained_through == "2026-03-01T00:00:00Z"


def test_no_labels_are_a_snapshot_too() -> None:
    found = take([], TREE)
    assert (found.tasks, found.trained_through, found.ignored) == ((), "", {})


def test_the_same_labels_have_the_same_digest_in_any_order() -> None:
    one, two = task(1, label(MILK)), task(2, label(APPLE), label(PEAR, annotation=2))
    turned = replace(two, labels=two.labels[::-1])
    assert take([one, two], TREE).digest == take([turned, one], TREE).digest


def test_saving_a_label_again_teaches_nothing_new() -> None:
    later = label(MILK, at="2027-01-01T00:00:00Z")
    before, after = take([task(1, label(MILK))], TREE), take([task(1, later)], TREE)
    assert before.digest == after.digest
    assert before.trained_through < after.trained_through


@pytest.mark.parametrize(
    "changed",
    [
        [task(1, label(APPLE))],
        [task(1, label(MILK), label(MILK, annotation=2))],
        [task(1, label(MILK), picture="b.png")],
        [task(1, label(MILK)), task(2, label(MILK, annotation=2))],
        [],
    ],
)
def test_other_labels_have_another_digest(changed: list[TaskLabels]) -> None:
    assert take(changed, TREE).digest != take([task(1, label(MILK))], TREE).digest


def test_another_tree_has_another_digest() -> None:
    other = LabelTree.from_paths([*TREE.paths, ("Bread",)])
    tasks = [task(1, label(0))]
    assert take(tasks, TREE).digest != take(tasks, other).digest


def test_the_summary_counts_labels_by_level() -> None:
    tasks = [task(1, label(MILK), label(GALA, annotation=2)), task(2, label(FRUIT))]
    summary = take(tasks, TREE).summary()
    assert (summary["labels"], summary["tasks"]) == (3, 2)
    assert summary["by_level"] == {"1": 2, "3": 1}


def test_answers_that_are_not_learnt_as_given_are_counted_and_said() -> None:
    two = replace(label(FRUIT), nodes=(APPLE, PEAR))
    none_above = replace(label(MILK), target=None, nodes=(APPLE, MILK))
    passed = tuple(Ignored(9, why) for why in (NOTHING_THERE, NOTHING_THERE, EMPTY))
    tasks = [task(1, label(MILK)), task(2, two), task(3, none_above)]
    summary = take([*tasks, TaskLabels(4, "b.png", (), passed, {})], TREE).summary()
    assert {key: summary[key] for key in ("nothing_there", "empty", "several")} == {
        "nothing_there": 2,
        "empty": 1,
        "several": 1,
    }
    assert summary["several_as_parent"] == 1
    sentences = left_out(summary)
    assert sentences[0].startswith("2 of 6 answers say that nothing of the label tree is there")
    assert sentences[1].startswith("1 of 3 answers name labels with nothing above them all")
    assert len(sentences) == 4
    assert left_out({"labels": 7, "ignored": {}}) == []  # of an earlier release


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ([APPLE], APPLE),
        ([FRUIT, GALA, APPLE], GALA),  # on one path: the coarser ones do not contradict
        ([GALA, PEAR], FRUIT),
        ([GALA, GALA, PEAR], FRUIT),
        ([GALA, FRUIT, PEAR], FRUIT),
        ([MILK, PEAR], -1),
    ],
)
def test_what_annotators_agree_on(targets: list[int], expected: int) -> None:
    labels = [label(target, annotation=at) for at, target in enumerate(targets)]
    assert agreed(task(1, *labels), TREE) == expected


def union(*nodes: int, annotation: int = 1) -> Label:
    covers = TREE.common_ancestor(nodes)
    return Label(1, annotation, covers, nodes, 7, "2026-01-01T00:00:00Z", False, None, None)  # noqa: FBT003


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([union(PEAR, GALA)], FRUIT),  # all that is known of it alone
        ([union(MILK, GALA)], -1),
        ([union(MILK, GALA), label(GALA)], GALA),  # it is one of them
        ([union(MILK, APPLE), label(GALA)], GALA),
        ([union(MILK, GALA), label(PEAR)], -1),
        ([union(PEAR, GALA), label(GALA)], GALA),
        ([union(PEAR, GALA), label(APPLE)], APPLE),
    ],
)
def test_one_of_these_agrees_with_each_of_them(labels: list[Label], expected: int) -> None:
    assert agreed(task(1, *labels), TREE) == expected


def test_the_summary_counts_answers_with_nothing_above_them_as_level_0() -> None:
    summary = take([task(1, union(MILK, GALA), label(PEAR, annotation=2))], TREE).summary()
    assert summary["by_level"] == {"0": 1, "2": 1}


@given(trees(), st.data())
def test_what_is_agreed_on_contradicts_nobody(tree: LabelTree, data: st.DataObject) -> None:
    """No answer lies beside it, and the order of answers does not matter."""
    targets = data.draw(st.lists(st.integers(0, len(tree) - 1), min_size=1, max_size=4))
    labels = [label(target, annotation=at) for at, target in enumerate(targets)]
    found = agreed(task(1, *labels), tree)
    assert found == agreed(task(1, *labels[::-1]), tree)
    tops = {tree.ancestors(target)[0] for target in targets}
    if found == -1:
        assert len(tops) > 1
    else:
        assert all(tree.covers(found, t) or tree.covers(t, found) for t in targets)
