"""Shared by the benchmarks: processes, photos as tasks, a live version, the report."""

import argparse
import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hierarchy import LabelTree
from hierarchy.depth_selection import DepthRule

if TYPE_CHECKING:  # processes that only send photos do not wait for torch
    from inference.store import ModelStore
    from studio.image_fetcher import FetchedImage

HERE: Final = Path(__file__).resolve().parents[1]


def arguments(doc: str | None, *, data: bool = True) -> argparse.ArgumentParser:
    """Make a parser with the options that all benchmarks have."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=data, help="folder of labelled photos")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    return parser


def report(found: Mapping[str, Any], file: Path | None) -> None:
    """Print figures with the machine that they are of, and write them where asked."""
    from evaluation.harness import machine

    text = json.dumps({"machine": machine(), **found}, indent=1)
    print(text)
    if file is not None:
        file.write_text(text + "\n", encoding="utf-8")


@contextmanager
def running(
    words: Sequence[str], log: Path, **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a module of ours in a process that ends with the block."""
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


@contextmanager
def redis(home: Path) -> Iterator[str]:
    """Yield REDIS_URL, or an embedded server's address until the block ends."""
    from cli import redis_server

    if known := os.environ.get("REDIS_URL"):
        yield known
        return
    process = subprocess.Popen(redis_server.arguments(home), stdout=subprocess.DEVNULL)
    try:
        while not redis_server.answers(redis_server.url(home)):
            time.sleep(0.05)
        yield redis_server.url(home)
    finally:
        process.terminate()
        process.wait(20)


def free_port() -> int:
    """Return a port that nothing listens on now."""
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return int(made.getsockname()[1])


def tree_of(folder: Path) -> LabelTree:
    """Read the label tree of a folder of folders."""
    files = folder.rglob("*.jpg")
    return LabelTree.from_paths(sorted({file.relative_to(folder).parts[:-1] for file in files}))


def photos(folder: Path) -> "Callable[[str, int | None], FetchedImage]":
    """Return a fetcher that gives the nth photo, over and over, each time with another end."""
    from studio.image_fetcher import FetchedImage

    files = sorted(folder.rglob("*.jpg"))

    def fetch(ref: str, _task: int | None) -> FetchedImage:
        number = int(Path(ref).stem)
        data = files[number % len(files)].read_bytes() + str(number).encode()
        return FetchedImage(hashlib.sha256(data).hexdigest(), data)

    return fetch


def sure_rule(tree: LabelTree) -> DepthRule:
    """Return a depth rule that shows the deepest node of every image."""
    return DepthRule(0.9, 1e-6, ((1.0, 0.0),) * tree.depth)


def publish(
    store: "ModelStore",
    key: str,
    tree: LabelTree,
    network: Mapping[str, Any],
    backbone: Mapping[str, str],
) -> str:
    """Publish a version with fresh weights that shows the deepest node of every image."""
    from inference.manifest import Manifest
    from inference.predictor import build_head

    manifest = Manifest(
        tree=tree.to_json(),
        network=network,
        backbone=backbone,
        calibration={"rule": sure_rule(tree).to_json()},
    )
    version = store.publish(key, manifest, build_head(tree, network).state_dict())
    store.point(key, version, reason="benchmark")
    return version
