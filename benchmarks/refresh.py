"""How long a refresh of many tasks takes, and how much of it is ours.

    python -m benchmarks.refresh --data ../shared/data/grocery [--tasks 10000] [--json PATH]
    python -m benchmarks.refresh --data ... --label-studio URL --token TOKEN

A project of that many tasks, with the folder's training photos, over and over where they are too
few, but each with another end, so that its features are its own. Photos are read from disk in place
of fetching them; features are cached first, which is the rival: decoding and the backbone. Then a
version with fresh weights is published and the tasks refreshed: our own part is the wall time
without Label Studio's calls. Label Studio is a stand-in that answers at once, or a real one that
may be littered. Redis is REDIS_URL, or an embedded one.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import arguments, photos, publish, redis, report, tree_of
from inference.extractors import FeatureExtractors
from inference.manifest import KIND
from inference.store import UNTRAINED, Project, project_key
from studio.label_config import parse_label_config
from studio.label_config_writer import taxonomy_config
from studio.schemas import project_key as project_name
from tests.studio.servers import serving
from tests.worker.stand import LEGACY, Stand
from worker.__main__ import load
from worker.parts import Parts
from worker.prelabel_sync import sync_prelabels
from worker.settings import Secret, Settings


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


def prepare(parts: Parts, folder: Path, count: int, *, real: bool) -> tuple[Project, float]:
    """The project with its tasks, its images' features in the cache, and the seconds of that."""
    rows = [{"data": {"image": f"{n}.jpg"}} for n in range(1, count + 1)]
    if real:
        made = parts.studio.create_project("Refresh", taxonomy_config(tree_of(folder)))
        parts.studio.import_tasks(int(str(made["id"])), rows)
    else:
        made = parts.studio.settings(1)
    number, config = int(str(made["id"])), str(made["label_config"])
    name = project_name(number, str(made["created_at"]))
    key = project_key(parts.settings.label_studio_url, name)
    known = Project(key, number, name, parts.settings.label_studio_url, config)

    ours = parts.settings
    extractors = FeatureExtractors(
        ours.cache,
        photos(folder),
        networks=ours.networks,
        device=ours.device,
        decode=parts.decoders,
    )
    vars(parts)["extractors"] = extractors
    extractor, began = extractors.base(), time.monotonic()
    for _ in extractor.stream([(row["data"]["image"], None) for row in rows]):
        pass
    return parts.store.register(known), time.monotonic() - began


def release(parts: Parts, known: Project) -> str:
    """Make a live version with fresh weights that shows the deepest node of every image."""
    extractor = parts.extractors.base()
    tree = parse_label_config(known.label_config).tree
    network = {"kind": KIND, "channels": extractor.channels, "seed": 0}
    backbone = {"name": extractor.name, "fingerprint": extractor.fingerprint}
    return publish(parts.store, known.key, tree, network, backbone)


def measure(parts: Parts, known: Project, version: str) -> dict[str, Any]:
    """Wall seconds of one refresh, and those spent in each of Label Studio's calls."""
    clock = Clock()
    fresh = Parts(parts.settings)
    vars(fresh)["extractors"] = parts.extractors
    for name in ("settings", "tasks", "import_predictions", "update_prediction"):
        clock.watch(fresh.studio, name)
    began = time.monotonic()
    ended = sync_prelabels(known.key, version, fresh)
    whole = time.monotonic() - began
    theirs = sum(clock.seconds.values())
    return {**asdict(ended), "whole": whole, "ours": whole - theirs, "label_studio": clock.seconds}


@contextmanager
def label_studio(given: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Address and token of the real one, or of a stand-in."""
    if given.label_studio:
        yield given.label_studio, given.token
        return
    command = [sys.executable, "-m", "benchmarks.refresh", "--stand-in", str(given.tasks)]
    process = subprocess.Popen([*command, "--data", str(given.data)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().decode().strip(), LEGACY
    finally:
        process.terminate()
        process.wait(20)


def stand_in(folder: Path, count: int) -> None:
    """A process that stands where Label Studio is: one project with so many tasks."""
    stand = Stand()
    stand.label_config = taxonomy_config(tree_of(folder / "train"))
    stand.tasks = [
        {"id": n, "data": {"image": f"{n}.jpg"}, "annotations": [], "predictions": []}
        for n in range(1, count + 1)
    ]
    with serving(stand) as server:
        print(server.url, flush=True)
        signal.pause()


def main() -> None:
    """Measure the order before a version, and a version's refresh, and print."""
    parser = arguments(__doc__)
    parser.add_argument("--label-studio", default="")
    parser.add_argument("--token", default="")
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--stand-in", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))  # as a worker has, see `hrn work`
    if given.stand_in:
        stand_in(given.data, given.stand_in)
    load()
    with (
        tempfile.TemporaryDirectory() as home,
        redis(Path(home)) as url,
        label_studio(given) as (address, token),
    ):
        parts = Parts(
            Settings(
                home=Path(home),
                redis_url=url,
                label_studio_url=address,
                label_studio_token=Secret(token),
                device="cpu",
            )
        )
        real = bool(given.label_studio)
        known, first = prepare(parts, given.data / "train", given.tasks, real=real)
        found = {"untrained": measure(parts, known, UNTRAINED)}
        found["a new version"] = measure(parts, known, release(parts, known))
    ours = found["a new version"]["ours"]
    told = {
        "tasks": given.tasks,
        "label studio": "real" if real else "a stand-in",
        "decoding and backbone, s": first,
        "pre-label sync without Label Studio, s": ours,
        "times as fast": first / ours,
        "measured": found,
    }
    report(told, given.json)


if __name__ == "__main__":
    main()
