"""How fast `/predict` is over HTTP, against the usual example and against its limit.

    python -m benchmarks.predict --data ../shared/data/grocery [--rounds 5] [--long] [--json PATH]

A server of images and the other servers are processes of their own, on loopback. In each round all
of them answer 64 images that they have not seen, one after the other. The limit is the sum of
decoding, resizing and the best engine's forward on the same pictures, both cores busy, no HTTP.
"""

import argparse
import asyncio
import http.client
import io
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
import psutil

HERE: Final = Path(__file__).resolve().parents[1]
PICTURES: Final = 64
CLIENTS: Final = 32
NETWORKS: Final = ("tf_efficientnet_lite0", "tf_efficientnet_lite2")
HEAD: Final = {"kind": "hrn", "channels": 2560, "networks": [1280, 1280], "hidden": 192}
#: A project as Label Studio names it, and the numbers by which its versions are kept.
PROJECT: Final = "1.1795440233"


# Other processes


def serve_pictures(folder: Path, port: int) -> None:
    """``/<salt>/<n>`` is the nth photo with the salt behind its end: other bytes, same pixels."""
    files = sorted(folder.rglob("*.jpg"))

    class Connection(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport: Any = transport
            self.data = b""

        def data_received(self, data: bytes) -> None:
            self.data += data
            while b"\r\n\r\n" in self.data:
                head, _, self.data = self.data.partition(b"\r\n\r\n")
                _, _, salt, number = head.split(b" ", 2)[1].rsplit(b"/", 3)
                body = files[int(number) % len(files)].read_bytes() + salt
                length = str(len(body)).encode()
                self.transport.write(
                    b"HTTP/1.1 200 OK\r\nContent-Length: " + length + b"\r\n\r\n" + body
                )

    async def forever() -> None:
        server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", port)
        await server.serve_forever()

    asyncio.run(forever())


def serve_rival(port: int, batch: int) -> None:
    """The usual example: a loop over tasks, fp32; with ``batch`` above 1 a plain batch instead."""
    import requests
    import torch
    from flask import Flask, request
    from PIL import Image

    from hierarchy import LabelTree, log_marginals
    from inference.augmentation import prepare
    from inference.backbone import load_backbone
    from inference.predictor import build_head
    from inference.torch_engine import Normalised

    backbones = [load_backbone(name) for name in NETWORKS]
    networks = [Normalised(one.module, one.preparation).eval() for one in backbones]
    app = Flask("rival")

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "UP"}

    @app.post("/predict")
    def predict() -> dict[str, Any]:
        call = request.get_json()
        tree = LabelTree.from_json(call["tree"])
        head = heads.setdefault(0, build_head(tree, HEAD).eval())
        results = []
        with torch.inference_mode():
            for start in range(0, len(call["tasks"]), batch):
                images = []
                for task in call["tasks"][start : start + batch]:
                    file = io.BytesIO(requests.get(task["data"]["image"], timeout=30).content)
                    images.append(Image.open(file).convert("RGB"))
                vectors = []
                for backbone, network in zip(backbones, networks, strict=True):
                    pixels = np.stack([prepare(image, backbone.preparation) for image in images])
                    vectors.append(network(torch.from_numpy(pixels)).mean(dim=(2, 3)))
                scores = head(torch.cat(vectors, dim=1))
                for row in log_marginals(scores, tree).argmax(dim=1).tolist():
                    results.append({"result": [], "choice": tree.paths[row]})  # noqa: PERF401
        return {"results": results}

    heads: dict[int, Any] = {}
    app.run("127.0.0.1", port, threaded=True)


def serve_alone() -> None:
    """Our own server, but each request for itself: none waits for another, none shares a pass."""
    from cli.__main__ import main as hrn
    from inference.batching import MicroBatcher

    MicroBatcher.__call__ = _alone  # type: ignore[assignment,method-assign]
    sys.exit(hrn(["serve"]))


def _alone(own: Any, rows: Any) -> Any:  # noqa: ANN401 - as the method that it stands for
    return own._work(rows)  # noqa: SLF001


def train_for_ever() -> None:
    """What a worker does meanwhile: a head's fitting, over and over, with one thread."""
    import torch

    from hierarchy import LabelTree, tree_loss
    from inference.predictor import build_head

    torch.set_num_threads(1)
    tree = LabelTree.from_paths([(str(a), str(b)) for a in range(9) for b in range(9)])
    head = build_head(tree, HEAD)
    steps = torch.optim.AdamW(head.parameters())
    vectors, targets = (
        torch.rand(64, HEAD["channels"]),
        torch.tensor(tree.leaves)[torch.arange(64) % 81],
    )
    while True:
        steps.zero_grad()
        tree_loss(head(vectors), targets, tree).backward()
        steps.step()


