"""Trees change by any edits: nodes that stay score as before, labels move to the nearest above."""

import json
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hierarchy import LabelTree, log_marginals
from hierarchy.errors import ShapeError, TreeError
from hierarchy.growth import Change, Graft, awaken
from hierarchy.heads import UNSEEN_SCORE, HRNHead, transfer_weights
from tests.strategies import trees

Paths = list[tuple[str, ...]]

OLD = LabelTree.from_paths([("Fruit", "Apple", "Gala"), ("Fruit", "Pear"), ("Milk",)])
FRUIT, MILK, APPLE, PEAR, GALA = (OLD.index(path) for path in OLD.paths)
CHANNELS = 3


@st.composite
def edited(draw: st.DrawFn, *, edits: Sequence[str] = ()) -> tuple[LabelTree, LabelTree]:
    """A tree, and what one to three edits made of it; ids of both in any order."""
    old = draw(trees())
    paths = list(old.paths)
    every = edits or ("leaf", "level", "remove", "rename", "move")
    for number in range(draw(st.integers(1, 3))):
        changed = _edit(draw, paths, draw(st.sampled_from(every)), f"new {number}")
        paths = changed or paths  # a tree keeps at least one node
    return old, LabelTree.from_paths(draw(st.permutations(paths)))


def _edit(draw: st.DrawFn, paths: Paths, edit: str, name: str) -> Paths:
    at = draw(st.sampled_from(paths))
    below = [path for path in paths if path[: len(at)] == at]
    rest = [path for path in paths if path not in below]
    if edit == "leaf":
        above = draw(st.sampled_from([(), *paths]))
        return [*paths, (*above, name)]
    if edit == "level":  # the nodes that were at and below it go one step down
        return [*rest, (*at[:-1], name), *((*at[:-1], name, *p[len(at) - 1 :]) for p in below)]
    if edit == "remove":
        return rest
    if edit == "rename":
        return [*rest, *((*at[:-1], name, *path[len(at) :]) for path in below)]
    above = draw(st.sampled_from([(), *rest]))
    moved = (*above, at[-1])
    home = moved if moved not in rest else (*above, name)
    return [*rest, *((*home, *path[len(at) :]) for path in below)]


def head_of(tree: LabelTree, seed: int = 0) -> HRNHead:
    """A head with something in every weight."""
    head = HRNHead(tree, CHANNELS, hidden=4, members=2)
    draw = torch.Generator().manual_seed(seed)
    for name, value in head.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.randn(value.shape, generator=draw) * 0.5)
            if name.endswith(("running_var", "std")):
                value.abs_().add_(0.5)
    return head.eval()


def some_vectors(images: int) -> Tensor:
    return torch.randn(images, 1, CHANNELS, generator=torch.Generator().manual_seed(5))


def scored(head: HRNHead) -> Tensor:
    with torch.inference_mode():
        scores: Tensor = head(some_vectors(3)[:, 0])
    return scores.double()


def grown(old: LabelTree, new: LabelTree, *, awake: bool = False) -> tuple[Tensor, Tensor]:
    """Scores (3, N) before and after a change of the tree."""
    before, after = head_of(old), head_of(new, seed=2)
    transfer_weights(before.state_dict(), old, after)
    if awake:
        awaken(after, old)
    return scored(before), scored(after)


def kept(change: Change) -> tuple[list[int], list[int]]:
    """Earlier ids and today's of the nodes that stay."""
    now = [node for node, source in enumerate(change.source) if source >= 0]
    return [change.source[node] for node in now], now


@settings(max_examples=25)
@given(edited())
def test_nodes_that_stay_score_what_they_scored(pair: tuple[LabelTree, LabelTree]) -> None:
    old, new = pair
    before, after = grown(old, new)
    was, now = kept(Change.between(old, new))
    torch.testing.assert_close(after[:, now], before[:, was])


