"""Label config -> tree: every supported form, and a clear refusal of every other."""

import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hierarchy.tree import LabelTree
from studio.errors import LabelConfigError
from studio.label_config import parse_label_config
from studio.label_controls import MAX_NODES
from tests.studio.configs import (
    GROCERY,
    cascade_xml,
    choice,
    choices_xml,
    taxonomy_xml,
    tree_of,
    trees,
    view,
)

WHEN = 'visibleWhen="choice-selected"'


def choices(name: str, *names: str, more: str = "") -> str:
    return f'<Choices name="{name}" toName="image" {more}>{"".join(map(choice, names))}</Choices>'


def taxonomy(*inner: str, more: str = "", name: str = "label") -> str:
    return f'<Taxonomy name="{name}" toName="image" {more}>{"".join(inner)}</Taxonomy>'


def refusal(xml: str) -> str:
    with pytest.raises(LabelConfigError) as caught:
        parse_label_config(xml)
    return str(caught.value)


def notes(xml: str) -> str:
    return "\n".join(parse_label_config(xml).notes)


# Taxonomy


@given(trees())
def test_a_taxonomy_gives_back_the_tree_it_was_written_from(tree: LabelTree) -> None:
    config = parse_label_config(taxonomy_xml(tree))
    assert config.tree == tree
    assert config.kind == "taxonomy"
    assert set(config.controls) == {"label"}
    assert config.titles == tree.names


@given(trees())
def test_an_alias_is_the_name_and_the_value_only_the_title(tree: LabelTree) -> None:
    """Results carry `alias ?? value` (editor 1.23.2, Taxonomy traverse and Choice _resultValue)."""
    config = parse_label_config(taxonomy_xml(tree, aliased=True))
    assert config.tree == tree
    assert config.titles == tuple(f"shown {node}" for node in range(len(tree)))


def test_image_and_field_are_found() -> None:
    config = parse_label_config(
        '<View><Image name="other" value="$b"/><Image name="photo" value="$shot_1"/>'
        '<Taxonomy name="t" toName="photo"><Choice value="A"/></Taxonomy></View>'
    )
    assert (config.image_name, config.image_key) == ("photo", "shot_1")


def test_a_lone_image_needs_no_to_name() -> None:
    """The editor infers it as well (Tree.extractNames)."""
    config = parse_label_config(view('<Taxonomy name="t"><Choice value="A"/></Taxonomy>'))
    assert config.image_name == "image"


def test_tag_and_attribute_names_may_have_any_case() -> None:
    config = parse_label_config(
        '<view><IMAGE Name="image" VALUE="$image"/>'
        '<TAXONOMY NAME="t" TONAME="image"><choice VALUE="A"/></TAXONOMY></view>'
    )
    assert config.tree.paths == (("A",),)


def test_the_same_name_may_stand_under_two_parents() -> None:
    assert parse_label_config(taxonomy_xml(tree_of(GROCERY))).tree == tree_of(GROCERY)


def test_display_attributes_of_choices_do_not_matter() -> None:
    inner = choice("A", more='hint="h" html="&lt;b&gt;a&lt;/b&gt;" color="red" hotkey="1"')
    assert parse_label_config(view(taxonomy(inner))).tree.paths == (("A",),)


@pytest.mark.parametrize(
    "pair",
    [
        '<Choice value="A"/><Choice value="A"/>',
        '<Choice value="A" alias="x"/><Choice value="A" alias="y"/>',
        '<Choice value="A" alias="x"/><Choice value="B" alias="x"/>',
        '<Choice value="A" alias="B"/><Choice value="B"/>',
    ],
)
def test_doubled_siblings_are_refused(pair: str) -> None:
    message = refusal(view(taxonomy(f'<Choice value="Top">{pair}</Choice>')))
    assert "has two choices" in message
    assert 'under "Top"' in message


@pytest.mark.parametrize("bad", ["<Choice/>", '<Choice value=" "/>', "<Choice>Apple</Choice>"])
def test_a_choice_without_a_value_is_refused_with_its_place(bad: str) -> None:
    message = refusal(view(taxonomy(f'<Choice value="Fruit">{bad}</Choice>')))
    assert 'under "Fruit" without a value' in message
    assert '<Choice value="..."/>' in message


