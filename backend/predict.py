"""POST /predict: one prediction per task, in the order of the tasks."""

from flask import Blueprint
from flask.typing import ResponseReturnValue

from backend.body import read_json
from backend.operations import PICTURES
from backend.prelabels import predictions
from backend.services import services
from studio.schemas import PredictCall

bp = Blueprint("predict", __name__)


@bp.post("/predict")
def predict() -> ResponseReturnValue:
    """Answer each task at the deepest node that the live version can stand behind.

    An image that cannot be had costs its own task its answer, never the batch; a project without a
    version gets empty answers, since Label Studio hides a backend's errors from its users.

    Answers:
        200: ``{"results": [...], "model_version": "v7"}``, one entry per task.
        400: the body breaks the contract; ``detail`` names the field.
        503: the version cannot be read; nothing is stored and the next visit asks again.
    """
    call, own = PredictCall.from_json(read_json()), services()
    config = own.label_config(call.label_config)
    project = own.remember(call.project, call.label_config)
    version = own.version(project)
    tasks = [(task.id, task.data) for task in call.tasks]
    places = own.places(project, version)
    found = predictions(own.parts, project, config, places, tasks, own.answers)
    for _, outcome in found:
        if outcome:
            PICTURES.labels(outcome=outcome).inc()
    return {"results": [entry for entry, _ in found], "model_version": version}
