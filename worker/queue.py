"""Asking for work and how it stands. Imports neither torch nor the jobs; JSON only.

Everything here is a hint that may be lost: what is wanted is recomputed from Label Studio by the
reconciler. Keys of a project in Redis, all under ``hrn:<key>:``

``job``       id of the training that waits or runs: at most one
``again``     the order that waits behind a running one: at most one
``later``     the order that waits for Label Studio to come back, and until when
``refreshed`` the version that all open tasks have the answers of
``shown``     the rule by which that version answered them, and when
``refreshing`` where the refresh of pre-labels is; ``refresh-alive`` that its process lives
``stopped``   the version whose refresh a person stopped
``answered``  answers since the pictures to ask for were last chosen
``untidy``    when rows of earlier versions may be removed (seconds, epoch)
``moved``     the version whose rule has moved since then: its pre-labels want a refresh
``heard``     answers came or went since they were last held against what was shown
``attempted`` the labels that an attempt has read, whether or not they led to a version
``alive``     the running job's id, kept alive by its heartbeat
``progress``  where the running job is
``cancel``    id of a job that should stop
``runs``      how past trainings ended, newest first
``events``    annotation events since labels were last read; ``touched`` when the last one came
``unlearnt``  labels that no training has read, as last counted in Label Studio
``behind``    of which live version, how many labels a training has read and that version has not
"""

import contextlib
import json
import logging
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any, Final, Literal

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry
from rq import Queue, Worker
from rq.exceptions import InvalidJobOperation, NoSuchJobError
from rq.job import Job, JobStatus
from rq.serializers import JSONSerializer
from rq.worker import BaseWorker

from worker.order import Order, RunState
from worker.reading import Read

log = logging.getLogger(__name__)

QUEUE_NAME: Final = "hrn"

#: By name, so that the web process need not import the jobs.
FINE_TUNE: Final = "worker.jobs.fine_tune"
REFRESH: Final = "worker.jobs.refresh"
FOLLOW: Final = "worker.jobs.follow"

#: Longest run allowed, in seconds; RQ's own default of 180 would end a fine-tuning.
TRAINING_TIMEOUT: Final = 12 * 3600
REFRESH_TIMEOUT: Final = 6 * 3600
FOLLOW_TIMEOUT: Final = 3600

#: A job whose heartbeat is older than this, in seconds, is dead.
HEARTBEAT_LIFE: Final = 45

#: Seconds after which a lock is free whoever held it; what is done under it takes milliseconds.
LOCK_LIFE: Final = 10

#: Times that a training whose process died is tried again: what kills it may be the job itself.
CRASHES_FORGIVEN: Final = 2

#: Seconds of rest after a training that failed, and after many in a row.
REST: Final = 60.0
LONGEST_REST: Final = 3600.0

#: Ways of ending after which the same wish is tried again by itself.
_ON_ITS_WAY: Final = frozenset({RunState.DIED, RunState.POSTPONED})

#: Where a worker says, in its own record, what it computes on.
DEVICE_FIELD: Final = "hrn_device"

#: Runs remembered for a project.
RUNS_KEPT: Final = 100

State = Literal["queued", "running", "waiting", "idle"]


@dataclass(frozen=True)
class Asked:
    """What came of asking for a training.

    Attributes:
        job: id of the job that will fulfil the wish.
        state: ``queued``, it is new; ``waiting``, it waits already, or behind the running one.
    """

    job: str
    state: State


def connect(url: str, *, timeout: float = 2.0) -> Redis:
    """A connection that gives up after ``timeout`` seconds: predictions do not wait for Redis."""
    return Redis.from_url(
        url,
        socket_connect_timeout=timeout,
        socket_timeout=timeout,
        retry=Retry(NoBackoff(), 1),
        health_check_interval=30,
    )


def queue(connection: Redis) -> Queue:
    """The one queue, in JSON: bytes read from Redis never run as code."""
    return Queue(QUEUE_NAME, connection=connection, serializer=JSONSerializer)


