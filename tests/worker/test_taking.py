"""A real worker, and a Redis into which others write: nothing foreign runs, and work goes on."""

import json
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from redis import Redis
from rq.job import Job, JobStatus

from tests.studio.servers import serving
from tests.worker.stand import Stand
from tests.worker.test_worker_process import Worker, until
from worker.order import Order
from worker.queue import FINE_TUNE, FOLLOW, QUEUE_NAME, REFRESH
from worker.taking import MOST_BYTES

pytestmark = pytest.mark.slow

QUEUE: Final = f"rq:queue:{QUEUE_NAME}"
TAKEN: Final = f"{QUEUE}:intermediate"
STARTED: Final = f"rq:wip:{QUEUE_NAME}"

#: What a pickle looks like that touches the tripwire when it is read (protocol 0, by hand).
PICKLE: Final = b"cos\nsystem\n(S'touch %s'\ntR."


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[Worker]:
    stand = Stand()
    with serving(stand) as server:
        stand.server = server
        made = Worker(tmp_path_factory.mktemp("hostile"), redis_url, stand)
        try:
            yield made
        finally:
            made.process.kill()
            made.process.wait(10)
            made.log.close()
            made.board.redis.flushdb()


def data(name: object, *args: object, instance: object = None, **kwargs: object) -> bytes:
    """A job's function and arguments as RQ's JSON writes them."""
    return zlib.compress(json.dumps([name, instance, args, kwargs]).encode())


def put(redis: Redis, job_id: str, **fields: bytes | str) -> None:
    """Write a job's record by hand, and its id into the queue."""
    if fields:
        told: dict[Any, Any] = {"origin": QUEUE_NAME, "status": "queued", **fields}
        redis.hset(f"rq:job:{job_id}", mapping=told)
    redis.rpush(QUEUE, job_id)


def log_of(worker: Worker) -> str:
    return Path(worker.log.name).read_text(encoding="utf-8", errors="replace")


def goes_on(worker: Worker) -> None:
    """A job of ours that is asked for now is run, by the same process."""
    until(lambda: worker.board.redis.llen(QUEUE) == 0, 30)  # a training would go first
    before = len(worker.board.runs("studio-8-8"))
    worker.board.ask(Order("studio-8-8", "asked after the attack"))
    until(lambda: len(worker.board.runs("studio-8-8")) > before, 30)
    assert worker.process.poll() is None
    assert not worker.tripwire.exists()


#: Records that can be read: they fail, with their reason, and stay to be looked at.
REFUSED: Final[dict[str, Callable[[Path], dict[str, bytes | str]]]] = {
    "a-program": lambda trip: {"data": data("os.system", f"touch {trip}")},
    "code": lambda trip: {"data": data("builtins.eval", f"open({str(trip)!r}, 'w')")},
    "a-module-of-ours": lambda _: {"data": data("worker.jobs.train_once", {}, {}, "x")},
    "a-name-below-ours": lambda _: {"data": data(f"{FINE_TUNE}.__globals__", "os")},
    "ours-with-spaces": lambda _: {"data": data(f"{FINE_TUNE} ", {"project": "p"})},
    "an-object-s": lambda trip: {"data": data(FINE_TUNE, {}, instance={FINE_TUNE: str(trip)})},
    "no-name": lambda _: {"data": data(None)},
    "a-list-for-a-name": lambda _: {"data": data(["os.system"], "true")},
    "pickled": lambda trip: {"data": PICKLE % bytes(trip)},
    "pickled-and-packed": lambda trip: {"data": zlib.compress(PICKLE % bytes(trip))},
    "three-of-four": lambda _: {"data": zlib.compress(b'["os.system", null, []]')},
    "no-json": lambda _: {"data": b"\x00\xff\x80 garbage"},
    "nested": lambda _: {"data": zlib.compress(b"[" * 10_000 + b"]" * 10_000)},
    "empty": lambda _: {"data": b""},
    "an-order-that-is-none": lambda _: {"data": data(FINE_TUNE, 7)},
    "too-many-arguments": lambda _: {"data": data(REFRESH, 1, 2, 3, 4, 5)},
    "arguments-by-strange-names": lambda _: {"data": data(FOLLOW, __class__="x")},
    "called-back": lambda _: {
        "data": data("os.system", "true"),
        "failure_callback_name": "tripwire.run",
        "success_callback_name": "tripwire.run",
        "stopped_callback_name": "tripwire.run",
    },
    "tried-for-ever": lambda _: {
        "data": data("tripwire.run"),
        "retries_left": "1000000",
        "repeats_left": "1000000",
        "repeat_intervals": "[0]",
    },
}

