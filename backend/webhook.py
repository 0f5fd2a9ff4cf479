"""POST /webhook: what happened in Label Studio. A hint, answered at once; nothing is done here."""

from http import HTTPStatus

from flask import Blueprint
from flask.typing import ResponseReturnValue

from backend.body import read_json
from backend.errors import answer
from backend.services import services
from inference.store import DISCONNECTED, GONE
from studio.schemas import Event, WebhookCall
from worker.order import Order
from worker.presence import sentence

bp = Blueprint("webhook", __name__)


@bp.post("/webhook")
def webhook() -> ResponseReturnValue:
    """Note the event; training follows when the policy says so, or at once on START_TRAINING.

    Label Studio waits one second, once, and does not say if it failed: labels are read from its API
    later, so a lost event costs time and nothing else.

    Answers:
        201: noted; with ``job`` for START_TRAINING.
        400: the body breaks the contract; ``detail`` names the field.
        409: START_TRAINING for a project that this backend was taken out of; ``detail`` says what
            brings it back.
        503: START_TRAINING while Redis is away.
    """
    call = WebhookCall.from_json(read_json())
    if call.project_key is None:
        return {"status": "no project in the body: nothing to do"}, 201
    key = services().key(call.project_key)
    if call.label_config:
        services().remember(call.project_key, call.label_config)
    if call.kind == Event.START_TRAINING:
        project = services().parts.store.project(key)
        if project is not None and project.state in (DISCONNECTED, GONE):
            return answer(HTTPStatus.CONFLICT, sentence(project))
        asked = services().parts.board.ask(Order(key, "Start Training in Label Studio"))
        return {"job": asked.job, "status": asked.state}, 201
    if call.kind.changes_labels:
        services().hint(call.action, lambda board: board.note_event(key))
    if call.kind == Event.TASKS_CREATED or call.skipped:  # a skipped one goes to the end
        services().hint(call.action, lambda board: board.note_tasks(key))
    return {}, 201
