"""A reference leads to the image that it led to, for a while, and never costs an answer."""

import hashlib
import multiprocessing
import os
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from inference import cache_database
from inference.cache_database import CacheDatabase
from inference.reference_index import ReferenceIndex

A, B, C = (hashlib.sha256(name).hexdigest() for name in (b"a", b"b", b"c"))
HOUR = 3600.0


def age(root: Path, seconds: float) -> None:
    """Make all that is known so much older."""
    with sqlite3.connect(root / "references.sqlite") as base:
        base.execute("UPDATE seen SET at = at - ?", (seconds,))
    base.close()


def test_a_reference_is_known_after_it_was_seen(tmp_path: Path) -> None:
    index = ReferenceIndex(tmp_path)
    assert index.known(["s3://bucket/a.jpg"], HOUR) == [None]
    index.remember([("s3://bucket/a.jpg", A)])
    again = ReferenceIndex(tmp_path)
    assert again.known(["s3://bucket/b.jpg", "s3://bucket/a.jpg"], HOUR) == [None, A]
    assert again.known([], HOUR) == []


def test_many_are_remembered_in_one_go(tmp_path: Path) -> None:
    index = ReferenceIndex(tmp_path)
    index.remember([])
    index.remember([(str(number), (A, B)[number % 2]) for number in range(300)])
    assert index.known(["0", "299", "300"], HOUR) == [A, B, None]


def test_a_reference_is_forgotten_after_its_time(tmp_path: Path) -> None:
    index = ReferenceIndex(tmp_path)
    index.remember([("/data/a.jpg", A)])
    age(tmp_path, 2 * HOUR)
    assert index.known(["/data/a.jpg"], HOUR) == [None]
    assert index.known(["/data/a.jpg"], 3 * HOUR) == [A]


def test_seeing_a_reference_again_renews_it(tmp_path: Path) -> None:
    index = ReferenceIndex(tmp_path)
    index.remember([("/data/a.jpg", A)])
    age(tmp_path, 2 * HOUR)
    index.remember([("/data/a.jpg", B)])
    assert index.known(["/data/a.jpg"], HOUR) == [B]


@pytest.mark.parametrize("content", [b"", b"half", b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_damaged_index_begins_anew(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "references.sqlite").write_bytes(content)
    index = ReferenceIndex(tmp_path)
    assert index.known(["/data/a.jpg"], HOUR) == [None]
    index.remember([("/data/a.jpg", A)])
    assert index.known(["/data/a.jpg"], HOUR) == [A]
    assert ReferenceIndex(tmp_path).known(["/data/a.jpg"], HOUR) == [A]


def test_references_are_not_written_down(tmp_path: Path) -> None:
    ReferenceIndex(tmp_path).remember([("https://host/a.jpg?signature=secret", A)])
    stored = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert bytes.fromhex(A) in stored
    assert b"secret" not in stored


def test_odd_references_are_taken(tmp_path: Path) -> None:
    index = ReferenceIndex(tmp_path)
    for ref, digest in (("", A), ("ä/\0/../\ud800", B), ("x" * 10_000, C)):
        index.remember([(ref, digest)])
        assert index.known([ref], HOUR) == [digest]


def test_pruning_forgets_what_is_old(tmp_path: Path) -> None:
    index = ReferenceIndex(tmp_path)
    index.remember([("old", A)])
    age(tmp_path, 2 * HOUR)
    index.remember([("new", B)])
    assert index.prune(HOUR) == 1
    assert index.known(["old", "new"], 1e9) == [None, B]


def test_an_index_that_cannot_be_written_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    index = ReferenceIndex(tmp_path / "file" / "index")
    for ref in ("a", "b"):
        index.remember([(ref, A)])
        assert index.known([ref], HOUR) == [None]
    assert index.prune(HOUR) == 0
    assert caplog.text.count("references.sqlite does not work") == 1


def _remember_many(root: Path, start: int) -> None:
    index = ReferenceIndex(root)
    for number in range(start, start + 100):
        index.remember([(str(number), A)])


def test_threads_and_processes_share_it(tmp_path: Path) -> None:
    index = ReferenceIndex(tmp_path)
    index.remember([("first", A)])
    spawn = multiprocessing.get_context("spawn")
    others = [
        spawn.Process(target=_remember_many, args=(tmp_path, start)) for start in (1000, 2000)
    ]
    for other in others:
        other.start()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: index.remember([(str(number), B)]), range(100)))
    for other in others:
        other.join(60)
    numbers = [*range(100), *range(1000, 1100), *range(2000, 2100)]
    assert index.known([str(number) for number in numbers], HOUR) == [B] * 100 + [A] * 200


