"""Feature vectors come back as they were kept, or not at all, whatever happens to the file."""

import hashlib
import multiprocessing
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from inference import feature_cache
from inference.feature_cache import FeatureCache, Vectors

DAY = 24 * 3600
LITE, VIT = "lite0-0123456789ab", "vit-ba9876543210"


def key(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def keys(count: int, start: int = 0) -> list[str]:
    return [key(number) for number in range(start, start + count)]


def vectors(count: int, channels: int = 24, seed: int = 0) -> Vectors:
    return np.random.default_rng(seed).normal(size=(count, channels)).astype(np.float16)


def keep(cache: FeatureCache, count: int, *, start: int = 0, kind: int = 0) -> Vectors:
    made = vectors(count, seed=start + kind)
    cache.write([(one, kind) for one in keys(count, start)], LITE, made)
    return made


def all_of(cache: FeatureCache, count: int, start: int = 0) -> bool:
    return bool(cache.read(keys(count, start), LITE, 24)[0].all())


def change(folder: Path, statement: str) -> None:
    with sqlite3.connect(folder / "features.sqlite") as database:
        database.execute(statement)
    database.close()


def test_vectors_come_back_in_the_order_asked_for(tmp_path: Path) -> None:
    made = keep(FeatureCache(tmp_path), 1200)
    order = [1100, 3, 3, 700]
    found, again = FeatureCache(tmp_path).read([key(at) for at in order], LITE, 24)
    assert found.all()
    assert again.dtype == np.float16
    np.testing.assert_array_equal(again, made[order])
    found, again = FeatureCache(tmp_path).read(keys(1200), LITE, 24)
    np.testing.assert_array_equal(again, made)


def test_images_networks_and_augmentations_are_kept_apart(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)
    plain, mirrored = keep(cache, 3), keep(cache, 3, kind=1)
    cache.write([(key(0), 0)], VIT, vectors(1, channels=7, seed=9))
    np.testing.assert_array_equal(cache.read(keys(3), LITE, 24)[1], plain)
    np.testing.assert_array_equal(cache.read(keys(3), LITE, 24, augmentation=1)[1], mirrored)
    assert cache.read(keys(3), VIT, 7)[0].tolist() == [True, False, False]
    assert cache.holds(keys(3), VIT).tolist() == [True, False, False]
    assert not cache.holds(keys(3), LITE, augmentation=2).any()


def test_what_is_missing_is_told_and_zero(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)
    assert cache.read([], LITE, 24)[1].shape == (0, 24)
    made = keep(cache, 1)
    found, rows = cache.read(keys(2), LITE, 24)
    assert found.tolist() == [True, False]
    np.testing.assert_array_equal(rows, np.concatenate([made, np.zeros_like(made)]))


def test_the_newest_vector_holds(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)
    keep(cache, 1)
    other = vectors(1, seed=5)
    cache.write([(key(0), 0)], LITE, other)
    np.testing.assert_array_equal(cache.read(keys(1), LITE, 24)[1], other)
    assert cache.size().vectors == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_not_kept(bad: float, tmp_path: Path) -> None:
    cache, made = FeatureCache(tmp_path), vectors(3)
    made[1, 7] = bad
    cache.write([(one, 0) for one in keys(3)], LITE, made)
    assert cache.holds(keys(3), LITE).tolist() == [True, False, True]


# --- damage ---


@pytest.mark.parametrize(
    "damage",
    [
        "zeroblob(length(vector))",
        "substr(vector, 2) || x'00'",
        "substr(vector, 1, 20)",
        "x''",
        "'some text'",
        "7",
    ],
)
def test_a_damaged_row_is_missing_and_may_be_kept_again(damage: str, tmp_path: Path) -> None:
    made = keep(FeatureCache(tmp_path), 3)
    key_1 = f"image = x'{key(1)}'"
    change(tmp_path, f"UPDATE features SET vector = {damage} WHERE {key_1}")  # noqa: S608 - ours
    cache = FeatureCache(tmp_path)
    assert cache.read(keys(3), LITE, 24)[0].tolist() == [True, False, True]
    cache.write([(key(1), 0)], LITE, made[1:2])
    np.testing.assert_array_equal(cache.read(keys(3), LITE, 24)[1], made)


def test_a_vector_of_another_length_is_missing(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)
    keep(cache, 1)
    assert not cache.read(keys(1), LITE, 12)[0].any()


@pytest.mark.parametrize("content", [b"half", b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_file_that_is_no_database_is_begun_again(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "features.sqlite").write_bytes(content)
    cache = FeatureCache(tmp_path)
    keep(cache, 3)
    keep(cache, 3)
    assert all_of(cache, 3)
    assert all_of(FeatureCache(tmp_path), 3)
    assert caplog.text.count("features.sqlite does not work") == 1


def test_a_file_that_is_overwritten_while_it_is_open_costs_what_it_held(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)
    keep(cache, 2000)
    cache.prune(10**9)  # from the journal into the file
    (file := tmp_path / "features.sqlite").write_bytes(b"\xff" * file.stat().st_size)
    for _ in range(4):  # each of the two connections meets it
        keep(cache, 3)
        cache.read(keys(3), LITE, 24)
    assert all_of(cache, 3)
    assert all_of(FeatureCache(tmp_path), 3)


def test_a_removed_folder_is_made_again(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path / "cache")
    keep(cache, 3)
    for file in (tmp_path / "cache").iterdir():
        file.unlink()
    (tmp_path / "cache").rmdir()
    assert not cache.holds(keys(3), LITE).any()
    keep(cache, 3)
    assert all_of(FeatureCache(tmp_path / "cache"), 3)


def test_a_folder_that_cannot_be_made_costs_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = FeatureCache(tmp_path / "file" / "cache")
    for _ in range(3):
        keep(cache, 3)
    assert not cache.read(keys(3), LITE, 24)[0].any()
    assert not cache.holds(keys(3), LITE).any()
    assert (cache.size().vectors, cache.prune(0)) == (0, 0)
    assert caplog.text.count("features.sqlite does not work") == 2  # to read, and to write


def test_a_full_disk_keeps_what_it_has(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = FeatureCache(tmp_path)
    keep(cache, 100)
    cache._writing.run(lambda db: db.execute("PRAGMA max_page_count = 10").fetchall())
    for start in range(1000, 9000, 1000):
        keep(cache, 1000, start=start)
    assert all_of(cache, 100)
    assert not cache.holds(keys(1000, 8000), LITE).any()
    assert caplog.text.count("database or disk is full") == 1


# --- size ---


def test_eviction_takes_what_was_not_used_for_longest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_cache, "_EVICTED_AT_ONCE", 100)
    cache, now = FeatureCache(tmp_path), time.time()
    for age in (30, 20, 10):
        monkeypatch.setattr(time, "time", lambda age=age: now - age * DAY)
        cache.write([(one, 0) for one in keys(300, 300 * age)], LITE, vectors(300, 600))
    monkeypatch.setattr(time, "time", lambda: now)
    assert cache.read(keys(300, 300 * 30), LITE, 600)[0].all()  # the oldest are used again
    whole = cache.size()
    assert whole.vectors == 900
    freed = cache.prune(whole.nbytes * 3 // 4)
    assert freed >= whole.nbytes // 4
    assert not cache.holds(keys(200, 300 * 20), LITE).any()
    assert cache.holds(keys(300, 300 * 10), LITE).all()
    assert cache.holds(keys(300, 300 * 30), LITE).all()
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < whole.nbytes


def test_a_use_within_a_week_is_not_noted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, now = FeatureCache(tmp_path), time.time()
    keep(cache, 1)

    def used() -> int:
        noted = cache._reading.run(lambda db: db.execute("SELECT used FROM features").fetchone())
        assert noted is not None
        return int(noted[0])

    first = used()
    monkeypatch.setattr(time, "time", lambda: now + 6 * DAY)
    cache.read(keys(1), LITE, 24)
    assert used() == first
    monkeypatch.setattr(time, "time", lambda: now + 7 * DAY)
    cache.read(keys(1), LITE, 24)
    assert used() == first + 7


def test_pruning_to_nothing_leaves_nothing(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)
    keep(cache, 30)
    cache.prune(0)
    assert cache.size().vectors == 0
    keep(cache, 30)
    assert all_of(cache, 30)


# --- many at once ---


def _write_many(folder: Path, start: int) -> None:
    cache = FeatureCache(folder)
    for number in range(start, start + 200, 10):
        keep(cache, 10, start=number)


def test_threads_and_processes_share_it(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    others = [spawn.Process(target=_write_many, args=(tmp_path, at)) for at in (1000, 2000)]
    for other in others:
        other.start()
    cache = FeatureCache(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda at: keep(cache, 10, start=at), range(0, 200, 10)))
        list(pool.map(lambda _: cache.read(keys(200), LITE, 24), range(20)))
    for other in others:
        other.join(60)
        assert other.exitcode == 0
    for start in (0, 1000, 2000):
        assert all_of(cache, 200, start)


def test_a_reader_does_not_wait_for_a_writer(tmp_path: Path) -> None:
    made = keep(cache := FeatureCache(tmp_path), 10)
    writer = sqlite3.connect(tmp_path / "features.sqlite", isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    began = time.monotonic()
    np.testing.assert_array_equal(cache.read(keys(10), LITE, 24)[1], made)
    assert time.monotonic() - began < 2
    writer.close()


def _read_and_write(cache: FeatureCache, told: "multiprocessing.SimpleQueue[bool]") -> None:
    told.put(all_of(cache, 10))
    keep(cache, 10, start=100)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_has_connections_of_its_own(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)
    keep(cache, 10)
    assert all_of(cache, 10)
    fork = multiprocessing.get_context("fork")
    told = fork.SimpleQueue()
    child = fork.Process(target=_read_and_write, args=(cache, told))
    child.start()
    assert told.get()
    child.join(60)
    assert all_of(cache, 10, start=100)
