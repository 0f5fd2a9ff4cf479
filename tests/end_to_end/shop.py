"""A connected project whose order of work is looked at, and people who answer in that order."""

import random
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from hierarchy import LabelTree
from studio.label_config_writer import taxonomy_config
from tests.end_to_end.backend import RunningBackend
from tests.end_to_end.campaign import NodePath, evenly, photos, taxonomy
from tests.end_to_end.label_studio import RunningLabelStudio
from worker.asking import places_of
from worker.parts import Parts


class Annotator:
    """Somebody who was invited, in a browser of their own."""

    def __init__(self, studio: RunningLabelStudio) -> None:
        with studio.session() as owner:
            invited = owner.get(f"{studio.url}/api/invite", timeout=30).json()["invite_url"]
        self.studio, self.session = studio, requests.Session()
        page = f"{studio.url}{invited}"
        self.session.get(page, timeout=30).raise_for_status()
        form = {
            "email": f"{secrets.token_hex(6)}@example.com",
            "password": secrets.token_urlsafe(12),
            "csrfmiddlewaretoken": self.session.cookies["csrftoken"],
        }
        reply = self.session.post(page, data=form, headers={"Referer": page}, timeout=30)
        reply.raise_for_status()
        self.session.headers["X-CSRFToken"] = self.session.cookies["csrftoken"]
        self.session.headers["Referer"] = studio.url

    def next_task(self, project: int) -> dict[str, Any]:
        """What "Label All Tasks" shows."""
        reply = self.session.get(f"{self.studio.url}/api/projects/{project}/next", timeout=60)
        reply.raise_for_status()
        found: dict[str, Any] = reply.json()
        return found

    def submit(self, task: dict[str, Any], path: NodePath) -> None:
        """Answer it as the editor does, from the pre-label that is shown."""
        shown = next((row["id"] for row in task["predictions"] if row["result"]), None)
        body = {"result": taxonomy(path), "lead_time": 2.0, "parent_prediction": shown}
        url = f"{self.studio.url}/api/tasks/{task['id']}/annotations/?project={task['project']}"
        reply = self.session.post(url, json=body, timeout=60)
        assert reply.ok, reply.text

    def skip(self, task: dict[str, Any]) -> None:
        """Press Skip."""
        url = f"{self.studio.url}/api/tasks/{task['id']}/annotations/?project={task['project']}"
        body = {"result": [], "was_cancelled": True, "lead_time": 2.0}
        reply = self.session.post(url, json=body, timeout=60)
        assert reply.ok, reply.text


@dataclass
class Shop:
    """A project of Grocery photos, connected."""

    studio: RunningLabelStudio
    backend: RunningBackend
    number: int
    truth: dict[int, NodePath]

    @property
    def parts(self) -> Parts:
        return self.backend.parts()

    @property
    def key(self) -> str:
        (found,) = [one.key for one in self.parts.store.projects() if one.number == self.number]
        return found

    def listed(self) -> dict[int, float | None]:
        """The score that the Data Manager shows of each open task."""
        url = f"{self.studio.url}/api/tasks?project={self.number}&fields=all&page_size=500"
        with self.studio.session() as page:
            rows = page.get(url, timeout=60).json()["tasks"]
        return {row["id"]: row["predictions_score"] for row in rows if not row["total_annotations"]}

    def ordered(self, version: str) -> list[int] | None:
        """Open tasks in the order in which they should arrive, once Label Studio has it."""
        places = places_of(self.parts.store, self.key, version)
        shown = self.listed()
        told = {task: places.place(task) for task in shown if task in places.batch}
        if len(told) < min(len(shown), len(places.batch)) or any(shown[t] != told[t] for t in told):
            return None
        settings = self.studio.client().settings(self.number)
        if settings["model_version"] != version or None in shown.values():
            return None
        return sorted(shown, key=lambda task: float(shown[task] or 0.0))

    def take(self, annotators: list[Annotator], count: int) -> list[int]:
        """Tasks as they arrive while several people answer side by side."""
        taken = []
        for _ in range(count // len(annotators)):
            tasks = [one.next_task(self.number) for one in annotators]
            for one, task in zip(annotators, tasks, strict=True):
                taken.append(task["id"])
                one.submit(task, self.truth[task["id"]])
        return taken


def open_shop(
    studio: RunningLabelStudio, backend: RunningBackend, folder: Path, count: int, title: str
) -> Shop:
    found = photos(folder / "train")
    tree = LabelTree.from_paths(sorted({photo.path for photo in found}))
    chosen = evenly(found, count, random.Random(3))
    number = studio.create_project(title, taxonomy_config(tree))
    backend.hrn("connect", "--project", str(number))
    tasks = studio.upload(number, [photo.file for photo in chosen])
    truth = {task: photo.path for task, photo in zip(tasks, chosen, strict=True)}
    return Shop(studio, backend, number, truth)
