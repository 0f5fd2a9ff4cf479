"""The order of work in a real Label Studio: two annotators, before a version and after it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.backend import RunningBackend
from tests.end_to_end.label_studio import RunningLabelStudio
from tests.end_to_end.shop import Annotator, Shop, open_shop
from worker.asking import asked_at_random, places_of

pytestmark = [pytest.mark.slow, pytest.mark.label_studio]

#: Tasks that two annotators take in a row.
TAKEN = 30


@pytest.fixture(scope="module")
def annotators(label_studio: RunningLabelStudio) -> list[Annotator]:
    return [Annotator(label_studio), Annotator(label_studio)]


@pytest.fixture(scope="module")
def shop(label_studio: RunningLabelStudio, backend: RunningBackend, shared: Path) -> Iterator[Shop]:
    made = open_shop(label_studio, backend, shared / "data" / "grocery", 70, "Order")
    yield made
    made.parts.board.cancel(made.key)  # of what was answered last: nobody waits for it


@pytest.fixture(scope="module")
def before(shop: Shop) -> list[int]:
    """The order before there is a version."""
    return shop.backend.until(lambda: shop.ordered("untrained"), 120, "an order of open tasks")


@pytest.fixture(scope="module")
def taken(shop: Shop, before: list[int], annotators: list[Annotator]) -> list[int]:
    return shop.take(annotators, TAKEN)


@pytest.fixture(scope="module")
def held(shop: Shop, taken: list[int], annotators: list[Annotator]) -> dict[str, Any]:
    """A task that the first annotator opens before there is a version, and has not answered."""
    return annotators[0].next_task(shop.number)


@pytest.fixture(scope="module")
def after(shop: Shop, held: dict[str, Any]) -> list[int]:
    """The order of the first version, which learnt from what they answered."""

    def live() -> list[int] | None:
        version = shop.parts.store.current(shop.key)
        return shop.ordered(version) if version else None

    return shop.backend.until(live, 150, "the order of a version")


def test_before_a_version_two_annotators_get_varied_tasks_in_the_intended_order(
    shop: Shop, before: list[int], taken: list[int]
) -> None:
    assert taken == before[:TAKEN]
    assert taken != sorted(taken)  # no upload order
    assert len({shop.truth[task] for task in taken}) >= 20  # of 30, all tasks are of 70 classes


def test_the_empty_predictions_before_a_version_show_nothing_and_break_nothing(
    before: list[int], held: dict[str, Any]
) -> None:
    assert held["id"] == before[TAKEN]
    assert [row["result"] for row in held["predictions"]] == [[]]
    assert held["annotations"] == []


def test_after_a_version_they_get_its_order_and_the_list_shows_all_scores(
    shop: Shop, after: list[int], held: dict[str, Any], annotators: list[Annotator]
) -> None:
    again = shop.take(annotators, TAKEN)
    assert again[0] == held["id"]  # locked to them since before the version went live
    free = [task for task in after if task != held["id"]]
    assert again[1:] == free[: TAKEN - 1]
    assert all(score is not None for score in shop.listed().values())


def test_the_tab_begins_with_the_same_task(shop: Shop, taken: list[int]) -> None:
    order = [task for task, _ in sorted(shop.listed().items(), key=lambda one: one[1] or 0.0)]
    with shop.studio.session() as page:
        views = page.get(f"{shop.studio.url}/api/dm/views/?project={shop.number}", timeout=30)
        tabs = {view["data"]["title"]: view["id"] for view in views.json()}
        for tab, wanted in (("Most useful first", order), ("Surest first", order[::-1])):
            url = f"{shop.studio.url}/api/tasks?project={shop.number}&view={tabs[tab]}"
            rows = page.get(url, timeout=30).json()["tasks"]
            assert [row["id"] for row in rows] == wanted


def test_what_chance_chose_is_on_record(shop: Shop, taken: list[int]) -> None:
    key, store = shop.key, shop.parts.store
    version = store.current(key)
    assert version is not None
    batch = places_of(store, key, version).batch
    drawn = {task for task, why in batch.items() if why == "random"}
    assert drawn
    assert drawn <= asked_at_random(store, key).keys()


def test_a_skip_moves_its_image_to_the_end(
    shop: Shop, before: list[int], annotators: list[Annotator]
) -> None:
    skipped = annotators[0].next_task(shop.number)
    annotators[0].skip(skipped)

    def last() -> bool:
        scores = shop.listed()
        return scores[skipped["id"]] == 1.0 == max(score or 0.0 for score in scores.values())

    shop.backend.until(last, 60, "the skipped task at the end")
    later = [one.next_task(shop.number)["id"] for one in annotators]
    assert skipped["id"] not in later
    with shop.studio.session() as page:
        views = page.get(f"{shop.studio.url}/api/dm/views/?project={shop.number}", timeout=30)
        tabs = {view["data"]["title"]: view["id"] for view in views.json()}
        shown = {}
        for tab in ("Most useful first", "Surest first"):
            url = f"{shop.studio.url}/api/tasks?project={shop.number}&view={tabs[tab]}"
            shown[tab] = [row["id"] for row in page.get(url, timeout=30).json()["tasks"]]
    assert shown["Most useful first"][-1] == skipped["id"]
    assert skipped["id"] not in shown["Surest first"]
