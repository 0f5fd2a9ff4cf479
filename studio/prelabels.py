"""Which pre-label an annotator had before them, read from a task as the API gives it.

An annotation names the prediction it started from (``parent_prediction``) and each of its results
says whether it was changed (``origin``). Stored predictions may be deleted, or changed in place
while somebody has the task open: what cannot be known is left out, with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from studio.annotations import Label, read_task
from studio.errors import AnnotationError
from studio.fields import as_id, as_text
from studio.labelconfig import LabelConfig

#: Seconds between a prediction's two stamps that say it was changed, not only stored.
CHANGED: Final = 1.0

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Submission:
    """An annotator's answer, and the pre-label that it started from.

    Attributes:
        label: the answer.
        picture: address of the task's picture.
        shown: the node that was pre-labelled; None where the version had shown nothing.
        submitted: when, as Label Studio writes it (ISO 8601, UTC); may be "".
    """

    label: Label
    picture: str
    shown: int | None
    submitted: str


@dataclass(frozen=True)
class LeftOut:
    """An answer to a pre-label of the version that says nothing of it, and why."""

    annotation_id: int
    reason: str


def submissions(task: Row, config: LabelConfig, version: str) -> list[Submission | LeftOut]:
    """Answers to a task that started from pre-labels of one version; others are passed over.

    Args:
        task: with its annotations and predictions.
        config: the project's labelling setup.
        version: whose pre-labels.

    Raises:
        AnnotationError: if it is no task, that is an object with an ``id``.
    """
    read = read_task(task, config)
    rows = {row.get("id"): row for row in _objects(task.get("annotations"))}
    stored = {row.get("id"): row for row in _objects(task.get("predictions"))}
    found: list[Submission | LeftOut] = []
    for label in read.labels:
        row = rows[label.annotation_id]
        parent = _parent(label, row, stored)
        if parent is None or parent.get("model_version") != version:
            continue
        try:
            shown = _shown(label, row, parent, config)
            picture = _picture(read.picture)
        except AnnotationError as error:
            found.append(LeftOut(label.annotation_id, str(error)))
        else:
            at = as_text(row.get("created_at")) or label.updated_at
            found.append(Submission(label, picture, shown, at))
    return found


def stored_node(row: Row, config: LabelConfig) -> int | None:
    """The node that a stored prediction shows, None where it shows nothing.

    Raises:
        AnnotationError: it shows what is not one node of the label tree of today.
    """
    if row.get("result") == []:
        return None
    as_task = {"id": 0, "annotations": [{"id": 0, "result": row.get("result")}]}
    read = read_task(as_task, config)
    if not read.labels or len(read.labels[0].nodes) != 1 or read.labels[0].note:
        raise AnnotationError("the pre-label is not one node of the label tree of today")
    return read.labels[0].target


def _parent(label: Label, row: Row, stored: Mapping[object, Row]) -> Row | None:
    """The prediction that an answer started from; None where there was none or it is gone.

    An empty pre-label leaves nothing to start from: an answer that names no prediction was given to
    it if it is the newest that was there.
    """
    if label.parent_prediction is not None:
        return stored.get(label.parent_prediction)
    at = _seconds(row.get("created_at"))
    there = [one for one in stored.values() if _seconds(one.get("created_at")) <= at]
    newest = max(there, key=lambda one: _seconds(one.get("created_at")), default=None)
    return newest if newest is not None and newest.get("result") == [] else None


def _shown(label: Label, row: Row, parent: Row, config: LabelConfig) -> int | None:
    """The node shown, None for nothing.

    Raises:
        AnnotationError: what was shown is not known, or nobody is known to have looked at it.
    """
    seconds_open = row.get("lead_time")
    if label.origin is None and seconds_open is None:
        raise AnnotationError("made by a program, not in the editor: nobody may have looked")
    lead = float(seconds_open) if isinstance(seconds_open, int | float) else 0.0
    opened = _seconds(row.get("created_at")) - lead
    stored, changed = _seconds(parent.get("created_at")), _seconds(parent.get("updated_at"))
    if changed - stored > CHANGED and changed > opened:
        if label.origin == "prediction" and len(label.nodes) == 1:
            return label.target  # submitted as it was shown
        raise AnnotationError("the pre-label was changed while the task was open")
    return stored_node(parent, config)


def _picture(address: str | None) -> str:
    if address is None:
        raise AnnotationError("the task has no picture")
    return address


def _objects(rows: object) -> Iterator[Row]:
    if isinstance(rows, list | tuple):
        yield from (row for row in rows if isinstance(row, Mapping) and as_id(row.get("id")))


def _seconds(stamp: object) -> float:
    """Seconds since the epoch, 0 where the stamp is none."""
    try:
        when = datetime.fromisoformat(as_text(stamp))
    except ValueError:
        return 0.0
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()


__all__ = ["LeftOut", "Submission", "stored_node", "submissions"]
