"""`hrn up`, `hrn work`, `hrn console`: the processes of a server, and when each is ready."""

import os
import secrets
import sys
import time
import urllib.error
import urllib.request
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from cli import redis_server
from cli.serve import authority, check_exposure, is_local
from cli.supervisor import StartError, Supervisor
from worker.parts import Parts
from worker.queue import Board, RedisError
from worker.settings import Secret, Settings

#: Settings that other commands find here while a server runs, below what the environment says.
ENVIRONMENT_FILE = "settings.env"


def up(_arguments: Namespace, settings: Settings) -> int:
    """Run server, worker and, without REDIS_URL, an embedded Redis, until told to stop."""
    check_exposure(settings)
    settings = with_console(replace(settings, redis_url=redis_url(settings.home)))
    with Supervisor(settings.home / "logs") as supervisor:
        print(home_words(settings), flush=True)
        start_all(supervisor, settings)
        write_environment(settings.home, settings)
        print(
            f"Serving on {settings.host}:{settings.port}. {next_words(settings)}\n"
            f"{console_words(settings)}",
            flush=True,
        )
        supervisor.run()
    return 0


def work(_arguments: Namespace, settings: Settings) -> int:
    """Run one worker and the reconciler, until told to stop."""
    Parts(settings).board.redis.ping()  # rather than a worker that dies again and again
    print(home_words(settings), flush=True)
    with Supervisor(settings.home / "logs") as supervisor:
        _start_workers(supervisor, child_environment(settings))
        print(f"Working; logs in {settings.home / 'logs'}", flush=True)
        supervisor.run()
    return 0


def console(arguments: Namespace, settings: Settings) -> int:
    """Print where the console is and its password; 1 where it has none."""
    print(console_words(settings))
    if arguments.unlock:
        from backend.console.limits import Tries  # loads Flask

        Tries(Parts(settings)).unlock()
        print("wrong tries are forgotten: everybody may sign in again")
    return 0 if settings.console_password else 1


def redis_url(home: Path) -> str:
    """Return REDIS_URL as given, else the embedded server's."""
    return os.environ.get("REDIS_URL") or redis_server.url(home)


def as_environment(settings: Settings) -> dict[str, str]:
    """Return the variables that a child process reads back into the same settings."""
    return settings.as_environment()


