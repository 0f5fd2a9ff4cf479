"""What is noted of projects between jobs, in Redis: all of it may be lost and is found again.

Keys of a project, all under ``hrn:<key>:``

``events``    annotation events since labels were last read; ``touched`` when the last one came
``heard``     annotations changed since the drift monitor last ran
``answered``  answers since the images to ask about were last chosen
``new-tasks`` tasks were added that have no pre-labels yet, or a sync is wanted for another reason
``attempted`` watermark of the labels that a training has read, whether or not it led to a version
``unlearnt``  labels that no training has read, as last counted in Label Studio
``behind``    of which live version, how many labels a training has read and that version has not
``refreshed`` the version that all open tasks have the pre-labels of
``shown``     the depth rule by which that version pre-labelled them, and when
``moved``     the version whose depth rule has changed since then
``stopped``   the version whose pre-label sync a person stopped
``untidy``    when predictions of earlier versions may be removed (seconds, epoch)
``unlike``    what is said of open images unlike the labelled ones; ``looked`` what that counts
"""

import json
import logging
import time
from collections.abc import Mapping
from typing import Any

from redis import Redis

from worker.reading import Read

log = logging.getLogger(__name__)


class ProjectKeys:
    """Values of a project in Redis, as text or JSON."""

    def __init__(self, connection: Redis) -> None:
        self.redis = connection

    def _key(self, project: str, name: str) -> str:
        return f"hrn:{project}:{name}"

    def _text(self, project: str, name: str) -> str | None:
        value = self.redis.get(self._key(project, name))
        return value.decode(errors="replace") if isinstance(value, bytes) else value

    def _get(self, project: str, name: str) -> dict[str, Any] | None:
        text = self._text(project, name)
        return None if text is None else read_json(text)

    def _of_version(self, project: str, name: str, version: str) -> dict[str, Any] | None:
        found = self._get(project, name)
        return found if found is not None and found.get("version") == version else None

    def _set(self, project: str, name: str, value: dict[str, Any], life: int | None = None) -> None:
        self.redis.set(self._key(project, name), json.dumps(value), ex=life)

    def _mark(self, project: str, name: str) -> None:
        self.redis.set(self._key(project, name), repr(time.time()))

    def _take(self, project: str, name: str) -> bool:
        return self.redis.getdel(self._key(project, name)) is not None

    def _drop(self, project: str, *names: str) -> None:
        self.redis.delete(*(self._key(project, name) for name in names))