@pytest.mark.parametrize("dynamic", ['apiUrl="https://example.org/t.json"', 'value="$options"'])
@pytest.mark.parametrize("control", ["Taxonomy", "Choices"])
def test_choices_from_elsewhere_are_refused(control: str, dynamic: str) -> None:
    xml = view(f'<{control} name="a" toName="image" {dynamic}><Choice value="A"/></{control}>')
    assert "takes its choices from elsewhere" in refusal(xml)


# Flat Choices


def test_flat_choices_make_a_tree_of_one_level() -> None:
    config = parse_label_config(choices_xml(["Milk", "Juice & more"]))
    assert config.tree.paths == (("Milk",), ("Juice & more",))
    assert config.kind == "choices"


def test_choices_may_be_laid_out_in_views() -> None:
    xml = view(
        f'<Choices name="a" toName="image"><View>{choice("A")}</View>{choice("B")}</Choices>'
    )
    assert parse_label_config(xml).tree.paths == (("A",), ("B",))


@pytest.mark.parametrize("nested", ["", 'allowNested="true"'])
def test_nested_choices_are_refused_in_favour_of_a_taxonomy(nested: str) -> None:
    inner = choice("Fruit", choice("Apple"))
    message = refusal(view(f'<Choices name="a" toName="image" {nested}>{inner}</Choices>'))
    assert "cannot carry a coarse label" in message
    assert "Use <Taxonomy>" in message


def test_a_choice_filled_in_from_task_data_needs_an_alias() -> None:
    """The editor replaces "$name" in a value by task data (parseValue), but not in an alias."""
    assert "alias" in refusal(choices_xml(["A", "costs $price"]))
    inner = choice("dear", title="costs $price")
    config = parse_label_config(view(f'<Choices name="a" toName="image">{inner}</Choices>'))
    assert config.tree.names == ("dear",)


def test_a_taxonomy_keeps_a_dollar_as_it_is() -> None:
    assert parse_label_config(view(taxonomy(choice("$5")))).tree.names == ("$5",)


# Cascades


@given(trees())
def test_a_cascade_gives_back_the_tree_it_was_written_from(tree: LabelTree) -> None:
    config = parse_label_config(cascade_xml(tree))
    assert config.tree == tree
    assert config.kind == ("cascade" if tree.depth > 1 else "choices")
    expected = ["top" if parent < 0 else f"under{parent}" for parent in tree.parents]
    assert list(config.controls) == expected


def test_a_control_shared_by_two_answers_hangs_under_both() -> None:
    xml = view(
        choices("l1", "Fruit", "Vegetables", "Milk"),
        choices(
            "l2",
            "Fresh",
            "Frozen",
            more=f'{WHEN} whenTagName="l1" whenChoiceValue="Fruit,Vegetables"',
        ),
    )
    tree = parse_label_config(xml).tree
    assert ("Fruit", "Frozen") in tree.paths
    assert ("Vegetables", "Frozen") in tree.paths
    assert len(tree) == 7


@pytest.mark.parametrize("values", ["", 'whenChoiceValue="B,A"'])
def test_what_is_asked_after_every_answer_is_a_level_only_if_it_is_marked(values: str) -> None:
    why = choices("why", "blurred", "dark", more=f'{WHEN} whenTagName="l1" {values}')
    xml = view(choices("l1", "A", "B"), why)
    config = parse_label_config(xml)
    assert (config.tree.paths, config.kind) == ((("A",), ("B",)), "choices")
    assert '<Choices name="why"> is no level of labels (it is asked after every' in notes(xml)
    marked = parse_label_config(xml.replace('name="why"', 'name="why" prelabel="true"'))
    assert ("B", "dark") in marked.tree.paths
    assert len(marked.tree) == 6


def test_questions_beside_the_labels_are_left_out() -> None:
    """Species, then sex and age: once a refusal that nothing could cure."""
    sex = choices("sex", "male", "female", more=f'{WHEN} whenTagName="species"')
    age = choices("age", "adult", "young", more=f'{WHEN} whenTagName="species"')
    xml = view(choices("species", "Deer", "Fox", "Bird"), sex, age)
    assert parse_label_config(xml).tree.names == ("Deer", "Fox", "Bird")
    assert notes(xml).count("is no level of labels") == 2
    some = xml.replace('whenTagName="species"', 'whenTagName="species" whenChoiceValue="Deer,Fox"')
    assert parse_label_config(some).tree.names == ("Deer", "Fox", "Bird")
    assert "the same label shows" in notes(some)
    marked = xml.replace('name="age"', 'name="age" prelabel="true"')
    assert ("Fox", "young") in parse_label_config(marked).tree.paths


