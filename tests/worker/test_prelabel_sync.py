"""Pre-labels of open tasks: stored once, and changed in place where the rule has moved."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from hierarchy.depth_selection import DepthRule, logits
from inference.answers import answers
from inference.feature_extractor import Item
from inference.predictor import Answer
from inference.store import UNTRAINED, Project
from tests.published import TREE, publish_earlier
from tests.worker.stand import Stand, annotation, open_tasks, publish, shown
from worker import asking, prelabel_sync
from worker.asking import FRONT, places_of
from worker.order import Order
from worker.parts import Parts
from worker.prelabel_sync import Synced, SyncState, sync_prelabels


def changed(stand: Stand) -> list[int]:
    """Tasks whose prediction was changed in place."""
    return [t["id"] for t in stand.tasks if any(p["id"] in stand.changed for p in t["predictions"])]


def follow_to(parts: Parts, known: Project, rule: DepthRule) -> None:
    """What feedback leads to."""
    parts.store.write_following(known.key, "v1", {"rule": rule.to_json(), "told": None})


def surest(parts: Parts, known: Project, pictures: int, count: int) -> DepthRule:
    """A rule that shows the surest so many of the pictures, on the top level."""
    predictor = parts.predictors.get(known, "v1", TREE)
    items = [(f"{n}.png", n) for n in range(1, pictures + 1)]
    vectors = parts.extractors.of(predictor).vectors(items)
    found = predictor.guesses(np.stack([one for one in vectors if isinstance(one, np.ndarray)]))
    sure = np.sort(logits(found.probability[:, 0]))
    least = (sure[-count] + sure[-count - 1]) / 2 if count < pictures else sure[0] - 1
    offset = float(logits(np.array(0.9)) - least)
    return replace(predictor.rule, price=1e6, bonus=0.0, platt=((1.0, offset), (1.0, -40.0)))


def test_open_tasks_get_one_pre_label_each_and_the_rule_is_noted(
    served: Parts, known: Project, stand: Stand
) -> None:
    publish(served, known)
    open_tasks(stand, 5)
    assert sync_prelabels(known.key, "v1", served) == Synced(SyncState.DONE, 5)
    assert all(shown(stand))
    rule = served.predictors.get(known, "v1", TREE).rule
    noted = served.board.shown(known.key, "v1")
    assert noted is not None
    assert noted[0] == rule.to_json()
    open_tasks(stand, 1, first=6)
    assert sync_prelabels(known.key, "v1", served).stored == 1
    assert stand.changed == []


def test_a_version_of_an_earlier_release_leaves_what_is_stored(
    parts: Parts, known: Project, stand: Stand
) -> None:
    open_tasks(stand, 3)
    for task in stand.tasks:
        task["predictions"] = [{"id": task["id"], "model_version": "v1", "result": [], "score": 1}]
    publish_earlier(parts.store, known)
    ended = sync_prelabels(known.key, "v1", parts)
    assert ended == Synced(SyncState.NEEDS_TRAINING, 0)
    assert [len(task["predictions"]) for task in stand.tasks] == [1, 1, 1]
    assert stand.changed == []


def test_a_skip_moves_its_image_to_the_end(served: Parts, known: Project, stand: Stand) -> None:
    publish(served, known)
    open_tasks(stand, 30)
    sync_prelabels(known.key, "v1", served)
    first = next(iter(places_of(served.store, known.key, "v1").batch))
    (skipped,) = [task for task in stand.tasks if task["id"] == first]
    before = skipped["predictions"][0]
    assert before["score"] < FRONT
    skipped["annotations"] = [{"id": 900, "was_cancelled": True, "result": []}]
    assert sync_prelabels(known.key, "v1", served).stored == 1
    (row,) = skipped["predictions"]
    assert row["score"] == 1.0
    assert row["result"] == before["result"]
    assert max(task["predictions"][0]["score"] for task in stand.tasks) == row["score"]
    served.store.write_order(known.key, {})  # what to ask next is chosen again
    sync_prelabels(known.key, "v1", served)
    batch = places_of(served.store, known.key, "v1").batch
    assert len(batch) == 29
    assert first not in batch
    assert sync_prelabels(known.key, "v1", served).stored == 0


def test_before_a_version_a_skip_comes_last_too(
    served: Parts, known: Project, stand: Stand
) -> None:
    open_tasks(stand, 5)
    stand.tasks[0]["annotations"] = [{"id": 900, "was_cancelled": True, "result": []}]
    sync_prelabels(known.key, UNTRAINED, served)
    scores = [task["predictions"][0]["score"] for task in stand.tasks]
    assert scores[0] == 1.0
    assert max(scores[1:]) < FRONT


def test_leaving_early_reads_no_further(
    served: Parts, known: Project, stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(served, known)
    open_tasks(stand, 20)
    monkeypatch.setattr(prelabel_sync, "CHUNK", 4)
    asked: list[str] = []
    extractor = served.extractors.of(served.predictors.get(known, "v1", TREE))
    vectors = extractor.vectors

    def counted(items: Sequence[Item]) -> Any:
        asked.extend(ref for ref, _ in items)
        return vectors(items)

    monkeypatch.setattr(extractor, "vectors", counted)
    monkeypatch.setattr(type(served.board), "training_waits", lambda _: True)
    assert sync_prelabels(known.key, "v1", served).state == "continued later"
    assert len(asked) == 4


def test_a_rule_that_moved_changes_only_the_answers_that_differ(
    served: Parts, known: Project, stand: Stand
) -> None:
    publish(served, known)
    open_tasks(stand, 20)
    everything = surest(served, known, 20, 20)
    follow_to(served, known, everything)
    sync_prelabels(known.key, "v1", served)
    before = shown(stand)
    assert all(before)
    follow_to(served, known, surest(served, known, 20, 10))
    ended = sync_prelabels(known.key, "v1", served)
    after = shown(stand)
    differ = [
        number
        for number, pair in enumerate(zip(before, after, strict=True), 1)
        if len(set(map(str, pair))) > 1
    ]
    assert 0 < len(differ) < 20
    assert changed(stand) == differ
    assert len(stand.changed) == len(differ)
    assert ended == Synced(SyncState.DONE, len(differ))
    assert sync_prelabels(known.key, "v1", served).stored == 0
    follow_to(served, known, everything)
    sync_prelabels(known.key, "v1", served)
    assert shown(stand) == before


def test_answered_tasks_keep_what_was_shown(served: Parts, known: Project, stand: Stand) -> None:
    publish(served, known)
    open_tasks(stand, 3)
    sync_prelabels(known.key, "v1", served)
    stand.label(1, minute=0)
    stand.tasks[0]["annotations"] = stand.tasks.pop()["annotations"]
    own = served.predictors.get(known, "v1", TREE).rule
    follow_to(served, known, replace(own, price=None))
    sync_prelabels(known.key, "v1", served)
    assert changed(stand) == [2, 3]
    first, *others = shown(stand)
    assert first
    assert others == [[], []]


def test_a_refresh_that_is_killed_changes_what_is_left(
    served: Parts, known: Project, stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        """Nothing of ours handles it."""

    publish(served, known)
    open_tasks(stand, 4)
    sync_prelabels(known.key, "v1", served)
    own = served.predictors.get(known, "v1", TREE).rule
    follow_to(served, known, replace(own, price=None))
    change = served.studio.update_prediction

    def once(*given: Any, **more: Any) -> None:
        if stand.changed:
            raise Killed
        change(*given, **more)

    with monkeypatch.context() as patched:
        patched.setattr(served.studio, "update_prediction", once)
        with pytest.raises(Killed):
            sync_prelabels(known.key, "v1", served)
    assert len(stand.changed) == 1
    assert sync_prelabels(known.key, "v1", served).stored == 3
    assert len(stand.changed) == len(changed(stand)) == 4
    assert shown(stand) == [[]] * 4


def test_a_training_that_waits_goes_first_and_the_rest_is_asked_for(
    served: Parts, known: Project, stand: Stand
) -> None:
    publish(served, known)
    open_tasks(stand, 2)
    served.board.ask(Order(known.key))
    ended = sync_prelabels(known.key, "v1", served)
    assert ended.state == "continued later"
    assert served.board.shown(known.key, "v1") is None
    assert any(name.startswith("refresh-") for name in served.board.queue.job_ids)


def test_a_pre_label_of_a_tree_that_has_changed_is_replaced(
    served: Parts, known: Project, stand: Stand
) -> None:
    publish(served, known)
    open_tasks(stand, 1)
    value = {"taxonomy": [["Gone"]]}
    gone = {"from_name": "label", "to_name": "image", "type": "taxonomy", "value": value}
    stand.predict(1, result=[gone], model_version="v1", score=0.5)
    assert sync_prelabels(known.key, "v1", served).stored == 1
    assert stand.changed == [1]
    assert "Gone" not in str(shown(stand))


def test_a_picture_that_cannot_be_had_costs_only_itself(
    served: Parts, known: Project, stand: Stand
) -> None:
    publish(served, known)
    open_tasks(stand, 2)
    stand.tasks[0]["data"]["image"] = "nowhere"
    stand.tasks.append({"id": 3, "data": {}, "annotations": [], "predictions": []})
    assert sync_prelabels(known.key, "v1", served) == Synced(SyncState.DONE, 1)
    assert [len(task["predictions"]) for task in stand.tasks] == [0, 1, 0]


# --- the order of the tasks ---


def scores(stand: Stand) -> dict[int, float]:
    """Each open task's one place."""
    found = {}
    for task in stand.tasks:
        if not task["annotations"]:
            (row,) = task["predictions"]
            found[task["id"]] = row["score"]
    return found


