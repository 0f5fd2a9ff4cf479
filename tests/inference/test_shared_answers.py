"""Calls of few pictures that come at the same time: worked out together, fetched apart."""

import hashlib
import io
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from hierarchy import LabelTree
from hierarchy.choice import DepthRule
from inference.answers import LANES, SharedAnswers, answers
from inference.backbone import Backbone, Card, Preparation
from inference.engine import Engine, TorchEngine
from inference.features import FeatureCache
from inference.gallery import Gallery
from inference.predictor import Answer, Predictor, build_head
from studio.errors import ImageError
from studio.image_fetcher import FetchedImage

SMALL = Preparation(36, 32)
TREE = LabelTree.from_paths([("a", "x"), ("a", "y"), ("b",)])
NETWORK = {"kind": "frozen", "channels": 8, "reduced": 4, "width": 6, "hidden": 5}


def fetched(ref: str, _task: int | None) -> FetchedImage:
    if not ref.isdecimal():
        raise ImageError("no such picture")
    pixels = np.random.default_rng(int(ref)).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return FetchedImage(hashlib.sha256(buffer.getvalue()).hexdigest(), buffer.getvalue())


@pytest.fixture(scope="module")
def engine() -> Engine:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Conv2d(3, 8, 8, stride=8), nn.ReLU6()).eval()
    return TorchEngine(Backbone(Card("tiny", 8, 4, SMALL, "tiny-0"), module))


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        head = build_head(TREE, NETWORK)
    return Predictor(
        version="v1",
        tree=TREE,
        head=head,
        rule=DepthRule(0.9, 1e-6, ((1.0, 0.0),) * TREE.depth),
        backbone=("tiny", "tiny-0"),
        backbone_weights={},
        manifest={},
    )


@pytest.fixture
def counted(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Pictures of each time that answers are worked out."""
    sizes: list[int] = []
    whole = predictor.answer

    def answer(maps: Any) -> list[Answer]:
        sizes.append(len(maps))
        return whole(maps)

    monkeypatch.setattr(predictor, "answer", answer)
    return sizes


def alike(found: list[Answer | ImageError], right: list[Answer | ImageError]) -> bool:
    """The same nodes, and errors at the same places."""
    told = [[getattr(one, "leaf", "error") for one in some] for some in (found, right)]
    return told[0] == told[1]


def test_they_are_those_of_each_call_alone(engine: Engine, predictor: Predictor) -> None:
    gallery = Gallery(fetched, engine, SMALL)
    shared = SharedAnswers(gallery, predictor)
    calls = [[(str(10 * call + at), None) for at in range(1 + call % 3)] for call in range(12)]
    calls[5].insert(0, ("gone", None))
    calls[6] = [("gone", None)]
    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(shared, calls))
    for call, own in zip(calls, found, strict=True):
        assert alike(own, answers(gallery, predictor, call))
    assert isinstance(found[5][0], ImageError)
    assert isinstance(found[5][1], Answer)


def test_those_who_wait_are_worked_out_at_once(
    engine: Engine, predictor: Predictor, counted: list[int]
) -> None:
    begun, go = threading.Semaphore(0), threading.Event()

    class Held(Engine):
        name = "held"

        def maps(self, batch: Any) -> Any:
            begun.release()
            assert go.wait(30)
            return engine.maps(batch)

    shared = SharedAnswers(Gallery(fetched, Held(), SMALL), predictor)
    with ThreadPoolExecutor(LANES + 6) as pool:
        first = [pool.submit(shared, [(str(at), None)]) for at in range(LANES)]
        for _ in range(LANES):
            assert begun.acquire(timeout=30)
        others = [pool.submit(shared, [(str(100 + at), None)]) for at in range(6)]
        while len(shared._together._queue) < 6:
            threading.Event().wait(0.001)
        go.set()
        assert all(isinstance(one.result(30)[0], Answer) for one in (*first, *others))
    assert sum(counted) == LANES + 6
    assert len(counted) <= 2 * LANES  # each lane once more at most


def test_pictures_seen_before_do_not_wait_for_the_network(
    engine: Engine, predictor: Predictor, tmp_path: Path
) -> None:
    begun, go = threading.Semaphore(0), threading.Event()

    class Held(Engine):
        name = "held"

        def maps(self, batch: Any) -> Any:
            begun.release()
            assert go.wait(30)
            return engine.maps(batch)

    kept = FeatureCache(tmp_path, "tiny-0")
    Gallery(fetched, engine, SMALL, cache=kept).maps([("7", None)])
    shared = SharedAnswers(Gallery(fetched, Held(), SMALL, cache=kept), predictor)
    with ThreadPoolExecutor(LANES + 1) as pool:
        new = [pool.submit(shared, [(str(100 + at), None)]) for at in range(LANES)]
        try:
            for _ in range(LANES):
                assert begun.acquire(timeout=30)
            assert isinstance(pool.submit(shared, [("7", None)]).result(30)[0], Answer)
            assert not any(one.done() for one in new)
        finally:
            go.set()
        assert all(isinstance(one.result(30)[0], Answer) for one in new)


def test_nobody_waits_for_anothers_storage(engine: Engine, predictor: Predictor) -> None:
    slow = threading.Event()

    def fetch(ref: str, task: int | None) -> FetchedImage:
        if ref == "0":
            assert slow.wait(30)
        return fetched(ref, task)

    shared = SharedAnswers(Gallery(fetch, engine, SMALL), predictor)
    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(shared, [("0", None)]) for _ in range(LANES + 2)]
        others = [pool.submit(shared, [(str(at), None)]) for at in range(1, 4)]
        assert all(isinstance(one.result(30)[0], Answer) for one in others)
        assert not any(one.done() for one in waiting)
        slow.set()
        assert all(isinstance(one.result(30)[0], Answer) for one in waiting)
