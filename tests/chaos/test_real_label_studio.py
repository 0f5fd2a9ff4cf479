"""A real Label Studio: killed while its answers are learnt, and with its training switch on."""

import statistics
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pytest

from tests.chaos.ledger import Ledger
from tests.end_to_end.backend import RunningBackend
from tests.end_to_end.campaign import taxonomy
from tests.end_to_end.conftest import backend
from tests.end_to_end.label_studio import RunningLabelStudio
from tests.end_to_end.shop import Shop, open_shop

__all__ = ["backend"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.label_studio,
    pytest.mark.chaos,
    pytest.mark.alone,
]


@pytest.fixture(scope="module")
def shop(label_studio: RunningLabelStudio, backend: RunningBackend, shared: Path) -> Iterator[Shop]:
    """180 photos, 60 of them answered, and a version that has learnt from them."""
    made = open_shop(label_studio, backend, shared / "data" / "grocery", 180, "Killed")
    answer(made, 60)
    backend.until(lambda: learnt(made), 240, "a first version")
    yield made
    made.parts.board.cancel(made.key)


def answer(shop: Shop, count: int) -> list[float]:
    """Answer so many tasks more; seconds that each Submit took."""
    client, spent = shop.studio.client(), []
    for task in list(islice(open_tasks(shop), count)):
        began = time.perf_counter()
        client.create_annotation(task, taxonomy(shop.truth[task]))
        spent.append(time.perf_counter() - began)
    return spent


def open_tasks(shop: Shop) -> Iterator[int]:
    given = {task["id"] for task in shop.studio.client().tasks(shop.number) if task["annotations"]}
    return (task for task in shop.truth if task not in given)


def learnt(shop: Shop) -> bool:
    """The newest version has learnt from every answer that Label Studio has, and nothing runs."""
    tasks = shop.studio.client().tasks(shop.number)
    given = sum(len(task["annotations"]) for task in tasks)
    parts, key = shop.parts, shop.key
    versions = parts.store.versions(key)
    if parts.board.state(key)[0] != "idle" or not versions:
        return False
    return bool(parts.store.manifest(key, versions[-1]).labels["labels"] == given)


def until(happened: Callable[[], bool]) -> None:
    """Looked at often: some stages take a fraction of a second."""
    ends = time.monotonic() + 120
    while not happened():
        assert time.monotonic() < ends
        time.sleep(0.005)


def test_killed_in_the_middle_of_a_training_it_costs_no_answer_and_no_wish(
    shop: Shop, ledger: Ledger
) -> None:
    """When a job has just begun, while it learns, while pre-labels are given back."""
    board, key = shop.parts.board, shop.key
    for stage in ("started", "fitting", "refreshing"):
        version = shop.parts.store.current(key)
        answer(shop, 10)
        shop.backend.hrn("train", "--project", str(shop.number))

        def there(stage: str = stage, version: str | None = version) -> bool:
            if stage == "started":
                return board.state(key)[0] == "running"
            if stage == "refreshing":
                return shop.parts.store.current(key) != version
            return stage in str((board.progress(key) or {}).get("stage"))

        until(there)
        shop.studio.kill()
        time.sleep(5)
        assert shop.parts.store.current(key) is not None
        began = time.monotonic()
        shop.studio.start()
        shop.studio.wait_until_ready()
        shop.backend.until(lambda: learnt(shop), 240, "learning from every answer")
        newest = shop.parts.store.versions(key)[-1]
        shop.backend.until(lambda: board.refreshed(key) is not None, 240, "pre-labels")
        ledger.tell(
            "real Label Studio killed",
            recovery=time.monotonic() - began,
            note=f"{stage}, its boot included",
        )
        assert shop.parts.store.weights(key, newest)


def test_start_training_inside_every_submit_adds_little(shop: Shop, ledger: Ledger) -> None:
    """Label Studio's switch asks us inside each Submit; in pairs, so that noise is shared."""
    client, extra = shop.studio.client(), []
    spent: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(20):
        for asked, into in spent.items():
            client.update_project(shop.number, {"start_training_on_annotation_update": asked})
            into.extend(answer(shop, 1))
        extra.append(spent[True][-1] - spent[False][-1])
    client.update_project(shop.number, {"start_training_on_annotation_update": False})
    added = statistics.median(extra)
    ledger.tell(
        "START_TRAINING inside each Submit",
        len(extra),
        note=f"adds {1000 * added:.0f} ms to {1000 * statistics.median(spent[False]):.0f}",
    )
    assert added <= 0.050
