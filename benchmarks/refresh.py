"""How long a refresh of many tasks takes, and how much of it is ours.

    python -m benchmarks.refresh --data ../shared/data/grocery --label-studio URL --token TOKEN

Makes a project of that many tasks in a Label Studio that may be littered (one for tests), with the
folder's training photos, over and over where they are too few. Reads the photos from disk in place
of fetching them, fills the cache of features untimed, publishes a version with fresh weights, and
refreshes: our own part is the wall time without Label Studio's calls. Needs REDIS_URL.
"""

import argparse
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from experiments.evaluation import machine
from hierarchy import LabelTree
from hierarchy.choice import DepthRule
from models.galleries import Galleries
from models.predictor import build_head
from models.store import UNTRAINED, Project, project_key
from studio.configwriter import taxonomy_config
from studio.contract import project_key as project_name
from studio.labelconfig import parse_label_config
from studio.pictures import Picture
from worker.parts import Parts
from worker.refreshing import refresh_predictions
from worker.settings import Secret, Settings

#: The default head's sizes.
NETWORK = {"kind": "frozen", "channels": 1280}


@dataclass
class Clock:
    """Seconds spent in Label Studio's API, by call."""

    seconds: dict[str, float] = field(default_factory=dict)

    def watch(self, owner: object, name: str) -> None:
        """Time every call of a method; a generator is read to its end within."""
        call: Callable[..., Any] = getattr(owner, name)

        def timed(*given: Any, **more: Any) -> Any:  # noqa: ANN401 - any method
            began = time.monotonic()
            try:
                found = call(*given, **more)
                return list(found) if name == "tasks" else found
            finally:
                self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - began

        vars(owner)[name] = timed


def prepare(parts: Parts, folder: Path, count: int) -> Project:
    """The project with its tasks, known to the store, its pictures' features in the cache."""
    files = sorted(folder.rglob("*.jpg"))
    tree = LabelTree.from_paths(sorted({file.relative_to(folder).parts[:-1] for file in files}))
    made = parts.studio.create_project("Refresh", taxonomy_config(tree))
    number, config = int(made["id"]), str(made["label_config"])
    rows = [{"data": {"image": f"{n % len(files)}.jpg"}} for n in range(count)]
    parts.studio.import_tasks(number, rows)
    name = project_name(number, str(made["created_at"]))
    key = project_key(parts.settings.label_studio_url, name)
    known = Project(key, number, name, parts.settings.label_studio_url, config)

    def fetch(ref: str, _task: int | None) -> Picture:
        data = files[int(Path(ref).stem)].read_bytes()
        return Picture(hashlib.sha256(data).hexdigest(), data)

    ours = parts.settings
    galleries = Galleries(ours.cache, fetch, backbone=ours.backbone, device=ours.device)
    vars(parts)["galleries"] = galleries
    for _ in galleries.base().stream([(str(row["data"]["image"]), None) for row in rows]):
        pass
    return parts.store.register(known)


def publish(parts: Parts, known: Project) -> str:
    """A live version with fresh weights that shows the deepest node of every picture."""
    tree = parse_label_config(known.label_config).tree
    backbone = parts.galleries.backbone()
    torch.manual_seed(0)
    rule = DepthRule(0.9, 1e-6, ((1.0, 0.0),) * tree.depth)
    manifest = {
        "tree": tree.to_json(),
        "network": NETWORK,
        "backbone": {"name": backbone.name, "fingerprint": backbone.fingerprint},
        "calibration": {"rule": rule.to_json()},
        "metrics": {},
    }
    version = parts.store.publish(known.key, manifest, build_head(tree, NETWORK).state_dict())
    parts.store.point(known.key, version, reason="benchmark")
    return version


def measure(parts: Parts, known: Project, version: str) -> dict[str, Any]:
    """Wall seconds of one refresh, and those spent in each of Label Studio's calls."""
    clock = Clock()
    fresh = Parts(parts.settings)
    vars(fresh)["galleries"] = parts.galleries
    for name in ("settings", "tasks", "import_predictions", "update_prediction"):
        clock.watch(fresh.studio, name)
    began = time.monotonic()
    ended = refresh_predictions(known.key, version, fresh)
    whole = time.monotonic() - began
    theirs = sum(clock.seconds.values())
    return {**ended, "whole": whole, "ours": whole - theirs, "label_studio": clock.seconds}


def main() -> None:
    """Measure the order before a version, and a version's refresh, and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--label-studio", required=True)
    parser.add_argument("--token", required=True)
    parser.add_argument("--tasks", type=int, default=2000)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as home:
        parts = Parts(
            Settings(
                home=Path(home),
                redis_url=os.environ["REDIS_URL"],
                label_studio_url=given.label_studio,
                label_studio_token=Secret(given.token),
                device="cpu",
            )
        )
        known = prepare(parts, given.data / "train", given.tasks)
        found = {"untrained": measure(parts, known, UNTRAINED)}
        found["a new version"] = measure(parts, known, publish(parts, known))
    print(json.dumps({"machine": machine(), "tasks": given.tasks, "measured": found}, indent=1))


if __name__ == "__main__":
    main()
