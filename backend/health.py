"""GET / and /health: this process answers. Nothing is checked, so that it takes no time."""

from flask import Blueprint
from flask.typing import ResponseReturnValue

bp = Blueprint("health", __name__)


@bp.get("/health", endpoint="health")
@bp.get("/", endpoint="root")
def health() -> ResponseReturnValue:
    """Say that the server is up.

    Answers:
        200: always; credentials, where sent, must be right (401), so that Label Studio can tell.
    """
    return {"status": "UP", "model_class": "HRN"}
