"""POST /setup: Label Studio introduces a project and asks for the version."""

from flask import Blueprint
from flask.typing import ResponseReturnValue

from backend.body import read_json
from backend.services import services
from studio.schemas import SetupCall

bp = Blueprint("setup", __name__)


@bp.post("/setup")
def setup() -> ResponseReturnValue:
    """Remember the project and its tree, answer the live version.

    Answers:
        200: ``{"model_version": "v7"}``; ``untrained`` before the first.
        400: the body breaks the contract, or the label config has no usable tree; ``detail`` and
            the status line, which Label Studio shows, say what to change.
    """
    project, _ = services().hear(SetupCall.from_json(read_json()))
    return {"model_version": services().version(project)}
