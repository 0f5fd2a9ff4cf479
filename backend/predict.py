"""POST /predict: one answer a task, in the order of the tasks."""

import logging
from typing import Any

from flask import Blueprint
from flask.typing import ResponseReturnValue

from backend.body import read_json
from backend.operations import PICTURES
from backend.services import Services, services
from inference.errors import EarlierReleaseError
from inference.predictor import Answer
from inference.store import UNTRAINED, Project
from studio.errors import ImageError
from studio.label_config import LabelConfig
from studio.predictions import prediction
from studio.schemas import PredictCall, TaskRef
from worker.asking import Places, entry_of

log = logging.getLogger(__name__)
bp = Blueprint("predict", __name__)


@bp.post("/predict")
def predict() -> ResponseReturnValue:
    """Answer each task at the deepest node that the live version can stand behind.

    A picture that cannot be had costs its own task its answer, never the batch; a project without a
    version gets empty answers, since Label Studio hides a backend's errors from its users.

    Answers:
        200: ``{"results": [...], "model_version": "v7"}``, one entry a task.
        400: the body breaks the contract; ``detail`` names the field.
        503: the version cannot be read; nothing is stored and the next visit asks again.
    """
    call = PredictCall.from_json(read_json())
    config = services().label_config(call.label_config)
    project = services().remember(call.project, call.label_config)
    version = services().version(project)
    found = _answers(services(), project, config, version, call.tasks)
    places = services().places(project, version)
    results = [
        _entry(task, one, config, places) for task, one in zip(call.tasks, found, strict=True)
    ]
    return {"results": results, "model_version": version}


def _answers(
    own: Services, project: Project, config: LabelConfig, version: str, tasks: tuple[TaskRef, ...]
) -> list[Answer | ImageError | None]:
    """An answer, what went wrong, or None where no version can answer; one per task."""
    if version == UNTRAINED:
        return [None] * len(tasks)
    try:
        predictor = own.parts.predictors.get(project, version, config.tree)
    except EarlierReleaseError as error:  # a training is asked for; what is stored stays
        log.warning("no answers project=%s: %s", project.key, error)
        return [None] * len(tasks)
    refs = [config.image_address(task.data) for task in tasks]
    extractor = own.parts.extractors.of(predictor)
    items = [(ref, task.id) for ref, task in zip(refs, tasks, strict=True) if ref is not None]
    got = iter(own.answers(extractor, predictor, items))
    missing = ImageError(f"the task's data has no image address in {config.image_key!r}")
    return [missing if ref is None else next(got) for ref in refs]


def _entry(
    task: TaskRef, answer: Answer | ImageError | None, config: LabelConfig, places: Places
) -> dict[str, Any]:
    if isinstance(answer, Answer):
        PICTURES.labels(outcome="answered" if answer.path else "nothing certain").inc()
        place = places.place(task.id, answer.margin)
        return entry_of(answer, config, places.version, place)
    if answer is not None:
        PICTURES.labels(outcome="unreadable").inc()
        log.warning("no answer task=%d: %s", task.id, answer.reason)
    place = places.place(task.id)
    return prediction(config, None, score=place, version=places.version)
