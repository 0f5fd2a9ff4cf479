"""Label configs that we write are those that we read, and refused where they could not be."""

import re
from collections.abc import Callable

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from hierarchy import LabelTree
from studio import label_config_writer
from studio.errors import LabelConfigError
from studio.label_config import parse_label_config, tree_notes
from studio.label_config_writer import (
    MAX_CASCADE,
    MAX_LEVELS,
    MAX_SHOWN,
    SINGLE_KEYS,
    choices_config,
    choose_form,
    control_name,
    most_shown,
    path_separator,
    taxonomy_config,
    why_no_cascade,
)
from tests.strategies import trees as any_trees
from tests.studio.configs import GROCERY, tree_of, trees

#: Anything that a name could be, with what means something to XML or the editor more often.
WORDS = st.text(
    st.sampled_from("aA1 $,/>|»→<&\"'\n\t\0\ud800{}.;é汉") | st.characters(), max_size=6
)


@st.composite
def wild_trees(draw: st.DrawFn) -> LabelTree:
    """A tree whose names may hold anything; siblings differ."""
    paths = st.lists(WORDS.filter(bool), min_size=1, max_size=4).map(tuple)
    return tree_of(draw(st.lists(paths, min_size=1, max_size=8)))


def refusal(tree: LabelTree) -> str:
    with pytest.raises(LabelConfigError) as caught:
        choices_config(tree)
    return str(caught.value)


def keys_of(xml: str) -> list[str]:
    return re.findall(r'hotkey="([^"]*)"', xml)


# What is written is read


@given(trees())
def test_a_tree_comes_back_from_its_taxonomy_as_it_was(tree: LabelTree) -> None:
    read = parse_label_config(taxonomy_config(tree))
    assert read.tree == tree
    assert (read.kind, read.image_key, read.image_name) == ("taxonomy", "image", "image")


@given(trees())
def test_a_tree_comes_back_from_its_cascade_as_it_was(tree: LabelTree) -> None:
    assume(len(tree) <= MAX_CASCADE)
    read = parse_label_config(choices_config(tree))
    assert read.tree == tree
    assert read.kind == ("cascade" if tree.depth > 1 else "choices")
    assert read.notes == tuple(tree_notes(tree))


@given(any_trees(max_nodes=20))
def test_a_tree_with_any_ids_comes_back_with_the_same_paths(tree: LabelTree) -> None:
    for xml in (taxonomy_config(tree), choices_config(tree)):
        assert set(parse_label_config(xml).tree.paths) == set(tree.paths)


@given(wild_trees(), st.sampled_from([taxonomy_config, choices_config]))
@example(LabelTree.from_paths([("A /", "B"), ("A", "/ B")]), taxonomy_config)
@example(LabelTree.from_paths([("/>|»→//",)]), taxonomy_config)
def test_any_names_come_back_or_are_refused_in_words(
    tree: LabelTree, write: Callable[[LabelTree], str]
) -> None:
    try:
        xml = write(tree)
    except LabelConfigError as error:
        xml, words = "", str(error)
    if not xml:
        assert words.isprintable()
        return
    read = parse_label_config(xml)
    assert set(read.tree.paths) == set(tree.paths)
    assert read.separator is None  # no name that the editor would cut


@given(st.lists(WORDS.filter(bool), min_size=1, max_size=5))
def test_a_path_joined_by_its_separator_splits_as_it_was(names: list[str]) -> None:
    separator = path_separator(names)
    assert separator.join(names).split(separator) == names


def test_the_separator_is_written_only_where_the_usual_one_would_cut_a_name() -> None:
    assert "pathSeparator" not in taxonomy_config(tree_of([("A", "B")]))
    assert 'pathSeparator=" &gt; "' in taxonomy_config(tree_of([("A/C", "B")]))


@given(st.sampled_from(["image", "photo", "image_url", "shots[0].url"]))
def test_the_field_of_the_image_is_the_one_asked_for(key: str) -> None:
    tree = tree_of(GROCERY)
    for xml in (taxonomy_config(tree, image_key=key), choices_config(tree, image_key=key)):
        assert parse_label_config(xml).image_key == key


@pytest.mark.parametrize("key", ["", "my photo", 'a"b', "$image"])
def test_a_field_that_label_studio_could_not_find_is_refused(key: str) -> None:
    with pytest.raises(LabelConfigError, match="cannot name a field"):
        taxonomy_config(tree_of(GROCERY), image_key=key)


def test_titles_of_any_letters_stay_text() -> None:
    xml = taxonomy_config(tree_of(GROCERY), title='<What> & "why"?')
    assert 'value="&lt;What&gt; &amp; &quot;why&quot;?"' in xml
    with pytest.raises(LabelConfigError, match="title"):
        taxonomy_config(tree_of(GROCERY), title="a\0b")


def test_coarse_answers_stay_possible() -> None:
    """LeafsOnly forbids them, maxUsages makes deepening them a riddle, required forces a guess."""
    for xml in (taxonomy_config(tree_of(GROCERY)), choices_config(tree_of(GROCERY))):
        assert not re.search("leafsOnly|maxUsages|required", xml)


