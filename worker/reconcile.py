"""Wanted against done: asks for what is missing, whatever hints were lost.

Every couple of seconds it looks at the hints in Redis, every minute at the truth in Label Studio.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from models.errors import ModelError
from models.store import UNTRAINED, Project
from studio.annotations import read_task
from studio.connection import announce
from studio.errors import StudioError
from studio.labelconfig import LabelConfig, parse_label_config
from worker.asking import ASKED
from worker.errors import MisconfiguredError
from worker.identity import check_same, is_ours
from worker.keeping import prune_versions
from worker.order import Order
from worker.parts import Parts
from worker.queue import RedisError
from worker.reading import Read

log = logging.getLogger(__name__)

#: Seconds between looks at the hints, and between looks at the truth.
GLANCE = 1.0
LOOK = 60.0

#: Least seconds between two jobs that hold a project's new answers against what was shown: people
#: answer every few seconds, and one job reads what came from all of them.
FOLLOW_PAUSE = 30.0

#: Seconds after which such a job is asked for without any hint.
FOLLOW_ANYWAY = 3600.0

#: Answers after which is looked whether half of what is asked next is used up.
LOOK_AGAIN = ASKED // 4

#: Seconds between looks at the size of the cache.
PRUNE = 3600.0


@dataclass(frozen=True)
class Policy:
    """When to train without being asked.

    Attributes:
        every: so many new labels.
        after: or so many seconds after the last of fewer.
    """

    every: int
    after: float

    def reason(self, new: int, last: float | None, now: float) -> str | None:
        """Why to train now, None if it is not time.

        Args:
            new: labels since the last training.
            last: when the last one came, seconds since the epoch.
            now: the same clock.

        Example:
            >>> Policy(every=20, after=300).reason(3, 1000.0, 1301.0)
            '3 new labels, the last one 5 minutes ago'
        """
        if new >= self.every:
            return f"{new} new labels"
        if new and last is not None and now - last >= self.after:
            return f"{new} new labels, the last one {self.after / 60:g} minutes ago"
        return None


class Reconciler:
    """Looks after every project of the store."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        ours = parts.settings
        self._policy = Policy(ours.train_every, ours.train_after * 60)
        self._looked: dict[str, tuple[float, str | None]] = {}
        self._refreshed: dict[str, str] = {}
        self._pruned = -PRUNE
        self._followed: dict[str, float] = {}
        self._newest: dict[str, float | None] = {}
        self._new: dict[str, int] = {}

    def run(self, stop: Callable[[], bool]) -> None:
        """Go on until told to stop; nothing that fails ends it."""
        while not stop():
            self.glance()
            time.sleep(GLANCE)

    def glance(self) -> None:
        """One round over all projects."""
        self._prune()
        for project in self._parts.store.projects():
            if not is_ours(project, self._parts.settings.label_studio_url):
                continue  # of a Label Studio that another server looks after, or that has moved
            try:
                self._hints(project)
                live = self._parts.store.current(project.key)
                when, of = self._looked.get(project.key, (-LOOK, live))
                if time.monotonic() - when >= LOOK or live != of:
                    self._looked[project.key] = time.monotonic(), live
                    self.look(project)
            except RedisError as error:
                log.warning("redis is away: %s", error)
                return
            except (StudioError, ModelError, MisconfiguredError) as error:
                log.warning("project=%s: %s", project.key, error)
            except Exception:  # a fault of ours must not cost the other projects their training
                log.exception("unexpected project=%s", project.key)

    def _prune(self) -> None:
        """Keep the cache within its size and old versions within their number, now and then."""
        if time.monotonic() - self._pruned < PRUNE:
            return
        self._pruned = time.monotonic()
        ours, store = self._parts.settings, self._parts.store
        try:  # what stays too long must not cost anybody their training
            self._parts.galleries.prune(int(ours.cache_gb * 1e9))
        except Exception:
            log.exception("cache not pruned")
        for project in store.projects():
            if not is_ours(project, ours.label_studio_url):
                continue
            try:
                prune_versions(store, project.key, ours.keep_versions)
            except Exception:
                log.exception("old versions not deleted project=%s", project.key)

    def _hints(self, project: Project) -> None:
        board = self._parts.board
        if revived := board.revive(project.key):
            log.warning("project=%s: %s", project.key, revived)
        if (order := board.due(project.key)) is not None:
            board.ask(order)
            board.drop_due(project.key)  # after asking: Redis may go away in between
        new, last = board.events(project.key)
        if reason := self._policy.reason(new, last, time.time()):
            asked = board.ask(Order(project.key, reason))
            board.events_read(project.key)
            log.info("asked project=%s job=%s: %s", project.key, asked.job, reason)
        version = self._parts.store.current(project.key)
        self._order(project, version or UNTRAINED)
        if version:
            self._follow(project, version)

    def _order(self, project: Project, version: str) -> None:
        """Answers for new tasks, others to ask where half is used up, and old rows removed.

        A hint is dropped before the work is asked for, and noted again where that cannot be had.
        """
        board, key = self._parts.board, project.key
        if board.refresh_stopped(key, version):
            return
        if board.take_new_tasks(key) and not board.ask_refresh(key, version):
            board.note_tasks(key)  # asked for once the one that runs has ended
        answers = board.take_answers(key, LOOK_AGAIN)
        if answers and not board.ask_refresh(key, version):
            board.note_answers(key, answers)
        if board.untidy(key) and board.ask_refresh(key, version):
            board.drop_untidy(key)

    def _follow(self, project: Project, version: str) -> None:
        """Hold new answers against what was shown, and refresh what has moved: both now and then.

        A hint is dropped before the work is asked for, and noted again where that cannot be had.
        """
        board, now = self._parts.board, time.monotonic()
        since = now - self._followed.setdefault(project.key, now - FOLLOW_PAUSE)
        if since >= FOLLOW_PAUSE and (board.take_heard(project.key) or since >= FOLLOW_ANYWAY):
            if board.ask_follow(project.key, version):
                self._followed[project.key] = now
            else:
                board.note_heard(project.key)
        pause = self._parts.settings.follow_minutes * 60
        if board.moved(project.key, version, pause) and board.ask_refresh(project.key, version):
            board.drop_moved(project.key)

    def look(self, project: Project) -> None:
        """Compare with Label Studio itself.

        Raises:
            StudioError: it could not be reached, or refused.
            MisconfiguredError: the project with this number is not the one that called.
        """
        settings = self._parts.studio.settings(project.number)
        check_same(project, settings)
        version = self._parts.store.current(project.key)
        self._announce(project, version or UNTRAINED)
        self._ask_refresh(project, version or UNTRAINED)
        config = parse_label_config(str(settings["label_config"]))
        new, last, behind = self._unlearnt(project, version, config)
        self._parts.board.note_unlearnt(project.key, new)
        if version:
            self._parts.board.note_behind(project.key, version, behind)
        if last != self._newest.get(project.key):  # its event may have been lost
            self._missed(project, version, new)
        self._newest[project.key], self._new[project.key] = last, new
        reason = self._policy.reason(new, last, time.time())
        if reason and not self._parts.board.rest(project.key):
            self._parts.board.ask(Order(project.key, reason))

    def _missed(self, project: Project, version: str | None, new: int) -> None:
        """Note what webhooks would have told."""
        board = self._parts.board
        if version:
            board.note_heard(project.key)
        grown = new - self._new.get(project.key, new)
        if grown >= LOOK_AGAIN:
            board.note_answers(project.key, grown)

    def _announce(self, project: Project, version: str) -> None:
        """Keep the backend's title equal to the version; a failure holds nothing else up."""
        ours = self._parts.settings
        if not ours.backend_url:
            return
        try:
            for change in announce(self._parts.studio, project.number, ours.backend_url, version):
                log.info("project=%s: %s", project.key, change)
        except StudioError as error:
            log.warning("not announced project=%s version=%s: %s", project.key, version, error)

    def _ask_refresh(self, project: Project, version: str) -> None:
        """Until it is done, and once more a process and version: hints tell of later tasks."""
        if self._parts.board.refresh_stopped(project.key, version):
            return
        known = (self._parts.board.refreshed(project.key), self._refreshed.get(project.key))
        if known != (version, version) and self._parts.board.ask_refresh(project.key, version):
            self._refreshed[project.key] = version

    def _unlearnt(
        self, project: Project, version: str | None, config: LabelConfig
    ) -> tuple[int, float | None, int]:
        """Labels that no attempt has read yet, when the last of them came, and others.

        The others an attempt has read, but the live version has not learnt from them: it is an
        earlier one, or what came of them was refused.
        """
        attempted, learnt = self._parts.board.attempted(project.key), Read()
        if version:
            learnt = Read.of_version(self._parts.store.manifest(project.key, version))
        read = attempted.newer(learnt)
        since = min(read.since, learnt.since) if version else read.since
        tasks = self._parts.studio.tasks(
            project.number, annotated_only=True, updated_after=since or None
        )
        labels = [label for task in tasks for label in read_task(task, config).labels]
        times = [one.updated_at for one in labels if read.lacks(one.annotation_id, one.updated_at)]
        behind = [
            one.annotation_id
            for one in labels
            if learnt.lacks(one.annotation_id, one.updated_at)
            and not read.lacks(one.annotation_id, one.updated_at)
        ]
        last = _seconds(max(times)) if times else None
        return len(times), last, len(behind) if version else 0


def _seconds(stamp: str) -> float | None:
    try:
        when = datetime.fromisoformat(stamp)
    except ValueError:
        return None
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
