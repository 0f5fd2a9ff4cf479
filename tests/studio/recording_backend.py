"""A backend that answers what Label Studio asks and writes down what it was asked."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from studio.client import LabelStudio
from studio.project_setup import Connected, connect
from tests.studio.servers import Reply, Request, Server, serving

USER, PASSWORD = "hrn", "open-sesame"
HEADER = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()


@dataclasses.dataclass
class RecordingBackend:
    """Asks for its password on every route, so that what comes without it is seen.

    Attributes:
        version: what ``/setup`` answers and predictions carry.
        scores: score of a task by its id; 0.5 for the others.
        password: the header it wants.
    """

    version: str = "untrained"
    scores: dict[int, float] = dataclasses.field(default_factory=dict)
    password: str = HEADER
    server: Server | None = None

    @property
    def url(self) -> str:
        assert self.server is not None
        return self.server.url

    def asked(self, path: str) -> list[Request]:
        """The requests to a path that came with the right password."""
        assert self.server is not None
        found = [request for request in self.server.requests if request.path == path]
        return [request for request in found if request.token == self.password]

    def refused(self) -> list[Request]:
        """The requests that came with another password or none."""
        assert self.server is not None
        return [request for request in self.server.requests if request.token != self.password]

    def events(self) -> list[str]:
        """The webhook's actions, in order."""
        return [request.json["action"] for request in self.asked("/webhook")]

    def __call__(self, request: Request) -> Reply:
        if request.token != self.password:
            return Reply({"detail": "password"}, 401)
        if request.path == "/setup":
            return Reply({"model_version": self.version})
        if request.path == "/versions":
            return Reply({"versions": []})
        if request.path == "/predict":
            return Reply({"results": [self._prediction(task) for task in request.json["tasks"]]})
        return Reply({"status": "UP"}, 201 if request.path == "/webhook" else 200)

    def _prediction(self, task: dict[str, Any]) -> dict[str, Any]:
        score = self.scores.get(task["id"], 0.5)
        return {"result": [], "score": score, "model_version": self.version}


@contextmanager
def running_backend(version: str = "untrained") -> Iterator[RecordingBackend]:
    """A recording backend that listens until the block ends."""
    backend = RecordingBackend(version)
    with serving(backend) as server:
        backend.server = server
        yield backend


def join(
    client: LabelStudio,
    project: int,
    backend: RecordingBackend,
    password: str = PASSWORD,
    slash: str = "",
) -> Connected:
    """Connect a project to the backend."""
    return connect(
        client,
        project,
        backend_url=backend.url + slash,
        user=USER,
        password=password,
        version=backend.version,
    )