def test_before_a_version_tasks_are_ordered_by_empty_predictions(
    served: Parts, known: Project, stand: Stand
) -> None:
    open_tasks(stand, 30)
    assert sync_prelabels(known.key, UNTRAINED, served) == Synced(SyncState.DONE, 30)
    assert shown(stand) == [[]] * 30
    places = places_of(served.store, known.key, UNTRAINED)
    assert sorted(scores(stand), key=scores(stand).__getitem__) == list(places.batch)
    assert {row["model_version"] for row in stand.stored} == {UNTRAINED}
    assert [row["task"] for row in stand.stored] == list(places.batch)  # most useful first
    assert sync_prelabels(known.key, UNTRAINED, served) == Synced(SyncState.DONE, 0)


def test_a_version_brings_an_order_and_says_apart_from_it_how_sure_it_is(
    served: Parts, known: Project, stand: Stand
) -> None:
    publish(served, known)
    open_tasks(stand, 20)
    sync_prelabels(known.key, "v1", served)
    places = places_of(served.store, known.key, "v1")
    assert sorted(scores(stand), key=scores(stand).__getitem__) == list(places.batch)
    predictor = served.predictors.get(known, "v1", TREE)
    told = answers(
        served.extractors.of(predictor), predictor, [(f"{n}.png", n) for n in range(1, 21)]
    )
    for answer, (item,) in zip(told, shown(stand), strict=True):
        assert isinstance(answer, Answer)
        assert item["score"] == pytest.approx(answer.probability, abs=1e-6)


