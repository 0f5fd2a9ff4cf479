"""Who may call: Basic auth on every route of Label Studio's, webhooks included.

The console has a sign-in of its own (`backend.console.auth`); neither opens the other.
"""

import base64
import contextlib
import hmac
from http import HTTPStatus

from flask import Flask, Response, current_app, request
from werkzeug.exceptions import Unauthorized

from backend.console.blueprint import is_console
from backend.services import services
from studio.http_client import OUR_REALM

#: For load balancers and probes. Label Studio's own probe sends credentials, which are checked.
OPEN = frozenset({"health.health", "health.root", "operations.ready"})


def register(app: Flask) -> None:
    """Check each request before its route runs."""
    app.before_request(_check)
    app.after_request(_headers)


def _check() -> None:
    settings = services().parts.settings
    if is_console(request.path):
        return
    if not settings.password:  # allowed on loopback only: `hrn serve` refuses to start elsewhere
        return
    if request.endpoint in OPEN and "Authorization" not in request.headers:
        return
    wanted = f"{settings.user}:{settings.password.reveal()}"
    # Label Studio (requests) writes Latin-1, curl and browsers UTF-8; both are always compared.
    right = [hmac.compare_digest(_given(), form) for form in _encoded(wanted)]
    if not any(right):
        current_app.logger.warning("refused: wrong or missing credentials for %s", request.path)
        raise Unauthorized(
            "wrong or missing user and password: `hrn connect` sets them in Label Studio"
        )


def _given() -> bytes:
    """Return the decoded credentials of Basic auth, empty if none were sent."""
    kind, _, coded = request.headers.get("Authorization", "").partition(" ")
    if kind.lower() != "basic":
        return b""
    try:
        return base64.b64decode(coded, validate=True)
    except ValueError:
        return b""


def _encoded(text: str) -> list[bytes]:
    forms = [text.encode()]
    with contextlib.suppress(UnicodeEncodeError):
        forms.append(text.encode("latin-1"))
    return forms


def _headers(response: Response) -> Response:
    if response.status_code == HTTPStatus.UNAUTHORIZED:
        response.headers["WWW-Authenticate"] = f"Basic {OUR_REALM}"
    response.headers.setdefault("X-Content-Type-Options", "nosniff")
    response.headers.setdefault("Cache-Control", "no-store")
    return response