@settings(max_examples=25)
@given(edited(edits=["leaf"]))
def test_added_leaves_leave_all_probabilities(pair: tuple[LabelTree, LabelTree]) -> None:
    """To within what the new leaves can weigh: e^-15 each."""
    old, new = pair
    before, after = grown(old, new)
    was, now = kept(Change.between(old, new))
    ours, theirs = log_marginals(after, new)[:, now], log_marginals(before, old)[:, was]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@settings(max_examples=25)
@given(edited(edits=["leaf", "remove", "rename"]))
def test_ratios_between_nodes_that_stay_stay(pair: tuple[LabelTree, LabelTree]) -> None:
    """Of leaves whose siblings may come and go: P(a) / P(b) is what it was."""
    old, new = pair
    before, after = grown(old, new)
    was, now = kept(Change.between(old, new))
    both = [at for at in range(len(now)) if not old.children[was[at]] and not new.children[now[at]]]
    ours = log_marginals(after, new)[:, [now[at] for at in both]]
    theirs = log_marginals(before, old)[:, [was[at] for at in both]]
    if both:
        torch.testing.assert_close(ours - ours[:, :1], theirs - theirs[:, :1], rtol=0, atol=1e-5)


@given(edited())
def test_a_label_moves_to_the_nearest_node_above_it_that_stays(
    pair: tuple[LabelTree, LabelTree],
) -> None:
    """As its own path says, which is how labels are read again after a change."""
    old, new = pair
    change = Change.between(old, new)
    for node, path in enumerate(old.paths):
        expected = new.nearest(path)
        assert change.nearest[node] == (-1 if expected is None else expected)


@given(edited())
def test_what_stays_what_came_and_what_went_are_told_by_paths(
    pair: tuple[LabelTree, LabelTree],
) -> None:
    old, new = pair
    change = Change.between(old, new)
    assert {new.paths[node] for node in change.added} == set(new.paths) - set(old.paths)
    assert {old.paths[node] for node in change.gone} == set(old.paths) - set(new.paths)
    was, now = kept(change)
    assert [old.paths[node] for node in was] == [new.paths[node] for node in now]


@given(edited())
def test_a_change_and_both_trees_pass_through_json(pair: tuple[LabelTree, LabelTree]) -> None:
    old, new = pair
    change = Change.between(old, new)
    assert Change.from_json(json.loads(json.dumps(change.to_json()))) == change
    back = [LabelTree.from_json(json.loads(json.dumps(tree.to_json()))) for tree in pair]
    assert Change.between(back[0], back[1]) == change


@given(edited())
def test_a_change_back_undoes_it_for_what_stayed(pair: tuple[LabelTree, LabelTree]) -> None:
    old, new = pair
    there, back = Change.between(old, new), Change.between(new, old)
    was, now = kept(there)
    assert [back.source[node] for node in was] == now
    assert set(kept(back)[1]) == set(was)


def test_a_renamed_node_is_removed_and_added() -> None:
    new = LabelTree.from_paths([("Fruit", "Malus", "Gala"), ("Fruit", "Pear"), ("Milk",)])
    change = Change.between(OLD, new)
    assert change.gone == (APPLE, GALA)
    assert [new.paths[node] for node in change.added] == [
        ("Fruit", "Malus"),
        ("Fruit", "Malus", "Gala"),
    ]
    assert change.move(np.array([GALA, APPLE, PEAR])).tolist() == [
        new.index(("Fruit",)),
        new.index(("Fruit",)),
        new.index(("Fruit", "Pear")),
    ]


def test_labels_of_a_vanished_top_have_nowhere_to_go() -> None:
    change = Change.between(OLD, LabelTree.from_paths([("Milk",)]))
    moved = change.move(np.array([[GALA, MILK], [FRUIT, -1]]))
    assert moved.tolist() == [[-1, 0], [-1, -1]]