def _ask_and_remember(index: ReferenceIndex, told: "multiprocessing.SimpleQueue[object]") -> None:
    index.remember([("child", B)])
    told.put(index.known(["parent", "child"], HOUR))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_has_a_connection_of_its_own(tmp_path: Path) -> None:
    index = ReferenceIndex(tmp_path)
    index.remember([("parent", A)])
    fork = multiprocessing.get_context("fork")
    told = fork.SimpleQueue()
    child = fork.Process(target=_ask_and_remember, args=(index, told))
    child.start()
    assert told.get() == [A, B]
    child.join(60)
    assert index.known(["parent", "child"], time.time()) == [A, B]


def test_what_was_in_the_way_may_go(tmp_path: Path) -> None:
    (tmp_path / "index").write_text("in the way")
    index = ReferenceIndex(tmp_path / "index")
    index.remember([("a", A)])
    (tmp_path / "index").unlink()
    index.remember([("a", A)])
    assert index.known(["a"], HOUR) == [A]


def test_a_full_disk_at_the_first_opening_is_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = ReferenceIndex(tmp_path)
    with monkeypatch.context() as full:
        full.setattr(
            cache_database, "_SETUP", ("PRAGMA max_page_count = 1", *cache_database._SETUP)
        )
        index.remember([("a", A)])
        assert index.known(["a"], HOUR) == [None]
    index.remember([("a", A)])
    assert index.known(["a"], HOUR) == [A]


@pytest.mark.parametrize("value", ["7", "'" + "x" * 32 + "'", "x'00ff'"])
def test_a_row_of_another_kind_counts_as_unknown(value: str, tmp_path: Path) -> None:
    index = ReferenceIndex(tmp_path)
    index.remember([("/data/a.jpg", A)])
    with sqlite3.connect(tmp_path / "references.sqlite") as base:
        base.execute(f"UPDATE seen SET picture = {value}")  # noqa: S608 - ours
    base.close()
    assert index.known(["/data/a.jpg"], HOUR) == [None]


def test_a_file_of_another_make_is_replaced(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "references.sqlite") as base:
        base.execute("CREATE TABLE seen (something INTEGER)")
    base.close()
    index = ReferenceIndex(tmp_path)
    assert index.known(["a"], HOUR) == [None]
    index.remember([("a", A)])
    assert index.known(["a"], HOUR) == [A]


def test_a_process_goes_on_with_the_file_that_another_began_again(tmp_path: Path) -> None:
    ours, theirs = ReferenceIndex(tmp_path), ReferenceIndex(tmp_path)
    ours.remember([("a", A)])
    assert theirs.known(["a"], HOUR) == [A]
    for file in tmp_path.iterdir():
        file.unlink()
    theirs.remember([("b", B)])
    assert ours.known(["a", "b"], HOUR) == [None, B]


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_threads_that_fork_at_once_leave_the_database_to_one_at_a_time(tmp_path: Path) -> None:
    """Each fork closes what is open and holds it; another fork must not let it go."""
    database = CacheDatabase(tmp_path / "any.sqlite", ["CREATE TABLE IF NOT EXISTS one (n)"])
    inside, together, stop = 0, 0, threading.Event()

    def work(_: sqlite3.Connection) -> None:
        nonlocal inside, together
        inside += 1
        time.sleep(0.0005)
        together = max(together, inside)
        inside -= 1

    def use() -> None:
        while not stop.is_set():
            database.run(work)

    def fork() -> None:
        for _ in range(10):
            if (child := os.fork()) == 0:
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0

    users = [threading.Thread(target=use) for _ in range(2)]
    for user in users:
        user.start()
    with ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(fork) for _ in range(3)]:
            done.result()
    stop.set()
    for user in users:
        user.join(60)
    assert together == 1