@pytest.mark.parametrize("name", ["a\0b", "\x0b", "\ud800", " ", "\ufffe"])
def test_names_that_a_config_cannot_hold_are_refused(name: str) -> None:
    for write in (taxonomy_config, choices_config):
        with pytest.raises(LabelConfigError, match=r"name.*(holds|blank)"):
            write(LabelTree.from_paths([("A", name)]))


def test_thousands_of_labels_and_a_hundred_levels_can_be_written() -> None:
    wide = tree_of([(f"top {i}", f"leaf {j}") for i in range(40) for j in range(100)])
    assert len(parse_label_config(taxonomy_config(wide)).tree) == 4040
    deep = tree_of([("x",) * MAX_LEVELS])
    assert parse_label_config(taxonomy_config(deep)).tree == deep
    with pytest.raises(LabelConfigError, match="levels"):
        taxonomy_config(tree_of([("x",) * (MAX_LEVELS + 1)]))


# Cascades


@given(trees())
def test_no_two_labels_share_a_key(tree: LabelTree) -> None:
    keys = keys_of(choices_config(tree))
    assert len(keys) == len(set(keys)) == len(tree)


def test_keys_of_label_studio_itself_are_left_alone() -> None:
    """Its own for images: u, h, v, r, and shift with r, 1 or 2 (358.js of 1.23.2)."""
    keys = set(keys_of(choices_config(tree_of([(f"n{i}",) for i in range(MAX_CASCADE)]))))
    assert len(keys) == MAX_CASCADE
    assert not keys & {"u", "h", "v", "r", "shift+r", "shift+1", "shift+2"}


def test_root_nodes_get_the_first_digits_and_siblings_stand_side_by_side() -> None:
    tree = tree_of([("A", "x"), ("A", "y"), ("B", "z")])
    assert keys_of(choices_config(tree)) == ["1", "2", "3", "4", "5"]


def test_more_labels_than_keys_are_refused_with_the_fix() -> None:
    message = refusal(tree_of([(f"n{i}",) for i in range(MAX_CASCADE + 1)]))
    assert f"keys for {MAX_CASCADE} labels" in message
    assert "taxonomy" in message


def test_what_the_editor_would_replace_or_cut_is_refused() -> None:
    assert '"costs $5"' in refusal(tree_of([("costs $5",)]))
    assert "comma" in refusal(tree_of([("Pears, red", "Anjou")]))
    assert why_no_cascade(tree_of([("Pears, red",)])) is None  # nothing waits for it


def test_one_name_under_two_parents_stands_in_two_controls() -> None:
    read = parse_label_config(choices_config(tree_of([("A", "x"), ("B", "x")])))
    assert read.controls[read.tree.index(("A", "x"))] != read.controls[read.tree.index(("B", "x"))]


@given(wild_trees(), wild_trees())
def test_control_names_differ_and_are_plain(one: LabelTree, other: LabelTree) -> None:
    paths = {(), *one.paths, *other.paths}
    names = {control_name(path) for path in paths}
    assert len(names) == len(paths)
    assert all(re.fullmatch(r"[A-Za-z0-9._-]{1,80}", name) for name in names)


def test_a_control_keeps_its_name_when_the_tree_grows() -> None:
    """Answers name it."""
    small = parse_label_config(choices_config(tree_of([("B", "x")])))
    grown = parse_label_config(choices_config(tree_of([("A", "B"), ("A", "y"), ("B", "x")])))
    place = grown.tree.index(("B", "x"))
    assert grown.controls[place] == small.controls[small.tree.index(("B", "x"))] == "label.B"


# Which form


def test_small_trees_get_a_cascade_and_large_ones_a_taxonomy() -> None:
    assert choose_form(tree_of(GROCERY)).form == "choices"
    many = [(f"{i // 6}", f"{i}") for i in range(MAX_CASCADE)]
    assert choose_form(tree_of(many[: len(SINGLE_KEYS) + 12])).form == "choices"
    assert "has keys for 54 labels" in choose_form(tree_of(many)).why
    flat = tree_of([(f"{i}",) for i in range(MAX_SHOWN + 1)])
    assert "at once" in choose_form(flat).why
    assert choose_form(tree_of(flat.paths[:MAX_SHOWN])).form == "choices"
    long = tree_of([(f"{i} {'long ' * 9}",) for i in range(MAX_SHOWN // 2 + 1)])
    assert "at once" in choose_form(long).why
    assert choose_form(tree_of([("$x",)])).form == "taxonomy"


@given(trees())
def test_what_is_chosen_can_be_written(tree: LabelTree) -> None:
    form = choose_form(tree).form
    assert parse_label_config(label_config_writer.label_config(tree, form)).tree == tree


def test_shown_at_once_are_the_siblings_along_one_path() -> None:
    assert most_shown(tree_of([("A", "x"), ("A", "y", "z"), ("B",), ("C", "1")])) == 3 + 2 + 1
