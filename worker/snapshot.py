"""The labels of a project at one moment, as Label Studio has them: what training starts from."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from hierarchy import LabelTree
from studio.annotations import EMPTY, NOTHING_THERE, Label, TaskLabels
from worker.reading import Read


@dataclass(frozen=True)
class Snapshot:
    """Labelled images, each with its labels.

    Attributes:
        tree: what the labels' targets are nodes of.
        tasks: those with at least one label and a image.
        trained_through: the newest ``updated_at`` among the labels.
        digest: of what the labels say: two snapshots with one digest teach the same.
        ignored: reasons for which annotations teach nothing, counted.
        recent: when each label of the last minute before that was updated, by its annotation.
    """

    tree: LabelTree
    tasks: tuple[TaskLabels, ...]
    trained_through: str
    digest: str
    ignored: dict[str, int]
    recent: Mapping[str, str] = field(default_factory=dict)

    @property
    def read(self) -> Read:
        """What of the project's labels has been read."""
        return Read(self.trained_through, self.recent)

    @property
    def named(self) -> set[int]:
        """All nodes that some label names."""
        return {node for label in self.labels for node in label.nodes}

    @property
    def labels(self) -> tuple[Label, ...]:
        """All labels, task by task."""
        return tuple(label for task in self.tasks for label in task.labels)

    def summary(self) -> dict[str, Any]:
        """Return what the manifest says of the labels."""
        by_level = Counter(
            0 if label.target is None else self.tree.levels[label.target] + 1
            for label in self.labels
        )  # 0: one of several with nothing above them all
        return {
            "labels": len(self.labels),
            "tasks": len(self.tasks),
            "by_level": {str(level): count for level, count in sorted(by_level.items())},
            "ignored": self.ignored,
            "nothing_there": self.ignored.get(NOTHING_THERE, 0),
            "empty": self.ignored.get(EMPTY, 0),
            "several": by_level[0],
            "several_as_parent": sum(
                label.target is not None and len(label.nodes) > 1 for label in self.labels
            ),
            "digest": self.digest,
            "trained_through": self.trained_through,
            "recent": dict(self.recent),
        }


def left_out(labels: Mapping[str, Any]) -> list[str]:
    """Say in sentences which answers are not learnt as they were given, for an admin.

    Args:
        labels: what :meth:`Snapshot.summary` gave, perhaps in an earlier release.
    """
    learnt = labels.get("labels", 0)
    nothing, empty = labels.get("nothing_there", 0), labels.get("empty", 0)
    several, parent = labels.get("several", 0), labels.get("several_as_parent", 0)
    given = learnt + nothing + empty
    found = {
        f"{nothing} of {given} answers say that nothing of the label tree is there: they are not "
        "learnt, and the promised accuracy leaves such images out": nothing,
        f"{several} of {learnt} answers name labels with nothing above them all: they are learnt "
        'as "one of these", and an image gets one pre-label': several,
        f"{parent} of {learnt} answers name several labels: they are learnt as the label above "
        "them": parent,
        f"{empty} of {given} answers were submitted empty: they are not learnt": empty,
    }
    return [sentence for sentence, count in found.items() if count]


def passed_over(labels: Mapping[str, Any]) -> dict[str, int]:
    """Return reasons for what did not count, beside those that `left_out` tells."""
    reasons = {**labels.get("ignored", {}), **labels.get("skipped", {})}
    return {why: count for why, count in reasons.items() if why not in (EMPTY, NOTHING_THERE)}


def take(tasks: Iterable[TaskLabels], tree: LabelTree) -> Snapshot:
    """Keep what teaches, count what does not and why."""
    learnt, through, ignored = [], "", Counter[str]()
    digest = hashlib.sha256(repr(tree.paths).encode())
    for task in sorted(tasks, key=lambda task: task.task_id):
        ignored.update(note.reason for note in task.ignored)
        through = max([through, *(label.updated_at for label in task.labels)])
        if task.labels and task.image is None:
            ignored["the task has no image"] += len(task.labels)
        if not task.labels or task.image is None:
            continue
        learnt.append(task)
        for label in sorted(task.labels, key=lambda label: label.annotation_id):
            digest.update(repr((task.image, label.annotation_id, label.nodes)).encode())
    since = Read(through, {}).since
    recent = {
        str(label.annotation_id): label.updated_at
        for task in learnt
        for label in task.labels
        if label.updated_at > since
    }
    return Snapshot(tree, tuple(learnt), through, digest.hexdigest()[:16], dict(ignored), recent)


def counted(reasons: Mapping[str, int], most: int = 3) -> str:
    """Return reasons with their counts, the most frequent ones first.

    Example:
        >>> counted({"skipped by the annotator": 2, "deleted": 5})
        '5 (deleted), 2 (skipped by the annotator)'
    """
    ranked = Counter(reasons).most_common()
    words = [f"{count} ({reason})" for reason, count in ranked[:most]]
    if rest := sum(count for _, count in ranked[most:]):
        words.append(f"{rest} for other reasons")
    return ", ".join(words)


def agreed(task: TaskLabels, tree: LabelTree) -> int:
    """Return the node that a task's annotators agree on, -1 if there is none.

    If all answers lie on one path, that is the deepest. An answer that names several nodes fits if
    one of them lies on that path. Otherwise it is the deepest common ancestor.
    """
    known = {label.target for label in task.labels if label.target is not None}
    targets = sorted(known, key=lambda node: tree.levels[node])
    if targets and all(tree.covers(a, b) for a, b in pairwise(targets)):
        deepest = targets[-1]
        if all(_leaves_room(label.nodes, deepest, tree) for label in task.labels):
            return deepest
    common = tree.common_ancestor(node for label in task.labels for node in label.nodes)
    return -1 if common is None else common


def _leaves_room(nodes: Sequence[int], answer: int, tree: LabelTree) -> bool:
    """Tell whether one of these nodes lies on a path with the answer."""
    return any(tree.covers(node, answer) or tree.covers(answer, node) for node in nodes)
