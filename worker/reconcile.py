"""Reconciler: compares wanted with done and asks for what is missing, whatever hints were lost.

Every second it takes the hints in Redis, every minute it looks at Label Studio itself.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from inference.errors import ModelError
from inference.predictor import runs_here
from inference.store import CONNECTED, DISCONNECTED, GONE, UNCONFIRMED, UNTRAINED, Project
from studio.annotations import read_task
from studio.errors import ProjectMissingError, StudioError
from studio.label_config import LabelConfig, parse_label_config
from studio.project_setup import announce, remove_webhooks
from worker.asking import ASKED
from worker.choosing import prune_versions
from worker.errors import MisconfiguredError
from worker.identity import OtherProjectError, check_same, is_ours
from worker.order import Order
from worker.parts import Parts
from worker.presence import end, forget, registered_at
from worker.queue import RedisError
from worker.reading import Read, parse_time

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
        """Return why to train now, None if it is not time.

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


@dataclass
class Watched:
    """Memory of a reconciler about one project, from round to round.

    Attributes:
        next_look: when to ask Label Studio again, on the monotonic clock.
        live: the version that was live at the last round.
        absent_since: when Label Studio first did not have it, seconds since the epoch.
        absences: looks in a row at which Label Studio did not have it.
        unconfirmed: whether it is known to have only called so far.
        unhooked: whether our webhook was removed from it.
        synced: the version that this process asked a pre-label sync of.
        monitored: when the drift monitor was last asked for, on the monotonic clock.
        newest: when the newest label that no training has read came.
        new: how many of them there were at the last look.
        newest_task: its highest id; None before the first look.
        replaced: the version that was found to be of an earlier release, or not to be.
    """

    next_look: float = 0.0
    live: str | None = None
    absent_since: float = 0.0
    absences: int = 0
    unconfirmed: bool = False
    unhooked: bool = False
    synced: str | None = None
    monitored: float = field(default_factory=lambda: time.monotonic() - FOLLOW_PAUSE)
    newest: float | None = None
    new: int | None = None
    newest_task: int | None = None
    replaced: str | None = None

    def absent(self) -> None:
        """Count a look at which Label Studio did not have the project."""
        self.absent_since = self.absent_since or time.time()
        self.absences += 1

    def present(self) -> None:
        """Begin to count again."""
        self.absent_since, self.absences = 0.0, 0


