"""A real Redis for tests, started as `hrn up` starts its own."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cli import redis_server
from tests.processes import end
from worker.queue import Board, connect


@contextmanager
def running(home: Path, *, binary: str | None = None) -> Iterator[str]:
    """A server with its data below ``home``; yields its REDIS_URL."""
    command = redis_server.arguments(home, binary=binary)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    address = redis_server.url(home)
    deadline = time.monotonic() + 10
    try:
        while not redis_server.answers(address):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield address
    finally:
        end(process)


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One server for the whole run."""
    with running(tmp_path_factory.mktemp("redis")) as address:
        yield address


@pytest.fixture
def board(redis_url: str) -> Iterator[Board]:
    """An empty board."""
    with connect(redis_url) as connection:
        connection.flushdb()
        yield Board(connection)
