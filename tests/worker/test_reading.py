"""What has been read of a project's labels: by time, and by name where time does not tell."""

from typing import Any

import pytest

from inference.manifest import Manifest
from inference.store import Project
from tests.published import publish
from tests.worker.stand import Stand, annotation
from worker.parts import Parts
from worker.reading import Read, parse_time
from worker.reconcile import Reconciler
from worker.training import read_labels

OLD = "2026-11-26T13:30:00.000001Z"
LATE = "2026-11-26T13:30:38.500000Z"
LAST = "2026-11-26T13:30:39.500000Z"


def test_by_time_alone_nothing_up_to_it_is_missed() -> None:
    read = Read(LAST)
    assert read.since == LAST
    assert not read.lacks(7, LATE)
    assert not read.lacks(7, LAST)
    assert read.lacks(7, "2026-11-26T13:30:39.500001Z")


def test_by_name_a_label_that_was_seen_late_is_missed_for_a_minute() -> None:
    read = Read(LAST, {"1": LATE, "2": LAST})
    assert not read.lacks(1, LATE)
    assert read.lacks(1, "2026-11-26T13:30:38.600000Z")  # it was changed since
    assert read.lacks(3, LATE)
    assert not read.lacks(3, "2026-11-26T13:29:39.000000Z")


def test_nothing_read_lacks_everything() -> None:
    assert Read().lacks(1, OLD)
    assert Read("", {}).since == ""


@pytest.mark.parametrize("read", [Read(), Read(LAST), Read(LAST, {"1": LAST})])
def test_it_comes_back_as_it_was(read: Read) -> None:
    assert Read.from_json(read.to_json()) == read


def test_the_newer_one_counts_and_of_equals_the_one_with_names() -> None:
    assert Read(LATE).newer(Read(LAST)) == Read(LAST)
    assert Read(LAST).newer(Read(LAST, {"1": LAST})).recent == {"1": LAST}


def test_versions_of_earlier_releases_are_known_by_time() -> None:
    assert Read.of_version(Manifest(trained_through=LAST, labels={"labels": 3})) == Read(LAST)


def task(number: int, when: str) -> dict[str, Any]:
    path = ["Fruit", "Apple"] if number % 2 else ["Milk"]
    data = {"image": f"/data/upload/1/{number}.jpg"}
    answers = [annotation(number, path, when)]
    return {"id": number, "data": data, "annotations": answers, "predictions": []}


def test_an_annotation_that_label_studio_lists_late_is_learnt(
    parts: Parts, known: Project, stand: Stand
) -> None:
    """It was seen: of answers to tasks 67 to 70, 68's was not listed for half a second."""
    stand.tasks = [task(number, OLD) for number in range(1, 10)]
    stand.tasks += [task(11, LAST)]
    _, config, snapshot = read_labels(known, parts)
    publish(parts.store, known, trained_through=snapshot.trained_through)
    parts.board.note_attempt(known.key, snapshot.read)
    reconciler = Reconciler(parts)
    assert reconciler._unlearnt(known, "v1", config) == (0, None, 0)
    stand.tasks.insert(9, task(10, LATE))
    new, last, _ = reconciler._unlearnt(known, "v1", config)
    assert new == 1
    assert last is not None
    reconciler.look(known)
    assert parts.board.state(known.key)[0] == "queued"


@pytest.mark.parametrize(
    ("stamp", "seconds"),
    [("1970-01-01T00:01:00", 60), ("1970-01-01T01:01:00+01:00", 60), ("yesterday", None)],
)
def test_a_stamp_without_an_offset_is_utc(stamp: str, seconds: float | None) -> None:
    when = parse_time(stamp)
    assert (when and when.timestamp()) == seconds
