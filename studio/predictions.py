"""Predictions in Label Studio: how a node is written as one, and which one an annotator was shown.

An annotation names the prediction it started from (``parent_prediction``) and each of its results
says whether it was changed (``origin``). Stored predictions may be deleted, or changed in place
while somebody has the task open: what cannot be known is left out, with the reason.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from studio.annotations import Label, read_task
from studio.errors import AnnotationError
from studio.json_fields import as_id, as_text
from studio.label_config import LabelConfig

#: Version names are ours: letters, digits, dot, underscore and hyphen.
VERSION: Final = re.compile(r"[A-Za-z0-9._-]+")
#: Seconds between a prediction's two times that say it was changed, not only stored.
CHANGED: Final = 1.0

_Json = Mapping[str, Any]


def prediction(
    config: LabelConfig,
    path: tuple[str, ...] | None,
    *,
    score: float,
    version: str,
    confidence: float | None = None,
) -> dict[str, object]:
    """Return one entry of the ``results`` that `/predict` answers with.

    Args:
        config: the project's labelling setup.
        path: the predicted node, of any depth; None or () predicts nothing, which shows an empty
            control and still keeps the score by which tasks are ordered.
        score: the number by which Label Studio orders tasks, lowest first; values outside [0, 1]
            are clipped.
        version: name of the model version; must be the one that `/setup` returns.
        confidence: how sure the version is of the node, clipped likewise; the score of the result's
            items, which orders nothing. None for the same number as ``score``.

    Raises:
        UnknownLabelError: if the path is not in the tree.
        ValueError: if the score is not a finite number, or the version is no version name. One
            such entry would cost Label Studio the whole batch, or store what nobody can find.

    Example:
        >>> from studio.label_config import parse_label_config
        >>> config = parse_label_config(
        ...     '<View><Image name="image" value="$image"/>'
        ...     '<Choices name="kind" toName="image"><Choice value="Milk"/></Choices></View>'
        ... )
        >>> prediction(config, None, score=0.25, version="v1")
        {'result': [], 'score': 0.25, 'model_version': 'v1'}
        >>> prediction(config, ("Milk",), score=0.25, version="v1")["result"][0]["value"]
        {'choices': ['Milk']}
    """
    rank_score = _checked_score(score)
    confidence = rank_score if confidence is None else _checked_score(confidence)
    if VERSION.fullmatch(version) is None:
        raise ValueError(f"a version is letters, digits, '.', '_' and '-', got {version!r:.80}")
    result = [
        {
            "from_name": control,
            "to_name": config.image_name,
            "type": "taxonomy" if config.kind == "taxonomy" else "choices",
            "value": value,
            "score": confidence,
        }
        for control, value in (_values(config, path) if path else [])
    ]
    return {"result": result, "score": rank_score, "model_version": version}


def _checked_score(score: float) -> float:
    number = float(score)
    if not math.isfinite(number):
        raise ValueError(f"a score must be a finite number, got {score!r}")
    return min(max(number, 0.0), 1.0)


def _values(config: LabelConfig, path: tuple[str, ...]) -> list[tuple[str, dict[str, object]]]:
    """Return (control, value) of each result: one for a Taxonomy, else one per level."""
    node = config.tree.index(path)
    if config.kind == "taxonomy":
        return [(config.controls[node], {"taxonomy": [list(path)]})]
    names, controls = config.tree.names, config.controls
    return [(controls[up], {"choices": [names[up]]}) for up in config.tree.ancestors(node)]


# Which prediction an annotator was shown


@dataclass(frozen=True)
class Submission:
    """An annotator's label, and the pre-label that it started from.

    Attributes:
        label: the label.
        image: address of the task's image.
        shown: the node that was pre-labelled; None where the version had shown nothing.
        submitted: when, as Label Studio writes it (ISO 8601, UTC); may be "".
    """

    label: Label
    image: str
    shown: int | None
    submitted: str


@dataclass(frozen=True)
class LeftOut:
    """An annotation of a pre-label of the version that says nothing about it, and why."""

    annotation_id: int
    reason: str


def submissions(task: _Json, config: LabelConfig, version: str) -> list[Submission | LeftOut]:
    """Return the labels of a task that started from pre-labels of one version.

    Args:
        task: with its annotations and predictions.
        config: the project's labelling setup.
        version: whose pre-labels.

    Raises:
        AnnotationError: if it is no task, that is an object with an ``id``.
    """
    read = read_task(task, config)
    annotations = {row.get("id"): row for row in _objects(task.get("annotations"))}
    stored = {row.get("id"): row for row in _objects(task.get("predictions"))}
    found: list[Submission | LeftOut] = []
    for label in read.labels:
        annotation = annotations[label.annotation_id]
        parent = _parent(label, annotation, stored)
        if parent is None or parent.get("model_version") != version:
            continue
        try:
            shown = _shown(label, annotation, parent, config)
            if read.image is None:
                raise AnnotationError("the task has no image")  # noqa: TRY301 - one way to leave out
        except AnnotationError as error:
            found.append(LeftOut(label.annotation_id, str(error)))
        else:
            submitted = as_text(annotation.get("created_at")) or label.updated_at
            found.append(Submission(label, read.image, shown, submitted))
    return found


def stored_node(row: _Json, config: LabelConfig) -> int | None:
    """Return the node that a stored prediction shows, None where it shows nothing.

    Raises:
        AnnotationError: it shows what is not one node of today's label tree.
    """
    if row.get("result") == []:
        return None
    as_task = {"id": 0, "annotations": [{"id": 0, "result": row.get("result")}]}
    read = read_task(as_task, config)
    if not read.labels or len(read.labels[0].nodes) != 1 or read.labels[0].note:
        raise AnnotationError("the pre-label is not one node of the label tree of today")
    return read.labels[0].target


def _parent(label: Label, annotation: _Json, stored: Mapping[object, _Json]) -> _Json | None:
    """Return the prediction that a label started from; None where there was none or it is gone.

    An empty pre-label leaves nothing to start from: a label that names no prediction started from
    the newest one at its time if that was empty.
    """
    if label.parent_prediction is not None:
        return stored.get(label.parent_prediction)
    at = _seconds(annotation.get("created_at"))
    earlier = [one for one in stored.values() if _seconds(one.get("created_at")) <= at]
    newest = max(earlier, key=lambda one: _seconds(one.get("created_at")), default=None)
    return newest if newest is not None and newest.get("result") == [] else None


def _shown(label: Label, annotation: _Json, parent: _Json, config: LabelConfig) -> int | None:
    """Return the node shown, None for nothing.

    Raises:
        AnnotationError: it is not known what was shown, or whether anybody saw it.
    """
    seconds_open = annotation.get("lead_time")
    if label.origin is None and seconds_open is None:
        raise AnnotationError("made by a program, not in the editor: nobody may have looked")
    lead = float(seconds_open) if isinstance(seconds_open, int | float) else 0.0
    opened = _seconds(annotation.get("created_at")) - lead
    stored, changed = _seconds(parent.get("created_at")), _seconds(parent.get("updated_at"))
    if changed - stored > CHANGED and changed > opened:
        if label.origin == "prediction" and len(label.nodes) == 1:
            return label.target  # submitted as it was shown
        raise AnnotationError("the pre-label was changed while the task was open")
    return stored_node(parent, config)


def _objects(rows: object) -> Iterator[_Json]:
    if isinstance(rows, list | tuple):
        yield from (row for row in rows if isinstance(row, Mapping) and as_id(row.get("id")))


def _seconds(time: object) -> float:
    """Return seconds since the epoch, 0 where the time cannot be read."""
    try:
        when = datetime.fromisoformat(as_text(time))
    except ValueError:
        return 0.0
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