def test_kinds_of_one_answer_are_a_level_beside_the_questions_of_more() -> None:
    kinds = choices("kind", "Owl", "Duck", more=f'{WHEN} whenTagName="l1" whenChoiceValue="Bird"')
    sex = choices(
        "sex", "male", "female", more=f'{WHEN} whenTagName="l1" whenChoiceValue="Bird,Fox"'
    )
    xml = view(choices("l1", "Bird", "Fox", "Empty"), sex, kinds)
    assert parse_label_config(xml).tree.paths[3:] == (("Bird", "Owl"), ("Bird", "Duck"))
    when = f'{WHEN} whenTagName="l1" whenChoiceValue="Animal"'
    after = view(
        choices("l1", "Animal", "Empty"),
        choices("sex", "male", "female", more=when),
        choices("species", "Fox", "Deer", "Owl", more=when),
    )
    assert ("Animal", "Owl") in parse_label_config(after).tree.paths
    assert len(parse_label_config(after).tree) == 5


def test_the_mark_takes_a_control_out() -> None:
    why = choices("why", "blurred", more=f'{WHEN} whenTagName="l1" whenChoiceValue="Unsure"')
    xml = view(choices("l1", "Fox", "Unsure"), why)
    assert ("Unsure", "blurred") in parse_label_config(xml).tree.paths
    assert 'write prelabel="false" on it' in notes(xml)
    out = xml.replace('name="why"', 'name="why" prelabel="false"')
    assert parse_label_config(out).tree.names == ("Fox", "Unsure")


def test_the_most_labels_are_read_where_nothing_is_marked() -> None:
    xml = view(choices("sharp", "yes", "no"), choices("species", "Fox", "Deer", "Owl"))
    assert parse_label_config(xml).tree.names == ("Fox", "Deer", "Owl")
    assert 'labels are read from <Choices name="species">' in notes(xml)
    taken = xml.replace('name="species"', 'name="species" prelabel="false"')
    assert parse_label_config(taken).tree.names == ("yes", "no")


def test_names_that_differ_by_normalization_only_are_one() -> None:
    decomposed = unicodedata.normalize("NFD", "École")
    xml = view(taxonomy(choice("École", choice("x")), choice(decomposed, choice("x"), choice("y"))))
    assert parse_label_config(xml).tree.paths == (("École",), ("École", "x"), ("École", "y"))


def test_the_condition_may_stand_on_a_view_around_the_control() -> None:
    inner = f"<View>{choices('l2', 'x')}</View>"
    condition = f'{WHEN} whenTagName="l1" whenChoiceValue="B"'
    xml = view(choices("l1", "A", "B"), f"<View {condition}>{inner}</View>")
    assert parse_label_config(xml).tree.paths == (("A",), ("B",), ("B", "x"))


def test_conditions_of_nested_views_must_all_hold() -> None:
    inner = choices("l3", "deep", more=f'{WHEN} whenTagName="l2" whenChoiceValue="x"')
    xml = view(
        choices("l1", "A", "B"),
        choices("l2", "x", more=f'{WHEN} whenTagName="l1" prelabel="true"'),
        f'<View {WHEN} whenTagName="l1" whenChoiceValue="A">{inner}</View>',
    )
    paths = parse_label_config(xml).tree.paths
    assert ("A", "x", "deep") in paths
    assert ("B", "x", "deep") not in paths


def test_a_condition_may_name_an_alias_or_a_value() -> None:
    top = f'<Choices name="l1" toName="image">{choice("F", title="Fruit")}</Choices>'
    for word in ("F", "Fruit"):
        lower = choices("l2", "x", more=f'{WHEN} whenTagName="l1" whenChoiceValue="{word}"')
        assert parse_label_config(view(top, lower)).tree.paths == (("F",), ("F", "x"))


def test_the_top_control_may_come_last() -> None:
    xml = view(
        choices("l2", "x", more=f'{WHEN} whenTagName="l1" whenChoiceValue="A"'),
        choices("l1", "A"),
    )
    assert parse_label_config(xml).controls == ("l1", "l2")


