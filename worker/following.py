"""How the live version does between trainings: annotators' answers against what it had shown them.

Reads the answers that changed since the last look, holds each against the pre-label that it started
from, and lets the rule of how deep to answer follow. What is known is kept beside the version, one
row an annotation: a row that is read again replaces itself, so nothing counts twice, whatever was
killed in between.
"""

import hashlib
import logging
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Self

import numpy as np

from hierarchy import LabelTree
from hierarchy.calibration import Evidence, evidence
from hierarchy.choice import Candidates, DepthRule, choose_depth, corrected, correction
from hierarchy.feedback import KEEP, REFIT_FROM, Feedback, Follower, begin, follow
from hierarchy.tree import TOP
from inference.errors import ModelStoreError
from inference.feature_extractor import FeatureExtractor, Item
from inference.predictor import EVIDENCE, Predictor, runs_here
from inference.store import Project
from studio.errors import ImageError
from studio.label_config import LabelConfig, parse_label_config
from studio.predictions import LeftOut, Submission, submissions
from worker.dataset import mark
from worker.parts import Parts

log = logging.getLogger(__name__)

#: Seconds after which all answers are read again: a task that was deleted tells nobody.
FULL_AFTER: Final = 6 * 3600.0

#: Seconds before the newest change seen from which on changes are read again: transactions that
#: began earlier may have ended later.
OVERLAP: Final = 60.0

#: Pictures scored at once.
CHUNK: Final = 256

#: Share of answered pictures whose depth a new rule must change before open tasks are told: 2 in
#: 100 is what the accuracy of the refitted rule itself swings by.
MATERIAL: Final = 0.02


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
        said: digest of picture, pre-label and answer: an unchanged row is not scored again.
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
        """The row that was kept."""
        lists = {name: tuple(data[name]) for name in ("probability", "right", "levels")}
        return cls(**{**data, **lists})


@dataclass(frozen=True)
class Notes:
    """What is kept beside a version.

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
        """The same without what is known of these tasks."""
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
        """Plain data for the store."""
        return {
            "tree": self.tree,
            "rows": [asdict(row) for row in self.ordered],
            "left_out": [[key, *out] for key, out in sorted(self.left_out.items())],
            "through": self.through,
            "read_all_at": self.read_all_at,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """What ``to_json`` wrote."""
        rows = [Row.from_json(row) for row in data["rows"]]
        return cls(
            tree=str(data["tree"]),
            rows={row.annotation: row for row in rows},
            left_out={int(key): (int(task), str(why)) for key, task, why in data["left_out"]},
            through=str(data["through"]),
            read_all_at=float(data["read_all_at"]),
        )


def follow_version(key: str, version: str, parts: Parts) -> dict[str, Any]:
    """Take in what annotators answered since the last look; how that ended, in words.

    Raises:
        StudioError: Label Studio could not be reached, or refused.
        ModelError: the version cannot be read or served here, or the store not written.
    """
    project = parts.store.project(key)
    if project is None or parts.store.current(key) != version:
        return {"state": "outdated"}
    if not runs_here(parts.store.manifest(key, version)):
        return {"state": "needs a training"}
    config = parse_label_config(str(parts.studio.settings(project.number)["label_config"]))
    before, saved = _kept(parts, key, version, config.tree)
    notes, fresh = _read(parts, project, version, config, before)
    kept: dict[str, Any] = {"told": None, "rule": None, "state": None}
    moved = 0.0
    if notes.rows or fresh:
        predictor = parts.predictors.get(project, version, config.tree)
        notes = _scored(parts, project, predictor, notes, fresh)
        own = _of_levels(predictor.own_rule, len(predictor.decisions.levels))
        state = _followed(saved, own, notes, before)
        kept = {
            "told": _told(state, notes),
            "rule": state.rule.to_json(),
            "state": state.to_json(),
        }
        moved = _moved(parts, key, version, notes, own, state.rule)
    if parts.store.current(key) != version:
        return {"state": "outdated"}
    parts.store.write_following(key, version, {**notes.to_json(), **kept})
    if moved >= MATERIAL:
        parts.board.note_moved(key, version)
    ended = {"answers": len(notes.rows), "new": len(fresh), "moved": round(moved, 4)}
    log.info("followed project=%s version=%s: %s", key, version, ended)
    return {"state": "done", **ended}


def judge(shown: int, answer: Sequence[int], tree: LabelTree) -> tuple[int, str]:
    """Was a pre-label right: 1, 0, or -1 with the reason why that is not known.

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


def _kept(parts: Parts, key: str, version: str, tree: LabelTree) -> tuple[Notes, Follower | None]:
    """What is known so far; nothing of another tree, or where the file is damaged."""
    empty = Notes(_tree_digest(tree), {}, {})
    try:
        kept = parts.store.read_following(key, version)
        if kept is None or kept["tree"] != empty.tree:
            return empty, None
        state = kept["state"]
        return Notes.from_json(kept), None if state is None else Follower.from_json(state)
    except (ModelStoreError, KeyError, TypeError, ValueError) as error:
        log.warning("answers are read anew project=%s version=%s: %s", key, version, error)
        return empty, None


