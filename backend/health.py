"""GET / and /health: this process answers. Nothing is checked, so that it takes no time."""

from typing import Final

from flask import Blueprint
from flask.typing import ResponseReturnValue

bp = Blueprint("health", __name__)

#: The answer; also while the rest of the application is still being loaded.
UP: Final = {"status": "UP", "model_class": "HRN"}


@bp.get("/health", endpoint="health")
@bp.get("/", endpoint="root")
def health() -> ResponseReturnValue:
    """Say that the server is up.

    Answers:
        200: always; credentials, where sent, must be right (401), so that Label Studio can tell.
    """
    return dict(UP)
