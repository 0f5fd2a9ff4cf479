"""Training queue: requests, progress and outcomes. Imports neither torch nor the jobs; JSON only.

What is wanted is recomputed from Label Studio by the reconciler, so all of it may be lost. Keys of
a project in Redis, all under ``hrn:<key>:``, beside those of `worker.hints`:

``job``       id of the training that waits or runs: at most one
``again``     the request that waits behind a running one: at most one
``later``     the request that waits for Label Studio to come back, and until when
``alive``     the running job's id, kept alive by its heartbeat
``progress``  where the running job is
``cancel``    id of a job that should stop
``runs``      how past trainings ended, newest first
``refreshing`` where the pre-label sync is; ``refresh-alive`` that its process lives
"""

import contextlib
import json
import logging
import time
import uuid
from collections.abc import Iterator
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

from worker.hints import Hints, read_json
from worker.order import Order, RunState

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

#: Longest back-off, in seconds.
LONGEST_BACKOFF: Final = 3600.0

#: Ways of ending after which the same request is tried again by itself.
_TRIED_AGAIN: Final = frozenset({RunState.DIED, RunState.POSTPONED})

#: Where a worker says, in its own record, what it computes on.
DEVICE_FIELD: Final = "hrn_device"

#: Runs remembered for a project.
RUNS_KEPT: Final = 100

State = Literal["queued", "running", "waiting", "idle"]


@dataclass(frozen=True)
class Asked:
    """Outcome of asking for a training.

    Attributes:
        job: id of the job that will fulfil the request.
        state: ``queued``, it is new; ``waiting``, it waits already, or behind the running one.
    """

    job: str
    state: State


def connect(url: str, *, timeout: float = 2.0) -> Redis:
    """Connect to Redis; give up after ``timeout`` seconds: predictions do not wait for Redis."""
    return Redis.from_url(
        url,
        socket_connect_timeout=timeout,
        socket_timeout=timeout,
        retry=Retry(NoBackoff(), 1),
        health_check_interval=30,
    )


def queue(connection: Redis) -> Queue:
    """Return the one queue, in JSON: bytes read from Redis never run as code."""
    return Queue(QUEUE_NAME, connection=connection, serializer=JSONSerializer)


def backoff(failures: int, first: float = 60.0) -> float:
    """Return the seconds to wait after so many failures in a row: twice as long each time.

    Example:
        >>> [backoff(failures) for failures in (0, 1, 2, 3, 20)]
        [0.0, 60.0, 120.0, 240.0, 3600.0]
    """
    return min(first * 2.0 ** (failures - 1), LONGEST_BACKOFF) if failures else 0.0


