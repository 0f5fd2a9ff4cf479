"""Hosts that share a Redis and a bucket, and nothing else, run the loop together."""

import itertools
import signal
from collections.abc import Iterator

import pytest
import requests

from tests.backend.conftest import asking
from tests.buckets import BUCKET, s3
from tests.chaos.ledger import Ledger
from tests.chaos.site import Site, running

pytestmark = pytest.mark.slow

PATIENCE = 180.0
HOSTS = ("a", "b")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Two of each role, each pair in a home of its own; versions on a server that speaks S3."""
    roles = ["redis", *(f"{role}@{host}" for host in HOSTS for role in ROLES)]
    home = tmp_path_factory.mktemp("site")
    with s3(), running(home, roles, store_url=f"s3://{BUCKET}/hrn") as made:
        made.until(lambda: len(made.board.workers()) == 2, PATIENCE, "two workers")
        yield made


ROLES = ("worker", "reconcile", "serve")


def told(site: Site) -> list[dict[str, object]]:
    """What each server answers about three pictures."""
    body = asking(site.project, [f"/data/upload/1/{number}.png" for number in (1, 2, 3)])
    found = []
    for url in site.urls:
        reply = requests.post(f"{url}/predict", json=body, timeout=60)
        assert reply.status_code == 200, reply.text
        found.append(reply.json())
    return found


def both_show(site: Site, version: str | None) -> bool:
    return all(one["model_version"] == version for one in told(site))


def test_each_learns_and_both_serve_what_either_has_learnt(site: Site, ledger: Ledger) -> None:
    for _ in range(3):
        site.town.answer(8)
        version = site.until(site.learnt, PATIENCE, "learning").version
        live = site.store.current(site.key)
        assert int(str(live)[1:]) <= int(version[1:])
        site.until(lambda live=live: both_show(site, live), 10, "both servers")  # type: ignore[misc]
        first, second = told(site)
        assert first["results"] == second["results"]
    runs = sorted(site.board.runs(site.key), key=lambda run: float(run["started_at"]))
    assert all(a["ended_at"] <= b["started_at"] + 0.01 for a, b in itertools.pairwise(runs))
    assert site.check() >= 1
    for host in HOSTS:
        assert not (site.home / host / "models").exists()
    ledger.tell("two hosts with Redis and a bucket", len(runs), note="trainings, one at a time")


def test_a_rollback_on_one_host_is_followed_by_the_other(site: Site) -> None:
    before = site.store.previous(site.key)
    assert before is not None
    site.store.point(site.key, before, reason="rollback")
    site.until(lambda: both_show(site, before), 10, "both servers")


def test_a_host_that_is_lost_is_replaced_by_the_other(site: Site, ledger: Ledger) -> None:
    for role in ("worker", "reconcile"):
        child = site.child(f"{role}@a")
        site.supervisor.children.remove(child)
        assert child.process is not None
        child.process.send_signal(signal.SIGKILL)
        child.process.wait(10)
    site.town.answer(8)
    with ledger.recovery("one of two hosts lost"):
        site.until(site.learnt, PATIENCE, "learning on the other host")
    site.check()
