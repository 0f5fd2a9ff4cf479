"""A whole site on this machine that tests may hurt: Redis, workers, reconciler, servers, a Stand.

Its processes run under the product's own supervisor, so what comes back came back by itself.
"""

import io
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import requests
import safetensors.torch
from PIL import Image

from cli import redis_server
from cli.services import answers_http, as_environment
from cli.supervisor import Child, Supervisor
from inference.manifest import Manifest
from inference.store import Project
from tests.backend.conftest import asking
from tests.end_to_end.label_studio import free_port
from tests.inference import small
from tests.published import TREE, project
from tests.studio.configs import taxonomy_xml
from tests.studio.servers import Reply, Request, serving
from tests.worker.stand import LEGACY, Stand, annotation
from worker.order import Order
from worker.parts import Parts
from worker.queue import Board, RedisError, connect
from worker.settings import Secret, Settings

ROOT: Final = Path(__file__).resolve().parents[2]

#: What random faults are drawn by: `make chaos SEED=6` draws others.
SEED: Final = int(os.environ.get("CHAOS_SEED", "5"))

#: Seconds that trainings of earlier tests may take to end on a busy machine.
SETTLED: Final = 180.0

PATHS: Final = (["Fruit", "Apple"], ["Fruit", "Pear"], ["Milk"], ["Fruit"])

T = TypeVar("T")


def picture(number: int) -> bytes:
    """A picture of its own for each number, in its label's colour: no gate refuses what it taught.

    Else versions would stay behind by chance, and nobody could tell that from a fault.
    """
    squares = np.random.default_rng(number).integers(0, 64, (4, 4, 3), dtype=np.uint8)
    squares[..., number % len(PATHS) % 3] += 180
    buffer = io.BytesIO()
    Image.fromarray(squares).resize((180, 180), Image.Resampling.NEAREST).save(buffer, "png")
    return buffer.getvalue()


