"""Which part gives way first when there is much of everything, from unit costs measured here.

    python -m benchmarks.scale --data ../shared/data/grocery [--json PATH]

Measures what one of each costs (an annotation event, a visit, a picture, a look at a project, a
task's refresh, a training), on loopback, with a stand-in where Label Studio is. Then divides: how
much of it one core, one server or one worker bears, and what a load would need. The load is by
default that of 10 million tasks, 1,000 projects, 100 annotators who each answer once a second, and
100,000 labels; every number can be given.
"""

import argparse
import json
import math
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import psutil
import requests

from benchmarks.answers import grow, measure
from benchmarks.predict import free_port, running
from benchmarks.refresh import redis, tree_of
from cli.services import as_environment
from evaluation.harness import machine
from hierarchy.choice import DepthRule
from inference.answers import answers
from inference.extractors import FeatureExtractors
from inference.feature_cache import FeatureCache
from inference.manifest import KIND, Manifest
from inference.predictor import Predictor, build_head
from inference.store import Project, project_key
from studio.image_fetcher import FetchedImage
from studio.label_config_writer import taxonomy_config
from tests.studio.servers import serving
from tests.worker.stand import LEGACY, Stand
from worker.parts import Parts
from worker.reconcile import Reconciler
from worker.settings import Secret, Settings

#: Events sent to measure what one costs, and connections that send them.
EVENTS: Final = 3000
CONNECTIONS: Final = 16

#: Projects that a reconciler looks after while one look is timed.
PROJECTS: Final = 200

#: Seconds of a training of 2,640 images: `benchmarks.training`.
TRAINING: Final = 20.0

#: Seconds that Label Studio takes to store a prediction (sqlite): `benchmarks.refresh` on a real
#: one.
STORING: Final = 0.003


@dataclass(frozen=True)
class Load:
    """What is asked of an installation.

    Attributes:
        tasks: in all projects together.
        projects: of which each has its own model.
        answers: annotations a second, all annotators together.
        labels: nodes of the largest tree.
        every: answers of a project after which it is trained anew.
    """

    tasks: int = 10_000_000
    projects: int = 1000
    answers: float = 100.0
    labels: int = 100_000
    every: int = 20


@contextmanager
def installation(folder: Path) -> Iterator[tuple[Parts, Stand]]:
    """Redis, a stand-in, and a project whose version answers."""
    stand = Stand()
    with tempfile.TemporaryDirectory() as home, redis(Path(home)) as url, serving(stand) as studio:
        stand.server = studio
        stand.label_config = taxonomy_config(tree_of(folder))
        settings = Settings(
            home=Path(home),
            redis_url=url,
            label_studio_url=stand.url,
            label_studio_token=Secret(LEGACY),
            device="cpu",
            train_every=10**9,
        )
        yield Parts(settings), stand


def register(parts: Parts, stand: Stand, number: int) -> Project:
    """A project with that number."""
    name = f"{number}.1795440233"
    key = project_key(stand.url, name)
    return parts.store.register(Project(key, number, name, stand.url, stand.label_config))


def publish(parts: Parts, known: Project, folder: Path) -> int:
    """A live version with fresh weights; bytes of it on disk."""
    tree, extractor = tree_of(folder), parts.extractors.base()
    rule = DepthRule(0.9, 1e-6, ((1.0, 0.0),) * tree.depth)
    network = {"kind": KIND, "channels": extractor.channels}
    manifest = Manifest(
        tree=tree.to_json(),
        network=network,
        backbone={"name": extractor.name, "fingerprint": extractor.fingerprint},
        calibration={"rule": rule.to_json()},
    )
    weights = build_head(tree, network).state_dict()
    version = parts.store.publish(known.key, manifest, weights)
    parts.store.point(known.key, version, reason="benchmark")
    return parts.store.manifest(known.key, version).weights_bytes


# Unit costs, in seconds of one core unless their names say otherwise


