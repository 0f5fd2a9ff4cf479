"""Open images unlike the labelled ones: shown less, counted, and said in words."""

import json

import numpy as np
import pytest

from hierarchy.depth_selection import Reason
from hierarchy.familiarity import USUAL, Familiarity
from inference.predictor import Answer, Predictor
from inference.store import Project
from tests.published import TREE as SMALL_TREE
from tests.worker.stand import Stand, annotation, open_tasks, publish, shown
from tests.worker.test_trainer import SMALL, TREE, examples, leaves_of, silent, vectors
from worker.parts import Parts
from worker.prelabel_sync import sync_prelabels
from worker.trainer import train
from worker.unlike import Looked, count_unlike, unlike

APPLE, PEAR, MILK = ("Fruit", "Apple"), ("Fruit", "Pear"), ("Dairy", "Milk")

#: 600 held-out images, their distances evenly spread.
EVEN = Familiarity(np.eye(1, dtype=np.float32), np.arange(600, dtype=np.float32))


def test_a_trained_version_shows_less_of_unlike_images_and_says_so() -> None:
    leaves = leaves_of(240)
    trained = train(
        TREE, examples(vectors(leaves, seed=1), leaves), SMALL, target=0.9, report=silent
    )
    predictor = Predictor(
        version="v1",
        tree=TREE,
        head=trained.head,
        rule=trained.fitted.rule,
        backbone=("any", "any"),
        backbone_weights={},
        familiarity=trained.familiarity,
    )
    same = predictor.answer(vectors(leaves_of(200, seed=5), seed=5)[:, 0])
    away = -vectors(leaves_of(200, seed=5), seed=6)[:, 0]
    others = predictor.answer(away)
    free = predictor.told(predictor.log_probabilities(away))
    assert sum(one.path is not None for one in same) > 180
    assert sum(one.path is not None for one in others) < 20
    assert sum(one.path is not None for one in free) > 100  # what it would have shown of them
    assert sum(one.reason is Reason.UNLIKE for one in others) > 180
    assert "unlike those that were labelled" in next(
        one.why for one in others if one.reason is Reason.UNLIKE
    )


# Counting


def looked(**counts: tuple[int, int]) -> Looked:
    """Of each leaf so many open images, and how many of them are unlike."""
    paths = {"apple": APPLE, "pear": PEAR, "milk": MILK}
    leaf = dict[int, tuple[str, ...]]()
    unlike_ones = set[int]()
    for name, (count, odd) in counts.items():
        tasks = range(len(leaf), len(leaf) + count)
        leaf |= dict.fromkeys(tasks, paths[name])
        unlike_ones |= set(tasks[:odd])
    return Looked(leaf, frozenset(unlike_ones))


def test_more_than_usual_is_said_with_where_most_of_it_is() -> None:
    found = count_unlike(looked(apple=(100, 60), pear=(50, 1), milk=(50, 1)), EVEN)
    assert (found.open, found.unlike, found.most) == (200, 62, APPLE)
    assert [node.path for node in found.nodes] == [APPLE, ("Fruit",)]
    assert found.words == (
        "31% of the open images look unlike those that were labelled (5% would be usual), most "
        "under Fruit > Apple: label some of them; the stated accuracy does not hold there"
    )


def test_no_place_is_named_where_it_is_everywhere() -> None:
    found = count_unlike(looked(apple=(50, 20), pear=(50, 20), milk=(100, 45)), EVEN)
    assert found.most == MILK
    even = count_unlike(looked(apple=(50, 20), pear=(50, 20), milk=(100, 40)), EVEN)
    assert even.most == ()
    assert "most under" not in even.words


def test_one_node_alone_may_be_unlike() -> None:
    found = count_unlike(looked(apple=(40, 20), pear=(400, 10), milk=(400, 8)), EVEN)
    assert not found.more
    assert found.words.startswith(
        "50% of the open images taken for Fruit > Apple look unlike those that were labelled"
    )


