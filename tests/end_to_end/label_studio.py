"""A real Label Studio for the tests: one a test run, on a free port, with its own data folder.

As a pytest plugin it gives the fixture `label_studio`; the first test that asks for it waits for
the boot: about 40 s, most of it database migrations, which the runs after it begin from (10 s).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import signal
import socket
import sqlite3
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
import requests

from studio.client import LabelStudio
from tests.processes import end

ROOT: Final = Path(__file__).parents[2]
#: What `make install` puts beside our own environment.
BINARY: Final = ROOT / ".venv-label-studio" / "bin" / "label-studio"
#: Databases that are migrated, one per lock of Label Studio's packages.
MIGRATED: Final = ROOT / ".cache" / "label-studio"
#: Seconds until we give up on the boot.
BOOT_SECONDS: Final = 300.0
#: Seconds it has to end by itself.
END_SECONDS: Final = 15.0
#: Lines of its log that a failure shows.
TAIL_LINES: Final = 40
USER: Final = "admin@example.com"
#: Its database, in the data folder.
DATABASE: Final = "label_studio.sqlite3"

#: It may call the backend on this machine, and nobody on the internet.
SETTINGS: Final[Mapping[str, str]] = {
    "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
    "ML_BLOCK_LOCAL_IP": "false",
    "SSRF_PROTECTION_ENABLED": "false",
    "LATEST_VERSION_CHECK": "false",
    "COLLECT_ANALYTICS": "false",
    "SENTRY_DSN": "",
    "FRONTEND_SENTRY_DSN": "",
}


@dataclass(frozen=True)
class Beginning:
    """What another Label Studio may begin from: a migrated database and its only account.

    Attributes:
        database: path of the SQLite file.
        password: of the account.
        legacy_token: of the account.
    """

    database: Path
    password: str
    legacy_token: str


class RunningLabelStudio:
    """A Label Studio that answers, with everything a test needs to use it.

    Attributes:
        url: its address.
        user: e-mail address of its only account, the owner.
        password: of that account.
        legacy_token: of that account.
        log: path of its log.
        data: its data folder; ``media/upload`` in it holds uploads.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, str] | None = None,
        *,
        like: Beginning | None = None,
    ) -> None:
        """Begin the boot; `wait_until_ready` returns once it answers.

        Args:
            folder: an empty folder for its data and log.
            settings: environment variables beside or instead of `SETTINGS`.
            like: what to begin from, with its account, legacy token and projects; boots in 10 s.
        """
        self.user = USER
        self.password: str = like.password if like else secrets.token_urlsafe(12)
        self.legacy_token: str = like.legacy_token if like else secrets.token_hex(20)
        if like:
            _copy_database(like.database, folder / DATABASE)
        self.data: Path = folder
        self.log = folder / "label-studio.log"
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._personal: str | None = None
        self._port = str(port)
        self._settings = self._environment(settings or {})
        self.start()

    def start(self) -> None:
        """Begin the boot; again after `kill`, on what is in its folder."""
        command = [str(BINARY), "start", "--no-browser", "--internal-host", "127.0.0.1"]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--port", self._port],
                env=self._settings,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that its children end with it
            )

    def kill(self) -> None:
        """SIGKILL, to it and its children."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(END_SECONDS)

    def _environment(self, settings: Mapping[str, str]) -> dict[str, str]:
        ours = {
            "LABEL_STUDIO_USERNAME": self.user,
            "LABEL_STUDIO_PASSWORD": self.password,
            "LABEL_STUDIO_USER_TOKEN": self.legacy_token,
            "LABEL_STUDIO_BASE_DATA_DIR": str(self.data),
        }
        foreign = ("LABEL_STUDIO_", "LOCAL_FILES_", "ML_", "DJANGO_")
        machine = {key: val for key, val in os.environ.items() if not key.startswith(foreign)}
        return {**machine, **SETTINGS, **settings, **ours}

    def wait_until_ready(self) -> None:
        """Return once it answers.

        Raises:
            RuntimeError: it ended, or did not answer in time; with the end of its log.
        """
        ends = time.monotonic() + BOOT_SECONDS
        while time.monotonic() < ends:
            if self._process.poll() is not None:
                raise RuntimeError(f"Label Studio ended at its boot.\n{self.tail()}")
            if self._answers():
                return
            time.sleep(0.3)
        raise RuntimeError(f"Label Studio gave no answer in {BOOT_SECONDS:g} s.\n{self.tail()}")

    def _answers(self) -> bool:
        try:
            return requests.get(f"{self.url}/health", timeout=2).ok
        except requests.RequestException:
            return False

    def tail(self) -> str:
        """The last lines of its log."""
        lines = self.log.read_text(errors="replace").splitlines()
        return "\n".join(lines[-TAIL_LINES:])

    def stop(self) -> None:
        """End it and its children; by force if it takes its time."""
        end(self._process, grace=END_SECONDS)

    @property
    def beginning(self) -> Beginning:
        """What another one begins from that has the same account and projects."""
        return Beginning(self.data / DATABASE, self.password, self.legacy_token)

    # --- using it ------------------------------------------------------------------------------

    def client(self, token: str | None = None) -> LabelStudio:
        """Our own client, signed in with the legacy token unless told otherwise."""
        return LabelStudio(self.url, token or self.legacy_token)

    def session(self) -> requests.Session:
        """Signed in as a browser is, for calls that the web pages make; close it after use."""
        page = f"{self.url}/user/login/"
        session = requests.Session()
        session.get(page, timeout=30).raise_for_status()
        form = {"email": self.user, "password": self.password}
        form["csrfmiddlewaretoken"] = session.cookies["csrftoken"]
        reply = session.post(
            page, data=form, headers={"Referer": page}, timeout=30, allow_redirects=False
        )
        if reply.status_code != 302:
            raise RuntimeError(f"Label Studio refused the login: {reply.status_code}")
        # Django asks for the token in a header, and for a page of its own as the origin.
        session.headers["X-CSRFToken"] = session.cookies["csrftoken"]
        session.headers["Referer"] = self.url
        return session

    def personal_token(self) -> str:
        """The account's personal access token; it can have but one, made at the first call."""
        if self._personal is None:
            with self.session() as session:
                reply = session.post(f"{self.url}/api/token/", timeout=30)
            reply.raise_for_status()
            self._personal = str(reply.json()["token"])
        return self._personal

    def allow_tokens(self, *, legacy: bool, personal: bool) -> None:
        """Switch the two kinds of token on or off for the organisation."""
        body = {"legacy_api_tokens_enabled": legacy, "api_tokens_enabled": personal}
        with self.session() as session:
            reply = session.post(f"{self.url}/api/jwt/settings", json=body, timeout=30)
        reply.raise_for_status()

    def create_project(self, title: str, config: str) -> int:
        """A new project's id."""
        return int(self.client().create_project(title, config)["id"])

    def upload(self, project: int, paths: Sequence[Path]) -> list[int]:
        """Upload pictures, one task each; the tasks' ids."""
        return self.client().upload_files(project, paths)

    def import_urls(self, project: int, urls: Sequence[str], **data: Any) -> list[int]:
        """Tasks that name a picture by its address (data field ``image``); their ids."""
        return self.client().import_tasks(
            project, [{"data": {"image": url, **data}} for url in urls]
        )