def test_a_level_under_an_unreadable_condition_is_refused_with_the_fix() -> None:
    inner = choices("l2", "x", more=f'{WHEN} whenTagName="l1" prelabel="true"')
    xml = view(choices("l1", "A"), f'<View visibleWhen="no-region-selected">{inner}</View>')
    assert 'write visibleWhen="choice-selected" whenTagName' in refusal(xml)
    plain = xml.replace(' prelabel="true"', "")
    assert parse_label_config(plain).tree.names == ("A",)
    assert 'write visibleWhen="choice-selected" whenTagName' in notes(plain)


def test_a_value_that_is_not_there_is_noted_and_stops_nothing() -> None:
    """Admins rename choices while people label."""
    lower = choices("l2", "x", more=f'{WHEN} whenTagName="l1" whenChoiceValue="A, B"')
    config = parse_label_config(view(choices("l1", "A", "B"), lower))
    assert config.tree.paths == (("A",), ("B",), ("A", "x"))
    assert 'waits for " B" of "l1"' in config.notes[0]
    gone = choices("l2", "x", more=f'{WHEN} whenTagName="l1" whenChoiceValue="Z"')
    assert "never shown" in notes(view(choices("l1", "A"), gone))


def test_shared_levels_that_multiply_beyond_bounds_are_refused() -> None:
    names = [f"n{i}" for i in range(60)]
    mark = 'prelabel="true"'
    parts = [choices("l0", *names)]
    parts += [
        choices(f"l{i}", *names, more=f'{WHEN} whenTagName="l{i - 1}" {mark}') for i in (1, 2)
    ]
    assert MAX_NODES < 60**3
    assert "multiply" in refusal(view(*parts))


# Which control


def test_a_taxonomy_is_preferred_and_the_others_are_noted() -> None:
    xml = view(choices("blurred", "yes", "no"), taxonomy(choice("A")))
    config = parse_label_config(xml)
    assert config.controls == ("label",)
    assert '<Choices name="blurred"> is not pre-labelled' in config.notes[0]


def test_one_of_several_is_chosen_by_the_mark() -> None:
    plain = view(
        choices("a", "1"),
        choices("b", "2"),
        taxonomy(choice("A")),
        taxonomy(choice("B"), name="t2"),
    )
    (first, *_) = parse_label_config(plain).notes
    assert '<Taxonomy name="label">, which comes first of <Taxonomy name="label">' in first
    marked = plain.replace('name="b"', 'name="b" prelabel="true"')
    assert parse_label_config(marked).controls == ("b",)
    twice = marked.replace('name="t2"', 'name="t2" prelabel="true"')
    assert "only" in refusal(twice)


def test_a_question_as_large_as_the_labels_refuses_nothing() -> None:
    config = parse_label_config(view(choices("a", "1", "2"), choices("b", "good", "bad")))
    assert set(config.controls) == {"a"}
    assert 'which comes first of <Choices name="a">, <Choices name="b">' in config.notes[0]


def test_a_mark_on_any_level_chooses_the_whole_cascade() -> None:
    lower = choices("l2", "x", more=f'{WHEN} whenTagName="l1" prelabel="true"')
    xml = view(choices("l1", "A"), lower, choices("quality", "good"))
    assert parse_label_config(xml).controls == ("l1", "l2")


def test_a_control_about_regions_leaves_the_one_about_the_image() -> None:
    xml = view(taxonomy(choice("A"), more='perRegion="true"'), choices("kind", "B"))
    assert parse_label_config(xml).tree.names == ("B",)


LEVEL = f'{WHEN} whenTagName="l1" whenChoiceValue="A" prelabel="true"'