def of_pictures(parts: Parts, known: Project, folder: Path) -> dict[str, float]:
    """A new picture, one seen before, and what is kept of each."""
    files = sorted(folder.rglob("*.jpg"))[:512]

    def fetch(ref: str, _task: int | None) -> FetchedImage:
        import hashlib

        data = files[int(ref)].read_bytes()
        return FetchedImage(hashlib.sha256(data).hexdigest(), data)

    ours = parts.settings
    extractors = FeatureExtractors(
        ours.cache, fetch, networks=ours.networks, device=ours.device, decode=parts.decoders
    )
    extractor = extractors.base()
    items = [(str(number), None) for number in range(len(files))]
    version = parts.store.current(known.key)
    assert version is not None
    predictor: Predictor = parts.predictors.get(known, version)
    extractor.vectors(items[:32])

    def answered() -> None:
        for start in range(32, len(items), 32):
            answers(extractor, predictor, items[start : start + 32])

    new, seen = cores(answered), cores(answered)
    held, count = FeatureCache(ours.cache).size(), len(items) - 32
    return {
        "new picture": new / count,
        "picture seen before": seen / count,
        "bytes kept of a picture": held.nbytes / len(items),
    }


def cores(work: Callable[[], None]) -> float:
    """Seconds of processors, those of processes under this one included."""
    before = _spent()
    work()
    return _spent() - before


def _spent() -> float:
    own = psutil.Process()
    times = [process.cpu_times() for process in (own, *own.children(recursive=True))]
    return float(sum(one.user + one.system for one in times))


def of_events(parts: Parts, known: Project) -> dict[str, float]:
    """An annotation event at a server: seconds of its process, and how many it takes a second."""
    port = free_port()
    environment = {**as_environment(parts.settings), "HRN_PORT": str(port)}
    log = parts.settings.home / "server.log"
    number = int(known.project.partition(".")[0])
    body = {"action": "ANNOTATION_CREATED", "project": {"id": number, "created_at": CREATED}}
    setup = {"project": known.project, "schema": known.label_config, "hostname": "http://x"}
    with running(["cli", "serve"], log, **environment) as process:
        url = f"http://127.0.0.1:{port}"
        wait_for(f"{url}/ready")
        found = {}
        for name, path, sent in (("event", "webhook", body), ("setup", "setup", setup)):
            server = psutil.Process(process.pid)
            family = [server, *server.children(recursive=True)]
            before = sum(sum(one.cpu_times()[:2]) for one in family)
            began = time.perf_counter()
            flood(f"{url}/{path}", sent)
            spent = time.perf_counter() - began
            after = sum(sum(one.cpu_times()[:2]) for one in family)
            found[name] = (after - before) / EVENTS
            found[f"{name}s a second at one server"] = EVENTS / spent
    return found


#: As `tests.worker.stand` has it.
CREATED: Final = "2026-11-23T13:23:53.513743Z"


def wait_for(url: str) -> None:
    """Until it answers at all."""
    ends = time.monotonic() + 120
    while time.monotonic() < ends:
        try:
            requests.get(url, timeout=5)
        except requests.ConnectionError:
            time.sleep(0.2)
        else:
            return
    raise TimeoutError(url)


def flood(url: str, body: dict[str, Any]) -> None:
    """Send it many times, over several connections."""
    local = threading.local()

    def send(_: int) -> None:
        if not hasattr(local, "session"):
            local.session = requests.Session()
        assert local.session.post(url, json=body, timeout=60).ok

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        list(pool.map(send, range(EVENTS)))


def of_reconciling(parts: Parts, stand: Stand) -> dict[str, float]:
    """A round over many projects: hints alone, and a look at Label Studio."""
    for number in range(2, PROJECTS + 2):
        register(parts, stand, number)
    quiet = replace(parts.settings, train_every=10**9)
    reconciler = Reconciler(Parts(quiet))
    began = time.perf_counter()
    reconciler.glance()  # the first one looks at all of them
    first = time.perf_counter() - began
    began = time.perf_counter()
    reconciler.glance()
    glance = (time.perf_counter() - began) / (PROJECTS + 1)
    return {
        "glance at a project, wall": glance,
        "look at a project, wall": first / (PROJECTS + 1) - glance,
    }


def of_large_trees(labels: int) -> dict[str, float]:
    """One answer in a tree of so many nodes, as `benchmarks.answers` measures it."""
    tree = grow(labels, 8)
    return {"answer in the largest tree, wall": measure(tree, repeats=10)["whole"] / 1000}