def test_others_are_asked_once_half_is_answered_and_only_their_rows_change(
    served: Parts, known: Project, stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "ASKED", 10)
    publish(served, known)
    open_tasks(stand, 40)
    sync_prelabels(known.key, "v1", served)
    first = places_of(served.store, known.key, "v1")
    for task in list(first.batch)[:5]:
        when = "2026-11-23T14:00:00.000001Z"
        stand.tasks[task - 1]["annotations"] = [annotation(task, ["Fruit", "Apple"], when)]
    before = scores(stand)
    ended = sync_prelabels(known.key, "v1", served)
    second = places_of(served.store, known.key, "v1")
    left = set(list(first.batch)[5:])
    assert not set(list(first.batch)[:5]) & second.batch.keys()
    assert ended.stored == len(left | second.batch.keys())
    after = scores(stand)
    assert sorted(after, key=after.__getitem__)[:10] == list(second.batch)
    assert {task for task in after if after[task] != before[task]} <= left | second.batch.keys()
    assert sync_prelabels(known.key, "v1", served).stored == 0


def test_a_kill_between_order_and_rows_is_made_up_for(
    served: Parts, known: Project, stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        """Nothing of ours handles it."""

    publish(served, known)
    open_tasks(stand, 120)
    store = served.studio.import_predictions

    def once(number: int, rows: Any) -> int:
        if stand.stored:
            raise Killed
        return store(number, rows)

    with monkeypatch.context() as patched:
        patched.setattr(served.studio, "import_predictions", once)
        with pytest.raises(Killed):
            sync_prelabels(known.key, "v1", served)
    assert len(stand.stored) == 50
    places = places_of(served.store, known.key, "v1")
    assert sync_prelabels(known.key, "v1", served).stored == 70
    assert places_of(served.store, known.key, "v1") == places
    assert sorted(scores(stand), key=scores(stand).__getitem__)[:100] == list(places.batch)


def test_a_new_task_gets_its_place_without_a_new_order(
    served: Parts, known: Project, stand: Stand
) -> None:
    publish(served, known)
    open_tasks(stand, 20)
    sync_prelabels(known.key, "v1", served)
    places = places_of(served.store, known.key, "v1")
    open_tasks(stand, 1, first=21)
    sync_prelabels(known.key, "v1", served)
    assert places_of(served.store, known.key, "v1") == places
    assert stand.changed == []
    assert FRONT <= scores(stand)[21] <= 1


# --- what earlier versions left ---


def test_rows_of_earlier_versions_stay_for_a_while_and_then_go(
    served: Parts, known: Project, stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_tasks(stand, 6)
    sync_prelabels(known.key, UNTRAINED, served)
    publish(served, known)
    sync_prelabels(known.key, "v1", served)
    assert [len(task["predictions"]) for task in stand.tasks] == [2] * 6
    assert not served.board.take_untidy(known.key)
    monkeypatch.setattr(prelabel_sync, "GRACE", 0.0)
    assert sync_prelabels(known.key, "v1", served) == Synced(SyncState.DONE, 0)
    assert all(shown(stand))
    assert len(stand.deleted) == 6
    assert served.board.redis.get(f"hrn:{known.key}:untidy") is None


def test_what_somebody_has_answered_skipped_or_begun_keeps_all_its_rows(
    served: Parts, known: Project, stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prelabel_sync, "GRACE", 0.0)
    publish(served, known)
    open_tasks(stand, 4)
    sync_prelabels(known.key, "v1", served)
    assert publish(served, known, seed=1) == "v2"
    stand.label(1, minute=0)
    stand.tasks[0]["annotations"] = stand.tasks.pop()["annotations"]
    stand.tasks[1]["drafts"] = [{"id": 1}]
    sync_prelabels(known.key, "v2", served)
    versions = [[row["model_version"] for row in task["predictions"]] for task in stand.tasks]
    assert versions == [["v1"], ["v1", "v2"], ["v2"], ["v2"]]


def test_predictions_of_others_are_left_alone_and_doubles_of_ours_go(
    served: Parts, known: Project, stand: Stand
) -> None:
    publish(served, known)
    open_tasks(stand, 2)
    stand.predict(1, result=[], model_version="somebody's", score=0.5)
    sync_prelabels(known.key, "v1", served)
    row = dict(stand.tasks[1]["predictions"][0])
    row.pop("id")
    newer = stand.predict(2, **row)  # as of a visit in the moment of the import
    sync_prelabels(known.key, "v1", served)
    assert [row["model_version"] for row in stand.tasks[0]["predictions"]] == ["somebody's", "v1"]
    assert [row["id"] for row in stand.tasks[1]["predictions"]] == [newer]


# --- people ---


def test_a_person_stops_it_and_sees_how_far_it_is(
    served: Parts, known: Project, stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(served, known)
    open_tasks(stand, 120)
    board, told = served.board, list[Any]()
    report = board.report_refresh

    def stop_early(project: str, progress: dict[str, Any]) -> None:
        report(project, progress)
        told.append(board.refresh_progress(project))
        if progress["stage"] == "storing pre-labels" and progress["done"]:
            board.stop_refresh(project, "v1")

    monkeypatch.setattr("worker.progress.INTERVAL", 0.0)
    monkeypatch.setattr(board, "report_refresh", stop_early)
    ended = sync_prelabels(known.key, "v1", served)
    assert ended == Synced(SyncState.STOPPED, 50)
    assert (told[-1]["done"], told[-1]["total"]) == (50, 120)
    assert told[-1]["seconds_left"] >= 0
    assert board.refresh_progress(known.key) is None
    assert board.refresh_stopped(known.key, "v1")
    monkeypatch.undo()
    assert board.ask_refresh(known.key, "v1")
    assert sync_prelabels(known.key, "v1", served) == Synced(SyncState.DONE, 70)


def test_people_are_told_now_and_then_and_of_the_end(
    served: Parts, known: Project, stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A round trip for each fifty tasks was a twentieth of a refresh."""
    publish(served, known)
    open_tasks(stand, 220)
    told: list[tuple[str, int, int]] = []

    def report(_project: str, progress: dict[str, Any]) -> None:
        told.append((progress["stage"], progress["done"], progress["total"]))

    monkeypatch.setattr(served.board, "report_refresh", report)
    monkeypatch.setattr("worker.progress.INTERVAL", 1e9)
    sync_prelabels(known.key, "v1", served)
    stored = [(done, total) for stage, done, total in told if stage == "storing pre-labels"]
    assert stored == [(0, 220), (220, 220)]


def test_another_version_that_goes_live_ends_it(
    served: Parts, known: Project, stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(served, known)
    open_tasks(stand, 60)
    store = served.studio.import_predictions

    def then_another(number: int, rows: Any) -> int:
        publish(served, known, seed=1)
        return store(number, rows)

    monkeypatch.setattr(served.studio, "import_predictions", then_another)
    assert sync_prelabels(known.key, "v1", served) == Synced(SyncState.OUTDATED, 50)
