"""A refresh of open tasks in a real Label Studio: killed in the middle, tidied up, new tasks."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hierarchy import LabelTree
from tests.end_to_end.backend import RunningBackend
from tests.end_to_end.campaign import taxonomy
from tests.end_to_end.label_studio import RunningLabelStudio
from tests.end_to_end.shop import Shop, open_shop
from tests.published import publish
from worker import prelabel_sync
from worker.asking import FRONT
from worker.prelabel_sync import Synced, SyncState, sync_prelabels

pytestmark = [pytest.mark.slow, pytest.mark.label_studio]


def rows_of(shop: Shop, version: str) -> dict[int, list[int]]:
    """Ids of the version's predictions, of every task."""
    return {
        task["id"]: [row["id"] for row in task["predictions"] if row["model_version"] == version]
        for task in shop.studio.client().tasks(shop.number)
    }


def horse(worker: int) -> int | None:
    """The process in which a worker's job runs."""
    try:
        children = Path(f"/proc/{worker}/task/{worker}/children").read_text().split()
    except FileNotFoundError:
        return None
    return int(children[0]) if children else None


@pytest.fixture(scope="module")
def crowd(
    label_studio: RunningLabelStudio, backend: RunningBackend, shared: Path
) -> Iterator[Shop]:
    """120 tasks of 12 pictures, two of them answered; ordered, but without a version."""
    shop = open_shop(label_studio, backend, shared / "data" / "grocery", 12, "Crowd")
    client = label_studio.client()
    pictures = [task["data"]["image"] for task in client.tasks(shop.number)]
    client.import_tasks(shop.number, [{"data": {"image": one}} for one in pictures * 9])
    done = list(shop.truth)[:2]
    backend.until(
        lambda: len(shop.listed()) == 120 and None not in shop.listed().values(), 120, "an order"
    )
    for task in done:
        client.create_annotation(task, taxonomy(shop.truth[task]))
    yield shop
    shop.parts.board.stop_refresh(shop.key, "v1")


def test_a_refresh_that_is_killed_goes_on_and_ends_with_one_prediction_each(crowd: Shop) -> None:
    parts, key = crowd.parts, crowd.key
    before = rows_of(crowd, "untrained")
    known = parts.store.project(key)
    assert known is not None
    fingerprint = parts.extractors.base().fingerprint
    tree = LabelTree.from_paths(sorted(set(crowd.truth.values())))
    version = publish(parts.store, known, tree, fingerprint=fingerprint)
    board = parts.board
    board.ask_refresh(key, version)

    def storing() -> bool:
        told = board.refresh_progress(key)
        return bool(told and told["stage"] == "storing pre-labels" and told["done"] < told["total"])

    ends = time.monotonic() + 60
    while not storing() and time.monotonic() < ends:
        time.sleep(0.01)
    (pid,) = [one for one in (horse(row["pid"]) for row in board.workers()) if one]
    os.kill(pid, signal.SIGKILL)
    told = board.refresh_progress(key)
    assert told is not None
    assert told["done"] < told["total"]  # what it was storing then may have arrived all the same

    def all_stored() -> bool:
        board.ask_refresh(key, version)  # as the reconciler does within a minute
        rows = rows_of(crowd, version)
        return sum(map(len, rows.values())) >= 118

    crowd.backend.until(all_stored, 60, "the rest")
    rows = rows_of(crowd, version)
    open_now = set(crowd.listed())
    assert {len(rows[task]) for task in open_now} == {1}
    answered = rows.keys() - open_now
    assert len(answered) == 2
    assert not any(rows[task] for task in answered)
    assert {task: before[task] for task in answered} == {
        task: rows_of(crowd, "untrained")[task] for task in answered
    }


def test_rows_of_earlier_versions_go_and_the_project_keeps_its_setting(
    crowd: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts, key = crowd.parts, crowd.key
    monkeypatch.setattr(prelabel_sync, "GRACE", 0.0)
    assert sync_prelabels(key, "v1", parts) == Synced(SyncState.DONE, 0)
    left = rows_of(crowd, "untrained")
    open_now = set(crowd.listed())
    assert not any(left[task] for task in open_now)
    assert all(left[task] for task in left.keys() - open_now)
    client = crowd.studio.client()

    def announced() -> bool:  # by the reconciler, once a minute
        return bool(client.settings(crowd.number)["model_version"] == "v1")

    crowd.backend.until(announced, 90, "the version as the project's setting")
    assert client.backends(crowd.number)[0]["title"] == "v1"


def test_a_new_task_is_predicted_without_anyone_opening_it(crowd: Shop) -> None:
    client = crowd.studio.client()
    address = next(client.tasks(crowd.number))["data"]["image"]
    (task,) = client.import_tasks(crowd.number, [{"data": {"image": address}}])
    (row,) = crowd.backend.until(
        lambda: client.predictions_of(task), 60, "the new task's prediction"
    )
    assert row["model_version"] == "v1"
    assert FRONT <= row["score"] <= 1
