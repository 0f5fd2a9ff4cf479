"""CSV and JSON -> tree: every form that is promised, and a refusal with the line of all else."""

import csv
import io
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hierarchy import LabelTree
from studio import tree_files
from studio.errors import TreeFileError
from studio.label_controls import MAX_NODES
from studio.tree_files import TreeFile, read_csv, read_json
from tests.studio.configs import GROCERY, tree_of, trees


def csv_refusal(text: str, **options: object) -> str:
    with pytest.raises(TreeFileError) as caught:
        read_csv(text, **options)  # type: ignore[arg-type]
    return str(caught.value)


def json_refusal(data: object, *, text: str | None = None) -> str:
    with pytest.raises(TreeFileError) as caught:
        read_json(json.dumps(data) if text is None else text)
    return str(caught.value)


def paths(found: TreeFile) -> set[tuple[str, ...]]:
    return set(found.tree.paths)


def leaves(found: TreeFile) -> set[tuple[str, ...]]:
    return {found.tree.paths[leaf] for leaf in found.tree.leaves}


def stripped(tree: LabelTree) -> LabelTree | None:
    """The tree with blanks around names taken away; None if siblings then collide."""
    names = [name.strip() for name in tree.names]
    twins = {*zip(tree.parents, names, strict=True)}
    if len(twins) < len(tree):
        return None
    return LabelTree.from_parents(tree.parents, names)


# CSV