@pytest.mark.parametrize("node", [5, -2])
def test_moving_what_is_no_node_is_refused(node: int) -> None:
    with pytest.raises(ShapeError, match=f"0 to 4, or -1 for none, got .*{node}"):
        Change.between(OLD, OLD).move(np.array([node]))


@pytest.mark.parametrize("bad", [None, [], {"source": [0]}, {"source": [0], "nearest": ["0"]}])
def test_another_form_is_refused_with_the_field(bad: object) -> None:
    with pytest.raises(TreeError, match=r"change\.(source|nearest): expected a list"):
        Change.from_json(bad)


def test_a_sleeping_leaf_is_woken_at_the_mean_of_its_siblings() -> None:
    new = LabelTree.from_paths([*OLD.paths, ("Fruit", "Fig"), ("Bread",)])
    _, asleep = grown(OLD, new)
    _, awake = grown(OLD, new, awake=True)
    fig, bread = new.index(("Fruit", "Fig")), new.index(("Bread",))
    assert (asleep[:, [fig, bread]] == UNSEEN_SCORE).all()
    siblings = [new.index(("Fruit", "Apple")), new.index(("Fruit", "Pear"))]
    torch.testing.assert_close(awake[:, fig], awake[:, siblings].mean(1))
    tops = [new.index(("Fruit",)), new.index(("Milk",))]
    torch.testing.assert_close(awake[:, bread], awake[:, tops].mean(1))


def test_a_leaf_without_siblings_that_stayed_is_woken_at_zero() -> None:
    new = LabelTree.from_paths([*OLD.paths, ("Milk", "Oat"), ("Milk", "Rice", "Brown")])
    _, awake = grown(OLD, new, awake=True)
    fresh = Change.between(OLD, new).added
    assert awake[:, list(fresh)].eq(0).all()


@settings(max_examples=25)
@given(edited())
def test_waking_leaves_the_scores_of_nodes_that_stay(pair: tuple[LabelTree, LabelTree]) -> None:
    old, new = pair
    before, after = grown(old, new, awake=True)
    was, now = kept(Change.between(old, new))
    torch.testing.assert_close(after[:, now], before[:, was])


def test_a_graft_scores_what_its_head_scores() -> None:
    head, vectors = head_of(OLD), some_vectors(4)
    graft = Graft(head, [GALA, PEAR]).eval()
    with torch.no_grad():
        features = Graft.features(head, vectors)
        torch.testing.assert_close(graft(features[:, 0]), head.each(vectors[:, 0]))


def test_a_graft_learns_the_new_node_and_leaves_the_others() -> None:
    new = LabelTree.from_paths([*OLD.paths, ("Fruit", "Fig")])
    fig, pear = new.index(("Fruit", "Fig")), new.index(("Fruit", "Pear"))
    others = [node for node in range(len(new)) if node != fig]
    head, vectors, weights = head_of(new), some_vectors(32), torch.ones(32)
    graft, features = Graft(head, [fig]), Graft.features(head, vectors)[:, 0]
    telling = vectors[:, 0, 0]
    targets = torch.where(telling > telling.median(), fig, pear)
    before, loss_before = (
        head.each(vectors[:, 0]).detach(),
        graft.objective(features, targets, weights),
    )
    optimiser = torch.optim.Adam(graft.parameters(), lr=0.1)
    for _ in range(60):
        optimiser.zero_grad()
        graft.objective(features, targets, weights).backward()
        optimiser.step()
    graft.write_to(head)
    after = head.each(vectors[:, 0]).detach()
    assert after[..., others].equal(before[..., others])
    assert head.objective(vectors[:, 0], targets, weights) < loss_before - 0.1


def test_only_the_new_rows_are_trained() -> None:
    graft = Graft(head_of(OLD), [GALA])
    rows = [value.shape[1] for value in graft.parameters()]
    assert sorted(rows) == [0, 0, 0, 0, 1, 1]  # of three levels' weights and biases
