"""A full disk or one that cannot be written: the live version stays, and the reason is told."""

import logging
from pathlib import Path

import numpy as np
import pytest

from models.errors import ModelStoreError
from models.features import FeatureCache, as_kept
from models.store import ModelStore
from tests.chaos.full_disk import full
from tests.chaos.ledger import Ledger
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
    cache = FeatureCache(tmp_path, "backbone")
    maps = np.random.default_rng(0).random((64, 7, 7)).astype(np.float32)
    with full(1000), caplog.at_level(logging.WARNING):
        for number in range(3):
            kept = cache.put(f"{number:064x}", maps)
            assert (kept == as_kept(maps)).all()
    assert caplog.text.count("feature cache does not work, going on without") == 1
    assert cache.get(f"{0:064x}") is None
    cache.put(f"{0:064x}", maps)
    assert cache.get(f"{0:064x}") is not None
    ledger.tell("disk full", note="caching")


def test_a_store_that_cannot_be_written_is_told_and_still_served(tmp_path: Path) -> None:
    """A file where a folder should be stops every user, root too."""
    (tmp_path / "models").write_text("no folder", encoding="utf-8")
    with pytest.raises(ModelStoreError, match="cannot write to the model store"):
        ModelStore(tmp_path / "models").check_writable()
