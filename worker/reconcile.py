"""Wanted against done: asks for what is missing, whatever hints were lost.

Every couple of seconds it looks at the hints in Redis, every minute at the truth in Label Studio.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from inference.errors import ModelError
from inference.predictor import runs_here
from inference.store import CONNECTED, DISCONNECTED, GONE, UNCONFIRMED, UNTRAINED, Project
from studio.annotations import read_task
from studio.errors import ProjectMissingError, StudioError
from studio.label_config import LabelConfig, parse_label_config
from studio.project_setup import announce, remove_webhooks
from worker.asking import ASKED
from worker.errors import MisconfiguredError
from worker.identity import OtherProjectError, check_same, is_ours
from worker.keeping import prune_versions
from worker.order import Order
from worker.parts import Parts
from worker.presence import end, forget, registered_at
from worker.queue import RedisError
from worker.reading import Read

log = logging.getLogger(__name__)

#: Seconds between looks at the hints, and between looks at the truth.
GLANCE = 1.0
LOOK = 60.0

#: Seconds between looks at a project that something has called in the name of, and for which Label
#: Studio is asked before it is forgotten or taken for disconnected. Label Studio calls `/setup`
#: before it registers a backend.
RETRY = 5.0
SETTLE = 30.0

#: Looks in a row at which Label Studio has no such project before it counts as gone.
LOOKS_UNTIL_GONE = 5

#: What to do where a project is there and not to be seen.
OTHER_ACCOUNT = "set LABEL_STUDIO_API_KEY to the token of a member of its organization"

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
        self._next: dict[str, float] = {}
        self._live: dict[str, str | None] = {}
        self._absent: dict[str, tuple[float, int]] = {}
        self._unconfirmed: set[str] = set()
        self._unhooked: set[str] = set()
        self._refreshed: dict[str, str] = {}
        self._pruned = -PRUNE
        self._followed: dict[str, float] = {}
        self._newest: dict[str, float | None] = {}
        self._new: dict[str, int] = {}
        self._newest_task: dict[str, int] = {}
        self._replaced: set[tuple[str, str]] = set()

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
                if project.state == CONNECTED:
                    self._hints(project)
                self._hurry(project)
                live = self._parts.store.current(project.key)
                changed = live != self._live.setdefault(project.key, live)
                if changed or time.monotonic() >= self._next.get(project.key, 0.0):
                    self._next[project.key] = time.monotonic() + LOOK
                    self._live[project.key] = live
                    self.look(project)
            except RedisError as error:
                log.warning("redis is away: %s", error)
                return
            except (StudioError, ModelError, MisconfiguredError) as error:
                log.warning("project=%s: %s", project.key, error)
            except Exception:  # a fault of ours must not cost the other projects their training
                log.exception("unexpected project=%s", project.key)

    def _hurry(self, project: Project) -> None:
        """Look at once at a project that something has just called in the name of."""
        if project.state != UNCONFIRMED:
            self._unconfirmed.discard(project.key)
        elif project.key not in self._unconfirmed:
            self._unconfirmed.add(project.key)
            self._absent.pop(project.key, None)
            self._next.pop(project.key, None)

    def _prune(self) -> None:
        """Keep the cache within its size and old versions within their number, now and then."""
        if time.monotonic() - self._pruned < PRUNE:
            return
        self._pruned = time.monotonic()
        ours, store = self._parts.settings, self._parts.store
        try:  # what stays too long must not cost anybody their training
            self._parts.extractors.prune(int(ours.cache_gb * 1e9))
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
        """
        try:
            settings = self._parts.studio.settings(project.number)
            check_same(project, settings)
        except (ProjectMissingError, OtherProjectError) as error:
            self._missing(project, str(error))
            return
        if project.state == DISCONNECTED:  # the project is there: looks for it begin again
            self._absent.pop(project.key, None)
        where = registered_at(self._parts, project)
        if where is None:
            self._unregistered(project)
            return
        self._absent.pop(project.key, None)
        self._unconfirmed.discard(project.key)
        self._unhooked.discard(project.key)
        if (project.state, project.backend) != (CONNECTED, where or project.backend):
            self._parts.store.note_state(project.key, CONNECTED, where)
            log.info("connected project=%s backend=%s", project.key, where)
        version = self._parts.store.current(project.key)
        self._announce(project, version or UNTRAINED)
        self._find_new_tasks(project)
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
        if version:
            self._replace_earlier(project, version)

    def _replace_earlier(self, project: Project, version: str) -> None:
        """Ask for a training, once per process, where an earlier release trained the live version.

        Nothing can run that one any more. Pre-labels that stand in Label Studio stay.
        """
        if (project.key, version) in self._replaced:
            return
        if not runs_here(self._parts.store.manifest(project.key, version)):
            reason = f"{version} was trained by an earlier release, whose models do not run here"
            self._parts.board.ask(Order(project.key, reason))
            log.warning("asked project=%s: %s", project.key, reason)
        self._replaced.add((project.key, version))

    def _find_new_tasks(self, project: Project) -> None:
        """Ask for pre-labels of tasks whose TASKS_CREATED event was lost.

        The first look of a process needs no comparison: `_ask_refresh` covers all open tasks then.
        """
        newest = self._parts.studio.newest_task(project.number)
        if newest > self._newest_task.setdefault(project.key, newest):
            self._parts.board.note_tasks(project.key)
        self._newest_task[project.key] = newest

    def _missing(self, project: Project, why: str) -> None:
        """Take a project for gone after several looks; events say that only we do not see it.

        One that nothing is known of but that something called in its name is forgotten.
        """
        if project.state == GONE:
            return
        since, looks = self._absent_since(project)
        heard = self._parts.board.events(project.key)[1]
        if heard is not None and heard >= since:
            log.warning("project=%s: %s, yet it sends events: %s", project.key, why, OTHER_ACCOUNT)
        elif project.state != UNCONFIRMED:
            log.warning("project=%s: %s", project.key, why)
            if looks >= LOOKS_UNTIL_GONE:
                self._end(project, GONE)
        elif time.time() - since < SETTLE:
            self._next[project.key] = time.monotonic() + RETRY
        elif self._parts.store.versions(project.key):
            self._end(project, GONE)
        else:
            forget(self._parts, project.key)
            self._unconfirmed.discard(project.key)
            log.warning("forgotten project=%s, which has only called: %s", project.key, why)

    def _unregistered(self, project: Project) -> None:
        """Take a project that has no backend of ours for disconnected, and remove our webhook."""
        since, _ = self._absent_since(project)
        if project.state == UNCONFIRMED and time.time() - since < SETTLE:
            self._next[project.key] = time.monotonic() + RETRY
            return
        if project.state != DISCONNECTED:
            self._end(project, DISCONNECTED)
        if project.key not in self._unhooked:
            for url in {self._parts.settings.backend_url, project.backend} - {""}:
                remove_webhooks(self._parts.studio, project.number, url)
            self._unhooked.add(project.key)

    def _absent_since(self, project: Project) -> tuple[float, int]:
        """When it was first not found, seconds since the epoch, and how often in a row by now."""
        since, looks = self._absent.get(project.key, (time.time(), 0))
        self._absent[project.key] = (since, looks + 1)
        return self._absent[project.key]

    def _end(self, project: Project, state: str) -> None:
        self._absent.pop(project.key, None)
        self._unconfirmed.discard(project.key)
        end(self._parts, project, state)
        self._parts.board.cancel(project.key)

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
            names = self._parts.store.names(project.key)
            for change in announce(
                self._parts.studio, project.number, ours.backend_url, version, names
            ):
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
