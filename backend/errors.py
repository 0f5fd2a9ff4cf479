"""Which errors a caller hears about, and as what. Routes do not catch."""

import logging
import uuid
from functools import partial

from flask import Flask, Response, jsonify
from werkzeug.exceptions import HTTPException

from inference.errors import ModelError
from studio.errors import ContractError, LabelConfigError
from worker.errors import MisconfiguredError
from worker.queue import RedisError

log = logging.getLogger(__name__)

#: Our errors that are the caller's business.
STATUS: dict[type[Exception], int] = {
    ContractError: 400,
    LabelConfigError: 400,
    ModelError: 503,
    MisconfiguredError: 503,
}

#: Longest message put into a status line, in characters.
REASON_LENGTH = 300


def register(app: Flask) -> None:
    """Answer in JSON, always; never with a traceback."""
    for error, status in STATUS.items():
        app.register_error_handler(error, partial(_told, status=status))
    app.register_error_handler(RedisError, _redis)
    app.register_error_handler(HTTPException, told)
    app.register_error_handler(Exception, _unknown)


def answer(status: int, detail: str) -> Response:
    """An error with its words also in the status line.

    Label Studio shows an admin the status line and throws the body away.
    """
    response = jsonify(detail=detail)
    line = " ".join(detail.split()).encode("latin-1", "replace").decode("latin-1")
    response.status = f"{status} {line[:REASON_LENGTH]}"
    return response


def _told(error: Exception, status: int) -> Response:
    log.warning("%s: %s", type(error).__name__, error)
    return answer(status, str(error))


def _redis(error: Exception) -> Response:
    log.warning("redis is away: %s", error)
    return answer(
        503, "Redis cannot be reached; labels are safe and training goes on when it is back"
    )


def told(error: HTTPException) -> Response:
    """An error of HTTP itself, in JSON, with the headers it brings."""
    response = jsonify(detail=error.description)
    response.status_code = error.code or 500
    for name, value in error.get_headers():  # Allow, WWW-Authenticate, Location
        if name != "Content-Type":
            response.headers[name] = value
    return response


def _unknown(error: Exception) -> Response:
    number = uuid.uuid4().hex[:8]
    log.error("unexpected error %s", number, exc_info=error)
    return answer(500, f"unexpected error; the server's log has it as {number}")