@contextmanager
def running(
    words: Sequence[str], log: Path, **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A process of ours, ended behind."""
    with log.open("ab") as told:
        process = subprocess.Popen(
            [sys.executable, "-m", *words],
            env={**os.environ, **environment},
            stdout=told,
            stderr=told,
            cwd=HERE,
        )
    try:
        yield process
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        process.kill()
        process.wait(20)


def free_port() -> int:
    """One that nothing listens on now."""
    import socket

    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return int(made.getsockname()[1])


# Asking


class Caller:
    """One connection to a server, kept."""

    def __init__(self, port: int) -> None:
        self._line = http.client.HTTPConnection("127.0.0.1", port, timeout=120)

    def ask(self, path: str, body: dict[str, Any] | None = None) -> tuple[float, dict[str, Any]]:
        """Wall seconds and what was answered."""
        began = time.perf_counter()
        data = None if body is None else json.dumps(body)
        headers = {} if body is None else {"Content-Type": "application/json"}
        self._line.request("GET" if body is None else "POST", path, data, headers)
        answer = self._line.getresponse()
        told = answer.read()
        assert answer.status == 200, (answer.status, told[:300])
        return time.perf_counter() - began, json.loads(told)


def first_answer(port: int, path: str, body: dict[str, Any] | None, began: float) -> float:
    """Seconds from ``began`` to the first answer."""
    while time.perf_counter() - began < 120:
        try:
            Caller(port).ask(path, body)
        except OSError:
            time.sleep(0.01)
        else:
            return time.perf_counter() - began
    raise TimeoutError(f"{path} does not answer")


class Bench:
    """What all measurements share: photos, a project with its versions, the server of pictures."""

    def __init__(self, folder: Path, home: Path, port: int) -> None:
        from hierarchy import LabelTree
        from inference.store import ModelStore, Project, project_key
        from studio.label_config_writer import taxonomy_config

        self.files = sorted(folder.rglob("*.jpg"))
        paths = {file.relative_to(folder).parts[:-1] for file in self.files}
        self.tree = LabelTree.from_paths(sorted(paths))
        self.config = taxonomy_config(self.tree)
        self.site = f"http://127.0.0.1:{port}"
        self.home = home
        self.store = ModelStore(home / "models")
        key = project_key(self.site, PROJECT)
        self.project = self.store.register(Project(key, 1, PROJECT, self.site, self.config))
        self._salts = itertools.count()
        self._at = 0

    def publish(self, fingerprint: str, seed: int) -> None:
        """A new live version with fresh weights."""
        from hierarchy.choice import DepthRule
        from inference.manifest import Manifest
        from inference.predictor import build_head

        rule = DepthRule(0.9, 1e-6, ((1.0, 0.0),) * self.tree.depth)
        manifest = Manifest(
            tree=self.tree.to_json(),
            network={**HEAD, "seed": seed},
            backbone={"name": "+".join(NETWORKS), "fingerprint": fingerprint},
            calibration={"rule": rule.to_json()},
        )
        weights = build_head(self.tree, manifest.network).state_dict()
        version = self.store.publish(self.project.key, manifest, weights)
        self.store.point(self.project.key, version, reason="benchmark")

    def draw(self, count: int = PICTURES) -> list[int]:
        """The next photos' numbers."""
        self._at += count
        return [at % len(self.files) for at in range(self._at - count, self._at)]

    def new(self, numbers: Sequence[int]) -> dict[str, Any]:
        """A `/predict` about these photos, none of which any server has seen."""
        salt = f"data/{next(self._salts)}-"
        tasks = [
            {"id": at, "data": {"image": f"{self.site}/{salt}{os.getpid()}/{number}"}}
            for at, number in enumerate(numbers, 1)
        ]
        return {
            "tasks": tasks,
            "project": PROJECT,
            "label_config": self.config,
            "tree": self.tree.to_json(),
        }


# Measuring


def limit(bench: Bench, networks: Any, numbers: Sequence[int]) -> dict[str, float]:  # noqa: ANN401
    """Return the seconds of decode and resize, and of both networks' forward, of these images."""
    from inference.augmentation import prepare
    from studio.image_decoder import ImageLimits, decode

    data = [bench.files[number].read_bytes() for number in numbers]
    preparations = [backbone.preparation for backbone, _ in networks]
    enough = 2 * max(one.resize for one in preparations)

    def one(file: bytes) -> Any:  # noqa: ANN401 - pixels for each network
        image = decode(file, limits=ImageLimits(), at_least=enough)
        return [prepare(image, preparation) for preparation in preparations]

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(one, data[:4]))
        began = time.perf_counter()
        pixels = [np.stack(some) for some in zip(*pool.map(one, data), strict=True)]
        decoded = time.perf_counter()
    for (_, engine), some in zip(networks, pixels, strict=True):
        engine.vectors(some)
    ended = time.perf_counter()
    return {"limit": ended - began, "limit: decode": decoded - began}