@pytest.mark.parametrize(
    ("xml", "words"),
    [
        (view(), '<Taxonomy name="label"'),
        ("<View></View>", '<Taxonomy name="label"'),
        (view('<Taxonomy name="a" toName="image"/>'), "has no <Choice>"),
        (view('<Choices name="a" toName="image"/>'), "has no <Choice>"),
        (view(taxonomy('<Choice value="A" alias=""/>')), "empty alias"),
        (view('<Taxonomy toName="image"><Choice value="A"/></Taxonomy>'), "no name"),
        (view(taxonomy(choice("A")), '<Header name="label" value="x"/>'), "two tags"),
        (view(taxonomy(choice("A"))).replace("<Image", "<Text"), "classifies no image"),
        (view(taxonomy(choice("A")).replace('"image"', '"gone"')), '"gone"'),
        (view(taxonomy(choice("A"))).replace('value="$image"', 'valueList="$all"'), "valueList"),
        # about parts of an image
        (view(taxonomy(choice("A"), more='perRegion="true"')), "labels regions"),
        (view(taxonomy(choice("A"), more='labeling="true"')), "labels regions"),
        (view(taxonomy(choice("A"), more='visibleWhen="region-selected"')), "labels regions"),
        (view(taxonomy(choice("A"), more='perItem="true"')), "several images"),
        (view(f'<Repeater on="$images">{taxonomy(choice("A"))}</Repeater>'), "whole image"),
        # conditions
        (view(choices("a", "1", more=f"{WHEN} whenChoiceValue='A'")), "is shown under"),
        (view(choices("a", "1", more='whenTagName="b" whenChoiceValue="A"')), "is shown under"),
        (view(choices("a", "1", more='visibleWhen="choice-unselected"')), "is shown under"),
        (view(choices("a", "1", more=LEVEL)), "is shown only after"),
        (
            view(
                choices("a", "1", more=f'{WHEN} whenTagName="b"'),
                choices("b", "2", more=f'{WHEN} whenTagName="a"'),
            ),
            "shown from the start",
        ),
        (
            view(choices("l1", "A"), choices("x", "1", more=LEVEL), choices("y", "2", more=LEVEL)),
            'both shown by "A"',
        ),
        (view(taxonomy(choice("A"), more='prelabel="false"')), 'says prelabel="false"'),
        # separators
        (view(taxonomy(choice("A / B") + choice("A", choice("B")))), "reads like another's"),
        (view(taxonomy(choice("A"), more='pathSeparator=""')), "pathSeparator"),
    ],
)
def test_what_cannot_be_read_is_refused_in_words(xml: str, words: str) -> None:
    assert words in refusal(xml)


# The image


@pytest.mark.parametrize("value", ["", "image", "https://example.org/$id.jpg", "$a $b", "$"])
def test_an_image_that_names_no_single_field_is_refused(value: str) -> None:
    xml = view(taxonomy(choice("A"))).replace("$image", value)
    assert 'write value="$image"' in refusal(xml)


@pytest.mark.parametrize(
    ("field", "data", "image"),
    [
        ("image", {"image": "/data/upload/1/a.jpg"}, "/data/upload/1/a.jpg"),
        ("image", {}, None),
        ("image", {"image": None}, None),
        ("image", {"image": 3}, None),
        ("image", {"image": " "}, None),
        ("shots[1].url", {"shots": [{}, {"url": "s3://b/k"}]}, "s3://b/k"),
        ("shots[7].url", {"shots": []}, None),
        ("a.b", {"a": {"b": "nested"}, "a.b": "flat"}, "flat"),
        (f"a[{'9' * 5000}]", {"a": ["x"]}, None),
    ],
)
def test_the_image_is_found_as_the_editor_finds_it(
    field: str, data: dict[str, object], image: str | None
) -> None:
    config = parse_label_config(view(taxonomy(choice("A"))).replace("$image", f"${field}"))
    assert config.image_address(data) == image


# Notes and separators


@pytest.mark.parametrize(
    ("attribute", "words"),
    [
        ('leafsOnly="true"', "coarse label"),
        ('maxUsages="1"', "deeper tick is ignored"),
        ('required="true"', "Skip"),
        ('legacy="true"', "labels of their own"),
        ('visibleWhen="choice-selected" whenTagName="x"', "not always shown"),
    ],
)
def test_what_hurts_in_a_taxonomy_is_noted(attribute: str, words: str) -> None:
    assert words in notes(view(taxonomy(choice("A"), more=attribute)))


def test_a_plain_taxonomy_has_but_the_note_that_it_takes_several_ticks() -> None:
    plain = 'leafsOnly="false" maxUsages="3" required="false"'
    xml = view(taxonomy(choice("A", choice("B")), choice("C"), more=plain))
    (note,) = parse_label_config(xml).notes
    assert "takes several ticks" in note