def child_environment(settings: Settings) -> dict[str, str]:
    """Return the environment of every process that is started here.

    Half of the cores compute, the others answer: with as many threads as cores a training beside a
    busy Label Studio took eight times as long as with one thread less (2 cores), since each step
    waits for the thread that lost its core.
    """
    threads = str(max(1, (os.cpu_count() or 2) // 2))
    return {
        "OMP_NUM_THREADS": threads,
        **os.environ,
        **as_environment(settings),
        "PYTHONUNBUFFERED": "1",
    }


def with_console(settings: Settings) -> Settings:
    """Return the settings with a password for the console, made where only this machine reaches us.

    It stays the same from start to start in one home. Elsewhere nobody is let in without one being
    set.
    """
    if settings.console_password or not is_local(settings.host):
        return settings
    kept = read_environment(settings.home).get("HRN_CONSOLE_PASSWORD")
    return replace(settings, console_password=Secret(kept or secrets.token_urlsafe(12)))


def console_words(settings: Settings) -> str:
    """Say where the console is and how to get in."""
    address = f"http://{authority(_reachable(settings.host), settings.port)}/console"
    if not settings.console_password:
        return f"console: off; set HRN_CONSOLE_PASSWORD to have pages at {address}"
    if os.environ.get("HRN_CONSOLE_PASSWORD"):
        return f"console: {address}, password as set in HRN_CONSOLE_PASSWORD"
    return f"console: {address}, password {settings.console_password.reveal()}"


def home_words(settings: Settings) -> str:
    """Say where models are, and where there are none yet."""
    where = settings.store_url if settings.in_bucket else settings.store.resolve()
    if Parts(settings).store.files.names("projects"):
        return f"Models in {where}"
    return f"No models in {where} yet: set HRN_HOME (or HRN_STORE) if yours are elsewhere"


def next_words(settings: Settings) -> str:
    """Say what comes next: connecting a project, or the settings that are missing for it."""
    needed = {
        "LABEL_STUDIO_URL": settings.label_studio_url,
        "LABEL_STUDIO_API_KEY": settings.label_studio_token,
        "HRN_BACKEND_URL": settings.backend_url,
    }
    missing = [name for name, value in needed.items() if not value]
    if not missing:
        return "Next: hrn connect --project NUMBER"
    return (
        f"No project can be connected yet: set {', '.join(missing)} (README says what each is), "
        "then start again"
    )


def write_environment(home: Path, settings: Settings) -> None:
    """Let `hrn status` and the like find this server; the file is readable by this user alone."""
    home.mkdir(parents=True, exist_ok=True)
    path = home / ENVIRONMENT_FILE
    path.touch(mode=0o600)
    path.chmod(0o600)
    lines = [f"{name}={value}" for name, value in as_environment(settings).items()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_environment(home: Path) -> dict[str, str]:
    """Return what ``write_environment`` wrote, empty if nothing did."""
    try:
        lines = (home / ENVIRONMENT_FILE).read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    pairs = (line.partition("=") for line in lines if "=" in line)
    return {name: value for name, _, value in pairs}


def start_all(supervisor: Supervisor, settings: Settings) -> None:
    """Start Redis where none is given, a worker, the reconciler and the web server.

    Raises:
        StartError: one of them did not come up.
        NoRedisError: there is no Redis to start.
    """
    environment = child_environment(settings)
    address = authority(_reachable(settings.host), settings.port)
    if answers_http(f"http://{address}/health"):
        raise StartError(f"another server answers at {address}: end it, or set another HRN_PORT")
    if os.environ.get("REDIS_URL"):
        redis_server.check(settings.redis_url)  # rather than processes that wait for it
    else:
        if redis_server.answers(settings.redis_url):
            raise StartError(
                f"a server runs already in {settings.home}: end it first, or give --home another "
                "folder (two of them would write into one file)"
            )
        supervisor.start(
            "redis",
            redis_server.arguments(settings.home),
            environment,
            ready=lambda: redis_server.answers(settings.redis_url),
        )
    _start_workers(supervisor, environment)
    supervisor.start(
        "server",
        [sys.executable, "-m", "cli", "serve"],
        environment,
        ready=lambda: answers_http(f"http://{address}/health"),
    )
    _wait_for_worker(supervisor, Parts(settings).board)


def _start_workers(supervisor: Supervisor, environment: Mapping[str, str]) -> None:
    supervisor.start("worker", [sys.executable, "-m", "worker"], environment)
    supervisor.start("reconciler", [sys.executable, "-m", "worker", "reconcile"], environment)


def _wait_for_worker(supervisor: Supervisor, board: Board) -> None:
    """Wait for a worker: that it cannot start must be seen now, not at the first training."""
    deadline = time.monotonic() + 60
    while not supervisor.stopping and not _workers(board):
        if time.monotonic() > deadline:
            raise StartError(f"no worker came up in 60 s:\n{supervisor.tail('worker')}")
        time.sleep(0.2)


def _workers(board: Board) -> int:
    try:
        return len(board.workers())
    except RedisError:
        return 0


def answers_http(url: str) -> bool:
    """Whether something answers there with a 2xx."""
    try:
        # Never through a proxy: it is this machine that is asked.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url, timeout=2) as response:
            return 200 <= int(response.status) < 300
    except (OSError, urllib.error.URLError):
        return False


def _reachable(host: str) -> str:
    return "127.0.0.1" if host in {"0.0.0.0", "::", ""} else host  # noqa: S104 - not a bind