def _copy_database(source: Path, target: Path) -> None:
    """A consistent copy of a database that is in use."""
    with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(target)) as new:
        old.backup(new)


def free_port() -> int:
    """A port of the loopback address that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.hookimpl(tryfirst=True)  # before `-m` looks at the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test that boots Label Studio, so that none hides among the fast ones."""
    for item in items:
        if "label_studio" in getattr(item, "fixturenames", ()):
            item.add_marker("label_studio")


def _kept() -> Path:
    """Folder of the database that these packages and settings lead to."""
    lock = (ROOT / "requirements" / "label-studio.txt").read_bytes()
    digest = hashlib.sha256(lock + repr(sorted(SETTINGS.items())).encode()).hexdigest()
    return MIGRATED / digest[:16]


def _boot(folder: Path) -> RunningLabelStudio:
    """A Label Studio with an account and no project; the first boot leaves its database to others.

    Test runs side by side wait for that one.
    """
    kept = _kept()
    kept.mkdir(parents=True, exist_ok=True)
    account = kept / "account.json"
    with (kept / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if account.exists():
            told = json.loads(account.read_text(encoding="utf-8"))
            return RunningLabelStudio(folder, like=Beginning(kept / DATABASE, **told))
        running = RunningLabelStudio(folder)
        try:
            running.wait_until_ready()
        except RuntimeError:
            running.stop()
            raise
        _copy_database(running.data / DATABASE, kept / DATABASE)
        told = {"password": running.password, "legacy_token": running.legacy_token}
        account.write_text(json.dumps(told), encoding="utf-8")
        return running


@pytest.fixture(scope="session")
def label_studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLabelStudio]:
    """The one real Label Studio of this test run, both kinds of token on."""
    running = _boot(tmp_path_factory.mktemp("label-studio"))
    try:
        running.wait_until_ready()
        yield running
    finally:
        running.stop()