# What a load needs


@dataclass(frozen=True)
class Need:
    """What one part of a load needs.

    Attributes:
        what: the part.
        cores: processors that are busy with it all the time; None where time is what matters.
        words: the same for people, and what the operator adds.
    """

    what: str
    cores: float | None
    words: str


def needs(load: Load, cost: dict[str, float]) -> list[Need]:
    """Dearest first: that is what gives way first."""
    trainings = load.answers / load.every
    share = load.answers / load.projects
    round_s = load.projects * cost["look at a project, wall"]
    glance_s = load.projects * cost["glance at a project, wall"]
    everything = load.tasks * cost["new picture"]
    refresh = load.tasks / load.projects * (cost["picture seen before"] + STORING)
    kept = load.tasks * cost["bytes kept of a picture"]
    rows = [
        Need(
            "training",
            trainings * TRAINING,
            f"{trainings:.1f} trainings per second are asked for, one after {load.every} answers "
            f"of a project; a worker does one in {TRAINING:.0f} s. One runs and one waits per "
            "project, so projects fall behind rather than queues grow: with W workers each is "
            f"trained every {load.projects * TRAINING:.0f} s / W, after "
            f"{share * load.projects * TRAINING:.0f} / W answers",
        ),
        Need(
            "pre-labels for visits",
            load.answers * cost["new picture"],
            "if no visited task had features yet; add servers behind a balancer",
        ),
        Need(
            "answers, were all trees the largest",
            load.answers * cost["answer in the largest tree, wall"],
            f"a tree of {load.labels} nodes; most of it is reading the last layers' weights, which "
            "requests that meet share",
        ),
        Need(
            "annotation events",
            load.answers * cost["event"],
            f"a server takes {cost['events a second at one server']:.0f} a second",
        ),
        Need(
            "health and setup at each visit",
            load.answers * cost["setup"],
            f"a server takes {cost['setups a second at one server']:.0f} a second",
        ),
        Need(
            "reconciling",
            (round_s / 60 + glance_s) / 1,
            f"hints of all projects in {glance_s:.1f} s a round, Label Studio in {round_s:.0f} s a "
            "minute: one process up to "
            f"{60 / (cost['look at a project, wall'] + 60 * cost['glance at a project, wall']):.0f}"
            " projects",
        ),
    ]
    rows.sort(key=lambda row: -(row.cores or 0))
    rows += [
        Need(
            "first features of every task",
            None,
            f"{everything / 3600:.0f} core hours, {kept / 1e9:.0f} GB of cache (HRN_CACHE_GB) to "
            "keep them all; fewer are worked out again",
        ),
        Need(
            "refresh after a new version",
            None,
            f"{refresh / 60:.1f} minutes a project of {load.tasks / load.projects:.0f} tasks, "
            f"{100 * STORING / (STORING + cost['picture seen before']):.0f} % of it Label Studio's "
            "own storing",
        ),
    ]
    return rows


def main() -> None:
    """Measure, divide, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    for name, value in asdict(Load()).items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    given = parser.parse_args()
    folder = given.data / "train"
    load = Load(**{name: getattr(given, name) for name in asdict(Load())})
    cost: dict[str, float] = {}
    with installation(folder) as (parts, stand):
        known = register(parts, stand, 1)
        cost["bytes of a version"] = publish(parts, known, folder)
        cost |= of_pictures(parts, known, folder)
        cost |= of_events(parts, known)
        cost |= of_reconciling(parts, stand)
        cost |= of_large_trees(load.labels)
    rows = needs(load, cost)
    told = {"machine": machine(), "load": asdict(load), "unit costs": cost}
    print(json.dumps(told, indent=1))
    print(f"\n| part | cores | what it means ({os.cpu_count()} cores here) |\n|---|---:|---|")
    for row in rows:
        shown = "" if row.cores is None else f"{math.ceil(10 * row.cores) / 10:.1f}"
        print(f"| {row.what} | {shown} | {row.words} |")
    if given.json:
        given.json.write_text(json.dumps({**told, "needs": [asdict(r) for r in rows]}, indent=1))


if __name__ == "__main__":
    main()
