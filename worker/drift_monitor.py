"""Drift monitor: annotators' answers between trainings, against what they had been shown.

A job reads the answers that changed since the last one, holds each against the pre-label that it
started from, and lets the depth rule follow (online calibration). What is known is stored beside
the version, one row per annotation: a row that is read again replaces itself, so nothing counts
twice, whatever was killed in between.
"""

import hashlib
import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from enum import StrEnum
from typing import Any, Final, Self

import numpy as np

from hierarchy import LabelTree
from hierarchy.calibration import Evidence, evidence
from hierarchy.depth_selection import Candidates, DepthRule, choose_depth, corrected, correction
from hierarchy.online_calibration import KEEP, REFIT_FROM, Feedback, Follower, begin, follow
from hierarchy.tree import TOP
from inference.errors import ModelStoreError
from inference.feature_extractor import Item
from inference.predictor import EVIDENCE, Predictor, runs_here
from inference.store import Project
from studio.errors import ImageError
from studio.label_config import LabelConfig, parse_label_config
from studio.predictions import LeftOut, Submission, submissions
from worker.dataset import mark
from worker.parts import Parts
from worker.reading import parse_time

log = logging.getLogger(__name__)

#: Seconds after which all answers are read again: a task that was deleted tells nobody.
FULL_AFTER: Final = 6 * 3600.0

#: Seconds before the newest change seen from which on changes are read again: transactions that
#: began earlier may have ended later.
OVERLAP: Final = 60.0

#: Images scored at once.
CHUNK: Final = 256

#: Share of answered images whose depth a new rule must change before open tasks get its pre-labels:
#: 2 in 100 is what the accuracy of the refitted rule itself swings by.
MATERIAL: Final = 0.02


class MonitorState(StrEnum):
    """Ways in which a round of the drift monitor ends."""

    DONE = "done"
    OUTDATED = "outdated"
    NEEDS_TRAINING = "needs a training"


@dataclass(frozen=True)
class Monitored:
    """Outcome of a round of the drift monitor.

    Attributes:
        state: of the round.
        answers: how many are known by now.
        new: how many of them are new or have changed.
        moved: share of answered images to which the new rule gives another depth.
    """

    state: MonitorState
    answers: int = 0
    new: int = 0
    moved: float = 0.0


@dataclass(frozen=True)
class Row:
    """One answer, held against the pre-label that it started from.

    Attributes:
        annotation: its id.
        task: its task.
        updated_at: when it was last changed.
        submitted: when it was first sent, by which rows are ordered.
        depth: level of the tree of the pre-label shown, 0 where nothing was.
        verdict: 1 right, 0 wrong, -1 not known or nothing shown.
        why: reason for a verdict that is not known.
        said: digest of image, pre-label and answer: an unchanged row is not scored again.
        probability: of each decision level's best node, before correction.
        right: of each of those nodes: 1, 0 or -1 not known.
        levels: of each of those nodes the level of the tree.
        like: likeness of the image to those that the version has learnt from.
    """

    annotation: int
    task: int
    updated_at: str
    submitted: str
    depth: int
    verdict: int
    why: str
    said: str
    probability: tuple[float, ...]
    right: tuple[int, ...]
    levels: tuple[int, ...]
    like: float = 1.0

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read a stored row."""
        lists = {name: tuple(data[name]) for name in ("probability", "right", "levels")}
        return cls(**{**data, **lists})


@dataclass(frozen=True)
class Notes:
    """Answers as they are stored beside a version.

    Attributes:
        tree: digest of the tree that the rows were judged under.
        rows: by annotation.
        left_out: task and reason of answers that say nothing, by annotation.
        through: the newest change of a task that was seen.
        read_all_at: when all answers were last read, seconds since the epoch.
    """

    tree: str
    rows: Mapping[int, Row]
    left_out: Mapping[int, tuple[int, str]]
    through: str = ""
    read_all_at: float = 0.0

    def without(self, tasks: Iterable[int]) -> Self:
        """Return the notes without what is known of these tasks."""
        gone = set(tasks)
        return replace(
            self,
            rows={key: row for key, row in self.rows.items() if row.task not in gone},
            left_out={key: out for key, out in self.left_out.items() if out[0] not in gone},
        )

    @property
    def ordered(self) -> list[Row]:
        """Rows in the order in which they were submitted."""
        return sorted(self.rows.values(), key=lambda row: (row.submitted, row.annotation))

    def to_json(self) -> dict[str, Any]:
        """Return plain data for the store."""
        return {
            "tree": self.tree,
            "rows": [asdict(row) for row in self.ordered],
            "left_out": [[key, *out] for key, out in sorted(self.left_out.items())],
            "through": self.through,
            "read_all_at": self.read_all_at,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what ``to_json`` wrote."""
        rows = [Row.from_json(row) for row in data["rows"]]
        return cls(
            tree=str(data["tree"]),
            rows={row.annotation: row for row in rows},
            left_out={int(key): (int(task), str(why)) for key, task, why in data["left_out"]},
            through=str(data["through"]),
            read_all_at=float(data["read_all_at"]),
        )


