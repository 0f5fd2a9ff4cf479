"""Access to the console: sign-in and sign-out, tokens of forms, and headers of every answer."""

import hashlib
import hmac
import logging
import re
import secrets
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import urlsplit

from flask import Flask, Response, g, jsonify, redirect, request, session, url_for
from flask.typing import ResponseReturnValue

from backend.console.blueprint import bp, is_console
from backend.console.layout import is_live, page, span
from backend.console.sessions import COOKIE, IDLE, LONGEST
from backend.console.state import console
from backend.services import services

log = logging.getLogger(__name__)

#: The form field that carries the token.
FIELD: Final = "csrf"

#: Largest form in bytes, and endpoints that take more (an image, say).
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

_OPEN: Final = frozenset({"console.sign_in", "console.sign_in_page"})

#: Where one may be led after signing in: a page of this console.
_ONWARD: Final = re.compile(r"/console(?:/\w[\w.-]*)*/?(?:\?[\w.=&%-]*)?")

_ENDED: Final = (
    f"You were signed out: a session ends after {span(IDLE)} without use, after {span(LONGEST)} in "
    "any case, and when the password changes."
)

#: Why somebody who was signed in stands at the form, by the name that the address has for it.
WHY: Final[Mapping[str, str]] = {
    "ended": _ENDED,
    "sent": f"{_ENDED} What you have just sent was not done: sign in, then send it again.",
}


def register(app: Flask) -> None:
    """Set the headers of every answer below /console, also where there is no page."""
    app.after_request(_headers)


@bp.before_request
def _check() -> ResponseReturnValue | None:
    if request.endpoint == "console.static":
        return None
    request.max_content_length = LARGER.get(request.endpoint or "", FORM_BYTES)
    if not services().parts.settings.console_password:
        return page("off", title="The console is off", status=HTTPStatus.NOT_FOUND)
    was_signed_in = COOKIE in request.cookies and ("name" in session or not session)
    g.signed_in = console().sessions.is_signed_in(by_person=not is_live())
    if not g.signed_in and request.endpoint not in _OPEN:
        return _sign_in_first(was_signed_in=was_signed_in)
    if request.method == "POST" and not _token_is_right():
        log.warning("refused: a form without the right token for %s", request.endpoint)
        words = (
            "This form was not sent from a page of this console, or the page had grown old. "
            "Nothing was changed. Go back, load the page again and try again."
        )
        return page("error", title="Form not accepted", words=words, status=HTTPStatus.BAD_REQUEST)
    return None


def _sign_in_first(*, was_signed_in: bool) -> ResponseReturnValue:
    if is_live():
        return jsonify(detail="signed out"), HTTPStatus.UNAUTHORIZED
    if request.method == "GET" and request.headers.get("Sec-Fetch-Site") == "cross-site":
        # A browser keeps a strict cookie back when a link on another site led here; asked again
        # by our own page it sends it.
        answer = page("onward", title="One moment", onward=_here())
        answer.headers["Refresh"] = f"0; url={_here()}"
        return answer
    sent = request.method != "GET"
    why = None if not was_signed_in else "sent" if sent else "ended"
    onward = _came_from() if sent else _here()
    return redirect(url_for("console.sign_in_page", next=onward, why=why), HTTPStatus.SEE_OTHER)


def _came_from() -> str | None:
    """Return the page of ours that a form was on, as a path."""
    there = urlsplit(request.referrer or "")
    if there.netloc != request.host:
        return None
    return f"{there.path}?{there.query}" if there.query else there.path


def _here() -> str:
    """Return the address asked for, as a path."""
    query = request.query_string.decode("ascii", "ignore")
    return f"{request.path}?{query}" if query else request.path


def token() -> str:
    """Return what a form must carry, made with the session's first form."""
    if FIELD not in session:
        session[FIELD] = secrets.token_hex(32)
    return str(session[FIELD])


def _token_is_right() -> bool:
    given, wanted = request.form.get(FIELD, ""), str(session.get(FIELD, ""))
    return bool(wanted) and _same(given, wanted)


def _same(given: str, wanted: str) -> bool:
    """Compare in a time that depends on neither text nor its length."""
    pair = [hashlib.sha256(text.encode(errors="replace")).digest() for text in (given, wanted)]
    return hmac.compare_digest(*pair)


def _headers(response: Response) -> Response:
    if is_console(request.path):
        response.headers.update(HEADERS)
    return response


@bp.context_processor
def _form_words() -> dict[str, Any]:
    return {"csrf_token": token, "csrf_field": FIELD}


@bp.get("/sign-in", endpoint="sign_in_page")
def _sign_in_page() -> ResponseReturnValue:
    """Show the form; who is signed in already is led on."""
    onward = _onward(request.args.get("next", ""))
    if g.signed_in:
        return redirect(onward, HTTPStatus.SEE_OTHER)
    return _form(onward, why=WHY.get(request.args.get("why", "")))


def _form(onward: str, status: int = HTTPStatus.OK, **words: str | None) -> Response:
    return page("signin", title="Sign in", onward=onward, status=status, **words)


@bp.post("/sign-in")
def sign_in() -> ResponseReturnValue:
    """Begin a session, under a new name, where the password is right.

    Answers:
        303: to the page that was asked for.
        403: the password is wrong.
        429: too many tries, with the seconds to wait in ``Retry-After``.
    """
    onward, address = _onward(request.form.get("next", "")), request.remote_addr or ""
    if wait := console().tries.take(address):
        log.warning("console: too many tries to sign in")
        words = (
            f"Too many tries. Wait {span(wait)}, then try again; or run `hrn console --unlock` "
            "where the server runs, which lets everybody try again at once."
        )
        answer = _form(onward, HTTPStatus.TOO_MANY_REQUESTS, problem=words)
        answer.headers["Retry-After"] = str(wait)
        return answer
    wanted = services().parts.settings.console_password.reveal()
    if not _same(request.form.get("password", ""), wanted):
        log.warning("console: a wrong password")
        return _form(onward, HTTPStatus.FORBIDDEN, problem="That is not the console's password.")
    console().tries.forgive(address)
    console().sessions.begin()
    token()  # now, so that pages that are opened at once share it
    return redirect(onward, HTTPStatus.SEE_OTHER)


@bp.post("/sign-out")
def sign_out() -> ResponseReturnValue:
    """End the session, here and for every copy of its cookie."""
    console().sessions.end()
    return redirect(url_for("console.sign_in_page"), HTTPStatus.SEE_OTHER)


def _onward(asked: str) -> str:
    """Return a page of this console, whatever was asked for."""
    return asked if _ONWARD.fullmatch(asked) else url_for("console.projects")