def together(ports: int, asks: Sequence[dict[str, Any]]) -> dict[str, float]:
    """One-task requests from `CLIENTS` clients at once: requests a second, 95th percentile."""
    todo, seconds, lock = iter(asks), [], threading.Lock()

    def client() -> None:
        caller = Caller(ports)
        while True:
            with lock:
                body = next(todo, None)
            if body is None:
                return
            spent, _ = caller.ask("/predict", body)
            seconds.append(spent)

    threads = [threading.Thread(target=client) for _ in range(CLIENTS)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    spent = time.perf_counter() - began
    assert len(seconds) == len(asks)
    return {"a second": len(asks) / spent, "p95 s": float(np.quantile(seconds, 0.95))}


def turns(bench: Bench, ports: dict[str, int], count: int) -> dict[str, float]:
    """Medians over the rounds of what each took, and of the ratios within a round."""
    from inference.backbone import load_backbone
    from inference.engine import make_engine

    backbones = [load_backbone(name) for name in NETWORKS]
    engines = bench.home / "cache" / "engines"
    networks = [(one, make_engine(one, device="cpu", cache_dir=engines)) for one in backbones]
    fingerprint = "+".join(one.fingerprint for one in backbones)
    rows = []
    for turn in range(count + 1):
        numbers = bench.draw()
        row = limit(bench, networks, numbers)
        body = bench.new(numbers)
        row["new"], _ = Caller(ports["ours"]).ask("/predict", body)
        for name in ("example", "plain batch"):
            row[name], _ = Caller(ports[name]).ask("/predict", bench.new(numbers))
        bench.publish(fingerprint, turn + 1)
        row["seen, first of a version"], _ = Caller(ports["ours"]).ask("/predict", body)
        row["seen"], told = Caller(ports["ours"]).ask("/predict", body)
        assert len(told["results"]) == PICTURES, told
        assert all(one["result"] for one in told["results"])
        row["new against limit"] = row["limit"] / row["new"]
        row["example against new"] = row["example"] / row["new"]
        row["plain batch against new"] = row["plain batch"] / row["new"]
        row["new against seen"] = row["new"] / row["seen"]
        row["new against seen, first"] = row["new"] / row["seen, first of a version"]
        rows.append(row)
    return {name: median(row[name] for row in rows[1:]) for name in rows[0]}


def crowd(bench: Bench, ports: dict[str, int], count: int) -> dict[str, float]:
    """Many clients with one task each, with and without batches across requests."""
    rows = []
    for turn in range(count + 1):
        row: dict[str, float] = {}
        for name in ("ours", "alone") if turn % 2 else ("alone", "ours"):
            asks = [bench.new([number]) for number in bench.draw(6 * CLIENTS)]
            row |= {f"{name}, {k}": v for k, v in together(ports[name], asks).items()}
        row["throughput ratio"] = row["ours, a second"] / row["alone, a second"]
        row["p95 ratio"] = row["ours, p95 s"] / row["alone, p95 s"]
        rows.append(row)
    return {name: median(row[name] for row in rows[1:]) for name in rows[0]}


def busy(bench: Bench, port: int, log: Path, seconds: float) -> dict[str, float]:
    """The 99th percentiles of /health and /setup while the server is at work.

    On 64 pictures of one client, then while a training runs beside it, then for many clients.
    """
    found: dict[str, float] = {}
    for what in ("predicting", "predicting and training", "predicting for many"):
        clients, pictures = (CLIENTS, 1) if what.endswith("many") else (1, PICTURES)
        with ExitStack() as stack:
            if what.endswith("training"):
                stack.enter_context(running(["benchmarks.predict", "--train"], log))
                time.sleep(5)
            over = threading.Event()

            def predict(over: threading.Event = over, pictures: int = pictures) -> None:
                caller = Caller(port)
                while not over.is_set():
                    caller.ask("/predict", bench.new(bench.draw(pictures)))

            threads = [threading.Thread(target=predict) for _ in range(clients)]
            for thread in threads:
                thread.start()
            told: dict[str, list[float]] = {"/health": [], "/setup": []}
            caller, ends = Caller(port), time.perf_counter() + seconds
            introduced = {"project": PROJECT, "schema": bench.config, "hostname": bench.site}
            while time.perf_counter() < ends:
                told["/health"].append(caller.ask("/health")[0])
                told["/setup"].append(caller.ask("/setup", introduced)[0])
                time.sleep(0.01)
            over.set()
            for thread in threads:
                thread.join(60)
        found |= {f"{k} p99, {what}": float(np.quantile(v, 0.99)) for k, v in told.items()}
    return found


def memory(bench: Bench, port: int, server: int, tasks: int) -> dict[str, float]:
    """Resident GB after half of the tasks and after all, each of a picture that was not seen."""
    caller, found = Caller(port), {}
    for done in range(0, tasks, PICTURES):
        caller.ask("/predict", bench.new(bench.draw()))
        if done <= tasks // 2 < done + PICTURES:
            found["GB half-way"] = resident(server)
    family = [psutil.Process(server), *psutil.Process(server).children(recursive=True)]
    largest = max(process.memory_info().rss for process in family)
    return {
        **found,
        "GB in the end": resident(server),
        "GB of its largest process, shared pages counted whole": largest / 1e9,
    }


def resident(parent: int) -> float:
    """GB of a process and all below it; pages that they share are counted once each."""
    family = [psutil.Process(parent), *psutil.Process(parent).children(recursive=True)]
    total = 0
    for process in family:
        rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
        total += int(
            next(line for line in rollup.splitlines() if line.startswith("Pss:")).split()[1]
        )
    return total / 1e6


def main() -> None:
    """Measure, print a table, and write it where asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--long", action="store_true", help="10,000 predictions for the memory")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--pictures", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--rival", type=int, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--train", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    parts: list[tuple[bool, Callable[[], None]]] = [
        (asked.pictures is not None, lambda: serve_pictures(asked.data, asked.pictures)),
        (asked.rival is not None, lambda: serve_rival(*asked.rival)),
        (asked.alone, serve_alone),
        (asked.train, train_for_ever),
    ]
    for wanted, part in parts:
        if wanted:
            return part()
    found = measure(asked.data, rounds=asked.rounds, tasks=10_000 if asked.long else 1_280)
    for name, value in found.items():
        print(f"{name:40} {value:10.3f}")
    if asked.json:
        from evaluation.harness import machine

        told = {"machine": machine(), "cores": os.cpu_count(), "measured": found}
        asked.json.write_text(json.dumps(told, indent=1), encoding="utf-8")
    return None


def measure(data: Path, *, rounds: int, tasks: int) -> dict[str, float]:
    """All of it, in processes that end with it."""
    from inference.backbone import load_backbone

    folder, me = data / "train", "benchmarks.predict"
    ports = {name: free_port() for name in ("pictures", "ours", "alone", "example", "plain batch")}
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        home, log = Path(place), Path(place) / "log"

        def start(*words: str, **environment: str) -> int:
            return stack.enter_context(running(words, log, **environment)).pid

        start(me, "--data", str(folder), "--pictures", str(ports["pictures"]))
        bench = Bench(folder, home, ports["pictures"])
        mark = "+".join(load_backbone(name).fingerprint for name in NETWORKS)
        bench.publish(mark, 0)
        ours = {
            "LABEL_STUDIO_URL": bench.site,
            "HRN_DEVICE": "cpu",
            "HRN_HOME": str(home),
        }
        found: dict[str, float] = {}
        for name in ("ready-made cache", "ours"):  # the first start also converts the network
            began = time.perf_counter()
            with ExitStack() as once:
                keep = stack if name == "ours" else once
                keep.enter_context(
                    running(["cli", "serve"], log, **ours, HRN_PORT=str(ports["ours"]))
                )
                health = first_answer(ports["ours"], "/health", None, began)
                answer = first_answer(ports["ours"], "/predict", bench.new(bench.draw(1)), began)
                kind = "start" if name == "ours" else "very first start"
                found |= {f"{kind} to /health": health, f"{kind} to a prediction": answer}
        start(me, "--alone", **ours, HRN_PORT=str(ports["alone"]))
        start(me, "--rival", str(ports["example"]), "1")
        start(me, "--rival", str(ports["plain batch"]), str(PICTURES))
        for name in ("example", "plain batch"):
            first_answer(ports[name], "/health", None, time.perf_counter())
        one = bench.new(bench.draw(1))
        for name in ("alone", "ours"):
            first_answer(ports[name], "/predict", one, time.perf_counter())
        found |= _all(bench, ports, log, rounds=rounds)
        port = free_port()  # a server of its own: the others have seen many versions
        alone = start("cli", "serve", **ours, HRN_PORT=str(port))
        first_answer(port, "/predict", one, time.perf_counter())
        found |= memory(bench, port, alone, tasks)
    return found


def _all(bench: Bench, ports: dict[str, int], log: Path, *, rounds: int) -> dict[str, float]:
    try:
        return {
            **turns(bench, ports, rounds),
            **crowd(bench, ports, rounds),
            **busy(bench, ports["ours"], log, 15.0),
        }
    except BaseException:
        print(log.read_text(errors="replace")[-3000:], file=sys.stderr)
        raise


if __name__ == "__main__":
    main()
