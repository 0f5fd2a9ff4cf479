"""Redis and Label Studio go away in every way: predictions go on, and what was wished for comes."""

import signal
import time
from collections.abc import Iterator

import pytest
import requests
from redis import Redis

from tests.chaos.ledger import Ledger
from tests.chaos.site import Site, predicted, running
from tests.studio.servers import Reply

pytestmark = pytest.mark.slow

PATIENCE = 180.0


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """With a version that is live, and a server."""
    roles = ["redis", "worker", "reconcile", "serve"]
    with running(tmp_path_factory.mktemp("site"), roles) as made:
        made.town.answer(12)
        made.until(made.learnt, PATIENCE, "the first version")
        yield made


def quick(site: Site) -> None:
    """The routes that Label Studio waits for are answered."""
    assert requests.get(f"{site.urls[0]}/health", timeout=5).status_code == 200
    setup = {
        "project": site.project.project,
        "schema": site.project.label_config,
        "hostname": site.town.url,
        "access_token": "",
    }
    assert requests.post(f"{site.urls[0]}/setup", json=setup, timeout=5).status_code == 200


def test_a_redis_that_is_killed_and_comes_back_empty_costs_nothing(
    site: Site, ledger: Ledger
) -> None:
    before = predicted(site)
    site.town.answer(8)
    site.empty_redis()
    assert predicted(site) == before
    quick(site)
    with ledger.recovery("Redis killed, back empty"):
        site.until(site.learnt, PATIENCE, "learning after an empty Redis")
    site.check()


@pytest.mark.parametrize("seconds", [5, pytest.param(30, marks=pytest.mark.chaos)])
def test_a_redis_that_stands_still_stops_no_prediction(
    site: Site, seconds: float, ledger: Ledger
) -> None:
    before = predicted(site)
    site.signal("redis", signal.SIGSTOP)
    try:
        site.town.answer(8)
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            assert predicted(site) == before
            quick(site)
    finally:
        site.signal("redis", signal.SIGCONT)
    with ledger.recovery("Redis paused", f"{seconds:g} s"):
        site.until(site.learnt, PATIENCE, "learning after a pause")


def test_a_redis_without_memory_stops_no_prediction(site: Site, ledger: Ledger) -> None:
    before = predicted(site)
    with Redis.from_url(site.settings.redis_url) as redis:
        redis.config_set("maxmemory-policy", "noeviction")
        redis.config_set("maxmemory", 1)
        site.town.answer(8)
        assert predicted(site) == before
        quick(site)
        body = {"action": "ANNOTATION_CREATED", "project": {"id": 1}}
        assert requests.post(f"{site.urls[0]}/webhook", json=body, timeout=20).status_code == 201
        time.sleep(3)
    with Redis.from_url(site.settings.redis_url) as redis:
        redis.config_set("maxmemory", 0)
    with ledger.recovery("Redis out of memory"):
        site.until(site.learnt, PATIENCE, "learning once there is memory")


@pytest.mark.parametrize(
    "ill",
    [
        Reply({"detail": "Invalid token."}, 401),
        pytest.param(Reply({"detail": "slow down"}, 429), marks=pytest.mark.chaos),
        pytest.param(Reply({"detail": "oops"}, 500), marks=pytest.mark.chaos),
        pytest.param(Reply(b"", 0), marks=pytest.mark.chaos),
        pytest.param(
            Reply(b"<html>maintenance</html>", 200, {"Content-Type": "text/html"}),
            marks=pytest.mark.chaos,
        ),
    ],
    ids=["401", "429", "500", "hangs up", "HTML"],
)
def test_a_label_studio_that_is_ill_makes_trainings_wait_with_a_reason(
    site: Site, ill: Reply, ledger: Ledger
) -> None:
    site.until(lambda: site.board.state(site.key)[0] == "idle", PATIENCE, "rest")
    runs, versions = len(site.board.runs(site.key)), len(site.store.versions(site.key))
    site.town.ill = ill
    try:
        for _ in range(8):
            site.board.note_event(site.key)
        run = site.until(lambda: site.board.runs(site.key)[: -runs or None], PATIENCE, "a reason")[
            0
        ]
        assert run["state"] == "postponed"
        assert "tried again in 30 s" in run["why"]
        quick(site)
        time.sleep(5)
        assert len(site.board.runs(site.key)) == runs + 1  # no loop
    finally:
        site.town.ill = None
    site.town.answer(8)
    what = {0: "hangs up", 200: "a web page"}.get(ill.status, str(ill.status))
    with ledger.recovery("Label Studio answers with an error", what):
        site.until(site.learnt, PATIENCE, "learning once it is well")
    assert len(site.store.versions(site.key)) > versions


@pytest.mark.chaos
def test_a_label_studio_that_is_slow_holds_up_trainings_and_nothing_else(
    site: Site, ledger: Ledger
) -> None:
    before, live = predicted(site), site.store.current(site.key)
    site.town.slow = 4.0
    try:
        site.town.answer(8)
        ends = time.monotonic() + 20
        while time.monotonic() < ends:
            assert predicted(site) == before
            began = time.monotonic()
            quick(site)
            assert time.monotonic() - began < 1.5
        assert site.store.current(site.key) == live
    finally:
        site.town.slow = 0.0
    with ledger.recovery("Label Studio takes 4 s for each answer"):
        site.until(site.learnt, PATIENCE, "learning once it is quick")
