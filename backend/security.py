"""Who may call: Basic auth on every route of Label Studio's, webhooks included."""

import hmac

from flask import Flask, abort, current_app, request

from backend.services import services

#: For load balancers and probes. Label Studio's own probe sends credentials, which are then checked.
OPEN = frozenset({"health.health", "health.root", "operations.ready"})


def register(app: Flask) -> None:
    """Check each request before its route runs."""
    app.before_request(_check)
    app.after_request(_headers)


def _check() -> None:
    settings = services().parts.settings
    if not settings.password:  # allowed on loopback only: `hrn serve` refuses to start elsewhere
        return
    given = request.authorization
    if given is None and request.endpoint in OPEN and "Authorization" not in request.headers:
        return
    user, password = (given.username, given.password) if given is not None else (None, None)
    # Both compared whatever the first says, and in bytes: compare_digest refuses other letters.
    right = hmac.compare_digest((user or "").encode(), settings.user.encode())
    right &= hmac.compare_digest((password or "").encode(), settings.password.reveal().encode())
    if not right:
        current_app.logger.warning("refused: wrong or missing credentials for %s", request.path)
        abort(401, "wrong or missing user and password: `hrn connect` sets them in Label Studio")


def _headers(response):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202 - Flask's own type
    response.headers.setdefault("X-Content-Type-Options", "nosniff")
    response.headers.setdefault("Cache-Control", "no-store")
    return response