def _tree_digest(tree: LabelTree) -> str:
    told = "decision levels", tree.paths  # rows of releases that counted the tree's are of no use
    return hashlib.sha256(repr(told).encode()).hexdigest()[:16]


# Reading


def _read(
    parts: Parts, project: Project, version: str, config: LabelConfig, before: Notes
) -> tuple[Notes, list[Submission]]:
    """What is still true of what was known, and the submissions that are new or have changed."""
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
    """The time to read changes from; None for all."""
    try:
        when = datetime.fromisoformat(stamp)
    except ValueError:
        return None
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return (when - timedelta(seconds=OVERLAP)).isoformat()


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
    """The notes with a row for each new submission whose picture can be had."""
    learnt = parts.store.weights(project.key, predictor.version).get(f"{EVIDENCE}pictures")
    numbers = set() if learnt is None else set(learnt.tolist())
    rows, left_out = dict(notes.rows), dict(notes.left_out)
    todo = []
    for one in fresh:
        if mark(one.image) in numbers:
            why = "the version has learnt from this picture"
            left_out[one.label.annotation_id] = (one.label.task_id, why)
        else:
            todo.append(one)
    extractor = parts.extractors.of(predictor) if todo else None
    for start in range(0, len(todo), CHUNK):
        part = todo[start : start + CHUNK]
        assert extractor is not None  # noqa: S101 - there is something to do
        for one, row in zip(part, _rows(extractor, predictor, part), strict=True):
            if isinstance(row, Row):
                rows[row.annotation] = row
            else:
                left_out[one.label.annotation_id] = (one.label.task_id, row)
    return replace(notes, rows=rows, left_out=left_out)


def _rows(
    extractor: FeatureExtractor, predictor: Predictor, part: Sequence[Submission]
) -> list[Row | str]:
    """A row for each, or why its picture cannot be had."""
    items: list[Item] = [(one.image, one.label.task_id) for one in part]
    vectors = extractor.vectors(items)
    at = [i for i, one in enumerate(vectors) if not isinstance(one, ImageError)]
    rows: list[Row | str] = [
        f"its picture: {one.reason}" if isinstance(one, ImageError) else "" for one in vectors
    ]
    if not at:
        return rows
    readable = [one for one in vectors if not isinstance(one, ImageError)]
    stacked = np.stack(readable)
    found = predictor.guesses(stacked)
    seen = _seen(found, [part[i].label.nodes for i in at], predictor.tree)
    seen = replace(seen, like=predictor.likeness(stacked))
    for row, i in enumerate(at):
        rows[i] = _row(part[i], predictor, seen, row)
    return rows


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
    """Is each level's best node right; what an answer of several leaves open is -1."""
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


def _moved(  # noqa: PLR0913 - two rules, and what they are compared on
    parts: Parts, key: str, version: str, notes: Notes, own: DepthRule, rule: DepthRule
) -> float:
    """Share of answered pictures to which open tasks' rule gives another depth than this one."""
    noted = parts.board.shown(key, version)
    shown = own if noted is None else DepthRule.from_json(noted[0])
    if not notes.rows or shown == rule:
        return 0.0
    probability = np.array([row.probability for row in notes.ordered])
    at = np.array([row.levels for row in notes.ordered])
    like = np.array([row.like for row in notes.ordered])
    before, after = (
        choose_depth(corrected(probability, r.platt), r, at, like) for r in (shown, rule)
    )
    return float((before != after).mean())


def _followed(saved: Follower | None, own: DepthRule, notes: Notes, before: Notes) -> Follower:
    """The state after what is new or has changed, in the order it was submitted.

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
    """The same rule written down for a tree of so many levels."""
    if len(own.platt) == levels:
        return own
    weights, offsets = correction(own.platt, levels)
    platt = tuple((*w.tolist(), float(o)) for w, o in zip(weights, offsets, strict=True))
    if own.thresholds is None:
        return replace(own, platt=platt)
    closed = (None,) * max(0, levels - len(own.thresholds))
    return replace(own, platt=platt, thresholds=(*own.thresholds[:levels], *closed))


def _told(state: Follower, notes: Notes) -> dict[str, Any]:
    """For people: what the answers say of the labels that were shown."""
    if state.refitted is not None:
        grounds = f"how deep to answer follows from the newest {len(state.ids)} answers"
    else:
        so_far = f"from {REFIT_FROM} answers on, {state.useful} so far"
        grounds = f"how deep to answer is fitted to annotators' answers alone {so_far}"
        if state.rule != state.own:
            grounds += "; until then each answer to a pre-label moves it a little"
    return {"levels": [asdict(one) for one in state.accuracy], "grounds": grounds, **_counts(notes)}


def _counts(notes: Notes) -> dict[str, Any]:
    """What is not in the figures, and why."""
    rows = notes.ordered
    unknown = Counter(row.why for row in rows if row.depth and row.verdict < 0)
    return {
        "answers": len(rows),
        "nothing_shown": sum(not row.depth for row in rows),
        "unknown": dict(unknown),
        "left_out": dict(Counter(why for _, why in notes.left_out.values())),
    }
