"""Doctor's findings, made in the background: it asks Label Studio, which may be slow."""

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from studio.project_checks import Finding
from worker.doctor import examine_machine, examine_projects
from worker.parts import Parts

log = logging.getLogger(__name__)

#: Seconds after which a page that is opened starts another checkup.
STALE: Final = 60.0


@dataclass(frozen=True)
class Found:
    """The findings of one checkup.

    Attributes:
        at: when, seconds since the epoch.
        machine: what is not about one project.
        projects: findings by a project's number in Label Studio.
    """

    at: float
    machine: Sequence[Finding]
    projects: Mapping[int, Sequence[Finding]] = field(default_factory=dict)

    def wrong(self, number: int | None = None) -> list[Finding]:
        """Return what is to be fixed, of a project or of what is not about one."""
        some = self.machine if number is None else self.projects.get(number, ())
        return [one for one in some if not one.ok]


class Checkup:
    """The last checkup, and the one that runs."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._lock = threading.Lock()
        self._found: Found | None = None
        self._running: threading.Thread | None = None

    def latest(self) -> Found | None:
        """Return the last findings, None before the first checkup has ended."""
        return self._found

    def is_looking(self) -> bool:
        """Whether a checkup runs."""
        with self._lock:
            return self._running is not None and self._running.is_alive()

    def look(self, *, within: float = STALE, wait: float = 0.0) -> Found | None:
        """Return the findings, and start a checkup where they are too old.

        Args:
            within: seconds that findings may be old.
            wait: seconds to wait for a checkup that runs.
        """
        with self._lock:
            fresh = self._found is not None and time.time() - self._found.at < within
            busy = self._running is not None and self._running.is_alive()
            if not fresh and not busy:
                self._running = threading.Thread(target=self._look, daemon=True, name="checkup")
                self._running.start()
            running = None if fresh else self._running
        if running is not None and wait > 0:
            running.join(wait)
        return self._found

    def _look(self) -> None:
        try:
            self._look_at_all()
        except Exception:  # a fault of ours must not keep the pages from being shown
            log.exception("the checkup failed")
            what = "the checkup itself failed"
            fix = "the server's log says why; `hrn doctor --verbose` shows it too"
            self._found = Found(time.time(), [Finding("checkup", ok=False, what=what, fix=fix)])

    def _look_at_all(self) -> None:
        """Examine this machine first: it answers at once, Label Studio may keep us waiting."""
        before = self._found
        machine = list(examine_machine(self._parts))
        if before is None:
            self._found = Found(time.time(), machine)
        projects: dict[int, list[Finding]] = {}
        for number, one in examine_projects(self._parts):
            if number is None:
                machine.append(one)
            else:
                projects.setdefault(number, []).append(one)
        self._found = Found(time.time(), machine, projects)
