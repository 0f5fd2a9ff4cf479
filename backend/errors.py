"""Answers to errors, in one table: a page below /console, JSON elsewhere. Routes do not catch."""

import logging
import uuid
from http import HTTPStatus

from flask import Flask, Response, jsonify, make_response, request
from werkzeug.exceptions import HTTPException

from backend.console.blueprint import is_console
from backend.console.layout import is_live, page, plain
from backend.services import services
from inference.errors import ModelError
from studio.errors import ContractError, LabelConfigError, StudioError
from worker.errors import JobError
from worker.queue import RedisError

log = logging.getLogger(__name__)

#: Our errors whose message is for the caller, the more special ones first.
STATUS: tuple[tuple[type[Exception], int], ...] = (
    (ContractError, HTTPStatus.BAD_REQUEST),
    (LabelConfigError, HTTPStatus.BAD_REQUEST),
    (ModelError, HTTPStatus.SERVICE_UNAVAILABLE),
    (StudioError, HTTPStatus.SERVICE_UNAVAILABLE),
    (JobError, HTTPStatus.SERVICE_UNAVAILABLE),
)

#: Text of errors of HTTP on a page.
PAGES: dict[int, str] = {
    HTTPStatus.NOT_FOUND: "There is no such page, or it is about something that is gone.",
    HTTPStatus.METHOD_NOT_ALLOWED: "This address does not take what was sent to it.",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "What was sent is larger than this page takes.",
}

#: Longest message put into a status line, in characters.
REASON_LENGTH = 300


def register(app: Flask) -> None:
    """Answer every error, never with a traceback."""
    app.register_error_handler(HTTPException, _http)
    app.register_error_handler(Exception, _error)


def answer(status: int, detail: str) -> Response:
    """Return an error in JSON with its words also in the status line.

    Label Studio shows an admin the status line and throws the body away.
    """
    response = jsonify(detail=detail)
    line = " ".join(detail.split()).encode("latin-1", "replace").decode("latin-1")
    response.status = f"{status} {line[:REASON_LENGTH]}"
    return response


def explain(error: Exception) -> tuple[int, str]:
    """Return the status and the words that an error is answered with, and log it."""
    if isinstance(error, RedisError):
        log.warning("redis is away: %s", error)
        return HTTPStatus.SERVICE_UNAVAILABLE, (
            "Redis cannot be reached, so nothing can be asked for now. Labels and versions are "
            "safe, predictions go on, and trainings go on when it is back."
        )
    for kind, status in STATUS:
        if isinstance(error, kind):
            log.warning("%s: %s", type(error).__name__, error)
            return status, str(error)
    number = uuid.uuid4().hex[:8]
    log.error("unexpected error %s", number, exc_info=error)
    words = f"Something unexpected happened; the server's log has it as {number}"
    return HTTPStatus.INTERNAL_SERVER_ERROR, words


def _error(error: Exception) -> Response:
    status, words = explain(error)
    if not is_console(request.path):
        return answer(status, words)
    known = status != HTTPStatus.INTERNAL_SERVER_ERROR
    return _page(status, "Not now" if known else "Unexpected error", plain(words))


def _http(error: HTTPException) -> Response:
    """Answer an error of HTTP itself, with the headers it brings."""
    status = error.code or 500
    if is_console(request.path):
        if status < HTTPStatus.BAD_REQUEST:
            return make_response(error.get_response())
        if not services().parts.settings.console_password:
            return page("off", title="The console is off", status=HTTPStatus.NOT_FOUND)
        words = PAGES.get(status, str(error.description))
        response = _page(status, HTTPStatus(status).phrase, words)
    else:
        response = jsonify(detail=error.description)
        response.status_code = status
    for name, value in error.get_headers():  # Allow, WWW-Authenticate, Location
        if name != "Content-Type":
            response.headers[name] = value
    return response


def _page(status: int, title: str, words: str) -> Response:
    if is_live():
        response = jsonify(detail=words)
        response.status_code = status
        return response
    return page("error", title=title, words=words, status=status)
