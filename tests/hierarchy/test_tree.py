"""A label tree keeps what it is given, answers about kinship, and refuses what cannot be a tree."""

import json
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hierarchy import LabelTree
from hierarchy.errors import HierarchyError, TreeError, UnknownLabelError
from tests.strategies import trees

FRUIT = LabelTree.from_paths([("Fruit", "Apple"), ("Fruit", "Pear"), ("Milk",)])
RAGGED = LabelTree.from_parents([2, -1, -1, 0, 2], ["b", "z", "a", "a", "c"])  # a/b/a, a/c, z


def test_paths_imply_inner_nodes_and_ids_go_level_by_level_as_they_appear() -> None:
    paths = [("Milk", "Oat", "Brand"), ("Fruit", "Pear"), ("Milk", "Cow"), ("Bread",)]
    assert LabelTree.from_paths(paths).paths == (
        ("Milk",),
        ("Fruit",),
        ("Bread",),
        ("Milk", "Oat"),
        ("Fruit", "Pear"),
        ("Milk", "Cow"),
        ("Milk", "Oat", "Brand"),
    )


def test_an_inner_node_may_be_given_before_or_after_its_descendants() -> None:
    before = LabelTree.from_paths([("Fruit",), ("Fruit", "Apple")])
    assert before == LabelTree.from_paths([("Fruit", "Apple"), ("Fruit",)])
    assert before.paths == (("Fruit",), ("Fruit", "Apple"))


def test_parents_keep_their_ids_even_if_a_child_has_a_lower_one() -> None:
    tree = LabelTree.from_parents([1, -1], names=["Apple", "Fruit"])
    assert tree.paths == (("Fruit", "Apple"), ("Fruit",))
    assert tree.parents == (1, -1)


def test_parents_may_be_numpys_whole_numbers() -> None:
    tree = LabelTree.from_parents(np.array([-1, 0], dtype=np.int16), ["Fruit", "Apple"])
    assert tree.parents == (-1, 0)
    assert all(type(parent) is int for parent in tree.parents)


def test_attributes_of_a_ragged_tree() -> None:
    assert RAGGED.paths == (("a", "b"), ("z",), ("a",), ("a", "b", "a"), ("a", "c"))
    assert RAGGED.levels == (1, 0, 0, 2, 1)
    assert RAGGED.leaves == (1, 3, 4)
    assert RAGGED.children == ((3,), (), (0, 4), (), ())
    assert RAGGED.depth == 3
    assert RAGGED.level_nodes(1) == (0, 4)
    assert len(RAGGED) == 5


def test_lists_are_as_good_as_tuples() -> None:
    tree = LabelTree.from_paths([["Fruit", "Apple"]])
    assert tree.index(["Fruit", "Apple"]) == 1


@given(trees())
def test_attributes_agree_with_walking_up(tree: LabelTree) -> None:
    for node, parent in enumerate(tree.parents):
        line = [node]
        while tree.parents[line[0]] != -1:
            line.insert(0, tree.parents[line[0]])
        assert tree.ancestors(node) == tuple(line)
        assert tree.levels[node] == len(line) - 1
        assert tree.paths[node] == tree.path(node) == tuple(tree.names[n] for n in line)
        assert parent == -1 or node in tree.children[parent]
        assert [tree.covers(a, node) for a in range(len(tree))] == [
            a in line for a in range(len(tree))
        ]
    assert sum(map(len, tree.children)) == len(tree) - tree.parents.count(-1)
    assert tree.leaves == tuple(n for n in range(len(tree)) if n not in tree.parents)
    assert tree.depth == 1 + max(tree.levels)


@given(trees())
def test_every_path_leads_back_to_its_node(tree: LabelTree) -> None:
    assert [tree.index(path) for path in tree.paths] == list(range(len(tree)))
    assert [tree.nearest((*path, "elsewhere")) for path in tree.paths] == list(range(len(tree)))


@given(trees())
def test_levels_hold_every_node_once(tree: LabelTree) -> None:
    held = [node for level in range(tree.depth) for node in tree.level_nodes(level)]
    assert sorted(held) == list(range(len(tree)))
    assert [tree.levels[node] for node in held] == sorted(tree.levels)


@given(trees())
def test_preorder_holds_each_subtree_in_one_piece(tree: LabelTree) -> None:
    assert sorted(tree.preorder) == list(range(len(tree)))
    for place, node in enumerate(tree.preorder):
        below = [n for n in range(len(tree)) if tree.covers(node, n)]
        assert sorted(tree.preorder[place : place + len(below)]) == below