class Reconciler:
    """Looks after every project of the store."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        settings = parts.settings
        self._policy = Policy(settings.train_every, settings.train_after * 60)
        self._pruned = -PRUNE
        self._watched: dict[str, Watched] = {}

    def run(self, stop: Callable[[], bool]) -> None:
        """Go on until asked to stop; nothing that fails ends it."""
        while not stop():
            self.glance()
            time.sleep(GLANCE)

    def _of(self, project: Project) -> Watched:
        if project.key not in self._watched:
            live = self._parts.store.current(project.key)
            self._watched[project.key] = Watched(live=live)
        return self._watched[project.key]

    def glance(self) -> None:
        """Do one round over all projects."""
        self._prune()
        for project in self._parts.store.projects():
            if not is_ours(project, self._parts.settings.label_studio_url):
                continue  # of a Label Studio that another server looks after, or that has moved
            try:
                self._round(project)
            except RedisError as error:
                log.warning("redis is away: %s", error)
                return
            except (StudioError, ModelError, MisconfiguredError) as error:
                log.warning("project=%s: %s", project.key, error)
            except Exception:  # a fault of ours must not cost the other projects their training
                log.exception("unexpected project=%s", project.key)

    def _round(self, project: Project) -> None:
        """Act on hints; look at Label Studio each minute, after a release, and after a call."""
        if project.state == CONNECTED:
            self.take_hints(project)
        known = self._of(project)
        called = project.state == UNCONFIRMED and not known.unconfirmed
        known.unconfirmed = project.state == UNCONFIRMED
        if called:  # something has just called in its name
            known.present()
        live = self._parts.store.current(project.key)
        if called or live != known.live or time.monotonic() >= known.next_look:
            known.next_look, known.live = time.monotonic() + LOOK, live
            self.look(project)

    def _prune(self) -> None:
        """Keep the cache within its size and old versions within their number, now and then."""
        if time.monotonic() - self._pruned < PRUNE:
            return
        self._pruned = time.monotonic()
        settings, store = self._parts.settings, self._parts.store
        try:  # what stays too long must not cost anybody their training
            self._parts.extractors.prune(int(settings.cache_gb * 1e9))
        except Exception:
            log.exception("cache not pruned")
        for project in store.projects():
            if not is_ours(project, settings.label_studio_url):
                continue
            try:
                prune_versions(store, project.key, settings.keep_versions)
            except Exception:
                log.exception("old versions not deleted project=%s", project.key)

    # Hints

    def take_hints(self, project: Project) -> None:
        """Ask for what events and earlier jobs have noted."""
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
        self.sync_if_due(project, version or UNTRAINED)
        if version:
            self._monitor_if_due(project, version)

    def sync_if_due(self, project: Project, version: str) -> None:
        """Ask for a pre-label sync of new tasks, used-up questions, old rows, or a changed rule.

        A hint is dropped before the work is asked for, and noted again while a sync runs: that one
        may have listed the tasks before the newest came.
        """
        board, key = self._parts.board, project.key
        if not board.refresh_stopped(key, version):
            hints = (
                board.take_new_tasks(key),
                board.take_answers(key, LOOK_AGAIN) > 0,
                board.take_untidy(key),
            )
            if any(hints) and not board.ask_refresh(key, version):
                board.note_tasks(key)
        pause = self._parts.settings.follow_minutes * 60
        if board.moved(key, version, pause) and board.ask_refresh(key, version):
            board.drop_moved(key)

    def _monitor_if_due(self, project: Project, version: str) -> None:
        """Ask for the drift monitor, now and then, where annotations have changed."""
        board, known, now = self._parts.board, self._of(project), time.monotonic()
        since = now - known.monitored
        if since >= FOLLOW_PAUSE and (board.take_heard(project.key) or since >= FOLLOW_ANYWAY):
            if board.ask_follow(project.key, version):
                known.monitored = now
            else:
                board.note_heard(project.key)

    # Label Studio itself

    def look(self, project: Project) -> None:
        """Compare with Label Studio itself.

        Raises:
            StudioError: it could not be reached, or refused.
        """
        known, board, store = self._of(project), self._parts.board, self._parts.store
        try:
            settings = self._parts.studio.settings(project.number)
            check_same(project, settings)
        except (ProjectMissingError, OtherProjectError) as error:
            self._missing(project, known, str(error))
            return
        if project.state == DISCONNECTED:  # the project is there: looks for it begin again
            known.present()
        where = registered_at(self._parts, project)
        if where is None:
            self._unregistered(project, known)
            return
        known.present()
        known.unconfirmed = known.unhooked = False
        if (project.state, project.backend) != (CONNECTED, where or project.backend):
            store.note_state(project.key, CONNECTED, where)
            log.info("connected project=%s backend=%s", project.key, where)
        version = store.current(project.key)
        self._announce(project, version or UNTRAINED)
        self._find_new_tasks(project, known)
        self._first_sync(project, known, version or UNTRAINED)
        config = parse_label_config(str(settings["label_config"]))
        new, last, behind = self._unlearnt(project, version, config)
        board.note_unlearnt(project.key, new)
        if version:
            board.note_behind(project.key, version, behind)
        if last != known.newest:  # its event may have been lost
            self._missed(project, version, new - (new if known.new is None else known.new))
        known.newest, known.new = last, new
        reason = self._policy.reason(new, last, time.time())
        if reason and not board.rest(project.key):
            board.ask(Order(project.key, reason))
        if version and known.replaced != version:
            self._replace_earlier(project, version)
            known.replaced = version

    def _missed(self, project: Project, version: str | None, grown: int) -> None:
        """Note what webhooks would have said."""
        if version:
            self._parts.board.note_heard(project.key)
        if grown >= LOOK_AGAIN:
            self._parts.board.note_answers(project.key, grown)

    def _replace_earlier(self, project: Project, version: str) -> None:
        """Ask for a training, once per process, where an earlier release trained the live version.

        Nothing can run that one any more. Pre-labels that stand in Label Studio stay.
        """
        if not runs_here(self._parts.store.manifest(project.key, version)):
            reason = f"{version} was trained by an earlier release, whose models do not run here"
            self._parts.board.ask(Order(project.key, reason))
            log.warning("asked project=%s: %s", project.key, reason)

    def _find_new_tasks(self, project: Project, known: Watched) -> None:
        """Note tasks whose TASKS_CREATED event was lost.

        The first look of a process needs no comparison: `_first_sync` covers all open tasks then.
        """
        newest = self._parts.studio.newest_task(project.number)
        if known.newest_task is not None and newest > known.newest_task:
            self._parts.board.note_tasks(project.key)
        known.newest_task = newest

    def _first_sync(self, project: Project, known: Watched, version: str) -> None:
        """Ask for a pre-label sync until it is done, and once more per process and version."""
        board = self._parts.board
        if board.refresh_stopped(project.key, version):
            return
        done = (board.refreshed(project.key), known.synced) == (version, version)
        if not done and board.ask_refresh(project.key, version):
            known.synced = version

    def _missing(self, project: Project, known: Watched, why: str) -> None:
        """Take a project for gone after several looks; events say that only we do not see it.

        One that nothing is known of but that something called in its name is forgotten.
        """
        if project.state == GONE:
            return
        known.absent()
        heard = self._parts.board.events(project.key)[1]
        if heard is not None and heard >= known.absent_since:
            log.warning("project=%s: %s, yet it sends events: %s", project.key, why, OTHER_ACCOUNT)
        elif project.state != UNCONFIRMED:
            log.warning("project=%s: %s", project.key, why)
            if known.absences >= LOOKS_UNTIL_GONE:
                self._end(project, known, GONE)
        elif time.time() - known.absent_since < SETTLE:
            known.next_look = time.monotonic() + RETRY
        elif self._parts.store.versions(project.key):
            self._end(project, known, GONE)
        else:
            forget(self._parts, project.key)
            known.unconfirmed = False
            log.warning("forgotten project=%s, which has only called: %s", project.key, why)

    def _unregistered(self, project: Project, known: Watched) -> None:
        """Take a project that has no backend of ours for disconnected, and remove our webhook."""
        known.absent()
        if project.state == UNCONFIRMED and time.time() - known.absent_since < SETTLE:
            known.next_look = time.monotonic() + RETRY
            return
        if project.state != DISCONNECTED:
            self._end(project, known, DISCONNECTED)
        if not known.unhooked:
            for url in {self._parts.settings.backend_url, project.backend} - {""}:
                remove_webhooks(self._parts.studio, project.number, url)
            known.unhooked = True

    def _end(self, project: Project, known: Watched, state: str) -> None:
        known.present()
        known.unconfirmed = False
        end(self._parts, project, state)
        self._parts.board.cancel(project.key)

    def _announce(self, project: Project, version: str) -> None:
        """Keep the backend's title equal to the version; a failure holds nothing else up."""
        url = self._parts.settings.backend_url
        if not url:
            return
        try:
            names = self._parts.store.names(project.key)
            for change in announce(self._parts.studio, project.number, url, version, names):
                log.info("project=%s: %s", project.key, change)
        except StudioError as error:
            log.warning("not announced project=%s version=%s: %s", project.key, version, error)

    def _unlearnt(
        self, project: Project, version: str | None, config: LabelConfig
    ) -> tuple[int, float | None, int]:
        """Return labels that no attempt has read yet, when the last of them came, and others.

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
        last = parse_time(max(times)) if times else None
        newest = None if last is None else last.timestamp()
        return len(times), newest, len(behind) if version else 0
