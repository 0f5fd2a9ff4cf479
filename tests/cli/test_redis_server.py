"""The embedded Redis, both servers that it may be: started, stopped, and nothing lost."""

import os
import shutil
from pathlib import Path

import pytest
from rq import SimpleWorker

from cli import redis_server
from tests.redis import running
from worker.queue import connect, queue

BINARIES = {"of the machine": redis_server.executable, "bundled": redis_server.bundled}


@pytest.mark.parametrize("kind", BINARIES)
def test_what_waits_outlives_a_restart_and_is_then_run(kind: str, tmp_path: Path) -> None:
    binary = BINARIES[kind]()
    with running(tmp_path, binary=binary) as address, connect(address) as connection:
        job = queue(connection).enqueue_call("os.getcwd", result_ttl=60)
        connection.set("hrn:a:attempted", "2026-11-23")
    with running(tmp_path, binary=binary) as address, connect(address) as connection:
        assert connection.get("hrn:a:attempted") == b"2026-11-23"
        ours = queue(connection)
        assert ours.job_ids == [job.id]
        SimpleWorker([ours], connection=connection, serializer="json").work(burst=True)
        (done,) = [ours.fetch_job(job.id)]
        assert done is not None
        assert done.return_value() == str(Path.cwd())


def test_the_bundled_one_is_another_program() -> None:
    assert redis_server.bundled() != shutil.which("redis-server")
    assert os.access(redis_server.bundled(), os.X_OK)


def test_where_the_machine_has_none_the_bundled_one_is_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert redis_server.executable() == redis_server.bundled()


def test_only_this_user_can_open_its_socket(tmp_path: Path) -> None:
    with running(tmp_path) as address:
        socket = Path(address.removeprefix("unix://"))
        assert socket == redis_server.socket_path(tmp_path)
        assert socket.stat().st_mode & 0o077 == 0
        assert "--port 0" in " ".join(redis_server.arguments(tmp_path))


def test_a_home_too_deep_for_a_socket_gets_one_elsewhere(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 90)
    socket = redis_server.socket_path(deep)
    assert len(str(socket)) <= redis_server.SOCKET_LENGTH
    assert socket != redis_server.socket_path(tmp_path / ("e" * 90))
    with running(deep) as address:
        assert redis_server.answers(address)
        assert socket.parent.stat().st_mode & 0o077 == 0
    assert (deep / "redis").is_dir()
    shutil.rmtree(socket.parent)


def test_nothing_answers_where_nothing_listens(tmp_path: Path) -> None:
    assert not redis_server.answers(redis_server.url(tmp_path))