@given(trees(), st.data())
def test_common_ancestor_is_the_deepest_that_covers_all(
    tree: LabelTree, data: st.DataObject
) -> None:
    nodes = data.draw(st.lists(st.integers(0, len(tree) - 1), min_size=1, max_size=3))
    covering = [a for a in range(len(tree)) if all(tree.covers(a, n) for n in nodes)]
    deepest = max(covering, key=tree.levels.__getitem__, default=None)
    assert tree.common_ancestor(nodes) == deepest


def test_no_nodes_have_no_common_ancestor() -> None:
    assert FRUIT.common_ancestor([]) is None


@given(trees())
def test_json_gives_an_equal_tree_back(tree: LabelTree) -> None:
    again = LabelTree.from_json(json.loads(json.dumps(tree.to_json())))
    assert again == tree
    assert hash(again) == hash(tree)


@given(trees())
def test_paths_in_order_of_ids_give_the_same_paths(tree: LabelTree) -> None:
    """Ids may move, paths stay."""
    assert set(LabelTree.from_paths(tree.paths).paths) == set(tree.paths)


def test_json_of_a_later_release_may_hold_more() -> None:
    obj = {"parents": [-1], "names": ["Milk"], "colours": ["white"]}
    assert LabelTree.from_json(obj).names == ("Milk",)


def test_trees_that_differ_are_not_equal() -> None:
    assert LabelTree.from_paths([("a", "b")]) != LabelTree.from_paths([("a", "c")])
    assert LabelTree.from_parents([-1, 0], ["a", "b"]) != LabelTree.from_parents(
        [-1, -1], ["a", "b"]
    )


def test_what_is_cached_on_a_tree_does_not_make_trees_differ() -> None:
    used, fresh = LabelTree.from_paths([("a", "b")]), LabelTree.from_paths([("a", "b")])
    assert used.arrays.enter.tolist() == [0, 1]
    assert used == fresh
    assert used.paths == fresh.paths


def test_a_tree_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        FRUIT.names = ()  # type: ignore[misc]


def test_repr_is_short() -> None:
    assert repr(FRUIT) == "<LabelTree nodes=4 tops=2 leaves=3 levels=2>"


def test_an_unknown_label_names_the_nearest_known_ancestor() -> None:
    with pytest.raises(UnknownLabelError, match=r"nearest it has is \('Fruit',\)") as caught:
        FRUIT.index(("Fruit", "Appel", "Gala"))
    assert "did you mean ('Fruit', 'Apple')?" in str(caught.value)
    assert caught.value.path == ("Fruit", "Appel", "Gala")
    assert caught.value.nearest == ("Fruit",)


def test_an_unknown_top_says_so() -> None:
    with pytest.raises(UnknownLabelError, match="it has no top 'Meat'") as caught:
        FRUIT.index(("Meat", "Ham"))
    assert caught.value.nearest == ()


def test_nearest_is_none_where_nothing_is_known() -> None:
    assert FRUIT.nearest(("Meat", "Ham")) is None
    assert FRUIT.nearest(()) is None


def test_a_name_is_found_only_under_its_own_parent() -> None:
    with pytest.raises(UnknownLabelError):
        FRUIT.index(("Apple",))