def monitor_drift(key: str, version: str, parts: Parts) -> Monitored:
    """Take in what annotators answered since the last round.

    Raises:
        StudioError: Label Studio could not be reached, or refused.
        ModelError: the version cannot be read or served here, or the store not written.
    """
    store, project = parts.store, parts.store.project(key)
    if project is None or store.current(key) != version:
        return Monitored(MonitorState.OUTDATED)
    if not runs_here(store.manifest(key, version)):
        return Monitored(MonitorState.NEEDS_TRAINING)
    config = parse_label_config(str(parts.studio.settings(project.number)["label_config"]))
    before, saved = _stored(parts, key, version, config.tree)
    notes, fresh = _read(parts, project, version, config, before)
    outcome: dict[str, Any] = {"told": None, "rule": None, "state": None}
    moved = 0.0
    if notes.rows or fresh:
        predictor = parts.predictors.get(project, version, config.tree)
        notes = _scored(parts, project, predictor, notes, fresh)
        own = _of_levels(predictor.own_rule, len(predictor.decisions.levels))
        state = _followed(saved, own, notes, before)
        outcome = {
            "told": _told(state, notes),
            "rule": state.rule.to_json(),
            "state": state.to_json(),
        }
        noted = parts.board.shown(key, version)
        shown = own if noted is None else DepthRule.from_json(noted[0])
        moved = _moved(notes.ordered, shown, state.rule)
    if store.current(key) != version:
        return Monitored(MonitorState.OUTDATED)
    store.write_following(key, version, {**notes.to_json(), **outcome})
    if moved >= MATERIAL:
        parts.board.note_moved(key, version)
    ended = Monitored(MonitorState.DONE, len(notes.rows), len(fresh), round(moved, 4))
    log.info("monitored project=%s version=%s: %s", key, version, ended)
    return ended


def judge(shown: int, answer: Sequence[int], tree: LabelTree) -> tuple[int, str]:
    """Tell whether a pre-label was right: 1, 0, or -1 with the reason why that is not known.

    Args:
        shown: the node that was pre-labelled.
        answer: the annotator's node, or several of which one is meant.
        tree: of both.

    Example:
        >>> tree = LabelTree.from_paths([("Fruit", "Apple"), ("Fruit", "Pear"), ("Milk",)])
        >>> fruit, apple, pear = (tree.index(p) for p in (("Fruit",), *tree.paths[2:]))
        >>> judge(fruit, [apple], tree)[0], judge(apple, [pear], tree)[0]
        (1, 0)
        >>> judge(apple, [fruit], tree)
        (-1, 'the answer is coarser than the pre-label')
    """
    if all(tree.covers(shown, node) for node in answer):
        return 1, ""
    if not any(tree.covers(shown, node) or tree.covers(node, shown) for node in answer):
        return 0, ""
    if any(tree.covers(shown, node) for node in answer):
        return -1, "the answer leaves open whether it is the pre-label or something else"
    # The annotator went up: the depth was corrected. They may know that the deeper part was wrong,
    # or not be able to tell; an error counted for the latter would push every answer upwards.
    return -1, "the answer is coarser than the pre-label"


def _stored(parts: Parts, key: str, version: str, tree: LabelTree) -> tuple[Notes, Follower | None]:
    """Read what is known so far; nothing of another tree, or where the file is damaged."""
    empty = Notes(_tree_digest(tree), {}, {})
    try:
        known = parts.store.read_following(key, version)
        if known is None or known["tree"] != empty.tree:
            return empty, None
        state = known["state"]
        return Notes.from_json(known), None if state is None else Follower.from_json(state)
    except (ModelStoreError, KeyError, TypeError, ValueError) as error:
        log.warning("all answers are read again project=%s version=%s: %s", key, version, error)
        return empty, None


