"""Late leaves are learnt by a grown head, which forgets nothing; on pictures made of patterns."""

import json
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from worker.recipe import Recipe

from evaluation.growth import Figures, Photos, Plan, Study, study, without
from hierarchy import LabelTree
from hierarchy.errors import TreeError
from tests.strategies import trees
from worker.trainer import Maps

TREE = LabelTree.from_paths(
    [("Fruit", "Apple"), ("Fruit", "Pear"), ("Fruit", "Fig"), ("Milk", "Oat"), ("Milk", "Cow")]
)
CHANNELS = 12
RECIPE = Recipe(views=(0, 1), reduced=8, width=16, hidden=16, epochs=12, batch=32, rate=5e-3)
PLAN = Plan(leaves=1)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Networks this small wait for each other's threads longer than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def photos(count: int, seed: int) -> Photos:
    """Each node on a picture's path adds a pattern of its own to its map."""
    draw = np.random.default_rng(seed)
    leaf = draw.permutation(np.resize(np.array(TREE.leaves), count))
    patterns = np.random.default_rng(7).normal(size=(len(TREE), CHANNELS))
    signal = patterns[leaf] + patterns[np.array(TREE.parents)[leaf]]
    noise = draw.normal(size=(count, CHANNELS, 3, 3)) * 0.7
    maps = np.asarray(signal[:, :, None, None] + noise, dtype=np.float16)

    def read(positions: Sequence[int], view: int) -> Maps:
        found = maps[list(positions)]
        return found[..., ::-1].copy() if view else found

    return Photos(read, leaf)


@pytest.fixture(scope="module")
def found() -> Study:
    return study(TREE, photos(150, 0), {"new": photos(200, 1)}, RECIPE, PLAN, seeds=[0, 1])


def test_a_grown_head_answers_old_leaves_as_before(found: Study) -> None:
    for one in found.outcomes:
        before, grown = one.before.figures["new"], one.grown.figures["new"]
        assert (grown.old, grown.old_among_old) == (before.old, before.old_among_old)
        assert grown.new == 0  # it waits to be learnt


def test_new_rows_alone_learn_the_late_leaf_and_keep_the_others(found: Study) -> None:
    for one in found.outcomes:  # no picture changes sides among the old leaves
        kept = one.warm.figures["new"].old_among_old
        assert kept == one.before.figures["new"].old
    before, warm = found.mean("before", "new"), found.mean("warm", "new")
    assert warm.new is not None
    assert warm.new > 0.6  # chance is 0.2
    assert before.old is not None
    assert warm.old is not None
    assert warm.old > before.old - 0.1


def test_every_seed_withholds_leaves_of_its_own_draw(found: Study) -> None:
    drawn = [
        tuple(
            TREE.path(node)
            for node in np.sort(np.random.default_rng(seed).choice(TREE.leaves, 1, replace=False))
        )
        for seed in (0, 1)
    ]
    assert [one.withheld for one in found.outcomes] == drawn


def test_the_same_seed_gives_the_same_figures(found: Study) -> None:
    again = study(TREE, photos(150, 0), {"new": photos(200, 1)}, RECIPE, PLAN, seeds=[1])
    for name in ("before", "grown", "warm", "scratch"):
        assert again.mean(name, "new") == getattr(found.outcomes[1], name).figures["new"]


def test_a_study_is_plain_data(found: Study) -> None:
    plain = json.loads(json.dumps(found.to_json()))
    assert plain["plan"]["leaves"] == 1
    assert [one["seed"] for one in plain["outcomes"]] == [0, 1]
    warm = plain["outcomes"][0]["warm"]
    assert Figures(**warm["figures"]["new"]) == found.outcomes[0].warm.figures["new"]
    assert warm["seconds"] > 0


def test_late_pictures_may_be_without_a_label_before() -> None:
    plan = Plan(leaves=1, before="unlabelled", learns="all", epochs=1, rate=1e-3, decay=1.0)
    one = study(TREE, photos(60, 0), {"new": photos(50, 1)}, RECIPE, plan, seeds=[0]).outcomes[0]
    assert one.before.figures["new"].old is not None
    assert one.before.figures["new"].new == 0


@pytest.mark.parametrize("leaves", [0, 4])
def test_a_plan_that_cannot_be_is_refused(leaves: int) -> None:
    with pytest.raises(ValueError, match=f"expected 1 to 3, so that two stay, got {leaves}"):
        study(TREE, photos(20, 0), {}, RECIPE, Plan(leaves=leaves), seeds=[0])


@given(trees(), st.data())
def test_a_tree_without_nodes_has_all_other_paths(tree: LabelTree, data: st.DataObject) -> None:
    gone = data.draw(st.lists(st.integers(0, len(tree) - 1), max_size=3))
    stay = [
        tree.paths[node]
        for node in range(len(tree))
        if not any(tree.covers(one, node) for one in gone)
    ]
    if stay:
        assert list(without(tree, gone).paths) == stay
    else:
        with pytest.raises(TreeError, match="at least one node"):
            without(tree, gone)