@given(trees(), st.sampled_from(",;\t"), st.sampled_from(["\n", "\r\n"]))
def test_a_tree_comes_back_from_rows_of_levels(tree: LabelTree, mark: str, end: str) -> None:
    if (expected := stripped(tree)) is None:
        return
    written = io.StringIO(newline="")
    writer = csv.writer(written, delimiter=mark, lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writerow([f"Level {level + 1}" for level in range(max(tree.depth, 2))])
    writer.writerows(expected.paths)
    assert paths(read_csv(written.getvalue())) == set(expected.paths)


def test_rows_may_be_ragged_and_padded() -> None:
    found = read_csv("Coarse,Fine\nFruit,Apple\nMilk,\n\n , \nFruit, Pear \n")
    assert leaves(found) == {("Fruit", "Apple"), ("Fruit", "Pear"), ("Milk",)}


@pytest.mark.parametrize("first", ["Level 1;Level 2", "coarse;fine", "Family;Genus", "group;name"])
def test_a_first_line_of_such_words_heads_the_columns(first: str) -> None:
    found = read_csv(f"{first}\nFruit;Apple")
    assert leaves(found) == {("Fruit", "Apple")}
    assert "--no-header says otherwise" in found.notes[0]
    assert len(leaves(read_csv(f"{first}\nFruit;Apple", header=False))) == 2


def test_another_first_line_is_a_label_unless_it_is_said() -> None:
    found = read_csv("Fruit,Apple\nFruit,Pear")
    assert len(leaves(found)) == 2
    assert "--header says otherwise" in found.notes[0]
    assert leaves(read_csv("Fruit,Apple\nFruit,Pear", header=True)) == {("Fruit", "Pear")}


@pytest.mark.parametrize("mark", tree_files.SEPARATORS)
def test_a_column_headed_path_holds_paths(mark: str) -> None:
    found = read_csv(f"path\nFruit{mark}Apple\nFruit{mark}Pear\nMilk\n")
    assert leaves(found) == {("Fruit", "Apple"), ("Fruit", "Pear"), ("Milk",)}


def test_a_separator_makes_paths_of_one_column_without_a_head() -> None:
    found = read_csv("/Fruit/Apple/\nFruit/Pear", separator="/", header=False)
    assert leaves(found) == {("Fruit", "Apple"), ("Fruit", "Pear")}
    assert leaves(read_csv("Fruit/Apple\nMilk")) == {("Fruit/Apple",), ("Milk",)}


def test_the_same_name_may_stand_under_two_parents() -> None:
    assert len(read_csv("Fruit,Apple\nJuice,Apple\nApple,Apple").tree) == 6


def test_repeated_rows_count_once_and_are_noted() -> None:
    found = read_csv("A,x\nA,y\nA,x\nA")
    assert len(found.tree) == 3
    assert "line 3 repeats line 1" in " ".join(found.notes)


def test_siblings_that_look_alike_are_noted() -> None:
    assert '"Apple" and "apple"' in " ".join(read_csv("Fruit,Apple\nFruit,apple").notes)


def test_any_marks_in_names_stay() -> None:
    nasty = ["<b>", "&amp;", 'say "hi"', "$x", "a, b", "</Choice>", "{{x}}", "'; --"]
    written = io.StringIO(newline="")
    csv.writer(written, quoting=csv.QUOTE_ALL).writerows([["Top", name] for name in nasty])
    assert leaves(read_csv(written.getvalue())) == {("Top", name) for name in nasty}


def test_a_gap_between_levels_is_refused_with_its_line() -> None:
    message = csv_refusal("A,x\n\nB,,deep\n")
    assert message.startswith("line 3: level 2 is empty")
    assert '"deep"' in message


def test_lines_are_counted_through_quoted_line_ends() -> None:
    assert csv_refusal('"A\nB",x\n').startswith("line 1: ")
    assert csv_refusal('A,"x"\nA,"y\nz"\n').startswith("line 2: ")
    assert "quotation mark" in csv_refusal('A,"x"\nA,"y\nz"\n')


@pytest.mark.parametrize("broken", ['A,"x\nB,y\n', 'A,"x"y\n'])
def test_broken_quotes_are_refused_with_their_line(broken: str) -> None:
    assert csv_refusal(f"A,z\n{broken}").startswith("line 2: expected cells parted by ','")


def test_more_cells_than_columns_are_refused() -> None:
    assert "line 2: expected at most 2 cells" in csv_refusal("coarse,fine\nFruit,Apple, red")
    assert "line 2: expected at most 1 cells" in csv_refusal("path\nFruit/Apple, red")


def test_an_empty_step_of_a_path_is_refused() -> None:
    assert "line 2: level 2 is empty" in csv_refusal("path\nFruit//Apple")


@pytest.mark.parametrize("text", ["", "\n\n", " , ,\n", "coarse,fine\n"])
def test_a_file_without_labels_is_refused(text: str) -> None:
    assert "expected a line per label" in csv_refusal(text)


@pytest.mark.parametrize("bad", ["\x07", "\x1b[31m", "\x85", "\ud800", "\x7f"])
def test_control_characters_are_refused_and_not_printed(bad: str) -> None:
    message = csv_refusal(f"A,x\nA,y{bad}z\n")
    assert message.startswith("line 2: ")
    assert message.isprintable()


def test_what_is_no_text_is_refused() -> None:
    assert csv_refusal("A\nB\nP\0K").startswith("line 3: expected text, found a zero byte")


def test_names_levels_and_labels_have_bounds() -> None:
    assert "line 1: a name of 400 characters" in csv_refusal("x" * 400)
    assert "field larger" in csv_refusal("x" * 200_000)
    assert "line 1: 200 levels" in csv_refusal(",".join(["x"] * 200))
    assert f"more than {MAX_NODES}" in csv_refusal("\n".join(f"n{i}" for i in range(MAX_NODES + 1)))
    assert "characters, at most" in csv_refusal(" " * (tree_files.MAX_CHARACTERS + 1))


def test_thousands_of_labels_are_read() -> None:
    rows = "\n".join(f"top {i % 50},mid {i % 1000},leaf {i}" for i in range(20_000))
    assert len(read_csv(rows).tree) == 50 + 1000 + 20_000


@given(st.text(max_size=60) | st.text('ab,;\t"\n\r>/', max_size=40), st.none() | st.booleans())
def test_any_text_is_read_or_refused(text: str, header: bool | None) -> None:  # noqa: FBT001
    for as_csv in (True, False):
        try:
            found = read_csv(text, header=header) if as_csv else read_json(text)
            names, words = found.tree.names, ""
        except TreeFileError as error:
            names, words = (), str(error)
        assert words.isprintable()
        assert all(name == name.strip() != "" for name in names)


# JSON


def nested(tree: LabelTree, node: int) -> object:
    below = tree.children[node]
    return {tree.names[child]: nested(tree, child) for child in below}


@given(trees())
@example(tree_of(GROCERY))
def test_a_tree_comes_back_from_each_form_of_json(tree: LabelTree) -> None:
    if (expected := stripped(tree)) is None:
        return
    roots = {expected.names[top]: nested(expected, top) for top in expected.level_nodes(0)}
    listed = [list(path) for path in expected.paths]
    for data in (roots, listed, {"paths": listed}, expected.to_json()):
        assert paths(read_json(json.dumps(data))) == set(expected.paths)


def test_lists_objects_and_names_may_lie_in_each_other() -> None:
    data: object = {"Fruit": ["Apple", {"Pear": ["Anjou"]}], "Milk": None, "Veg": "Leek", "Tea": {}}
    assert leaves(read_json(json.dumps(data))) == {
        ("Fruit", "Apple"),
        ("Fruit", "Pear", "Anjou"),
        ("Milk",),
        ("Veg", "Leek"),
        ("Tea",),
    }


def test_objects_with_name_and_children_are_nodes() -> None:
    data = [{"name": "Fruit", "children": [{"name": "Apple"}, {"name": "Pear", "children": []}]}]
    assert leaves(read_json(json.dumps(data))) == {("Fruit", "Apple"), ("Fruit", "Pear")}


def test_texts_are_labels_or_with_a_separator_paths() -> None:
    text = '["Fruit/Apple", "Milk"]'
    assert leaves(read_json(text)) == {("Fruit/Apple",), ("Milk",)}
    assert leaves(read_json(text, separator="/")) == {("Fruit", "Apple"), ("Milk",)}


def test_a_key_given_twice_is_refused() -> None:
    text = '{"Top": {"Apple": 1, "Apple": 2}}'
    assert '"Apple" stands twice in one object' in json_refusal(None, text=text)


def test_what_is_no_json_is_refused_with_its_line() -> None:
    assert json_refusal(None, text='{"A": [\n"x",\n}').startswith("line 3, column 1: expected JSON")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"A": 7}, 'below "A": expected an object, a list or a name, got a number'),
        ({"A": [True]}, 'below "A": expected a name or an object, got a boolean'),
        ([["A", 1]], "[0]: expected a path, a list of names, got a list"),
        ([["A"], []], "[1]: expected a path"),
        ("A", "at the top: expected an object, a list or a name, got a string"),
        (None, "got nothing"),
        ([], "found none"),
        ({}, "found none"),
        ({"A": [""]}, "is empty"),
        ({"": {}}, "is empty"),
        ({"A\u001b[0m": {}}, "no label can"),
        ({"parents": [5], "names": ["a"]}, "its parent must be"),
        ({"parents": [0], "names": ["a"]}, "circle"),
    ],
)
def test_other_json_is_refused_with_its_place(data: object, words: str) -> None:
    message = json_refusal(data)
    assert words in message
    assert message.isprintable()


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_json_that_lies_too_deep_is_refused(opening: str) -> None:
    close = {"[": "]", '{"a":': "}"}[opening]
    assert "levels" in json_refusal(None, text=opening * 200_000 + "1" + close * 200_000)
    text = '{"a":' * 150 + "{}" + "}" * 150
    assert "levels" in json_refusal(None, text=text)


def test_the_outline_indents_a_label_below_its_parent() -> None:
    assert tree_files.outline(tree_of([("A", "x"), ("B",)])) == "A\n  x\nB"
