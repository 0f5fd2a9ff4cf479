"""A labelling campaign on Grocery photos in a real Label Studio, for the end-to-end tests."""

import random
import tempfile
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from hierarchy import LabelTree
from studio.label_config_writer import taxonomy_config
from tests.end_to_end.backend import RunningBackend
from tests.end_to_end.label_studio import RunningLabelStudio

NodePath = tuple[str, ...]

#: Share of answers that are one level short of the leaf.
COARSE = 0.4


@dataclass
class Photo:
    """A photo, what it truly shows, and its task once it is uploaded."""

    file: Path
    path: NodePath
    task: int = 0


def photos(folder: Path) -> list[Photo]:
    """Every photo below a folder of folders."""
    return [
        Photo(file, file.relative_to(folder).parts[:-1]) for file in sorted(folder.rglob("*.jpg"))
    ]


def evenly(found: list[Photo], count: int, draw: random.Random) -> list[Photo]:
    """Photos of as many classes as there are, as somebody picks who starts a project."""
    classes: dict[NodePath, list[Photo]] = {}
    for photo in draw.sample(found, len(found)):
        classes.setdefault(photo.path, []).append(photo)
    turns = [photo for turn in zip_longest(*classes.values()) for photo in turn if photo]
    return turns[:count]


def taxonomy(path: NodePath) -> list[dict[str, Any]]:
    """An answer, as the editor submits it."""
    value = {"taxonomy": [list(path)]}
    return [{"from_name": "label", "to_name": "image", "type": "taxonomy", "value": value}]


@dataclass
class Campaign:
    """150 training photos to answer and 60 test photos that stay open."""

    studio: RunningLabelStudio
    backend: RunningBackend
    tree: LabelTree
    project: int
    answered: list[Photo]
    open: list[Photo]
    given: dict[int, NodePath] = field(default_factory=dict)

    @classmethod
    def begin(
        cls, studio: RunningLabelStudio, backend: RunningBackend, grocery: Path
    ) -> "Campaign":
        """Make the project, upload the photos under names that say nothing, connect."""
        draw = random.Random(0)
        train, test = photos(grocery / "train"), photos(grocery / "test")
        # The test folders put mushrooms one level deeper; a class has one name in both.
        paths = {photo.path[-1]: photo.path for photo in train}
        test = [Photo(photo.file, paths[photo.path[-1]]) for photo in test]
        tree = LabelTree.from_paths(sorted({photo.path for photo in train}))
        project = studio.create_project("Grocery", taxonomy_config(tree))
        campaign = cls(
            studio, backend, tree, project, evenly(train, 150, draw), draw.sample(test, 60)
        )
        campaign._upload(campaign.answered + campaign.open)
        backend.hrn("connect", "--project", str(project))
        return campaign

    def _upload(self, chosen: list[Photo]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            names = [Path(folder) / f"photo-{number:04d}.jpg" for number in range(len(chosen))]
            for name, photo in zip(names, chosen, strict=True):
                name.symlink_to(photo.file)
            tasks = self.studio.upload(self.project, names)
        for photo, task in zip(chosen, tasks, strict=True):
            photo.task = task

    def answer_all(self) -> None:
        """Answer the training photos through Label Studio's API, 40 % of them only coarsely."""
        draw, client = random.Random(1), self.studio.client()
        coarse = set(draw.sample(range(len(self.answered)), round(COARSE * len(self.answered))))
        for number, photo in enumerate(self.answered):
            path = photo.path[:-1] if number in coarse else photo.path
            client.create_annotation(photo.task, taxonomy(path))
            self.given[photo.task] = path

    def status(self) -> dict[str, Any]:
        """Our own view of the project."""
        rows = self.backend.json("status")["projects"]
        return next(row for row in rows if row["project"] == self.project)

    def learnt_from_all(self) -> dict[str, Any] | None:
        """The status, once a version has learnt from every answer and nothing runs."""
        return self.learnt(len(self.given))

    def learnt(self, labels: int) -> dict[str, Any] | None:
        """The status, once a version has learnt from so many labels and nothing runs.

        The version is the live one, or the last training's if the gate refused it: it refuses some
        that are as good as the live one, by chance, and most of all where that one was lucky.
        """
        now = self.status()
        if now["training"] != "idle" or now["version"] is None:
            return None
        store, run = self.backend.parts().store, now["last_run"] or {}
        refused = [run["version"]] if run.get("state") == "refused" else []
        for version in (now["version"], *refused):
            if store.manifest(now["key"], version).labels["labels"] == labels:
                return now
        return None