def test_where_all_is_as_usual_nothing_is_said() -> None:
    found = count_unlike(looked(apple=(100, 6), pear=(100, 4), milk=(100, 5)), EVEN)
    assert (found.words, found.more, found.nodes) == ("", False, ())
    none = count_unlike(Looked({}, frozenset()), EVEN)
    assert (none.open, none.words) == (0, "")


def test_a_later_look_replaces_those_images_alone() -> None:
    before = looked(apple=(4, 2), milk=(2, 0))
    assert Looked.from_json(json.loads(json.dumps(before.to_json()))) == before
    said = {"path": None, "probability": 0.1, "confidence": 0.1, "reason": Reason.UNSURE}
    odd = Answer(leaf=PEAR, why="", margin=0.1, like=USUAL / 2, **said)  # type: ignore[arg-type]
    fine = Answer(leaf=PEAR, why="", margin=0.1, like=0.5, **said)  # type: ignore[arg-type]
    after = before.updated({0: fine, 9: odd}, still_open=[0, 1, 4, 9])
    assert after == Looked({0: PEAR, 1: APPLE, 4: MILK, 9: PEAR}, frozenset({1, 9}))


# At the pre-label sync


def familiar(parts: Parts, *, usual: float) -> Familiarity:
    """What a version knows whose held-out images were all about so far from the labelled ones."""
    channels = parts.extractors.base().channels
    centre = np.full((1, channels), channels**-0.5, dtype=np.float32)
    return Familiarity(centre, np.linspace(usual, 1.01 * usual, 100, dtype=np.float32))


def test_the_sync_notes_how_many_open_images_are_unlike(
    served: Parts, known: Project, stand: Stand
) -> None:
    publish(served, known, familiarity=familiar(served, usual=1e-6))
    open_tasks(stand, 24)
    assert unlike(served, known.key, "v1") is None
    sync_prelabels(known.key, "v1", served)
    assert shown(stand) == [[]] * 24  # bold as it is, it shows nothing of them
    told = unlike(served, known.key, "v1")
    assert told is not None
    assert (told["open"], told["unlike"]) == (24, 24)
    assert told["words"].startswith("100% of the open images look unlike those that were labelled")
    open_tasks(stand, 3, first=25)  # looks at the new ones, and keeps what it knew of the others
    stand.tasks[0]["annotations"] = [annotation(900, ["Milk"], "2026-11-23T15:00:00.000001Z")]
    sync_prelabels(known.key, "v1", served)
    told = unlike(served, known.key, "v1")
    assert told is not None
    assert (told["open"], told["unlike"]) == (26, 26)
    assert unlike(served, known.key, "v2") is None


def test_open_images_like_the_labelled_ones_are_shown_and_nothing_is_said(
    served: Parts, known: Project, stand: Stand
) -> None:
    publish(served, known, familiarity=familiar(served, usual=1.5))
    open_tasks(stand, 24)
    sync_prelabels(known.key, "v1", served)
    assert all(shown(stand))
    told = unlike(served, known.key, "v1")
    assert told is not None
    assert (told["open"], told["unlike"], told["words"]) == (24, 0, "")


def test_a_version_that_does_not_know_says_nothing(
    served: Parts, known: Project, stand: Stand
) -> None:
    publish(served, known)
    open_tasks(stand, 24)
    sync_prelabels(known.key, "v1", served)
    assert all(shown(stand))
    assert unlike(served, known.key, "v1") is None
    assert unlike(served, known.key, None) is None


def test_what_is_known_of_looks_survives_the_store(served: Parts, known: Project) -> None:
    kept = familiar(served, usual=0.3)
    publish(served, known, familiarity=kept)
    predictor = served.predictors.get(known, "v1", SMALL_TREE)
    assert predictor.familiarity is not None
    some = np.random.default_rng(0).random((5, kept.centres.shape[1]))
    assert predictor.familiarity.distance(some) == pytest.approx(kept.distance(some), abs=1e-3)
    assert predictor.familiarity.distances == pytest.approx(kept.distances)