class Town(Stand):
    """A stand that also has the pictures, and can be ill in several ways.

    Attributes:
        ill: what it answers to everything instead, None while it is well.
        slow: seconds before each answer.
        odd: what it serves as certain pictures, by number.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ill: Reply | None = None
        self.slow = 0.0
        self.odd: dict[int, Reply] = {}
        self._lock = threading.RLock()

    def answer(self, count: int) -> None:
        """So many tasks more, each with an answer; all labels of the tree in turn."""
        with self._lock:
            for _ in range(count):
                number = len(self.tasks) + 1
                when = f"2026-11-23T{number // 3600:02d}:{number // 60 % 60:02d}:{number % 60:02d}Z"
                path = PATHS[number % len(PATHS)]
                self.open(1)
                self.tasks[-1]["annotations"] = [annotation(number, path, when)]

    def open(self, count: int) -> None:
        """So many tasks more that nobody has answered."""
        with self._lock:
            for _ in range(count):
                number = len(self.tasks) + 1
                data = {"image": f"/data/upload/1/{number}.png"}
                self.tasks.append(
                    {"id": number, "data": data, "annotations": [], "predictions": []}
                )

    @property
    def labels(self) -> int:
        """Answers so far."""
        return sum(len(task["annotations"]) for task in self.tasks)

    def __call__(self, request: Request) -> Reply:
        time.sleep(self.slow)
        if self.ill is not None:
            return self.ill
        if request.path.startswith("/data/upload/"):
            number = int(Path(request.path).stem)
            return self.odd.get(number) or Reply(
                picture(number), 200, {"Content-Type": "image/png"}
            )
        with self._lock:
            return super().__call__(request)


class Site:
    """Everything that a test needs to hurt it and to look at it.

    Attributes:
        town: where Label Studio is.
        project: the one project.
    """

    def __init__(self, home: Path, town: Town, supervisor: Supervisor, **settings: Any) -> None:
        self.home, self.town, self.supervisor = home, town, supervisor
        self.settings = Settings(
            home=home,
            redis_url=redis_server.url(home),
            label_studio_url=town.url,
            label_studio_token=Secret(LEGACY),
            device="cpu",
            backbone=small.NAME,
            backbone_weights=(small.weights_file(home),),
            **{"train_every": 8, **settings},
        )
        self.store = Parts(self.settings).store
        self.board = Board(connect(self.settings.redis_url))
        self.project: Project = self.further(1)
        self.urls: list[str] = []

    @property
    def key(self) -> str:
        """Of the project."""
        return self.project.key

    def further(self, number: int) -> Project:
        """A project with that number; all of them have the same tasks and answers."""
        named = project(self.town.url, f"{number}.1795440233", xml=taxonomy_xml(TREE))
        return self.store.register(named)

    def start(self, *roles: str) -> None:
        """Start ``redis``, ``worker``, ``reconcile``, ``serve``; a suffix tells two apart.

        ``serve-ill`` has decoders that certain pictures make ill, as workers have. What comes after
        an ``@`` is a host of its own, which shares Redis and nothing else but what settings say.
        """
        for name in roles:
            role, host = name.partition("@")[0].partition("-")[0], name.partition("@")[2]
            if role == "redis":
                self.supervisor.start(
                    name,
                    redis_server.arguments(self.home),
                    self.environment(),
                    ready=lambda: redis_server.answers(self.settings.redis_url),
                )
            elif role == "serve":
                self._serve(name, host)
            else:
                command = [sys.executable, "-m", "tests.chaos.hurt", role]
                self.supervisor.start(name, command, self.environment(host))

    def _serve(self, name: str, host: str) -> None:
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        program = ["tests.chaos.hurt"] if name == "serve-ill" else ["cli"]
        self.supervisor.start(
            name,
            [sys.executable, "-m", *program, "serve"],
            {**self.environment(host), "HRN_PORT": str(port)},
            ready=lambda: answers_http(f"{url}/health"),
        )
        self.urls.append(url)

    def environment(self, host: str = "") -> dict[str, str]:
        """What its processes are started with, those of a host with a home of their own."""
        return {
            **os.environ,
            **as_environment(replace(self.settings, home=self.home / host)),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
        }

    def child(self, name: str) -> Child:
        """A process by its name."""
        return next(child for child in self.supervisor.children if child.name == name)

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to one of them."""
        process = self.child(name).process
        assert process is not None
        process.send_signal(number)

    def empty_redis(self) -> None:
        """Kill Redis; when it is back it knows nothing."""
        self.signal("redis", signal.SIGKILL)
        process = self.child("redis").process
        assert process is not None
        process.wait(10)
        for path in (self.home / "redis").glob("appendonly*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def hurt(self, step: str, who: str = "job") -> None:
        """Let whoever comes to the step next die there."""
        (self.home / "hurt").write_text(f"{step}:{who}", encoding="utf-8")

    @property
    def died(self) -> bool:
        """Has somebody died of `hurt`?"""
        return not (self.home / "hurt").exists()

    def until(self, happened: Callable[[], T | None], seconds: float, what: str) -> T:
        """Wait for something, with the logs' ends if it does not come."""
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            with suppress(RedisError):
                if seen := happened():
                    return seen
            time.sleep(0.05)
        raise AssertionError(f"{what}: not within {seconds:g} s\n{self.logs()}")

    def logs(self) -> str:
        """The end of every log."""
        names = sorted({child.name for child in self.supervisor.children})
        return "\n".join(f"== {name}\n{self.supervisor.tail(name, 40)}" for name in names)

    def learnt(self, key: str = "") -> Manifest | None:
        """The manifest of a version that has learnt from every answer, once nothing runs.

        Of the first project unless another one is named. The version is the live one, or a newer
        one that a run tells of, which the gate found worse. One whose job died before it was made
        live does not count: its labels are learnt again.
        """
        key = key or self.key
        if self.board.state(key)[0] != "idle":
            return None
        known = set(self.store.versions(key))
        told = [run.get("version") for run in self.board.runs(key)[:1]]
        for version in (self.store.current(key), *told):
            if version in known:
                manifest = self.store.manifest(key, version)
                if manifest.labels["labels"] == self.town.labels:
                    return manifest
        return None

    def settle(self, *keys: str) -> None:
        """Remove every fault, then wait until each project has learnt all answers and is idle.

        A test that begins here does not meet the trainings, or the faults, of the one before it.
        """
        for fault in ("hurt", "fails", "nan"):
            (self.home / fault).unlink(missing_ok=True)
        for key in keys or (self.key,):
            if self.town.labels and not self.learnt(key):
                self.until(lambda key=key: self.board.ask(Order(key, "settle")), 60, "Redis")  # type: ignore[misc]
                self.until(lambda key=key: self.learnt(key), SETTLED, "all answers learnt")  # type: ignore[misc]

    def check(self, key: str = "") -> int:
        """Load every version of the first project, or of another one; how many there are.

        Raises:
            ModelStoreError: one is broken.
        """
        key = key or self.key
        versions = self.store.versions(key)
        for version in versions:
            assert self.store.weights(key, version)
            assert self.store.manifest(key, version).version == version
        assert [int(name[1:]) for name in versions] == sorted({int(v[1:]) for v in versions})
        if not self.settings.in_bucket:
            folder = self.settings.store / "projects" / key / "versions"
            for path in folder.glob("v*"):  # nothing half written under a version's name
                safetensors.torch.load_file(path / "weights.safetensors")
        return len(versions)


@contextmanager
def running(home: Path, roles: Sequence[str], **settings: Any) -> Iterator[Site]:
    """A site whose processes run until the block ends, each started again when it dies."""
    town = Town()
    with serving(town) as server, Supervisor(home / "logs") as supervisor:
        town.server = server
        site = Site(home, town, supervisor, **settings)
        site.start(*roles)
        keeper = threading.Thread(target=supervisor.run, name="keeper")
        keeper.start()
        try:
            yield site
        finally:
            town.free.set()
            town.ill, town.slow = None, 0.0
            supervisor.stopping = True
            keeper.join(10)


def predicted(site: Site, *numbers: int) -> list[dict[str, Any]]:
    """What a visit to these tasks shows, the first three if none are named."""
    refs = [f"/data/upload/1/{number}.png" for number in numbers or (1, 2, 3)]
    reply = requests.post(f"{site.urls[0]}/predict", json=asking(site.project, refs), timeout=60)
    assert reply.status_code == 200
    told = reply.json()
    assert told["model_version"] == site.store.current(site.key)
    results: list[dict[str, Any]] = told["results"]
    assert len(results) == len(refs)
    return results