def _tree_digest(tree: LabelTree) -> str:
    facts = "decision levels", tree.paths  # rows of releases that counted the tree's are of no use
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


# Reading


def _read(
    parts: Parts, project: Project, version: str, config: LabelConfig, before: Notes
) -> tuple[Notes, list[Submission]]:
    """Return what is still true of the notes, and submissions that are new or have changed."""
    now = time.time()
    everything = now - before.read_all_at >= FULL_AFTER
    since = None if everything else _earlier(before.through)
    tasks, found, through = set[int](), list[tuple[int, Submission | LeftOut]](), before.through
    for task in parts.studio.tasks(
        project.number, annotated_only=since is None, updated_after=since
    ):
        tasks.add(int(task["id"]))
        through = max(through, str(task.get("updated_at") or ""))
        found += [(int(task["id"]), one) for one in submissions(task, config, version)]
    notes = replace(before, rows={}, left_out={}) if since is None else before.without(tasks)
    rows, left_out, fresh = dict(notes.rows), dict(notes.left_out), []
    for task_id, one in found:
        if isinstance(one, LeftOut):
            left_out[one.annotation_id] = (task_id, one.reason)
            continue
        known = before.rows.get(one.label.annotation_id)
        if known is not None and known.said == _said(one):
            rows[known.annotation] = replace(known, updated_at=one.label.updated_at)
        else:
            fresh.append(one)
    read_all_at = now if since is None else before.read_all_at
    return (
        replace(notes, rows=rows, left_out=left_out, through=through, read_all_at=read_all_at),
        fresh,
    )


def _earlier(stamp: str) -> str | None:
    """Return the time to read changes from; None for all."""
    when = parse_time(stamp)
    return None if when is None else (when - timedelta(seconds=OVERLAP)).isoformat()


def _said(one: Submission) -> str:
    text = repr((one.image, one.shown, one.label.nodes))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# Scoring


def _scored(
    parts: Parts,
    project: Project,
    predictor: Predictor,
    notes: Notes,
    fresh: Sequence[Submission],
) -> Notes:
    """Return the notes with a row for each new submission whose image can be read."""
    learnt = parts.store.weights(project.key, predictor.version).get(f"{EVIDENCE}pictures")
    marks = set() if learnt is None else set(learnt.tolist())
    rows, left_out = dict(notes.rows), dict(notes.left_out)
    todo = [one for one in fresh if mark(one.image) not in marks]
    for one in fresh:
        if mark(one.image) in marks:
            why = "the version has learnt from this image"
            left_out[one.label.annotation_id] = (one.label.task_id, why)
    for start in range(0, len(todo), CHUNK):
        part = todo[start : start + CHUNK]
        items: list[Item] = [(one.image, one.label.task_id) for one in part]
        read: list[tuple[Submission, Any]] = []
        for one, vector in zip(part, parts.extractors.of(predictor).vectors(items), strict=True):
            if isinstance(vector, ImageError):
                why = f"its image: {vector.reason}"
                left_out[one.label.annotation_id] = (one.label.task_id, why)
            else:
                read.append((one, vector))
        rows |= {row.annotation: row for row in _rows(predictor, read)}
    return replace(notes, rows=rows, left_out=left_out)


def _rows(predictor: Predictor, read: Sequence[tuple[Submission, Any]]) -> Iterator[Row]:
    """Yield a row for each submission and its image's ``(C,)`` feature vector."""
    if read:
        vectors = np.stack([vector for _, vector in read])
        answers = [one.label.nodes for one, _ in read]
        seen = _seen(predictor.guesses(vectors), answers, predictor.tree)
        seen = replace(seen, like=predictor.likeness(vectors))
        yield from (_row(one, predictor, seen, at) for at, (one, _) in enumerate(read))


