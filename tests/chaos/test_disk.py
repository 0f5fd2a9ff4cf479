"""A full disk or one that cannot be written: the live version stays, and the reason is told."""

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import requests

from inference.errors import ModelStoreError
from inference.feature_cache import FeatureCache
from inference.store import ModelStore
from tests.chaos import mounts
from tests.chaos.full_disk import full
from tests.chaos.ledger import Ledger
from tests.chaos.site import Site, predicted, running
from tests.published import project, publish


def test_a_disk_that_fills_while_publishing_leaves_the_live_version(
    tmp_path: Path, ledger: Ledger
) -> None:
    store = ModelStore(tmp_path)
    known = store.register(project("http://studio.example"))
    publish(store, known)
    weights = store.weights(known.key, "v1")
    with full(10_000), pytest.raises(ModelStoreError, match="cannot write to the model store"):
        publish(store, known)
    assert store.current(known.key) == "v1"
    assert store.versions(known.key) == ["v1"]
    assert store.weights(known.key, "v1").keys() == weights.keys()
    assert not list(tmp_path.rglob(".new-*"))
    assert publish(store, known) == "v2"
    ledger.tell("disk full", note="publishing")


def test_a_disk_that_fills_while_pointing_leaves_the_pointer(
    tmp_path: Path, ledger: Ledger
) -> None:
    store = ModelStore(tmp_path)
    known = store.register(project("http://studio.example"))
    publish(store, known)
    publish(store, known)
    with full(0), pytest.raises(ModelStoreError, match="cannot write to the model store"):
        store.point(known.key, "v1", reason="rollback")
    assert store.current(known.key) == "v2"
    ledger.tell("disk full", note="promoting")


def test_a_cache_without_room_gives_way_and_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, ledger: Ledger
) -> None:
    cache, key = FeatureCache(tmp_path), f"{7:064x}"
    vectors = np.random.default_rng(0).random((1, 1280)).astype(np.float16)
    with full(1000), caplog.at_level(logging.WARNING):
        for _ in range(3):
            cache.write([(key, 0)], "network", vectors)
            assert not cache.read([key], "network", 1280)[0].any()
    assert caplog.text.count("features.sqlite does not work, going on without") == 2  # each way
    cache.write([(key, 0)], "network", vectors)
    np.testing.assert_array_equal(cache.read([key], "network", 1280)[1], vectors)
    ledger.tell("disk full", note="caching")


def test_a_store_that_cannot_be_written_is_told_and_still_served(tmp_path: Path) -> None:
    """A file where a folder should be stops every user, root too."""
    (tmp_path / "models").write_text("no folder", encoding="utf-8")
    with pytest.raises(ModelStoreError, match="cannot write to the model store"):
        ModelStore(tmp_path / "models").check_writable()


PATIENCE = 180.0
ROLES = ["redis", "worker", "reconcile", "serve"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Everything it writes is on a disk of 200 MB, its logs on one of half a megabyte."""
    home = tmp_path_factory.mktemp("site")
    with mounts.disk(home, 200), mounts.disk(home / "logs", 0.5), running(home, ROLES) as made:
        made.town.answer(12)
        made.until(made.learnt, PATIENCE, "the first version")
        yield made


def readiness(site: Site) -> str:
    """What `/ready` complains of, empty while all is well."""
    reply = requests.get(f"{site.urls[0]}/ready", timeout=30)
    return "" if reply.ok else reply.text


@pytest.mark.slow
@pytest.mark.chaos
def test_a_disk_that_is_full_stops_no_prediction_and_work_goes_on_once_there_is_room(
    site: Site, ledger: Ledger
) -> None:
    before, live = predicted(site), site.store.current(site.key)
    with mounts.full(site.home):
        site.town.answer(8)
        told = site.until(lambda: readiness(site), PATIENCE, "a reason")
        assert "No space left" in told or "cannot write" in told
        ends = time.monotonic() + 15
        while time.monotonic() < ends:
            assert predicted(site) == before
            assert len(predicted(site, *range(13, 19))) == 6  # not seen before: not to be cached
        assert site.store.current(site.key) == live
    with ledger.recovery("disk full", "all of HRN_HOME, 15 s"):
        site.until(site.learnt, PATIENCE, "learning once there is room")
        site.until(lambda: not readiness(site), PATIENCE, "readiness")
    site.check()


@pytest.mark.slow
@pytest.mark.chaos
def test_a_store_that_is_read_only_makes_trainings_wait_with_a_reason(
    site: Site, ledger: Ledger
) -> None:
    before, live = predicted(site), site.store.current(site.key)
    runs = len(site.board.runs(site.key))
    with mounts.read_only(site.settings.store):
        site.town.answer(8)
        run = site.until(lambda: site.board.runs(site.key)[: -runs or None], PATIENCE, "a reason")
        assert run[0]["state"] == "postponed"
        assert "Read-only file system" in run[0]["why"]
        assert "Read-only file system" in readiness(site)
        assert predicted(site) == before
        assert site.store.current(site.key) == live
    with ledger.recovery("disk read-only", "the model store"):
        site.until(site.learnt, PATIENCE, "learning once it can be written")
    site.check()


@pytest.mark.slow
@pytest.mark.chaos
def test_a_cache_that_is_read_only_costs_time_only(site: Site, ledger: Ledger) -> None:
    before = predicted(site)
    with mounts.read_only(site.settings.cache):
        site.town.answer(8)
        assert predicted(site) == before
        with ledger.recovery("disk read-only", "the cache"):
            site.until(site.learnt, PATIENCE, "learning without a cache")
        assert len(predicted(site, *range(30, 36))) == 6


@pytest.mark.slow
@pytest.mark.chaos
def test_logs_on_a_full_disk_stop_nothing(site: Site, ledger: Ledger) -> None:
    with mounts.full(site.home / "logs"):
        site.town.answer(8)
        with ledger.recovery("disk full", "logs"):
            site.until(site.learnt, PATIENCE, "learning without logs")
        site.child("worker").process.kill()  # type: ignore[union-attr] # the next one logs nothing either
        site.town.answer(8)
        site.until(site.learnt, PATIENCE, "learning with a new worker")
        assert len(predicted(site)) == 3
