"""A node that cannot be wrong promises nothing: trees with and without such nodes do the same."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from hierarchy import LabelTree
from hierarchy.calibration import Evidence, Fitted, evidence, fit_rule, left_out, preview
from hierarchy.decisions import Decisions, choices, leading_levels
from hierarchy.depth_selection import candidates, choose_depth
from hierarchy.tree import TOP
from tests.strategies import trees

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def held_out(log_p: Floats, truth: Ints, tree: LabelTree) -> tuple[Evidence, Ints]:
    """Evidence as a training makes it, and the candidates that it is about."""
    found = candidates(log_p, tree, Decisions.of(tree).levels)
    return evidence(found, truth, tree), found.nodes


# --- the field test's numbers ---


def drawn(count: int) -> tuple[Floats, Ints]:
    """Probabilities of two calibrated levels, and whether each came true: ``(n, 2)`` both."""
    draw = np.random.default_rng(8)
    first, step = draw.beta(4, 1, count), draw.beta(3, 1, count)
    right = draw.random(count) < first
    both = right & (draw.random(count) < step)
    return np.column_stack([first, first * step]), np.column_stack([right, both]).astype(np.int64)


def shown(seen: Evidence, nodes: Ints) -> tuple[Fitted, Ints, Ints]:
    """The rule for 90 %, the nodes that it shows of held-out images, and which were right."""
    fitted = fit_rule(seen, target=0.9)
    depth = choose_depth(left_out(seen, fitted.rule.platt), fitted.rule, seen.at)
    rows = np.flatnonzero(depth)
    return fitted, nodes[rows, depth[rows] - 1], seen.right[rows, depth[rows] - 1]


@pytest.mark.parametrize("count", [300, 2000])
def test_a_root_above_everything_does_not_soften_the_promise(count: int) -> None:
    """The field test's case: counted as a label, `Life` lets 86 to 88 % pass as certified 90 %."""
    plain = LabelTree.from_paths([(top, leaf) for top in ("Mammal", "Bird") for leaf in "ab"])
    rooted = LabelTree.from_paths([("Life", *plain.paths[leaf]) for leaf in plain.leaves])
    stated, right = drawn(count)
    fits = []
    for tree in (plain, rooted):
        leaf, sibling, other = tree.leaves[:3]
        top = tree.parents[leaf]
        log_p = np.full((count, len(tree)), np.log(1e-6))
        log_p[:, [top, leaf]] = np.log(stated)
        if tree is rooted:
            log_p[:, tree.index(("Life",))] = 0.0
        truth = np.where(right[:, 1] == 1, leaf, np.where(right[:, 0] == 1, sibling, other))
        fitted, nodes, hits = shown(*held_out(log_p, truth, tree))
        assert (fitted.standing, fitted.checked) == ("certified", len(hits))
        assert hits.mean() >= 0.9
        assert 0.45 < fitted.given < 0.55
        assert {tree.names[node] for node in nodes.tolist()} == {"Mammal", "a"}
        fits.append(fitted)
    assert fits[0] == fits[1]
    every = candidates(log_p, rooted)  # each level of the tree, as it was counted before
    fitted, nodes, hits = shown(evidence(every, truth, rooted), every.nodes)
    assert (fitted.standing, fitted.given) == ("certified", 1.0)
    assert hits[nodes != rooted.index(("Life",))].mean() < 0.89


# --- any tree, chains anywhere ---


def with_chains(
    tree: LabelTree, log_p: Floats, draw: np.random.Generator
) -> tuple[LabelTree, Floats, list[int]]:
    """The tree with nodes put in that leave no choice, their probabilities, and where nodes went.

    A node is put above a node, above all root nodes, between a node and all its children, or below
    a leaf. What is put above takes the probability of the choice; what is put below has one of its
    own, between those around it.
    """
    parents, names = list(tree.parents), list(tree.names)
    columns = [log_p[:, node] for node in range(len(tree))]

    def add(parent: int, column: Floats) -> int:
        parents.append(parent)
        names.append(f"chain {len(parents)}")
        columns.append(column)
        return len(parents) - 1

    for _ in range(int(draw.integers(1, 5))):
        kind, node = draw.choice(["above", "root", "between"]), int(draw.integers(len(parents)))
        below = [n for n, parent in enumerate(parents) if parent == node]
        if kind == "above":
            new = add(parents[node], columns[node])
            parents[node] = new
            # The new node stands where the other stood: names of siblings stay different.
        elif kind == "root":
            tops = [n for n, parent in enumerate(parents) if parent == TOP]
            # Never less than all that is below it.
            new = add(TOP, np.log1p(-draw.uniform(0, 1e-6, len(log_p))))
            for top in tops:
                parents[top] = new
        else:
            least = np.logaddexp.reduce([columns[n] for n in below]) if below else columns[node] - 9
            share = draw.uniform(0, 1, len(log_p))
            new = add(node, np.minimum(columns[node], least + share * (columns[node] - least)))
            for child in below:
                parents[child] = new
    order = draw.permutation(len(parents))
    place = np.empty(len(parents), dtype=np.int64)
    place[order] = np.arange(len(parents))
    moved = [TOP if parents[n] == TOP else int(place[parents[n]]) for n in order.tolist()]
    made = LabelTree.from_parents(moved, [names[n] for n in order.tolist()])
    return made, np.column_stack([columns[n] for n in order.tolist()]), place[: len(tree)].tolist()


