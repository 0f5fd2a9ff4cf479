"""Which jobs a worker takes: ours, whatever is written into Redis, and none that cannot be read.

RQ imports any dotted name that it reads in a job, posts to any address that a job's record names,
and ends its worker at a record that it cannot parse. None of the three happens here.
"""

import logging
import time
import zlib
from collections.abc import Callable
from typing import Any, Final

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError
from rq import Queue, Worker
from rq.exceptions import NoSuchJobError, ShutDownImminentException, StopRequested
from rq.job import Job
from rq.timeouts import BaseTimeoutException
from rq.utils import as_text, now

from worker.queue import DEVICE_FIELD, FINE_TUNE, FOLLOW, REFRESH

log = logging.getLogger(__name__)

#: Nothing else runs.
ALLOWED: Final = frozenset({FINE_TUNE, REFRESH, FOLLOW})

#: Largest description of a job's function and arguments, in bytes, unpacked. Ours take hundreds.
MOST_BYTES: Final = 1 << 20

#: What a record may say. All else is passed over: names of callbacks and addresses to call (RQ
#: would follow them), other jobs to wait for, repeats and retries.
FIELDS: Final = frozenset(
    {
        "created_at",
        "data",
        "description",
        "ended_at",
        "enqueued_at",
        "exc_info",
        "failure_ttl",
        "last_heartbeat",
        "origin",
        "result",
        "result_ttl",
        "started_at",
        "status",
        "timeout",
        "ttl",
        "worker_name",
    }
)

#: Raised into whatever runs, by a signal or by a Redis that is away: no fault of what was read.
_NO_FAULT: Final = (
    BaseTimeoutException,
    RedisConnectionError,
    RedisTimeoutError,
    ShutDownImminentException,
    StopRequested,
)

#: Seconds before Redis is asked again after it held what cannot be read.
_PAUSE: Final = 0.2


class OurJob(Job):
    """A job whose function is one of ours, and that calls nothing back."""

    def restore(self, raw_data: Any) -> Any:  # noqa: ANN401 - RQ's own
        """Take a record in, of which only ``FIELDS`` count.

        Raises:
            NoSuchJobError: it cannot be read; RQ passes over a job that is not there.
        """
        try:
            record = {_plain(name): value for name, value in dict(raw_data).items()}
            allowed = {name: value for name, value in record.items() if name in FIELDS}
            allowed["data"] = _unpacked(allowed.get("data", b""))
            super().restore({name.encode(): value for name, value in allowed.items()})
        except _NO_FAULT:
            raise
        except Exception as error:
            log.error("refused: job %r cannot be read: %s", self.id, _brief(error))  # noqa: TRY400
            raise NoSuchJobError(f"job {self.id!r:.80} cannot be read") from error

    @property
    def func(self) -> Callable[..., Any] | None:
        """The function.

        Raises:
            PermissionError: the queue names another one, or one of an object.
        """
        if self.func_name not in ALLOWED:
            raise PermissionError(f"this worker runs {sorted(ALLOWED)}, not {self.func_name!r:.80}")
        if self.instance:
            raise PermissionError("this worker runs functions, not those of an object")
        function: Callable[..., Any] | None = super().func
        return function


class OurWorker(Worker):
    """A worker whose record says what it computes on, and that nothing in Redis ends."""

    device = ""

    def register_birth(self) -> None:
        """Say that this worker is there; its record, and what is added, ends with it."""
        super().register_birth()  # type: ignore[no-untyped-call]
        self.connection.hset(self.key, DEVICE_FIELD, self.device)

    def dequeue_job_and_maintain_ttl(
        self, timeout: int | None, max_idle_time: int | None = None
    ) -> tuple[Job, Queue] | None:
        """Return the next job that can be read; drop and log those that cannot."""
        while True:
            try:
                return super().dequeue_job_and_maintain_ttl(timeout, max_idle_time)
            except _NO_FAULT:
                raise
            except Exception as error:  # noqa: BLE001 - RQ would end the worker at any of them
                log.error("refused: an entry of the queue cannot be read: %s", _brief(error))  # noqa: TRY400
                self._drop_unreadable()
                time.sleep(_PAUSE)

    def run_maintenance_tasks(self) -> None:
        """Do RQ's housekeeping; what it cannot read there costs that round alone."""
        try:
            super().run_maintenance_tasks()  # type: ignore[no-untyped-call]
        except _NO_FAULT:
            raise
        except Exception:  # whatever it is, jobs go on
            log.exception("housekeeping of the queue stopped")
            self._drop_unreadable()
            self.last_cleaned_at = now()  # type: ignore[assignment] # not again at once
            for queue in self.queues:
                queue.release_maintenance_lock()

    def _drop_unreadable(self) -> None:
        """Remove what was taken from the queue and is no job: RQ would come back to it."""
        for queue in self.queues:
            key = queue.intermediate_queue_key
            try:
                for entry in self.connection.lrange(key, 0, -1):
                    if not self._readable(entry):
                        self.connection.lrem(key, 0, entry)  # type: ignore[arg-type]
                        log.error("refused: dropped %.80r from the queue", entry)
            except RedisError as error:
                log.warning("the queue was not tidied: %s", error)

    def _readable(self, entry: bytes | str) -> bool:
        try:
            OurJob.fetch(as_text(entry), connection=self.connection, serializer=self.serializer)
        except _NO_FAULT:
            raise
        except Exception:  # noqa: BLE001 - the caller logs it
            return False
        return True


def _plain(name: bytes | str) -> str:
    return name if isinstance(name, str) else name.decode("ascii", "replace")


def _unpacked(data: bytes) -> bytes:
    """Return the function and its arguments, never more than ``MOST_BYTES``."""
    unpack = zlib.decompressobj()
    try:
        plain = unpack.decompress(data, MOST_BYTES)
    except zlib.error:  # RQ may also store it as it is
        return data[:MOST_BYTES]
    if unpack.unconsumed_tail:
        raise ValueError(f"its data are larger than {MOST_BYTES} bytes")
    return plain


def _brief(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:200]
