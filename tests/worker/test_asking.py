"""What is asked next, and the numbers that stand for the order."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hierarchy import LabelTree
from inference.store import ModelStore, Project
from tests.published import TREE
from worker.asking import (
    ASKED,
    FRONT,
    UNKNOWN,
    Places,
    Pool,
    asked_at_random,
    choose,
    places_of,
    read_places,
)
from worker.parts import Parts


def pool(count: int, *, version: bool = True, first: int = 1, seed: int = 0) -> Pool:
    """So many pictures of six kinds, and what a version says of them."""
    draw = np.random.default_rng(seed)
    kinds = draw.normal(size=(6, 16))
    features = kinds[draw.integers(0, 6, count)] + draw.normal(size=(count, 16))
    share = draw.dirichlet((1.0, 1.0, 1.0), count)
    log_p = np.zeros((count, len(TREE)))
    for leaf, column in zip(TREE.leaves, share.T, strict=True):
        log_p[:, leaf] = np.log(column)
    tasks = list(range(first, first + count))
    return Pool(
        tasks=tasks,
        features=features.astype(np.float32),
        log_p=log_p if version else None,
        taken=np.zeros((0, 16), dtype=np.float32),
        answered=0,
        still_open=frozenset(tasks),
    )


def in_order(places: Places, tasks: list[int]) -> list[int]:
    return sorted(tasks, key=places.place)


def test_what_is_asked_next_stands_before_everything_else() -> None:
    made = choose(pool(300), TREE, "v1", None)
    assert len(made.batch) == ASKED
    fronts = [made.place(task) for task in made.batch]
    assert fronts == sorted(fronts)
    assert len(set(fronts)) == ASKED
    assert max(fronts) < FRONT
    others = set(range(1, 301)) - made.batch.keys()
    assert min(made.place(task, 0.0) for task in others) >= FRONT
    assert made.place(next(iter(others)), 1.0) == 1.0


def test_before_a_version_all_tasks_have_a_place_of_their_own() -> None:
    made = choose(pool(300, version=False), TREE, "untrained", None)
    order = in_order(made, list(range(1, 301)))
    assert order[:ASKED] == list(made.batch)
    assert set(made.batch.values()) == {"varied"}
    assert len({made.place(task) for task in order}) == 300
    assert order != sorted(order)


def test_a_single_task_falls_where_it_would_stand_among_the_others() -> None:
    """A live answer needs no new order: the leads of the version's tasks are kept."""
    many = pool(400)
    made = choose(many, TREE, "v1", None)
    assert many.log_p is not None
    top = np.sort(np.exp(many.log_p[:, list(TREE.leaves)]), axis=1)
    leads = top[:, -1] - top[:, -2]
    for lead in (0.1, 0.4, 0.8):
        share = float((leads < lead).mean())
        assert made.place(9999, lead) == pytest.approx(FRONT + (1 - FRONT) * share, abs=0.01)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=20))
def test_behind_the_front_a_greater_lead_never_stands_earlier(leads: list[float]) -> None:
    made = choose(pool(150), TREE, "v1", None)
    places = [made.place(9999, lead) for lead in sorted(leads)]
    assert places == sorted(places)
    assert all(FRONT <= place <= 1 for place in places)


def test_a_task_of_which_nothing_is_known_is_neither_first_nor_surest() -> None:
    assert Places("v1").place(1) == UNKNOWN
    assert FRONT < UNKNOWN < 1


def test_equal_pools_are_answered_equally() -> None:
    first, second = (choose(pool(120), TREE, "v1", None) for _ in range(2))
    assert replace(first, at=0.0) == replace(second, at=0.0)


def test_some_are_asked_at_random_and_it_is_written_down() -> None:
    made = choose(pool(300), TREE, "v1", None)
    drawn = {task for task, why in made.batch.items() if why == "random"}
    assert 3 <= len(drawn) <= 7
    assert dict(made.random) == dict.fromkeys(drawn, "v1")


def test_near_duplicates_are_drawn_at_random_as_all_open_images_are() -> None:
    """One image of three is a scene of its own, the others are one scene seen 200 times."""
    open_ = pool(300)
    alike = open_.features.copy()
    alike[100:] = alike[0] + np.random.default_rng(1).normal(scale=1e-3, size=(200, 16))
    drawn: list[int] = []
    for seed in range(10):
        made = choose(replace(open_, features=alike, answered=seed), TREE, "v1", None)
        drawn += [task for task, why in made.batch.items() if why == "random"]
    assert sum(task > 100 for task in drawn) > 0.4 * len(drawn)


def test_a_random_task_that_was_not_answered_is_no_fair_draw_any_more() -> None:
    first = choose(pool(300), TREE, "v1", None)
    answered = next(iter(first.random))
    left = [task for task in range(1, 301) if task != answered]
    again = pool(299, seed=1)
    second = choose(replace(again, tasks=left, still_open=frozenset(left)), TREE, "v2", first)
    assert second.random[answered] == "v1"
    assert {task for task, by in second.random.items() if by == "v1"} == {answered}
    assert {task for task, by in second.random.items() if by == "v2"} == {
        task for task, why in second.batch.items() if why == "random"
    }


def test_others_are_chosen_once_half_is_answered() -> None:
    made = choose(pool(300), TREE, "v1", None)
    still_open = set(range(1, 301))
    batch = list(made.batch)
    assert not made.used(still_open - set(batch[:49]))
    assert made.used(still_open - set(batch[:50]))
    assert not made.used(set(batch[:20]))  # there are no others


def test_others_are_chosen_once_many_tasks_are_new() -> None:
    made = choose(pool(300), TREE, "v1", None)
    assert not made.outgrown(set(range(1, 331)))
    assert made.outgrown(set(range(1, 332)))
    part = choose(replace(pool(300), whole=False), TREE, "v1", None)
    assert part.outgrown(set(range(1, 301)))


def test_without_a_picture_that_can_be_seen_nothing_is_chosen() -> None:
    empty = Pool(
        [], np.zeros((0, 1), np.float32), None, np.zeros((0, 1), np.float32), 0, frozenset({1})
    )
    made = choose(empty, LabelTree.from_paths([("One",)]), "untrained", None)
    assert not made.batch
    assert made.place(1) == UNKNOWN


# --- kept beside the versions ---


def test_it_is_read_as_it_was_written(parts: Parts, known: Project) -> None:
    made = choose(pool(120), TREE, "v1", None)
    parts.store.write_order(known.key, made.to_json())
    assert read_places(parts.store, known.key) == made
    assert asked_at_random(parts.store, known.key) == made.random
    assert places_of(parts.store, known.key, "v1") == made
    assert places_of(parts.store, known.key, "v2") == Places("v2")


def test_nothing_written_is_nothing_known(parts: Parts, known: Project) -> None:
    assert read_places(parts.store, known.key) is None
    assert asked_at_random(parts.store, known.key) == {}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": "v1", "batch": 3}'])
def test_a_damaged_file_is_as_none(
    parts: Parts, known: Project, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    store: ModelStore = parts.store
    store.write_order(known.key, {})
    (store.root / "projects" / known.key / "order.json").write_text(text)
    assert read_places(store, known.key) is None
    assert "made again" in caplog.text
