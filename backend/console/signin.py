"""/console/sign-in and /console/sign-out."""

import hashlib
import hmac
import logging
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

from flask import g, make_response, redirect, request, url_for
from flask.typing import ResponseReturnValue

from backend.console.blueprint import bp
from backend.console.guards import COOKIE, FORM_COOKIE, drop_cookie, set_cookie
from backend.console.layout import page, span
from backend.console.sessions import IDLE, LONGEST
from backend.console.state import console
from backend.services import services

log = logging.getLogger(__name__)

#: Where one may be led after signing in: a page of this console.
_ONWARD: Final = re.compile(r"/console(?:/\w[\w.-]*)*/?(?:\?[\w.=&%-]*)?")


_ENDED: Final = (
    f"You were signed out: a session ends after {span(IDLE)} without use, after {span(LONGEST)} in "
    "any case, and when the password changes."
)

#: Why somebody who was signed in stands here, by the name that the address has for it.
WHY: Final[Mapping[str, str]] = {
    "ended": _ENDED,
    "sent": f"{_ENDED} What you have just sent was not done: sign in, then send it again.",
}


@bp.get("/sign-in", endpoint="sign_in_page")
def _sign_in_page() -> ResponseReturnValue:
    """The form; who is signed in already is led on."""
    if g.session is not None:
        return redirect(_onward(request.args.get("next", "")), HTTPStatus.SEE_OTHER)
    return page(
        "signin",
        title="Sign in",
        onward=_onward(request.args.get("next", "")),
        why=WHY.get(request.args.get("why", "")),
    )


@bp.post("/sign-in")
def sign_in() -> ResponseReturnValue:
    """Begin a session, under a new name, where the password is right.

    Answers:
        303: to the page that was asked for.
        403: the password is wrong.
        429: too many tries, with the seconds to wait in ``Retry-After``.
    """
    onward, address = _onward(request.form.get("next", "")), request.remote_addr or ""
    tries = console().tries
    if wait := tries.take(address):
        log.warning("console: too many tries to sign in")
        words = (
            f"Too many tries. Wait {span(wait)}, then try again; or run `hrn console --unlock` "
            "where the server runs, which lets everybody try again at once."
        )
        answer = page(
            "signin",
            title="Sign in",
            onward=onward,
            problem=words,
            status=HTTPStatus.TOO_MANY_REQUESTS,
        )
        answer.headers["Retry-After"] = str(wait)
        return answer
    if not _same(request.form.get("password", "")):
        log.warning("console: a wrong password")
        words = "That is not the console's password."
        return page(
            "signin", title="Sign in", onward=onward, problem=words, status=HTTPStatus.FORBIDDEN
        )
    tries.forgive(address)
    console().sessions.end(request.cookies.get(COOKIE, ""))
    answer = make_response(redirect(onward, HTTPStatus.SEE_OTHER))
    set_cookie(answer, COOKIE, console().sessions.begin())
    drop_cookie(answer, FORM_COOKIE)
    return answer


@bp.post("/sign-out")
def sign_out() -> ResponseReturnValue:
    """End the session, here and for whoever else may know its name."""
    console().sessions.end(request.cookies.get(COOKIE, ""))
    answer = make_response(redirect(url_for("console.sign_in_page"), HTTPStatus.SEE_OTHER))
    drop_cookie(answer, COOKIE)
    return answer


def _same(given: str) -> bool:
    """In a time that tells neither the password nor its length."""
    wanted = services().parts.settings.console_password.reveal()
    pair = [hashlib.sha256(text.encode(errors="replace")).digest() for text in (given, wanted)]
    return hmac.compare_digest(*pair)


def _onward(asked: str) -> str:
    """A page of this console, whatever was asked for."""
    return asked if _ONWARD.fullmatch(asked) else url_for("console.projects")
