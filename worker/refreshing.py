"""New pre-labels for open tasks after a new version: most useful first, in slices, resumable."""

import logging
from typing import Any

from models.answers import answers
from studio.annotations import read_task
from studio.errors import PictureError
from studio.labelconfig import LabelConfig, parse_label_config
from studio.predictions import prediction
from worker.parts import Parts

log = logging.getLogger(__name__)

#: Predictions a request: a quarter of a second of Label Studio's time on sqlite.
SLICE = 50

#: Pictures answered at once.
CHUNK = 256


def refresh_predictions(key: str, version: str, parts: Parts) -> dict[str, Any]:
    """Store the version's answer for each open task that has none of it yet.

    Stops, with what is done kept, when another version goes live; lets a waiting training go first
    and asks for the rest again.

    Raises:
        StudioError: Label Studio could not be reached, or refused.
    """
    project = parts.store.project(key)
    if project is None or parts.store.current(key) != version:
        return {"state": "outdated", "stored": 0}
    config = parse_label_config(str(parts.studio.settings(project.number)["label_config"]))
    open_tasks = []
    for task in parts.studio.tasks(project.number, unlabelled_only=True):
        if not any(row.get("model_version") == version for row in task.get("predictions") or ()):
            read = read_task(task, config)
            open_tasks.append((read.task_id, read.picture))
    if not open_tasks:  # nothing to load a model for
        return {"state": "done", "stored": 0}
    found = _answers(open_tasks, key, version, config, parts)
    rows = sorted(found, key=lambda row: float(row["score"]))
    stored = 0
    for start in range(0, len(rows), SLICE):
        if parts.store.current(key) != version:
            return {"state": "outdated", "stored": stored}
        stored += parts.studio.import_predictions(project.number, rows[start : start + SLICE])
        if parts.board.training_waits():
            parts.board.ask_refresh(key, version, again=True)
            return {"state": "continued later", "stored": stored}
    log.info("refreshed project=%s version=%s stored=%d", key, version, stored)
    return {"state": "done", "stored": stored}


def _answers(
    tasks: list[tuple[int, str | None]], key: str, version: str, config: LabelConfig, parts: Parts
) -> list[dict[str, Any]]:
    project = parts.store.project(key)
    assert project is not None  # noqa: S101 - the caller looked
    predictor = parts.predictors.get(project, version, config.tree)
    gallery = parts.galleries.of(predictor)
    rows = []
    for start in range(0, len(tasks), CHUNK):
        part = [(ref, task) for task, ref in tasks[start : start + CHUNK] if ref is not None]
        for (_, task), answer in zip(part, answers(gallery, predictor, part), strict=True):
            if isinstance(answer, PictureError):  # nothing is stored: a visit asks for it again
                log.info("no picture task=%d: %s", task, answer.reason)
                continue
            entry = prediction(config, answer.path, score=answer.confidence, version=version)
            rows.append({"task": task, **entry})
        if parts.board.training_waits():
            break  # what is there is stored, the rest is asked for again
    return rows
