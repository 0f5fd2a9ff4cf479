"""Objects of the console that outlive a request."""

from dataclasses import dataclass
from typing import cast

from flask import current_app

from backend.console.checkup import Checkup
from backend.console.limits import Tries
from backend.console.sessions import Sessions
from worker.parts import Parts


@dataclass(frozen=True)
class Console:
    """The console of one application.

    Attributes:
        sessions: who is signed in.
        tries: how often a password was tried.
        checkup: what doctor last found.
    """

    sessions: Sessions
    tries: Tries
    checkup: Checkup

    @classmethod
    def of(cls, parts: Parts) -> "Console":
        """Put together; opens and starts nothing."""
        settings = parts.settings
        sessions = Sessions(settings.home / "console", settings.console_password)
        return cls(sessions, Tries(parts), Checkup(parts))


def console() -> Console:
    """Return the console of the application that handles this request."""
    return cast("Console", current_app.extensions["console"])
