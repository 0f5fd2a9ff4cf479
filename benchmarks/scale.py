"""Unit costs of an installation: what one of each takes on this machine.

    python -m benchmarks.scale --data ../shared/data/grocery [--json PATH]

An annotation event, a visit, an image, a look at a project, an answer in a large tree: measured
on loopback, with a stand-in where Label Studio is. docs/scale.md divides a load by them.
"""

import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import psutil
import requests

from benchmarks.answers import grow, measure
from benchmarks.common import arguments, free_port, photos, redis, report, running, tree_of
from benchmarks.refresh import release
from cli.services import as_environment
from inference.answers import answers
from inference.extractors import FeatureExtractors
from inference.feature_cache import FeatureCache
from inference.predictor import Predictor
from inference.store import Project, project_key
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


# Unit costs, in seconds of one core unless their names say otherwise


def of_images(parts: Parts, known: Project, folder: Path) -> dict[str, float]:
    """A new image, one seen before, and what is kept of each."""
    ours = parts.settings
    extractors = FeatureExtractors(
        ours.cache,
        photos(folder),
        networks=ours.networks,
        device=ours.device,
        decode=parts.decoders,
    )
    extractor = extractors.base()
    items = [(str(number), None) for number in range(512)]
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
        "new image": new / count,
        "image seen before": seen / count,
        "bytes kept of an image": held.nbytes / len(items),
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


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__)
    parser.add_argument("--labels", type=int, default=100_000, help="nodes of the largest tree")
    given = parser.parse_args()
    folder = given.data / "train"
    cost: dict[str, float] = {}
    with installation(folder) as (parts, stand):
        known = register(parts, stand, 1)
        version = release(parts, known)
        cost["bytes of a version"] = parts.store.manifest(known.key, version).weights_bytes
        cost |= of_images(parts, known, folder)
        cost |= of_events(parts, known)
        cost |= of_reconciling(parts, stand)
        cost |= of_large_trees(given.labels)
    report({"labels of the largest tree": given.labels, "unit costs": cost}, given.json)


if __name__ == "__main__":
    main()