class Board(Hints):
    """Training queue: requests, progress and outcomes of all projects, in Redis."""

    def __init__(self, connection: Redis) -> None:
        super().__init__(connection)
        self.queue = queue(connection)

    # Training requests

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
            behind = self._get(order.project, "again") or {"id": _new_id("train"), "order": None}
            if behind["order"] is not None:
                order = Order.from_json(behind["order"]).joined(order)
            self._set(order.project, "again", {**behind, "order": order.to_json()})
            return Asked(str(behind["id"]), "waiting")

    def finished(self, project: str, job: str) -> None:
        """Queue what waits behind a training, as its last act."""
        with self._locked(project):
            if self._text(project, "job") == job:
                self._drop(project, "job", "progress")
            if self._text(project, "alive") == job:  # else it is the heart of the one that runs now
                self._drop(project, "alive")
            self._next(project)

    def revive(self, project: str) -> str | None:
        """Put a dead job's work back into the queue; return what happened, in words, or None.

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
            self._drop(project, "job")
            return self._next(project) and f"{name} ended without a word: what waited was queued"

    def cancel(self, project: str, only: str = "") -> list[dict[str, Any]]:
        """Stop a project's trainings; return each that was stopped, as `wishes` has it.

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
        # Also for a queued one: a worker may have taken it and not said so yet.
        if "job" in request:
            self.redis.set(self._key(project, "cancel"), str(name), ex=3600)
            if request["state"] == "running":
                return
            if (job := self._job(project)) is not None:
                self._forget(job)
            self._drop(project, "job")
        else:
            self._drop(project, "again" if "id" in request else "later")
        reason = (request.get("order") or {}).get("reason", "")
        why = "asked to stop before it began"
        self.log_run(
            project, {"job": name, "reason": reason, "state": RunState.CANCELLED, "why": why}
        )

    def is_stopping(self, project: str) -> bool:
        """Tell whether the training that runs was asked to stop."""
        job = self._text(project, "job")
        return job is not None and self.is_cancelled(project, job)

    def forget(self, project: str) -> None:
        """Drop all that is known of a project; what runs of it is asked to stop."""
        self.cancel(project)
        for name in list(self.redis.scan_iter(match=self._key(project, "*"))):
            if name != self._key(project, "cancel").encode():  # the running one has yet to read it
                self.redis.delete(name)

    def postpone(self, order: Order, seconds: float) -> None:
        """Ask again after a while; one such request per project."""
        later = {**order.to_json(), "attempt": order.attempt + 1}
        self._set(order.project, "later", {"order": later, "not_before": time.time() + seconds})

    def due(self, project: str) -> Order | None:
        """Return the postponed request whose time has come."""
        later = self._get(project, "later")
        if later is None or later["not_before"] > time.time():
            return None
        return Order.from_json(later["order"])

    def wishes(self, project: str) -> list[dict[str, Any]]:
        """Return what runs, waits or was postponed: ``state``, ``order``, ``not_before``."""
        found: list[dict[str, Any]] = []
        job = self._job(project)
        status = _status(job)
        if job is not None and status in _WANTED:
            state = "running" if status == JobStatus.STARTED else "queued"
            order = self._order_of(job, project).to_json()
            asked = None if job.enqueued_at is None else job.enqueued_at.timestamp()
            found.append({"state": state, "job": job.id, "order": order, "asked_at": asked})
        for state, request in (
            ("waiting", self._get(project, "again")),
            ("put off", self._get(project, "later")),
        ):
            if request is not None:
                found.append({"state": state, **request})
        return found

    def drop_due(self, project: str) -> None:
        """Note that the postponed request was asked for again."""
        self._drop(project, "later")

    # Jobs of one version

    def ask_refresh(self, project: str, version: str, *, again: bool = False) -> bool:
        """Ask for a pre-label sync; one such job waits or runs at a time.

        Returns:
            False if one runs already: it may have listed the tasks before the newest came.

        Args:
            project: whose tasks.
            version: whose pre-labels.
            again: from the running one itself, for what it leaves.
        """
        if not again:
            self._drop(project, "stopped")
        rest = f"-{uuid.uuid4().hex[:6]}" if again else ""
        name = f"refresh-{project}-{version}{rest}"
        alive = self._text(project, "refresh-alive") is not None
        return self._ask_once(name, REFRESH, [project, version], REFRESH_TIMEOUT, alive=alive)

    def ask_follow(self, project: str, version: str) -> bool:
        """Ask for a round of the drift monitor; one such job waits or runs at a time.

        Returns:
            False if one runs already: it may have read the answers before the newest came.
        """
        name = f"follow-{project}-{version}"
        return self._ask_once(name, FOLLOW, [project, version], FOLLOW_TIMEOUT, alive=True)

    def beat_refresh(self, project: str) -> None:
        """Say that the process of a project's pre-label sync lives."""
        self.redis.set(self._key(project, "refresh-alive"), "yes", ex=HEARTBEAT_LIFE)

    def report_refresh(self, project: str, progress: dict[str, Any]) -> None:
        """Report where the pre-label sync is."""
        self._set(project, "refreshing", progress, life=24 * 3600)

    def refresh_progress(self, project: str) -> dict[str, Any] | None:
        """Return where the sync is, None if none runs: version, stage, done, total, ..."""
        if self._text(project, "refresh-alive") is None:
            return None
        return self._get(project, "refreshing")

    def refresh_ended(self, project: str) -> None:
        """Note that the pre-label sync is over, however it ended."""
        self._drop(project, "refreshing", "refresh-alive")

    def training_waits(self) -> bool:
        """Tell whether a training waits in the queue: they go before pre-label syncs."""
        return any(name.startswith("train-") for name in self.queue.get_job_ids(0, 1))

    # Progress

    def beat(self, project: str, job: str) -> bool:
        """Say that a job lives; return False when another job has taken the project's place."""
        key = self._key(project, "alive")
        if self.redis.set(key, job, ex=HEARTBEAT_LIFE, nx=True):
            return True
        holder = self._text(project, "alive")
        if holder == job:
            self.redis.expire(key, HEARTBEAT_LIFE)
        return holder in (job, None)

    def is_alive(self, project: str, job: str) -> bool:
        """Tell whether the job's heart beat within ``HEARTBEAT_LIFE`` s, or it is only starting."""
        return self._text(project, "alive") == job or _is_young(self._fetch(job))

    def report(self, project: str, progress: dict[str, Any]) -> None:
        """Report where the running job is."""
        self._set(project, "progress", progress, life=24 * 3600)

    def progress(self, project: str) -> dict[str, Any] | None:
        """Return where the running job is, None if none runs."""
        return self._get(project, "progress")

    def is_cancelled(self, project: str, job: str) -> bool:
        """Tell whether somebody asked this job to stop."""
        return self._text(project, "cancel") == job

    def log_run(self, project: str, outcome: dict[str, Any]) -> None:
        """Note how a training ended."""
        key = self._key(project, "runs")
        self.redis.lpush(key, json.dumps({"ended_at": time.time(), **outcome}))
        self.redis.ltrim(key, 0, RUNS_KEPT - 1)

    def runs(self, project: str) -> list[dict[str, Any]]:
        """Return how past trainings ended, newest first."""
        lines = self.redis.lrange(self._key(project, "runs"), 0, RUNS_KEPT - 1)
        return [run for line in lines if (run := read_json(line)) is not None]

    def rest(self, project: str) -> float:
        """Return the seconds until a training may be asked for unasked: the back-off of failures.

        What fails before it has read the labels would else be asked for at every look.
        """
        ended = [run for run in self.runs(project) if run.get("state") not in _TRIED_AGAIN]
        failures = list(takewhile(lambda run: run.get("state") == RunState.FAILED, ended))
        if not failures:
            return 0.0
        return max(0.0, float(failures[0]["ended_at"]) + backoff(len(failures)) - time.time())

    def state(self, project: str) -> tuple[State, str | None]:
        """Return what the project's training does now, and its job."""
        job = self._job(project)
        if job is None:
            return "idle", None
        status = _status(job)
        if status == JobStatus.STARTED:
            return "running", job.id
        # What has failed without a word is queued again once its heart is known to have stopped.
        return ("queued", job.id) if status in _WANTED else ("idle", None)

    # For operators

    def workers(self) -> list[dict[str, Any]]:
        """Return the workers that serve the queue."""
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
        """Return what the worker computes on, "" if it has not said so yet."""
        device = self.redis.hget(worker.key, DEVICE_FIELD)
        return device.decode() if isinstance(device, bytes) else str(device or "")

    def depth(self) -> int:
        """Return how many jobs wait in the queue."""
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
        self._drop(project, "job", "progress")
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

    def _ask_once(
        self, name: str, function: str, args: list[str], timeout: int, *, alive: bool
    ) -> bool:
        """Queue a job unless one of its name waits; return False if that one runs already.

        One whose process died without a word does not count: it is not young, and not ``alive``.
        """
        job_id = name.replace(".", "-")
        if (known := self._fetch(job_id)) is not None:
            status = _status(known)
            if status == JobStatus.STARTED and (alive or _is_young(known)):
                return False
            if status in _PENDING and status != JobStatus.STARTED:
                return True
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
        behind = self._get(project, "again")
        if behind is None or self._text(project, "job") is not None:
            return None
        self._drop(project, "again")
        return self._enqueue(Order.from_json(behind["order"]), str(behind["id"]))

    def _job(self, project: str) -> Job | None:
        name = self._text(project, "job")
        return None if name is None else self._fetch(name)

    def _fetch(self, name: str) -> Job | None:
        try:
            return Job.fetch(name, connection=self.redis, serializer=JSONSerializer)
        except NoSuchJobError:
            return None

    def _order_of(self, job: Job, project: str) -> Order:
        try:
            return Order.from_json(job.args[0])
        except Exception:  # noqa: BLE001 - whatever is wrong with its data, the request is known
            return Order(project, reason="after a crash")

    @contextlib.contextmanager
    def _locked(self, project: str) -> Iterator[None]:
        # A process that is killed in here leaves the lock, which ends by itself: whoever comes
        # meanwhile waits for that, and no request is turned away.
        name = self._key(project, "lock")
        with self.redis.lock(name, timeout=LOCK_LIFE, blocking_timeout=LOCK_LIFE + 2):
            yield


def _is_young(job: Job | None) -> bool:
    """Tell whether a job began less than ``HEARTBEAT_LIFE`` seconds ago."""
    began = None if job is None else job.started_at
    return began is not None and time.time() - began.timestamp() < HEARTBEAT_LIFE


def _status(job: Job | None) -> JobStatus | None:
    """Return RQ's status of a job; None of one that is gone, be it since it was fetched."""
    try:
        return None if job is None else job.get_status(refresh=True)
    except InvalidJobOperation:
        return None


_PENDING = (JobStatus.QUEUED, JobStatus.STARTED, JobStatus.DEFERRED, JobStatus.SCHEDULED)
#: And a training that died: RQ notices at once, `Board.revive` once its heart has stopped.
_WANTED = (*_PENDING, JobStatus.FAILED)


def _new_id(kind: str) -> str:
    return f"{kind}-{uuid.uuid4().hex[:12]}"


__all__ = ["Asked", "Board", "RedisError", "connect", "queue"]