def test_a_root_above_everything_is_noted() -> None:
    roots = choice("Bird", choice("Owl")) + choice("Fish")
    rooted = view(taxonomy(choice("Life", choice("Animal", roots)), more='maxUsages="1"'))
    assert (
        "'Life' > 'Animal' stands above all other labels and names every image alike: it is never "
        "pre-labelled, and levels that hold it alone are not counted as right."
    ) in notes(rooted)
    assert "names every image alike" not in notes(view(taxonomy(roots)))
    assert "leave no choice" in notes(view(taxonomy(choice("Life", choice("Animal")))))


def test_a_question_that_hides_the_labels_is_noted_with_its_answers() -> None:
    when = f'{WHEN} whenTagName="present" whenChoiceValue="Animal"'
    xml = view(choices("present", "Animal", "Empty"), taxonomy(choice("A"), more=when))
    config = parse_label_config(xml)
    assert config.hiding == {"present": frozenset({"Empty"})}
    assert '<Choices name="present"> hides the labels after some choices ("Empty")' in notes(xml)
    assert parse_label_config(view(taxonomy(choice("A")))).hiding == {}


def test_an_ambiguous_chip_is_noted_unless_full_paths_are_shown() -> None:
    inner = choice("A", choice("x")) + choice("B", choice("x"))
    assert "showFullPath" in notes(view(taxonomy(inner)))
    assert "showFullPath" not in notes(view(taxonomy(inner, more='showFullPath="true"')))


def test_a_preselected_choice_is_noted_at_any_depth() -> None:
    inner = choice("A", choice("B", more='selected="true"'))
    assert 'ticks "B" beforehand' in notes(view(taxonomy(inner)))
    ticked = choice("A", more='selected="true"')
    flat = f'<Choices name="a" toName="image">{ticked}</Choices>'
    assert 'ticks "A" beforehand' in notes(view(flat))


def test_multiple_choice_is_noted() -> None:
    assert 'choice="multiple"' in notes(choices_xml(["A", "B"], 'choice="multiple"'))


def test_a_required_level_below_the_top_is_noted_as_a_forced_guess() -> None:
    lower = choices("l2", "x", more=f'{WHEN} whenTagName="l1" whenChoiceValue="A" required="true"')
    assert "must guess" in notes(view(choices("l1", "A"), lower))
    assert "Skip" in notes(choices_xml(["A"], 'required="true"'))


def test_a_separator_inside_a_name_is_noted_and_put_together() -> None:
    """The editor joins and splits paths there when an answer changes (NewTaxonomy.onChange)."""
    config = parse_label_config(view(taxonomy(choice("Bread / Rolls", choice("A")))))
    assert config.separator == " / "
    assert "pathSeparator" in config.notes[0]
    other = view(taxonomy(choice("Bread / Rolls"), more='pathSeparator="|"'))
    assert parse_label_config(other).separator is None


# Anything


@given(st.text(max_size=80))
def test_any_text_is_read_or_refused(text: str) -> None:
    with pytest.raises(LabelConfigError):
        parse_label_config(text)


_CONDITIONS = [
    f'{WHEN} whenTagName="{n}" whenChoiceValue="{v}"' for n in "abc" for v in ("A", "A,B")
]
_OPENINGS = [
    "View",
    "Repeater",
    'Taxonomy name="a" toName="image"',
    *(f'Choices name="{name}" toName="image"' for name in "abc"),
    *(f'Choices name="{name}" {condition}' for name in "abc" for condition in _CONDITIONS),
    *(f"View {condition}" for condition in _CONDITIONS),
    'Choice value="A"',
    'Choice value="B" alias="C"',
]


def _element(children: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    inner = st.lists(children, max_size=4).map("".join)
    opening = st.sampled_from(_OPENINGS)
    return st.builds(lambda tag, body: f"<{tag}>{body}</{tag.split()[0]}>", opening, inner)


@given(st.lists(st.recursive(st.sampled_from([choice("A"), choice("B")]), _element), max_size=6))
def test_any_arrangement_of_tags_is_read_or_refused(parts: list[str]) -> None:
    try:
        config = parse_label_config(view(*parts))
    except LabelConfigError:
        return
    assert len(config.controls) == len(config.titles) == len(config.tree)


def test_the_recorded_setup_schema_is_cut_and_refused_as_such(shared: Path) -> None:
    """The recording shortened its XML, which is no longer well-formed; and the message says so."""
    body = json.loads((shared / "label-studio" / "setup.json").read_text())["request_body"]
    assert "not well-formed" in refusal(body["schema"])