def read_json(text: str | bytes) -> dict[str, Any] | None:
    """Read a value from Redis; None where it is none of ours."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        log.error("passed over what Redis holds: %s: %.80r", error, text)  # noqa: TRY400
        return None
    return found if isinstance(found, dict) else None


class Hints(ProjectKeys):
    """Events of projects, and what jobs note for those that come after them."""

    # Events from webhooks

    def note_event(self, project: str) -> None:
        """Note that an annotation was made, changed or removed."""
        pipe = self.redis.pipeline(transaction=False)
        pipe.incr(self._key(project, "events"))
        pipe.incr(self._key(project, "answered"))
        pipe.set(self._key(project, "touched"), repr(time.time()))
        pipe.set(self._key(project, "heard"), repr(time.time()))
        pipe.execute()

    def events(self, project: str) -> tuple[int, float | None]:
        """Return the events since labels were last read, and when the last came (s, epoch)."""
        count, touched = self.redis.mget(
            self._key(project, "events"), self._key(project, "touched")
        )
        return int(count or 0), None if touched is None else float(touched)

    def events_read(self, project: str) -> None:
        """Count events from here: a training is about to read all labels."""
        self._drop(project, "events", "unlearnt")

    def note_tasks(self, project: str) -> None:
        """Note that tasks were added, which want pre-labels."""
        self._mark(project, "new-tasks")

    def take_new_tasks(self, project: str) -> bool:
        """Tell whether tasks were added since this was last asked."""
        return self._take(project, "new-tasks")

    def note_heard(self, project: str) -> None:
        """Note that annotations changed since the drift monitor last ran."""
        self._mark(project, "heard")

    def take_heard(self, project: str) -> bool:
        """Tell whether annotations changed since this was last asked."""
        return self._take(project, "heard")

    def note_answers(self, project: str, count: int) -> None:
        """Note how many answers came since the images to ask about were chosen."""
        self.redis.set(self._key(project, "answered"), count)

    def take_answers(self, project: str, least: int) -> int:
        """Return their number and count from 0, if there are at least so many; else 0."""
        count = int(self._text(project, "answered") or 0)
        if count < least:
            return 0
        self._drop(project, "answered")
        return count

    # Labels that were read

    def note_attempt(self, project: str, read: Read) -> None:
        """Note which labels a training has read: what they led to, they would lead to again."""
        self._set(project, "attempted", read.to_json())

    def attempted(self, project: str) -> Read:
        """Return what `note_attempt` last noted; nothing, if nothing that can be read."""
        found = self._get(project, "attempted")
        try:
            return Read() if found is None else Read.from_json(found)
        except (KeyError, TypeError, ValueError):
            return Read()

    def note_unlearnt(self, project: str, labels: int) -> None:
        """Note how many labels stand in Label Studio that no training has read."""
        self.redis.set(self._key(project, "unlearnt"), labels)

    def unlearnt(self, project: str) -> int:
        """Return how many labels no training has read, as last counted, or by events if more."""
        counted = self.redis.get(self._key(project, "unlearnt"))
        return max(int(counted or 0), self.events(project)[0])

    def note_behind(self, project: str, version: str, labels: int) -> None:
        """Note how many labels that a training has read this version has not learnt from."""
        self._set(project, "behind", {"version": version, "labels": labels})

    def behind(self, project: str, version: str | None, learnt: Read) -> int | None:
        """Return how many labels a training has read and the live version has not.

        None where that is not counted yet.

        Args:
            project: whose.
            version: the live one.
            learnt: what it has read.
        """
        counted = self._get(project, "behind")
        if counted is not None and counted.get("version") == version:
            return int(counted["labels"])
        return None if version and self.attempted(project).through > learnt.through else 0

    # The pre-label sync

    def note_refreshed(self, project: str, version: str) -> None:
        """Note that every open task has the version's pre-label."""
        self.redis.set(self._key(project, "refreshed"), version)

    def refreshed(self, project: str) -> str | None:
        """Return the version that `note_refreshed` last noted."""
        return self._text(project, "refreshed")

    def note_shown(self, project: str, version: str, rule: dict[str, Any]) -> None:
        """Note the depth rule by which every open task has the version's pre-label."""
        self._set(project, "shown", {"version": version, "rule": rule, "at": time.time()})

    def shown(self, project: str, version: str) -> tuple[dict[str, Any], float] | None:
        """Return the rule that `note_shown` last noted for the version and when (s, epoch)."""
        found = self._of_version(project, "shown", version)
        return None if found is None else (found["rule"], float(found["at"]))

    def note_moved(self, project: str, version: str) -> None:
        """Note that the version's depth rule gives other pre-labels than open tasks have."""
        self.redis.set(self._key(project, "moved"), version)

    def moved(self, project: str, version: str, pause: float) -> bool:
        """Tell whether that was noted, and the last sync is at least ``pause`` seconds ago."""
        if self._text(project, "moved") != version:
            return False
        shown = self.shown(project, version)
        return shown is None or time.time() - shown[1] >= pause

    def drop_moved(self, project: str) -> None:
        """Note that a sync was asked for."""
        self._drop(project, "moved")

    def note_untidy(self, project: str, due: float | None) -> None:
        """Note when predictions of earlier versions may be removed (s, epoch); None: all are."""
        if due is None:
            self._drop(project, "untidy")
        else:
            self.redis.set(self._key(project, "untidy"), repr(due))

    def take_untidy(self, project: str) -> bool:
        """Tell, once, whether predictions of earlier versions may be removed now."""
        due = self._text(project, "untidy")
        return due is not None and time.time() >= float(due) and self._take(project, "untidy")

    def stop_refresh(self, project: str, version: str) -> None:
        """Stop giving open tasks the version's pre-labels; what is stored stays.

        It goes on when somebody asks for it again, or with another version.
        """
        self.redis.set(self._key(project, "stopped"), version)

    def refresh_stopped(self, project: str, version: str) -> bool:
        """Tell whether somebody has stopped this version's pre-label sync."""
        return self._text(project, "stopped") == version

    def note_unlike(self, project: str, version: str, said: Mapping[str, Any]) -> None:
        """Note what is said of open images that look unlike the labelled ones."""
        self._set(project, "unlike", {"version": version, **said})

    def unlike(self, project: str, version: str) -> dict[str, Any] | None:
        """Return what `note_unlike` last noted for the version."""
        return self._of_version(project, "unlike", version)

    def note_looked(self, project: str, version: str, looked: Mapping[str, Any]) -> None:
        """Note what a version takes each open image for: large, and read by the next sync alone."""
        self._set(project, "looked", {"version": version, "looked": looked})

    def looked(self, project: str, version: str) -> dict[str, Any] | None:
        """Return what `note_looked` last noted for the version."""
        known = self._of_version(project, "looked", version) or self.unlike(project, version)
        return known and known.get("looked")  # an earlier release kept both in one
