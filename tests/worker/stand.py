"""A server that stands where Label Studio is: one project, its tasks, in the recorded shapes."""

import json
import threading
from typing import Any, Final

import numpy as np

from hierarchy.calibration import Evidence
from hierarchy.familiarity import Familiarity
from inference.store import Project
from tests.inference import small
from tests.published import TREE
from tests.studio.configs import taxonomy_xml
from tests.studio.servers import Reply, Request, Server
from worker.parts import Parts

LEGACY: Final = "0123456789abcdef0123456789abcdef01234567"

#: Held-out images on which everything came true: the deepest node is shown of each image.
BOLD = Evidence(np.full((300, 2), 0.6), np.ones((300, 2), dtype=np.int64))

#: What Label Studio makes `1.1795440233` of.
CREATED: Final = "2026-11-23T13:23:53.513743Z"


def annotation(number: int, path: list[str], updated_at: str) -> dict[str, Any]:
    """An answer as the API gives it."""
    value = {"taxonomy": [path]}
    return {
        "id": number,
        "result": [{"from_name": "label", "to_name": "image", "type": "taxonomy", "value": value}],
        "was_cancelled": False,
        "ground_truth": False,
        "updated_at": updated_at,
        "completed_by": 1,
        "parent_prediction": None,
    }


def _is_answered(task: dict[str, Any]) -> bool:
    """As Label Studio counts: a skip is no answer."""
    return any(not one.get("was_cancelled") for one in task["annotations"])


class Stand:
    """Answers what the reconciler and the jobs ask, whatever project's number they name.

    Attributes:
        tasks: with their annotations.
        created_at: when the project was made.
        label_config: the project's.
        away: answer 503 to everything.
        stored: predictions that were imported.
        changed: ids of those that were changed in place.
        deleted: ids of those that were removed.
        free: while it is not set, a list of tasks is not answered.
        listed: does it list the project at all?
        backends: the project's.
        hooks: the project's webhooks.
    """

    def __init__(self) -> None:
        self.tasks: list[dict[str, Any]] = []
        self.created_at = CREATED
        self.label_config = taxonomy_xml(TREE)
        self.away = False
        self.free = threading.Event()
        self.free.set()
        self.stored: list[dict[str, Any]] = []
        self.changed: list[int] = []
        self.deleted: list[int] = []
        self.listed = True
        self.backends: list[dict[str, Any]] = []
        self.hooks: list[dict[str, Any]] = []
        self.server: Server | None = None

    @property
    def url(self) -> str:
        assert self.server is not None
        return self.server.url

    def label(self, count: int, minute: int) -> None:
        """So many tasks more, each with an answer of that minute."""
        for _ in range(count):
            number = len(self.tasks) + 1
            when = f"2026-11-23T14:{minute:02d}:{number % 60:02d}.000001Z"
            answer = annotation(number, ["Fruit", "Apple"], when)
            data = {"image": f"/data/upload/1/{number}.jpg"}
            self.tasks.append(
                {"id": number, "data": data, "annotations": [answer], "predictions": []}
            )

    def predict(self, task: int, **prediction: Any) -> int:
        """One more prediction on a task; its id."""
        rows = sum(len(known["predictions"]) for known in self.tasks)
        number = rows + len(self.deleted) + 1
        when = "2026-11-23T14:00:00.000010Z"
        row = {"id": number, "created_at": when, "updated_at": when, **prediction}
        self.tasks[task - 1]["predictions"].append(row)
        return number

    def __call__(self, request: Request) -> Reply:
        if self.away:
            return Reply({"detail": "starting"}, 503)
        if request.path == "/api/projects/":
            settings = {
                "id": int(request.params["ids"]),
                "title": "Fruit",
                "created_at": self.created_at,
                "label_config": self.label_config,
                "model_version": None,
            }
            return Reply({"results": [settings] if self.listed else []})
        if request.path == "/api/tasks":
            self.free.wait(20)
            return self._tasks(request)
        if request.path.endswith("/import/predictions"):
            self.stored += request.json
            for row in request.json:
                self.predict(**row)
            return Reply({"created": len(request.json)})
        if request.path.startswith("/api/predictions/"):
            return self._prediction(request)
        return self._wiring(request)

    def _wiring(self, request: Request) -> Reply:
        if request.path.endswith("/model-versions/"):
            return Reply({"live": self.backends})
        if request.method == "DELETE" and request.path.startswith("/api/ml/"):
            number = int(request.path.split("/")[3])
            self.backends = [row for row in self.backends if row["id"] != number]
            return Reply(b"", 204)
        if not request.path.startswith("/api/webhooks/"):
            return Reply({"detail": request.path}, 404)
        if request.method == "GET":
            return Reply(self.hooks)
        number = int(request.path.split("/")[3])
        self.hooks = [hook for hook in self.hooks if hook["id"] != number]
        return Reply(b"", 204)

    def _prediction(self, request: Request) -> Reply:
        number = int(request.path.split("/")[3])
        if request.method == "DELETE":
            for task in self.tasks:
                task["predictions"] = [p for p in task["predictions"] if p["id"] != number]
            self.deleted.append(number)
            return Reply(b"", 204)
        rows = [row for task in self.tasks for row in task["predictions"]]
        (row,) = [row for row in rows if row["id"] == number]
        row.update(request.json)
        self.changed.append(number)
        return Reply(row)

    def _tasks(self, request: Request) -> Reply:
        query = json.loads(request.params["query"])
        items = query["filters"]["items"]
        if query["ordering"] == ["-tasks:id"]:
            return Reply({"total": len(self.tasks), "tasks": self.tasks[-1:]})
        asked = {(item["filter"].rpartition(":")[2], item["operator"]) for item in items}
        last = next(item["value"] for item in items if item["filter"] == "filter:tasks:id")
        rows = [task for task in self.tasks if task["id"] > last]
        if ("total_annotations", "greater") in asked:
            rows = [task for task in rows if _is_answered(task)]
        if ("total_annotations", "equal") in asked:
            rows = [task for task in rows if not _is_answered(task)]
        if ("updated_at", "greater") in asked:
            since = next(item["value"] for item in items if item["filter"].endswith("updated_at"))
            rows = [task for task in rows if task.get("updated_at", "9") > since]
        return Reply({"total": len(rows), "tasks": rows})


def publish(
    parts: Parts,
    known: Project,
    *,
    seed: int = 0,
    seen: Evidence = BOLD,
    familiarity: Familiarity | None = None,
) -> str:
    """A live version that this server can serve."""
    backbone = parts.extractors.backbone()
    head = small.head_of(TREE, small.HEAD, seed)
    named = (backbone.name, backbone.fingerprint)
    version = small.publish(
        parts.store, known, TREE, head, backbone=named, known=seen, familiarity=familiarity
    )
    parts.store.point(known.key, version, reason="test")
    return version


def open_tasks(stand: Stand, count: int, first: int = 1) -> None:
    for number in range(first, first + count):
        row = {"id": number, "data": {"image": f"{number}.png"}, "annotations": []}
        stand.tasks.append({**row, "predictions": []})


def shown(stand: Stand) -> list[list[dict[str, Any]]]:
    """The one prediction's result of each task."""
    rows = []
    for task in stand.tasks:
        (row,) = task["predictions"]
        rows.append(row["result"])
    return rows