def _row(one: Submission, predictor: Predictor, seen: Evidence, row: int) -> Row:
    tree, choice = predictor.tree, TOP
    if one.shown is not None:
        choice = int(predictor.decisions.stands[one.shown])
    verdict, why = -1, "nothing was shown"
    if choice != TOP and one.shown is not None:  # a label that all images have is none
        verdict, why = judge(one.shown, one.label.nodes, tree)
    return Row(
        annotation=one.label.annotation_id,
        task=one.label.task_id,
        updated_at=one.label.updated_at,
        submitted=one.submitted,
        depth=0 if choice == TOP else tree.levels[choice] + 1,
        verdict=verdict,
        why=why,
        said=_said(one),
        probability=tuple(round(float(p), 6) for p in seen.probability[row]),
        right=tuple(seen.right[row].tolist()),
        levels=tuple(seen.at[row].tolist()),
        like=1.0 if seen.like is None else round(float(seen.like[row]), 6),
    )


def _seen(found: Candidates, answers: Sequence[Sequence[int]], tree: LabelTree) -> Evidence:
    """Return whether each level's best node is right; what several answers leave open is -1."""
    counts = np.array([len(answer) for answer in answers])
    rows = np.repeat(np.arange(len(answers)), counts)
    targets = np.array([node for answer in answers for node in answer], dtype=np.int64)
    each = evidence(
        Candidates(
            found.nodes[rows], found.probability[rows], found.leaf[rows], found.confidence[rows]
        ),
        targets,
        tree,
    )
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    low, high = (f.reduceat(each.right, starts, axis=0) for f in (np.minimum, np.maximum))
    return Evidence(found.probability, np.where(low == high, low, -1), each.at[starts])


# The rule


def _moved(rows: Sequence[Row], shown: DepthRule, rule: DepthRule) -> float:
    """Return the share of answered images to which two rules give different depths."""
    if not rows or shown == rule:
        return 0.0
    probability = np.array([row.probability for row in rows])
    at = np.array([row.levels for row in rows])
    like = np.array([row.like for row in rows])
    before, after = (
        choose_depth(corrected(probability, r.platt), r, at, like) for r in (shown, rule)
    )
    return float((before != after).mean())


def _followed(saved: Follower | None, own: DepthRule, notes: Notes, before: Notes) -> Follower:
    """Return the state after what is new or has changed, in the order it was submitted.

    An answer that is gone cannot be taken out of what followed from it: then the newest are gone
    through once more, as after a change of the tree or of what the project asks for.
    """
    known = set[int]() if saved is None else set(saved.ids.tolist())
    if saved is None or saved.own != own or not known <= notes.rows.keys():
        return follow(begin(own), (_feedback(row) for row in notes.ordered[-KEEP:]))
    new = (
        row
        for row in notes.ordered
        if row.annotation not in before.rows
        or (row.annotation in known and row != before.rows[row.annotation])
    )
    return follow(saved, (_feedback(row) for row in new))


def _feedback(row: Row) -> Feedback:
    said = row.probability, row.right, row.depth, row.verdict, row.levels
    return Feedback(row.annotation, *said, row.like)


def _of_levels(own: DepthRule, levels: int) -> DepthRule:
    """Return the rule as written for a tree of so many levels."""
    if len(own.platt) == levels:
        return own
    weights, offsets = correction(own.platt, levels)
    platt = tuple((*w.tolist(), float(o)) for w, o in zip(weights, offsets, strict=True))
    if own.thresholds is None:
        return replace(own, platt=platt)
    closed = (None,) * max(0, levels - len(own.thresholds))
    return replace(own, platt=platt, thresholds=(*own.thresholds[:levels], *closed))


def _told(state: Follower, notes: Notes) -> dict[str, Any]:
    """Return what the answers say of the labels that were shown, for people."""
    if state.refitted is not None:
        grounds = f"how deep to answer follows from the newest {len(state.ids)} answers"
    else:
        so_far = f"from {REFIT_FROM} answers on, {state.useful} so far"
        grounds = f"how deep to answer is fitted to annotators' answers alone {so_far}"
        if state.rule != state.own:
            grounds += "; until then each answer to a pre-label moves it a little"
    return {"levels": [asdict(one) for one in state.accuracy], "grounds": grounds, **_counts(notes)}


def _counts(notes: Notes) -> dict[str, Any]:
    """Return what is not in the figures, and why."""
    rows = notes.ordered
    unknown = Counter(row.why for row in rows if row.depth and row.verdict < 0)
    return {
        "answers": len(rows),
        "nothing_shown": sum(not row.depth for row in rows),
        "unknown": dict(unknown),
        "left_out": dict(Counter(why for _, why in notes.left_out.values())),
    }