#: Records and entries that cannot be read: they are dropped.
DROPPED: Final[dict[str, dict[str, bytes | str]]] = {
    "a-date-that-is-none": {"data": data(FINE_TUNE, {}), "created_at": "yesterday"},
    "a-status-that-is-none": {"data": data(FINE_TUNE, {}), "status": "root"},
    "a-timeout-that-is-none": {"data": data(FINE_TUNE, {}), "timeout": b"\xff\xfe"},
    "a-huge-life": {"data": data(FINE_TUNE, {}), "ttl": "9" * 5000},
    "no-text": {"data": data(FINE_TUNE, {}), "description": b"\xff\xfe\xfd"},
    "a-bomb": {"data": zlib.compress(bytes(MOST_BYTES + 1))},
    "no-record": {},
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_our_job_fails_is_logged_and_the_next_one_is_run(
    worker: Worker, name: str
) -> None:
    redis = worker.board.redis
    put(redis, name, **REFUSED[name](worker.tripwire))
    assert until(lambda: redis.hget(f"rq:job:{name}", "status") == b"failed", 30)
    assert name in log_of(worker)
    goes_on(worker)


@pytest.mark.parametrize("name", DROPPED)
def test_what_cannot_be_read_is_dropped_logged_and_the_next_one_is_run(
    worker: Worker, name: str
) -> None:
    redis = worker.board.redis
    put(redis, name, **DROPPED[name])
    if DROPPED[name]:  # RQ itself passes over an entry without a record, in silence
        until(lambda: f"refused: job '{name}' cannot be read" in log_of(worker), 30)
    goes_on(worker)
    assert redis.llen(QUEUE) == 0


@pytest.mark.parametrize("entry", [b"\xff\xfe\x00", b"", b"a:b:c", b"x" * 100_000, b"\r\n{}"])
def test_an_entry_that_is_no_name_is_dropped(worker: Worker, entry: bytes) -> None:
    worker.board.redis.rpush(QUEUE, entry)
    goes_on(worker)
    assert worker.board.redis.llen(QUEUE) == 0


def test_another_value_where_a_record_should_be_is_dropped(worker: Worker) -> None:
    worker.board.redis.set("rq:job:a-text", "os.system")
    worker.board.redis.rpush(QUEUE, "a-text")
    goes_on(worker)
    assert "refused: dropped b'a-text'" in log_of(worker)
    assert worker.board.redis.lrange(TAKEN, 0, -1) == []


def test_arguments_lead_nowhere_outside_the_store(worker: Worker) -> None:
    put(worker.board.redis, "a-way-out", data=data(REFRESH, "../../../etc", "passwd"))
    until(lambda: "'../../../etc' is not a project key" in log_of(worker), 30)
    goes_on(worker)


def test_no_address_in_a_record_is_called(worker: Worker) -> None:
    """RQ would post to it when the job has ended."""
    server = worker.stand.server
    assert server is not None
    hook = {"url": f"{server.url}/hooked", "events": ["failed"], "on": ["failed"]}
    redis = worker.board.redis
    put(redis, "hooked", data=data("os.system", "true"), webhooks=json.dumps([hook]))
    assert until(lambda: redis.hget("rq:job:hooked", "status") == b"failed", 30)
    goes_on(worker)
    assert "/hooked" not in server.paths()


def test_garbage_in_the_registries_does_not_end_the_worker(worker: Worker) -> None:
    """Its housekeeping reads them every half minute."""
    redis = worker.board.redis
    redis.zadd(STARTED, {b"\xff\xfe": 1.0, b"nobody:nothing": 1.0, b"x": 2.0})
    redis.lpush(TAKEN, b"\xff\xfe")
    redis.set(f"rq:finished:{QUEUE_NAME}", "no set at all")
    try:
        seen = until(lambda: "housekeeping of the queue stopped" in log_of(worker), 100)
        assert seen
        goes_on(worker)
        assert redis.lrange(TAKEN, 0, -1) == []
    finally:
        redis.delete(STARTED, f"rq:finished:{QUEUE_NAME}")


def test_a_queue_that_is_no_list_is_waited_out(worker: Worker) -> None:
    redis = worker.board.redis
    redis.set(QUEUE, "no list")
    time.sleep(1.5)
    assert worker.process.poll() is None
    redis.delete(QUEUE)
    goes_on(worker)


def test_a_job_that_failed_can_still_be_read_by_the_queue_s_own_tools(worker: Worker) -> None:
    redis = worker.board.redis
    put(redis, "told", data=data("os.system", "true"))
    job = until(lambda: _failed(worker, "told"), 30)
    result = job.latest_result()
    assert result is not None
    assert "PermissionError: this worker runs ['worker.jobs" in str(result.exc_string)


def _failed(worker: Worker, name: str) -> Job | None:
    job = worker.board.queue.fetch_job(name)
    return job if job is not None and job.get_status() == JobStatus.FAILED else None
