"""Who is signed in: Flask's signed cookie, and a list of the sessions that were ended.

The key of the signature lies below HRN_HOME, and so does the list: a session holds for every
process and server that shares that folder, and while Redis is away. Where the disk cannot be
written both are kept in this process.
"""

import contextlib
import hmac
import logging
import os
import secrets
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from flask import Flask, Request, request, session
from flask.sessions import SecureCookieSession, SecureCookieSessionInterface

from backend.console.blueprint import PREFIX, is_console
from worker.settings import Secret

log = logging.getLogger(__name__)

#: Seconds without a request of a person's, and seconds in all, after which a session ends.
IDLE: Final = 30 * 60
LONGEST: Final = 12 * 3600

#: Seconds between two updates of the time at which a session was last used.
SEEN_EVERY: Final = 30

COOKIE: Final = "hrn_console"


class Sessions(SecureCookieSessionInterface):
    """Sessions of the console's pages; other routes have none.

    Args:
        folder: of the key and of the ended sessions' names; made when the first page is asked for.
        password: the console's; a new one ends all sessions.
        now: the clock, seconds since the epoch.
    """

    def __init__(
        self, folder: Path, password: Secret, now: Callable[[], float] = time.time
    ) -> None:
        self._folder = folder
        self._password = password
        self._now = now
        self._ended: dict[str, float] = {}  # those that the disk did not take

    def register(self, app: Flask) -> None:
        """Use it for an application: a cookie out of scripts' reach, for our own pages only."""
        app.config.update(
            SESSION_COOKIE_NAME=COOKIE,
            SESSION_COOKIE_PATH=PREFIX,
            SESSION_COOKIE_SAMESITE="Strict",
        )
        app.session_interface = self

    def open_session(self, app: Flask, request: Request) -> SecureCookieSession | None:
        """Read the cookie of a console's page."""
        return super().open_session(app, request) if is_console(request.path) else None

    def get_signing_serializer(self, app: Flask) -> Any:  # noqa: ANN401 - as Flask has it
        """Sign with our key."""
        if not self._password:
            return None
        app.secret_key = self._key
        return super().get_signing_serializer(app)

    def get_cookie_secure(self, app: Flask) -> bool:  # noqa: ARG002 - Flask's signature
        """Keep the cookie on TLS where the page came by it."""
        return request.is_secure

    def begin(self) -> None:
        """Sign in, under a new name and with a new token for forms."""
        self.end()
        now = self._now()
        session.update(name=secrets.token_urlsafe(32), made=now, seen=now)

    def is_signed_in(self, *, by_person: bool) -> bool:
        """Check the request's session, and drop one that has ended.

        Args:
            by_person: a person asked; pages that keep themselves up to date keep nobody signed in.
        """
        if "name" not in session:
            return False
        now = self._now()
        idle, age = now - session["seen"], now - session["made"]
        if idle > IDLE or age > LONGEST or self._has_ended(session["name"]):
            session.clear()
            return False
        if by_person and idle >= SEEN_EVERY:
            session["seen"] = now
        return True

    def end(self) -> None:
        """Sign out, here and for every copy of the cookie."""
        name = session.get("name")
        session.clear()
        if name is None:
            return
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            (self._folder / name).touch(mode=0o600)
            for path in self._folder.iterdir():
                if path.name != "key" and self._now() - path.stat().st_mtime > LONGEST:
                    path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("a session is ended in this process only: %s", error.strerror)
            self._ended[name] = self._now()

    def _has_ended(self, name: str) -> bool:
        return name in self._ended or (self._folder / name).exists()

    @cached_property
    def _key(self) -> bytes:
        """The key: a random secret, from which the password cannot be guessed, and the password."""
        file, fresh = self._folder / "key", secrets.token_bytes(32)
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            work = self._folder / f"key-{secrets.token_hex(4)}"
            work.touch(mode=0o600)
            work.write_bytes(fresh)
            with contextlib.suppress(FileExistsError):  # another process was first
                os.link(work, file)
            work.unlink()
            fresh = file.read_bytes()
        except OSError as error:
            log.warning("sessions hold in this process only: %s", error.strerror)
        return hmac.digest(fresh, self._password.reveal().encode(), "sha256")
