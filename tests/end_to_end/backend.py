"""Our own server, worker and Redis for the tests, started as a person starts them: `hrn up`."""

import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import requests
from redis.exceptions import RedisError

from tests.end_to_end.label_studio import RunningLabelStudio, free_port
from tests.processes import end
from worker.parts import Parts
from worker.settings import Settings

#: The program that the package installs.
HRN: Final = Path(sys.executable).parent / "hrn"

#: Trainings of each project that a failure shows.
RUNS_SHOWN: Final = 6

T = TypeVar("T")


class RunningBackend:
    """Everything that `hrn up` runs, connected to nothing yet.

    Attributes:
        url: the backend's address.
        environment: what its commands are started with.
    """

    def __init__(
        self, home: Path, studio: RunningLabelStudio, settings: Mapping[str, str] | None = None
    ) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.home = home
        self.environment = {
            **{
                key: val for key, val in os.environ.items() if not key.startswith(("HRN_", "REDIS"))
            },
            "HRN_HOME": str(home),
            "HRN_PORT": str(port),
            "HRN_PASSWORD": secrets.token_urlsafe(12),
            "HRN_BACKEND_URL": self.url,
            "LABEL_STUDIO_URL": studio.url,
            "LABEL_STUDIO_API_KEY": studio.personal_token(),
            **(settings or {}),
        }
        self._process = subprocess.Popen([HRN, "up"], env=self.environment, start_new_session=True)

    def wait_until_ready(self) -> None:
        """Return once it is ready to train and to predict.

        Raises:
            RuntimeError: it ended, or was not ready in 90 s.
        """
        self.until(lambda: self._process.poll() is not None or self._ready(), 90, "hrn up")
        if self._process.poll() is not None:
            raise RuntimeError(f"hrn up ended with {self._process.returncode}")

    def _ready(self) -> bool:
        if not (self.home / "settings.env").exists():  # written once everything runs
            return False
        try:
            return requests.get(f"{self.url}/ready", timeout=5).ok
        except requests.RequestException:
            return False

    def stop(self) -> None:
        """Ctrl-C."""
        end(self._process, grace=40, by=signal.SIGINT)

    @property
    def auth(self) -> tuple[str, str]:
        """User and password."""
        return ("label-studio", self.environment["HRN_PASSWORD"])

    def hrn(self, *words: str, status: int | None = 0) -> str:
        """Run a command of ours and return what it prints.

        Raises:
            RuntimeError: it ended with another status (None: any will do).
        """
        done = subprocess.run(
            [HRN, *words],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        if status is not None and done.returncode != status:
            raise RuntimeError(
                f"hrn {' '.join(words)}: {done.returncode}\n{done.stdout}{done.stderr}"
            )
        return done.stdout

    def json(self, *words: str) -> Any:
        """Run a command with --json and read it."""
        return json.loads(self.hrn(*words, "--json"))

    def parts(self) -> Parts:
        """The same store, queue and Label Studio, for looking inside."""
        return Parts(Settings.from_environ({**self.environment, "REDIS_URL": self._redis()}))

    def _redis(self) -> str:
        written = (self.home / "settings.env").read_text(encoding="utf-8")
        found = re.search(r"^REDIS_URL=(.+)$", written, re.MULTILINE)
        assert found is not None
        return found[1]

    def logs(self) -> str:
        """The end of every process's log."""
        logs = sorted((self.home / "logs").glob("*.log"))
        return "\n".join(
            f"== {log.name}\n{log.read_text(errors='replace')[-3000:]}" for log in logs
        )

    def trainings(self) -> str:
        """How the last trainings of every project ended, newest first, and what waits."""
        lines = ["== trainings"]
        try:
            parts = self.parts()
            for project in parts.store.projects():
                lines.append(f"{project.key}, live: {parts.store.current(project.key)}")
                lines += [f"  {one}" for one in parts.board.wishes(project.key)]
                for run in parts.board.runs(project.key)[:RUNS_SHOWN]:
                    told = [run.get(name) for name in ("job", "reason", "state", "version", "why")]
                    ended = time.strftime("%H:%M:%S", time.gmtime(run["ended_at"]))
                    lines.append(f"  {ended} after {run.get('seconds')} s: {told}")
        except (OSError, RedisError) as error:
            lines.append(str(error))
        return "\n".join(lines)

    def until(self, happened: Callable[[], T | None], seconds: float, what: str) -> T:
        """Wait for something to be true and return it.

        Raises:
            TimeoutError: it was not, with the trainings and the logs' ends.
        """
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            if result := happened():
                return result
            time.sleep(0.25)
        raise TimeoutError(f"{what}: not within {seconds:g} s\n{self.trainings()}\n{self.logs()}")

    def slow_requests(self, route: str, seconds: float) -> tuple[int, int]:
        """Requests to a route that took longer than a bound of the histogram, and all of them."""
        text = requests.get(f"{self.url}/metrics", auth=self.auth, timeout=10).text
        rows = re.findall(
            rf'hrn_request_seconds_(bucket|count)\{{(.*?route="{route}".*?)\}} (\S+)', text
        )
        everything = sum(float(value) for kind, _, value in rows if kind == "count")
        quick = sum(
            float(value)
            for kind, labels, value in rows
            if kind == "bucket" and f'le="{seconds}"' in labels
        )
        return int(everything - quick), int(everything)
