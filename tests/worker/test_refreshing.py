"""Pre-labels of open tasks: stored once, and changed in place where the rule has moved."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from hierarchy.choice import DepthRule, logits
from models.galleries import Galleries
from models.store import Project
from tests.published import TREE
from tests.worker.stand import Stand
from tests.worker.test_following import publish, served, shared
from worker.order import Order
from worker.parts import Parts
from worker.refreshing import refresh_predictions

__all__ = ["Galleries", "served", "shared"]


def open_tasks(stand: Stand, count: int, first: int = 1) -> None:
    for number in range(first, first + count):
        row = {"id": number, "data": {"image": f"{number}.png"}, "annotations": []}
        stand.tasks.append({**row, "predictions": []})


def shown(stand: Stand) -> list[list[dict[str, Any]]]:
    """The one prediction's result of each task."""
    rows = []
    for task in stand.tasks:
        (row,) = task["predictions"]
        rows.append(row["result"])
    return rows


def changed(stand: Stand) -> list[int]:
    """Tasks whose prediction was changed in place."""
    return [t["id"] for t in stand.tasks if any(p["id"] in stand.changed for p in t["predictions"])]


def follow_to(parts: Parts, known: Project, rule: DepthRule) -> None:
    """What feedback leads to."""
    parts.store.write_following(known.key, "v1", {"rule": rule.to_json(), "told": None})


def surest(parts: Parts, known: Project, pictures: int, count: int) -> DepthRule:
    """A rule that shows the surest so many of the pictures, on the top level."""
    predictor = parts.predictors.get(known, "v1", TREE)
    maps = parts.galleries.of(predictor).maps([(f"{n}.png", n) for n in range(1, pictures + 1)])
    found, _ = predictor.guesses(np.stack([one for one in maps if isinstance(one, np.ndarray)]))
    sure = np.sort(logits(found.probability[:, 0]))
    least = (sure[-count] + sure[-count - 1]) / 2 if count < pictures else sure[0] - 1
    offset = float(logits(np.array(0.9)) - least)
    return replace(predictor.rule, price=1e6, bonus=0.0, platt=((1.0, offset), (1.0, -40.0)))


def test_open_tasks_get_one_pre_label_each_and_the_rule_is_noted(
    served: Parts, known: Project, stand: Stand
) -> None:
    publish(served, known)
    open_tasks(stand, 5)
    assert refresh_predictions(known.key, "v1", served) == {"state": "done", "stored": 5}
    assert all(shown(stand))
    rule = served.predictors.get(known, "v1", TREE).rule
    noted = served.board.shown(known.key, "v1")
    assert noted is not None
    assert noted[0] == rule.to_json()
    open_tasks(stand, 1, first=6)
    assert refresh_predictions(known.key, "v1", served)["stored"] == 1
    assert stand.changed == []


def test_a_rule_that_moved_changes_only_the_answers_that_differ(
    served: Parts, known: Project, stand: Stand
) -> None:
    publish(served, known)
    open_tasks(stand, 20)
    everything = surest(served, known, 20, 20)
    follow_to(served, known, everything)
    refresh_predictions(known.key, "v1", served)
    before = shown(stand)
    assert all(before)
    follow_to(served, known, surest(served, known, 20, 10))
    ended = refresh_predictions(known.key, "v1", served)
    after = shown(stand)
    differ = [
        number
        for number, pair in enumerate(zip(before, after, strict=True), 1)
        if len(set(map(str, pair))) > 1
    ]
    assert 0 < len(differ) < 20
    assert changed(stand) == differ
    assert len(stand.changed) == len(differ)
    assert ended == {"state": "done", "stored": len(differ)}
    assert refresh_predictions(known.key, "v1", served)["stored"] == 0
    follow_to(served, known, everything)
    refresh_predictions(known.key, "v1", served)
    assert shown(stand) == before


def test_answered_tasks_keep_what_was_shown(served: Parts, known: Project, stand: Stand) -> None:
    publish(served, known)
    open_tasks(stand, 3)
    refresh_predictions(known.key, "v1", served)
    stand.label(1, minute=0)
    stand.tasks[0]["annotations"] = stand.tasks.pop()["annotations"]
    own = served.predictors.get(known, "v1", TREE).rule
    follow_to(served, known, replace(own, price=None))
    refresh_predictions(known.key, "v1", served)
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
    refresh_predictions(known.key, "v1", served)
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
            refresh_predictions(known.key, "v1", served)
    assert len(stand.changed) == 1
    assert refresh_predictions(known.key, "v1", served)["stored"] == 3
    assert len(stand.changed) == len(changed(stand)) == 4
    assert shown(stand) == [[]] * 4


def test_a_training_that_waits_goes_first_and_the_rest_is_asked_for(
    served: Parts, known: Project, stand: Stand
) -> None:
    publish(served, known)
    open_tasks(stand, 2)
    served.board.ask(Order(known.key))
    ended = refresh_predictions(known.key, "v1", served)
    assert ended["state"] == "continued later"
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
    assert refresh_predictions(known.key, "v1", served)["stored"] == 1
    assert stand.changed == [1]
    assert "Gone" not in str(shown(stand))


def test_a_picture_that_cannot_be_had_costs_only_itself(
    served: Parts, known: Project, stand: Stand
) -> None:
    publish(served, known)
    open_tasks(stand, 2)
    stand.tasks[0]["data"]["image"] = "nowhere"
    stand.tasks.append({"id": 3, "data": {}, "annotations": [], "predictions": []})
    assert refresh_predictions(known.key, "v1", served) == {"state": "done", "stored": 1}
    assert [len(task["predictions"]) for task in stand.tasks] == [0, 1, 0]