Build = Callable[[], object]
WRONG: dict[str, tuple[Build, str]] = {
    "no paths": (lambda: LabelTree.from_paths([]), "at least one path"),
    "no nodes": (lambda: LabelTree.from_parents([], []), "at least one node"),
    "empty path": (lambda: LabelTree.from_paths([()]), "at least one name"),
    "empty name": (lambda: LabelTree.from_parents([-1], [""]), "node 0: the name is empty"),
    "empty step": (lambda: LabelTree.from_paths([("Fruit", "")]), r"\('Fruit', ''\).*is empty"),
    "name no string": (lambda: LabelTree.from_parents([-1], [7]), "must be a string, got int 7"),  # type: ignore[list-item]
    "step no string": (lambda: LabelTree.from_paths([("a", None)]), "must be a string, got None"),  # type: ignore[list-item]
    "path is a string": (lambda: LabelTree.from_paths(["Fruit"]), "got str 'Fruit'"),
    "path is no sequence": (lambda: LabelTree.from_paths([7]), "got int 7"),  # type: ignore[list-item]
    "paths is a string": (lambda: LabelTree.from_paths("Fruit"), "list of paths"),
    "path twice": (lambda: LabelTree.from_paths([("a", "b"), ("a", "b")]), "given twice"),
    "inner path twice": (lambda: LabelTree.from_paths([("a",), ("a", "b"), ("a",)]), "given twice"),
    "doubled top": (
        lambda: LabelTree.from_parents([-1, -1], ["a", "a"]),
        r"0 and 1 are both \('a',",
    ),
    "doubled sibling": (
        lambda: LabelTree.from_parents([-1, 0, 0], ["a", "b", "b"]),
        r"1 and 2 are both \('a', 'b'\)",
    ),
    "own parent": (
        lambda: LabelTree.from_parents([-1, 1], ["a", "b"]),
        r"circle: 1 \('b'\) under 1",
    ),
    "circle": (lambda: LabelTree.from_parents([-1, 2, 1, 2], list("abcd")), "circle: 1.*under 2"),
    "circle without top": (lambda: LabelTree.from_parents([1, 0], ["a", "b"]), "circle"),
    "long circle": (
        lambda: LabelTree.from_parents([*range(1, 9), 0], list("abcdefghi")),
        r"\(9 in all\)",
    ),
    "parent too high": (lambda: LabelTree.from_parents([-1, 2], ["a", "b"]), "0 to 1, got 2"),
    "parent too low": (lambda: LabelTree.from_parents([-2], ["a"]), "-1 .a top.*got -2"),
    "parent no number": (lambda: LabelTree.from_parents([0.5], ["a"]), "whole number, got float"),  # type: ignore[list-item]
    "parent true": (lambda: LabelTree.from_parents([-1, False], ["a", "b"]), "whole number"),
    "more names": (lambda: LabelTree.from_parents([-1], ["a", "b"]), "got 1 and 2"),
    "names a string": (lambda: LabelTree.from_parents([-1, -1], "ab"), "one name a node"),
    "json no object": (lambda: LabelTree.from_json([]), "expected an object"),
    "json no names": (
        lambda: LabelTree.from_json({"parents": [-1]}),
        "tree.names: expected a list",
    ),
    "json no parents": (lambda: LabelTree.from_json({"names": ["a"]}), "tree.parents: expected"),
    "index of a string": (lambda: FRUIT.index("Fruit"), "got str 'Fruit'"),
    "index of nothing": (lambda: FRUIT.index(()), "at least one name"),
    "nearest of a string": (lambda: FRUIT.nearest("Fruit"), "got str 'Fruit'"),
    "no such level": (lambda: FRUIT.level_nodes(2), "level must be 0 to 1, got 2"),
    "negative level": (lambda: FRUIT.level_nodes(-1), "level must be 0 to 1, got -1"),
}


@pytest.mark.parametrize(("build", "says"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_is_a_tree_error_in_words(build: Build, says: str) -> None:
    with pytest.raises(TreeError, match=says):
        build()


@pytest.mark.parametrize("node", [-1, 4])
@pytest.mark.parametrize("ask", ["covers", "covered", "ancestors", "path", "common_ancestor"])
def test_a_wrong_id_is_an_unknown_label(ask: str, node: int) -> None:
    asks: dict[str, Build] = {
        "covers": lambda: FRUIT.covers(node, 0),
        "covered": lambda: FRUIT.covers(0, node),
        "ancestors": lambda: FRUIT.ancestors(node),
        "path": lambda: FRUIT.path(node),
        "common_ancestor": lambda: FRUIT.common_ancestor([0, node]),
    }
    with pytest.raises(UnknownLabelError, match=f"from 0 to 3, got {node}"):
        asks[ask]()


@pytest.mark.parametrize("error", [TreeError, UnknownLabelError])
def test_errors_have_one_root(error: type[Exception]) -> None:
    assert issubclass(error, HierarchyError)


def test_a_chain_of_5000_nodes_works() -> None:
    chain = LabelTree.from_paths([("x",) * 5000])
    assert chain.depth == 5000
    assert chain.index(("x",) * 5000) == 4999
    assert chain.covers(0, 4999)
    assert chain.common_ancestor([4998, 3000]) == 3000
    assert chain == LabelTree.from_parents(range(-1, 4999), ["x"] * 5000)


#: Builds 100,000 nodes three times and prints the least CPU seconds. In a process of its own, since
#: coverage, which traces this one, doubles the time.
BUILDING = """
import sys, time
from hierarchy import LabelTree
parents = [-1] * 10 + [node // 10 - 1 for node in range(10, 100_000)]
names = [str(node) for node in range(100_000)]
tree = LabelTree.from_parents(parents, names)
paths = tree.paths
seconds = []
for _ in range(3):
    began = time.process_time()
    if sys.argv[1] == "parents":
        built = LabelTree.from_parents(parents, names)
    else:
        built = LabelTree.from_paths(paths)
    seconds.append(time.process_time() - began)
    assert built == tree
print(min(seconds))
"""


@pytest.mark.parametrize("way", ["parents", "paths"])
def test_100000_nodes_are_built_within_two_seconds(way: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BUILDING, way],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    print(f"{way}: {float(done.stdout):.2f} s")
    assert float(done.stdout) <= 2


def test_reading_trees_does_not_load_torch() -> None:
    code = "import sys; from hierarchy import LabelTree; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0


def test_the_package_has_no_other_names() -> None:
    import hierarchy

    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        hierarchy.nonsense  # noqa: B018