def scored(tree: LabelTree, count: int, draw: np.random.Generator) -> tuple[Floats, Ints]:
    """Log-probabilities of each node that lean towards the truth, and the truths."""
    truth = draw.integers(0, len(tree), count)
    weight = draw.exponential(size=(count, len(tree)))
    weight[np.arange(count), truth] += draw.exponential(size=count) * 8
    whole = weight.copy()
    for node in reversed(tree.preorder):
        if tree.parents[node] != TOP:
            whole[:, tree.parents[node]] += whole[:, node]
    tops = [node for node, parent in enumerate(tree.parents) if parent == TOP]
    return np.log(whole / (whole[:, tops].sum(axis=1, keepdims=True) + 0.5)), truth


@given(
    trees(),
    st.integers(0, 2**32 - 1),
    st.sampled_from([12, 60, 250]),
    st.sampled_from([0.6, 0.8, 0.9]),
    st.sampled_from(["on average", "on every level"]),
)
def test_chains_anywhere_change_no_certificate_and_no_label(
    tree: LabelTree, seed: int, count: int, target: float, kind: str
) -> None:
    draw = np.random.default_rng(seed)
    log_p, truth = scored(tree, count, draw)
    longer, longer_p, place = with_chains(tree, log_p, draw)
    strict = kind == "on every level"
    seen, nodes = held_out(log_p, truth, tree)
    other, other_nodes = held_out(longer_p, np.array(place)[truth], longer)
    fitted = fit_rule(seen, target=target, strict=strict)
    assert fit_rule(other, target=target, strict=strict) == fitted
    sure, other_sure = (left_out(one, fitted.rule.platt) for one in (seen, other))
    depth = choose_depth(sure, fitted.rule, seen.at)
    assert (choose_depth(other_sure, fitted.rule, other.at) == depth).all()
    stands, other_stands = Decisions.of(tree).stands, Decisions.of(longer).stands
    for row, deep in enumerate(depth.tolist()):
        if deep:  # the same label, or one that says the same of the choices that there are
            mine, theirs = int(nodes[row, deep - 1]), int(other_nodes[row, deep - 1])
            assert other_stands[place[mine]] == other_stands[theirs] == theirs
            assert stands[mine] == mine
    assert preview(seen, target=target).given == pytest.approx(preview(other, target=target).given)


@given(trees())
def test_a_choice_has_siblings_and_everything_else_goes_with_one(tree: LabelTree) -> None:
    found = Decisions.of(tree)
    for node in range(len(tree)):
        line = tree.ancestors(node)
        real = [n for n in line if tree.parents.count(tree.parents[n]) > 1]
        assert choices(tree)[node] == (real[-1:] == [node])
        assert found.stands[node] == (real[-1] if real else TOP)
        assert found.level[node] == len(real) - 1
        if choices(tree)[node]:
            assert node in found.levels[len(real) - 1]
            last = int(found.last[node])
            assert found.stands[last] == node
            assert len(tree.children[last]) != 1
    assert sum(map(len, found.levels)) == int(choices(tree).sum())


def test_leading_levels_are_those_of_a_single_node() -> None:
    chain = ("Life", "Animal", "Chordate")
    assert leading_levels(LabelTree.from_paths([(*chain, "Bird"), (*chain, "Mammal")])) == 3
    assert leading_levels(LabelTree.from_paths([("Bird",), ("Mammal", "Fox")])) == 0
    only = LabelTree.from_paths([chain])
    assert leading_levels(only) == 3
    assert Decisions.of(only).levels == ()


def test_a_tree_without_a_choice_is_promised_nothing() -> None:
    tree = LabelTree.from_paths([("Life", "Animal")])
    seen, _ = held_out(np.zeros((80, 2)), np.ones(80, dtype=np.int64), tree)
    for strict in (False, True):
        fitted = fit_rule(seen, target=0.9, strict=strict)
        assert (fitted.standing, fitted.checked, fitted.given) == ("none", 0, 0.0)
    shown_then = preview(seen, target=0.9)
    assert (shown_then.depths, shown_then.levels) == ((1.0,), ())


def test_limits_count_the_levels_of_the_tree() -> None:
    """`Life` above everything: the deepest level 2 is the first that leaves a choice."""
    tree = LabelTree.from_paths([("Life", top, leaf) for top in "AB" for leaf in "xy"])
    draw = np.random.default_rng(3)
    log_p, truth = scored(tree, 300, draw)
    seen, nodes = held_out(log_p, truth, tree)
    for limits, levels in (((1, 2), {2}), ((3, None), {3}), ((1, None), {2, 3}), ((1, 1), set())):
        rule = fit_rule(seen, target=0.5, minimum=limits[0], maximum=limits[1]).rule
        rule = replace(rule, price=0.5)
        depth = choose_depth(seen.probability, rule, seen.at)
        shown = nodes[np.arange(300), depth - 1][depth > 0]
        assert {tree.levels[node] + 1 for node in shown.tolist()} == levels


def test_choices_stay_what_they_were_in_a_tree_that_changed() -> None:
    learnt = LabelTree.from_paths([("Life", "Bird", "Owl"), ("Life", "Fox")])
    today = LabelTree.from_paths([("Moss",), ("Life", "Bird", "Owl"), ("Life", "Bird", "Duck")])
    found = Decisions.of(learnt).within(today)
    bird, owl = today.index(("Life", "Bird")), today.index(("Life", "Bird", "Owl"))
    assert [level.tolist() for level in found.levels] == [[bird]]
    assert found.stands[[today.index(("Moss",)), today.index(("Life",)), owl]].tolist() == [
        -1,
        -1,
        bird,
    ]
    assert found.last[bird] == bird  # it has another child now
    assert Decisions.of(learnt).within(learnt) is Decisions.of(learnt)
    assert Decisions.of(learnt).within(LabelTree.from_paths([("Rock",)])).levels == ()