class Board:
    """Wishes, progress and outcomes of all projects, in Redis."""

    def __init__(self, connection: Redis) -> None:
        self.redis = connection
        self.queue = queue(connection)

    # Wishes

    def ask(self, order: Order) -> Asked:
        """Ask for a training; however often, one runs and one waits.

        Raises:
            RedisError: Redis cannot be reached; the reconciler asks again later.
        """
        with self._locked(order.project):
            job = self._job(order.project)
            status = _status(job)
            if job is None or status not in _WANTED:
                return Asked(self._enqueue(order, _new_id("train")), "queued")
            # One that failed without a word has died, and its heart may not be known to have
            # stopped: what would be queued now would find its place taken, and end.
            if status not in (JobStatus.STARTED, JobStatus.FAILED):
                known = self._order_of(job, order.project)
                if (both := known.joined(order)) != known:
                    self._forget(job)
                    self._enqueue(both, job.id)
                return Asked(job.id, "waiting")
            wish = self._get(order.project, "again") or {"id": _new_id("train"), "order": None}
            if wish["order"] is not None:
                order = Order.from_json(wish["order"]).joined(order)
            self._set(order.project, "again", {**wish, "order": order.to_json()})
            return Asked(str(wish["id"]), "waiting")

    def finished(self, project: str, job: str) -> None:
        """Called as a training's last act: what waits behind it goes into the queue."""
        with self._locked(project):
            if self._text(project, "job") == job:
                self.redis.delete(self._key(project, "job"), self._key(project, "progress"))
            if self._text(project, "alive") == job:  # else it is the heart of the one that runs now
                self.redis.delete(self._key(project, "alive"))
            self._next(project)

    def revive(self, project: str) -> str | None:
        """Put a dead job's work back into the queue; what happened, in words, or None.

        A job is dead when its heartbeat has stopped although it never said how it ended. Its work
        is tried again, but not for ever: it may be what kills its process.
        """
        with self._locked(project):
            name = self._text(project, "job")
            if name is None:
                return self._next(project) and "what waited behind a job that is gone was queued"
            job = self._job(project)
            status = _status(job)
            if job is not None and status in (JobStatus.STARTED, JobStatus.FAILED):
                return None if self.is_alive(project, name) else self._bury(project, job)
            if status in _PENDING:
                return None
            self.redis.delete(self._key(project, "job"))
            return self._next(project) and f"{name} ended without a word: what waited was queued"

    def cancel(self, project: str, only: str = "") -> list[dict[str, Any]]:
        """Stop a project's trainings; each that was stopped, as `wishes` has it.

        Those that have not begun are dropped at once, each with a run that says so; the running one
        ends within seconds and says so itself.

        Args:
            project: whose.
            only: ``running``, ``queued``, ``waiting`` or ``put off``; empty: all of them.
        """
        with self._locked(project):
            stopped = [one for one in self.wishes(project) if only in ("", one["state"])]
            for one in stopped:
                self._stop(project, one)
            return stopped

    def _stop(self, project: str, request: dict[str, Any]) -> None:
        name = request.get("job") or request.get("id")
        if (
            "job" in request
        ):  # also for a queued one: a worker may have taken it and not said so yet
            self.redis.set(self._key(project, "cancel"), str(name), ex=3600)
            if request["state"] == "running":
                return
            if (job := self._job(project)) is not None:
                self._forget(job)
            self.redis.delete(self._key(project, "job"))
        else:
            self.redis.delete(self._key(project, "again" if "id" in request else "later"))
        reason = (request.get("order") or {}).get("reason", "")
        why = "asked to stop before it began"
        self.log_run(
            project, {"job": name, "reason": reason, "state": RunState.CANCELLED, "why": why}
        )

    def is_stopping(self, project: str) -> bool:
        """Was the training that runs asked to stop?"""
        job = self._text(project, "job")
        return job is not None and self.is_cancelled(project, job)

    def forget(self, project: str) -> None:
        """Drop all that is known of a project; what runs of it is asked to stop."""
        self.cancel(project)
        for name in list(self.redis.scan_iter(match=self._key(project, "*"))):
            if name != self._key(project, "cancel").encode():  # the running one has yet to read it
                self.redis.delete(name)

    def postpone(self, order: Order, seconds: float) -> None:
        """Ask again after a while; one later wish a project."""
        later = {**order.to_json(), "attempt": order.attempt + 1}
        self._set(order.project, "later", {"order": later, "not_before": time.time() + seconds})

    def due(self, project: str) -> Order | None:
        """The postponed order whose time has come."""
        later = self._get(project, "later")
        if later is None or later["not_before"] > time.time():
            return None
        return Order.from_json(later["order"])

    def wishes(self, project: str) -> list[dict[str, Any]]:
        """What runs, waits or was put off: ``state``, ``order``; ``not_before`` if put off."""
        found: list[dict[str, Any]] = []
        job = self._job(project)
        status = _status(job)
        if job is not None and status in _WANTED:
            state = "running" if status == JobStatus.STARTED else "queued"
            order = self._order_of(job, project).to_json()
            asked = None if job.enqueued_at is None else job.enqueued_at.timestamp()
            found.append({"state": state, "job": job.id, "order": order, "asked_at": asked})
        for state, told in (
            ("waiting", self._get(project, "again")),
            ("put off", self._get(project, "later")),
        ):
            if told is not None:
                found.append({"state": state, **told})
        return found

    def drop_due(self, project: str) -> None:
        """The postponed order was asked for again."""
        self.redis.delete(self._key(project, "later"))

    def note_attempt(self, project: str, read: Read) -> None:
        """These labels were read; what they led to, they would lead to again."""
        self._set(project, "attempted", read.to_json())

    def attempted(self, project: str) -> Read:
        """What ``note_attempt`` last noted; nothing, if nothing that can be read."""
        told = self._get(project, "attempted")
        try:
            return Read() if told is None else Read.from_json(told)
        except (KeyError, TypeError, ValueError):
            return Read()

    def ask_refresh(self, project: str, version: str, *, again: bool = False) -> bool:
        """Ask for new pre-labels on open tasks; one such job waits or runs at a time.

        Returns:
            False if one runs already: it may have listed the tasks before the newest came.

        Args:
            project: whose tasks.
            version: whose answers.
            again: from the running one itself, for what it leaves.
        """
        if not again:
            self.redis.delete(self._key(project, "stopped"))
        rest = f"-{uuid.uuid4().hex[:6]}" if again else ""
        job_id = f"refresh-{project}-{version}{rest}".replace(".", "-")
        self._drop_dead_refresh(project, job_id)
        return self._once(job_id, REFRESH, [project, version], REFRESH_TIMEOUT)

    def stop_refresh(self, project: str, version: str) -> None:
        """Stop giving open tasks the version's answers; what is stored stays.

        It goes on when somebody asks for it again, or with another version.
        """
        self.redis.set(self._key(project, "stopped"), version)

    def refresh_stopped(self, project: str, version: str) -> bool:
        """Has someone stopped this version's refresh?"""
        return self._text(project, "stopped") == version

    def beat_refresh(self, project: str) -> None:
        """Say that the process of a project's refresh lives."""
        self.redis.set(self._key(project, "refresh-alive"), "yes", ex=HEARTBEAT_LIFE)

    def report_refresh(self, project: str, told: dict[str, Any]) -> None:
        """Show where the refresh is."""
        self._set(project, "refreshing", told, life=24 * 3600)

    def refresh_progress(self, project: str) -> dict[str, Any] | None:
        """Where the refresh is, None if none runs: version, stage, done, total, started_at, ..."""
        if self._text(project, "refresh-alive") is None:
            return None
        return self._get(project, "refreshing")

    def refresh_ended(self, project: str) -> None:
        """It is over, however it ended."""
        self.redis.delete(self._key(project, "refreshing"), self._key(project, "refresh-alive"))

    def _drop_dead_refresh(self, project: str, job_id: str) -> None:
        """Forget a job whose process died without a word: its name would block the next one."""
        with contextlib.suppress(NoSuchJobError):
            known = Job.fetch(job_id, connection=self.redis, serializer=JSONSerializer)
            if _status(known) != JobStatus.STARTED:
                return
            began = known.started_at
            young = began is not None and time.time() - began.timestamp() < HEARTBEAT_LIFE
            if not young and self._text(project, "refresh-alive") is None:
                self._forget(known)

    def note_answers(self, project: str, count: int) -> None:
        """So many answers came since the pictures to ask for were chosen; 0 begins anew."""
        self.redis.set(self._key(project, "answered"), count)

    def take_answers(self, project: str, least: int) -> int:
        """How many there were, and begin anew, if they are that many or more; else 0."""
        count = int(self._text(project, "answered") or 0)
        if count < least:
            return 0
        self.redis.delete(self._key(project, "answered"))
        return count

    def note_untidy(self, project: str, due: float) -> None:
        """Rows of earlier versions are left, which may be removed from then on (seconds, epoch)."""
        self.redis.set(self._key(project, "untidy"), repr(due))

    def untidy(self, project: str) -> bool:
        """Has that time come?"""
        due = self._text(project, "untidy")
        return due is not None and time.time() >= float(due)

    def drop_untidy(self, project: str) -> None:
        """They are being removed."""
        self.redis.delete(self._key(project, "untidy"))

    def ask_follow(self, project: str, version: str) -> bool:
        """Ask to hold new answers against what was shown; one such job waits or runs at a time.

        Returns:
            False if one runs already: it may have read the answers before the newest came.
        """
        job_id = f"follow-{project}-{version}".replace(".", "-")
        return self._once(job_id, FOLLOW, [project, version], FOLLOW_TIMEOUT)

    def note_refreshed(self, project: str, version: str) -> None:
        """Every open task has the version's answer."""
        self.redis.set(self._key(project, "refreshed"), version)

    def note_shown(self, project: str, version: str, rule: dict[str, Any]) -> None:
        """Every open task has the version's answer under this rule."""
        self._set(project, "shown", {"version": version, "rule": rule, "at": time.time()})

    def shown(self, project: str, version: str) -> tuple[dict[str, Any], float] | None:
        """The rule that `note_shown` last noted for the version and when (seconds, epoch)."""
        told = self._get(project, "shown")
        if told is None or told["version"] != version:
            return None
        return told["rule"], float(told["at"])

    def note_unlike(self, project: str, version: str, told: Mapping[str, Any]) -> None:
        """Note which open images look unlike the labelled ones, and what is said of that."""
        self._set(project, "unlike", {"version": version, **told})

    def unlike(self, project: str, version: str) -> dict[str, Any] | None:
        """Return what `note_unlike` last noted for the version."""
        told = self._get(project, "unlike")
        return told if told is not None and told["version"] == version else None

    def refreshed(self, project: str) -> str | None:
        """The version that `note_refreshed` last noted."""
        return self._text(project, "refreshed")

    def note_moved(self, project: str, version: str) -> None:
        """The version's rule gives other answers than open tasks have."""
        self.redis.set(self._key(project, "moved"), version)

    def moved(self, project: str, version: str, pause: float) -> bool:
        """Was that noted, and is the last refresh so many seconds ago?"""
        if self._text(project, "moved") != version:
            return False
        shown = self.shown(project, version)
        return shown is None or time.time() - shown[1] >= pause

    def drop_moved(self, project: str) -> None:
        """A refresh was asked for."""
        self.redis.delete(self._key(project, "moved"))

    def training_waits(self) -> bool:
        """Does a training stand in the queue? They go before refreshes."""
        return any(name.startswith("train-") for name in self.queue.get_job_ids(0, 1))

    # Progress

    def beat(self, project: str, job: str) -> bool:
        """Say that a job lives; False when another job has taken the project's place."""
        key = self._key(project, "alive")
        if self.redis.set(key, job, ex=HEARTBEAT_LIFE, nx=True):
            return True
        holder = self._text(project, "alive")
        if holder == job:
            self.redis.expire(key, HEARTBEAT_LIFE)
        return holder in (job, None)

    def is_alive(self, project: str, job: str) -> bool:
        """Has the job's heart beaten within ``HEARTBEAT_LIFE`` seconds, or is it only starting?"""
        if self._text(project, "alive") == job:
            return True
        with contextlib.suppress(NoSuchJobError):
            started = Job.fetch(job, connection=self.redis, serializer=JSONSerializer).started_at
            return started is not None and time.time() - started.timestamp() < HEARTBEAT_LIFE
        return False

    def report(self, project: str, progress: dict[str, Any]) -> None:
        """Show where the running job is."""
        self._set(project, "progress", progress, life=24 * 3600)

    def progress(self, project: str) -> dict[str, Any] | None:
        """Where the running job is, None if none runs."""
        return self._get(project, "progress")

    def is_cancelled(self, project: str, job: str) -> bool:
        """Has someone asked this job to stop?"""
        return self._text(project, "cancel") == job

    def log_run(self, project: str, outcome: dict[str, Any]) -> None:
        """Remember how a training ended."""
        key = self._key(project, "runs")
        self.redis.lpush(key, json.dumps({"ended_at": time.time(), **outcome}))
        self.redis.ltrim(key, 0, RUNS_KEPT - 1)

    def runs(self, project: str) -> list[dict[str, Any]]:
        """How past trainings ended, newest first."""
        lines = self.redis.lrange(self._key(project, "runs"), 0, RUNS_KEPT - 1)
        return [run for line in lines if (run := _read(line)) is not None]

    def rest(self, project: str) -> float:
        """Seconds for which no training is asked for unasked, 0 if the last one did not fail.

        A minute after a failure, twice as long after each further one in a row, an hour at most:
        what fails before it has read the labels would else be wished for at every look.
        """
        ended = [run for run in self.runs(project) if run.get("state") not in _ON_ITS_WAY]
        failures = list(takewhile(lambda run: run.get("state") == RunState.FAILED, ended))
        if not failures:
            return 0.0
        pause = min(REST * 2.0 ** (len(failures) - 1), LONGEST_REST)
        return max(0.0, float(failures[0]["ended_at"]) + pause - time.time())

    def state(self, project: str) -> tuple[State, str | None]:
        """What the project's training does now, and its job."""
        job = self._job(project)
        if job is None:
            return "idle", None
        status = _status(job)
        if status == JobStatus.STARTED:
            return "running", job.id
        # What has failed without a word is queued again once its heart is known to have stopped.
        return ("queued", job.id) if status in _WANTED else ("idle", None)

    # Hints from webhooks

    def note_event(self, project: str) -> None:
        """An annotation was made, changed or removed."""
        pipe = self.redis.pipeline(transaction=False)
        pipe.incr(self._key(project, "events"))
        pipe.incr(self._key(project, "answered"))
        pipe.set(self._key(project, "touched"), repr(time.time()))
        pipe.set(self._key(project, "heard"), repr(time.time()))
        pipe.execute()

    def note_tasks(self, project: str) -> None:
        """Tasks were added: they want pre-labels."""
        self.redis.set(self._key(project, "new-tasks"), repr(time.time()))

    def take_new_tasks(self, project: str) -> bool:
        """Were tasks added since this was last asked?"""
        return self.redis.getdel(self._key(project, "new-tasks")) is not None

    def take_heard(self, project: str) -> bool:
        """Did answers come or go since this was last asked?"""
        return self.redis.getdel(self._key(project, "heard")) is not None

    def note_heard(self, project: str) -> None:
        """They did."""
        self.redis.set(self._key(project, "heard"), repr(time.time()))

    def events(self, project: str) -> tuple[int, float | None]:
        """Events since labels were last read, and when the last one came (seconds, epoch)."""
        count, touched = self.redis.mget(
            self._key(project, "events"), self._key(project, "touched")
        )
        return int(count or 0), None if touched is None else float(touched)

    def events_read(self, project: str) -> None:
        """A training is about to read all labels: count anew from here."""
        self.redis.delete(self._key(project, "events"), self._key(project, "unlearnt"))

    def note_unlearnt(self, project: str, labels: int) -> None:
        """So many labels stand in Label Studio that no training has read."""
        self.redis.set(self._key(project, "unlearnt"), labels)

    def unlearnt(self, project: str) -> int:
        """How many labels no training has read: as last counted, or as events tell, if more."""
        counted = self.redis.get(self._key(project, "unlearnt"))
        return max(int(counted or 0), self.events(project)[0])

    def note_behind(self, project: str, version: str, labels: int) -> None:
        """So many labels that a training has read are not what this version learnt from."""
        self._set(project, "behind", {"version": version, "labels": labels})

    def behind(self, project: str, version: str | None, learnt: Read) -> int | None:
        """How many labels a training has read and the live version has not; None: not counted yet.

        Args:
            project: whose.
            version: the live one.
            learnt: what it has read.
        """
        counted = self._get(project, "behind")
        if counted is not None and counted.get("version") == version:
            return int(counted["labels"])
        return None if version and self.attempted(project).through > learnt.through else 0

    # What operators look at

    def workers(self) -> list[dict[str, Any]]:
        """The workers that serve the queue."""
        return [
            {
                "name": worker.name,
                "state": str(worker.get_state()),
                "host": worker.hostname,
                "pid": worker.pid,
                "device": self._device_of(worker),
                "job": worker.get_current_job_id(),
            }
            for worker in Worker.all(queue=self.queue, serializer=JSONSerializer)
        ]

    def _device_of(self, worker: BaseWorker) -> str:
        """What the worker said that it computes on, "" if it has not said so yet."""
        told = self.redis.hget(worker.key, DEVICE_FIELD)
        return told.decode() if isinstance(told, bytes) else str(told or "")

    def depth(self) -> int:
        """Jobs that wait in the queue."""
        return len(self.queue)

    # Inside

    def _enqueue(self, order: Order, job_id: str) -> str:
        self.redis.set(self._key(order.project, "job"), job_id)
        self.queue.enqueue_call(
            FINE_TUNE,
            args=[order.to_json()],
            job_id=job_id,
            timeout=TRAINING_TIMEOUT,
            result_ttl=3600,
            failure_ttl=7 * 86400,
            at_front=True,  # before refreshes, which take long and can wait
        )
        log.info("queued job=%s project=%s reason=%s", job_id, order.project, order.reason)
        return job_id

    def _bury(self, project: str, job: Job) -> str:
        """Queue a dead job's work under a new name, by which the two can be told apart."""
        order = self._order_of(job, project)
        order = replace(order, crashes=order.crashes + 1)
        self._forget(job)
        self.redis.delete(self._key(project, "job"), self._key(project, "progress"))
        ended = {"job": job.id, "reason": order.reason}
        if order.crashes > CRASHES_FORGIVEN:
            why = f"its process died {order.crashes} times: memory? the worker's log may say"
            self.log_run(project, {**ended, "state": RunState.FAILED, "why": why})
            self._next(project)
            return f"{job.id} failed: {why}"
        again = self._enqueue(order, _new_id("train"))
        why = f"its process died: queued again as {again}"
        self.log_run(project, {**ended, "state": RunState.DIED, "why": why, "again": again})
        return f"the worker of {job.id} died: its work was queued again"

    def _once(self, job_id: str, function: str, args: list[str], timeout: int) -> bool:
        """Queue a job unless one of its name waits; False if that one runs already."""
        with contextlib.suppress(NoSuchJobError):
            known = Job.fetch(job_id, connection=self.redis, serializer=JSONSerializer)
            if (status := _status(known)) in _PENDING:
                return status != JobStatus.STARTED
            self._forget(known)
        self.queue.enqueue_call(
            function,
            args=args,
            job_id=job_id,
            timeout=timeout,
            result_ttl=0,
            failure_ttl=7 * 86400,
        )
        return True

    def _forget(self, job: Job) -> None:
        with contextlib.suppress(NoSuchJobError, InvalidJobOperation):
            job.delete()

    def _next(self, project: str) -> str | None:
        wish = self._get(project, "again")
        if wish is None or self._text(project, "job") is not None:
            return None
        self.redis.delete(self._key(project, "again"))
        return self._enqueue(Order.from_json(wish["order"]), str(wish["id"]))

    def _job(self, project: str) -> Job | None:
        name = self._text(project, "job")
        if name is None:
            return None
        try:
            return Job.fetch(name, connection=self.redis, serializer=JSONSerializer)
        except NoSuchJobError:
            return None

    def _order_of(self, job: Job, project: str) -> Order:
        try:
            return Order.from_json(job.args[0])
        except Exception:  # noqa: BLE001 - whatever is wrong with its data, the wish is known
            return Order(project, reason="after a crash")

    @contextlib.contextmanager
    def _locked(self, project: str) -> Iterator[None]:
        # A process that is killed in here leaves the lock, which ends by itself: whoever comes
        # meanwhile waits for that, and no wish is turned away.
        name = self._key(project, "lock")
        with self.redis.lock(name, timeout=LOCK_LIFE, blocking_timeout=LOCK_LIFE + 2):
            yield

    def _key(self, project: str, name: str) -> str:
        return f"hrn:{project}:{name}"

    def _text(self, project: str, name: str) -> str | None:
        value = self.redis.get(self._key(project, name))
        return value.decode(errors="replace") if isinstance(value, bytes) else value

    def _get(self, project: str, name: str) -> dict[str, Any] | None:
        text = self._text(project, name)
        return None if text is None else _read(text)

    def _set(self, project: str, name: str, value: dict[str, Any], life: int | None = None) -> None:
        self.redis.set(self._key(project, name), json.dumps(value), ex=life)


def _status(job: Job | None) -> JobStatus | None:
    """What RQ says of a job now; None of one that is gone, be it since it was looked up."""
    try:
        return None if job is None else job.get_status(refresh=True)
    except InvalidJobOperation:
        return None


def _read(text: str | bytes) -> dict[str, Any] | None:
    """What stands in Redis, None where it is none of ours: it is a hint, and can be lost."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        log.error("passed over what Redis holds: %s: %.80r", error, text)  # noqa: TRY400
        return None
    return found if isinstance(found, dict) else None


_PENDING = (JobStatus.QUEUED, JobStatus.STARTED, JobStatus.DEFERRED, JobStatus.SCHEDULED)
#: And a training that died: RQ notices at once, `Board.revive` once its heart has stopped.
_WANTED = (*_PENDING, JobStatus.FAILED)


def _new_id(kind: str) -> str:
    return f"{kind}-{uuid.uuid4().hex[:12]}"


__all__ = ["Asked", "Board", "RedisError", "connect", "queue"]
