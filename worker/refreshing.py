"""New pre-labels for open tasks after a new version: most useful first, in slices, resumable.

Also after annotators' answers have moved a version's rule: what it then answers at another depth is
changed in place, so that an annotator who has the task open can still submit.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from models.answers import answers
from models.predictor import Predictor
from studio.annotations import read_task
from studio.errors import AnnotationError, PictureError
from studio.labelconfig import LabelConfig, parse_label_config
from studio.predictions import prediction
from studio.prelabels import stored_node
from worker.parts import Parts

log = logging.getLogger(__name__)

#: Predictions a request: a quarter of a second of Label Studio's time on sqlite.
SLICE = 50

#: Pictures answered at once.
CHUNK = 256


@dataclass(frozen=True)
class OpenTask:
    """A task that nobody has answered.

    Attributes:
        task: its id.
        picture: address of its picture.
        stored: the version's prediction that it has, None where there is none.
    """

    task: int
    picture: str
    stored: Mapping[str, Any] | None


def refresh_predictions(key: str, version: str, parts: Parts) -> dict[str, Any]:
    """Store the version's answer for each open task that has none of it yet.

    Where the version's rule is not the one by which the others were answered, those are looked at
    too. Stops, with what is done kept, when another version goes live; lets a waiting training go
    first and asks for the rest again.

    Raises:
        StudioError: Label Studio could not be reached, or refused.
        ModelError: the version cannot be read or served here.
    """
    project = parts.store.project(key)
    if project is None or parts.store.current(key) != version:
        return {"state": "outdated", "stored": 0}
    config = parse_label_config(str(parts.studio.settings(project.number)["label_config"]))
    tasks = _open_tasks(parts, project.number, version, config)
    predictor = parts.predictors.get(project, version, config.tree)
    rule = predictor.rule.to_json()
    noted = parts.board.shown(key, version)
    if noted is not None and noted[0] == rule:
        tasks = [task for task in tasks if task.stored is None]
    rows, whole = _answers(tasks, predictor, config, parts)
    stored = 0
    for start in range(0, len(rows), SLICE):
        if parts.store.current(key) != version:
            return {"state": "outdated", "stored": stored}
        stored += _store(parts, project.number, rows[start : start + SLICE])
        if parts.board.training_waits():
            whole = False
            break
    if not whole:
        parts.board.ask_refresh(key, version, again=True)
        return {"state": "continued later", "stored": stored}
    parts.board.note_shown(key, version, rule)
    log.info("refreshed project=%s version=%s stored=%d", key, version, stored)
    return {"state": "done", "stored": stored}


def _open_tasks(parts: Parts, number: int, version: str, config: LabelConfig) -> list[OpenTask]:
    """Open tasks that have a picture, each with the newest prediction of the version."""
    found = []
    for task in parts.studio.tasks(number, unlabelled_only=True):
        read = read_task(task, config)
        ours = [row for row in task.get("predictions") or () if row.get("model_version") == version]
        stored = max(ours, key=lambda row: int(row["id"]), default=None)
        if read.picture is not None:
            found.append(OpenTask(read.task_id, read.picture, stored))
    return found


def _answers(
    tasks: list[OpenTask], predictor: Predictor, config: LabelConfig, parts: Parts
) -> tuple[list[tuple[OpenTask, dict[str, Any]]], bool]:
    """What is to be stored, least sure first, and whether that is all there is to do."""
    if not tasks:  # nothing to load a backbone for
        return [], True
    gallery = parts.galleries.of(predictor)
    rows, whole = list[tuple[OpenTask, dict[str, Any]]](), True
    for start in range(0, len(tasks), CHUNK):
        part = tasks[start : start + CHUNK]
        items = [(task.picture, task.task) for task in part]
        for task, answer in zip(part, answers(gallery, predictor, items), strict=True):
            if isinstance(answer, PictureError):  # nothing is stored: a visit asks for it again
                log.info("no picture task=%d: %s", task.task, answer.reason)
            elif task.stored is None or _differs(task.stored, answer.path, config):
                entry = prediction(
                    config, answer.path, score=answer.confidence, version=predictor.version
                )
                rows.append((task, entry))
        if start + CHUNK < len(tasks) and parts.board.training_waits():
            whole = False  # what is there is stored, the rest is asked for again
            break
    return sorted(rows, key=lambda row: float(row[1]["score"])), whole


def _differs(stored: Mapping[str, Any], path: tuple[str, ...] | None, config: LabelConfig) -> bool:
    try:
        node = stored_node(stored, config)
    except AnnotationError:  # of a tree that has changed since
        return True
    return (None if node is None else config.tree.paths[node]) != path


def _store(parts: Parts, number: int, rows: list[tuple[OpenTask, dict[str, Any]]]) -> int:
    """Import what is new and change what was there; how many."""
    new = [{"task": task.task, **entry} for task, entry in rows if task.stored is None]
    if new:
        parts.studio.import_predictions(number, new)
    for task, entry in rows:
        if task.stored is not None:
            parts.studio.update_prediction(
                int(task.stored["id"]), entry["result"], score=float(entry["score"])
            )
    return len(rows)
