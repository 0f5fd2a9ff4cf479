"""A server that is killed under load: what was answered was right, and it is back by itself."""

import random
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests

from tests.backend.conftest import asking
from tests.chaos.ledger import Ledger
from tests.chaos.site import SEED, Site, running

pytestmark = [pytest.mark.slow, pytest.mark.alone]


@pytest.fixture
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with running(
        tmp_path_factory.mktemp("site"), ["redis", "worker", "reconcile", "serve"]
    ) as made:
        made.town.answer(12)
        made.until(made.learnt, 180, "the first version")
        yield made


def answered(site: Site, body: dict[str, Any]) -> dict[str, Any] | None:
    """What it told, None where nobody was there to tell."""
    try:
        reply = requests.post(f"{site.urls[0]}/predict", json=body, timeout=60)
    except requests.ConnectionError:
        return None
    assert reply.status_code == 200
    told: dict[str, Any] = reply.json()
    return told


def shown(told: dict[str, Any]) -> list[tuple[Any, Any]]:
    """Labels and scores, without the last digits, which depend on who was answered together."""
    return [
        (region["value"], pytest.approx(region["score"], abs=1e-4))
        for one in told["results"]
        for region in one["result"]
    ]


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_a_server_killed_under_load_answers_nothing_wrongly(site: Site, ledger: Ledger) -> None:
    body = asking(site.project, [f"/data/upload/1/{number}.png" for number in (1, 2, 3)])
    right = answered(site, body)
    assert right is not None
    done = threading.Event()
    kills, longest, draw = 5, 0.0, random.Random(SEED)

    def keep_asking() -> tuple[int, int]:
        told = missed = 0
        while not done.is_set():
            if (one := answered(site, body)) is None:
                missed += 1
                time.sleep(0.2)
            else:
                assert shown(one) == shown(right)
                told += 1
        return told, missed

    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(keep_asking) for _ in range(8)]
        try:
            for _ in range(kills):
                time.sleep(draw.uniform(1, 3))
                site.signal("serve", signal.SIGKILL)
                began = time.monotonic()
                time.sleep(0.1)
                site.until(lambda: answered(site, body), 120, "a server that is back")
                longest = max(longest, time.monotonic() - began)
        finally:
            done.set()
    counts = [one.result() for one in asked]
    told, missed = (sum(some) for some in zip(*counts, strict=True))
    assert told > 0
    ledger.tell(
        "server killed under load", kills, longest, f"{told} answers, all right; {missed} refused"
    )
