"""What stands before every page: is there a console, who asks, did our own form send it.

Also what goes out with each answer, and which errors become which page.
"""

import hashlib
import hmac
import logging
import secrets
import uuid
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import urlsplit

from flask import Flask, Response, g, jsonify, make_response, redirect, request, url_for
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound

from backend import errors
from backend.console.blueprint import bp, is_console
from backend.console.layout import is_live, page, plain
from backend.console.state import console
from backend.services import services
from inference.errors import ModelError
from studio.errors import StudioError
from worker.errors import JobError
from worker.queue import RedisError

log = logging.getLogger(__name__)

#: The cookie of a session, and of a form that is shown before there is one.
COOKIE: Final = "hrn_console"
FORM_COOKIE: Final = "hrn_console_form"
COOKIE_PATH: Final = "/console"

#: The form field that carries the token.
FIELD: Final = "csrf"

#: Largest form in bytes, and endpoints that take more (a picture, say).
FORM_BYTES: Final = 64 * 1024
LARGER: Final[dict[str, int]] = {}

#: Nothing from elsewhere, nothing inline, in no frame.
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)

HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}

_OPEN: Final = frozenset({"console.sign_in", "console.sign_in_page", "console.static"})


def register(app: Flask) -> None:
    """Errors that are met before a page is found, such as an address that is none."""
    app.register_error_handler(NotFound, _outside)
    app.register_error_handler(MethodNotAllowed, _outside)
    app.after_request(_headers)


@bp.before_request
def _check() -> ResponseReturnValue | None:
    if request.endpoint == "console.static":
        return None
    request.max_content_length = LARGER.get(request.endpoint or "", FORM_BYTES)
    if not services().parts.settings.console_password:
        return page("off", title="The console is off", status=HTTPStatus.NOT_FOUND)
    secret = request.cookies.get(COOKIE, "")
    g.session = console().sessions.find(secret, by_person=not is_live())
    g.secret = secret if g.session else request.cookies.get(FORM_COOKIE, "")
    if g.session is None and request.endpoint not in _OPEN:
        return _sign_in_first()
    if request.method == "POST" and not _token_is_right():
        log.warning("refused: a form without the right token for %s", request.endpoint)
        words = (
            "This form was not sent from a page of this console, or the page had grown old. "
            "Nothing was changed. Go back, load the page anew and try again."
        )
        return page("error", title="Form not accepted", words=words, status=HTTPStatus.BAD_REQUEST)
    return None


def _sign_in_first() -> ResponseReturnValue:
    if is_live():
        return jsonify(detail="signed out"), HTTPStatus.UNAUTHORIZED
    if request.method == "GET" and request.headers.get("Sec-Fetch-Site") == "cross-site":
        # A browser keeps a strict cookie back when a link on another site led here; asked again
        # by our own page it sends it.
        answer = page("onward", title="One moment", onward=_here())
        answer.headers["Refresh"] = f"0; url={_here()}"
        return answer
    sent = request.method != "GET"
    why = None if not request.cookies.get(COOKIE) else "sent" if sent else "ended"
    onward = _came_from() if sent else _here()
    return redirect(url_for("console.sign_in_page", next=onward, why=why), HTTPStatus.SEE_OTHER)


def _came_from() -> str | None:
    """The page of ours that a form was on, as a path."""
    there = urlsplit(request.referrer or "")
    if there.netloc != request.host:
        return None
    return f"{there.path}?{there.query}" if there.query else there.path


def _here() -> str:
    """The address asked for, as a path."""
    query = request.query_string.decode("ascii", "ignore")
    return f"{request.path}?{query}" if query else request.path


def token() -> str:
    """What a form must carry, bound to the cookie of whom it is shown to."""
    if not g.get("secret"):
        g.secret = secrets.token_urlsafe(32)
        g.new_form = True
    return _token_of(str(g.secret))


def _token_of(secret: str) -> str:
    return hmac.new(secret.encode(errors="replace"), b"csrf", hashlib.sha256).hexdigest()


def _token_is_right() -> bool:
    given = request.form.get(FIELD, "") or request.headers.get("X-CSRF-Token", "")
    secret = str(g.get("secret") or "")
    wanted = _token_of(secret).encode()
    return bool(secret) & hmac.compare_digest(given.encode(errors="replace"), wanted)


def set_cookie(response: Response, name: str, value: str) -> None:
    """For this browser session, out of scripts' reach, sent to our own pages only."""
    response.set_cookie(
        name, value, path=COOKIE_PATH, httponly=True, samesite="Strict", secure=request.is_secure
    )


def drop_cookie(response: Response, name: str) -> None:
    """Have the browser forget it."""
    response.delete_cookie(
        name, path=COOKIE_PATH, httponly=True, samesite="Strict", secure=request.is_secure
    )


def _headers(response: Response) -> Response:
    if is_console(request.path):
        for name, value in HEADERS.items():
            response.headers[name] = value
        if g.get("new_form"):
            set_cookie(response, FORM_COOKIE, str(g.secret))
    return response


@bp.context_processor
def _words() -> dict[str, Any]:
    return {"csrf_token": token, "csrf_field": FIELD}


# Errors


@bp.errorhandler(HTTPException)
def _http(error: HTTPException) -> ResponseReturnValue:
    status = error.code or 500
    if status < HTTPStatus.BAD_REQUEST:
        return error.get_response()
    known = {
        HTTPStatus.NOT_FOUND: "There is no such page, or it is about something that is gone.",
        HTTPStatus.METHOD_NOT_ALLOWED: "This address does not take what was sent to it.",
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "What was sent is larger than this page takes.",
    }
    words = known.get(HTTPStatus(status), str(error.description))
    if is_live():
        return jsonify(detail=words), status
    return page("error", title=HTTPStatus(status).phrase, words=words, status=status)


@bp.errorhandler(RedisError)
def _redis(error: Exception) -> ResponseReturnValue:
    log.warning("redis is away: %s", error)
    words = (
        "Redis cannot be reached, so nothing can be asked for now. Labels and versions are safe, "
        "predictions go on, and trainings go on when it is back."
    )
    return _away(words)


@bp.errorhandler(ModelError)
@bp.errorhandler(StudioError)
@bp.errorhandler(JobError)
def _told(error: Exception) -> ResponseReturnValue:
    log.warning("%s: %s", type(error).__name__, error)
    return _away(plain(str(error)))


def _away(words: str) -> ResponseReturnValue:
    if is_live():
        return jsonify(detail=words), HTTPStatus.SERVICE_UNAVAILABLE
    return page("error", title="Not now", words=words, status=HTTPStatus.SERVICE_UNAVAILABLE)


@bp.errorhandler(Exception)
def _unknown(error: Exception) -> ResponseReturnValue:
    number = uuid.uuid4().hex[:8]
    log.error("unexpected error %s", number, exc_info=error)
    words = f"Something unexpected happened; the server's log has it as {number}."
    if is_live():
        return jsonify(detail=words), HTTPStatus.INTERNAL_SERVER_ERROR
    status = HTTPStatus.INTERNAL_SERVER_ERROR
    return page("error", title="Unexpected error", words=words, status=status)


def _outside(error: HTTPException) -> ResponseReturnValue:
    """An address below ours that is no page: a page says so; all others hear it in JSON."""
    if not is_console(request.path):
        return errors.told(error)
    if not services().parts.settings.console_password:
        return page("off", title="The console is off", status=HTTPStatus.NOT_FOUND)
    answer = make_response(_http(error))
    if isinstance(error, MethodNotAllowed) and error.valid_methods:
        answer.headers["Allow"] = ", ".join(error.valid_methods)
    return answer
