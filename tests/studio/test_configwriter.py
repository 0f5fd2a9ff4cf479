"""Label configs that we write are those that we read."""

from hypothesis import given
from hypothesis import strategies as st

from hierarchy import LabelTree
from studio.configwriter import taxonomy_config
from studio.labelconfig import parse_label_config
from tests.strategies import trees as any_trees
from tests.studio.configs import GROCERY, tree_of, trees


@given(trees())
def test_a_tree_comes_back_from_its_config_as_it_was(tree: LabelTree) -> None:
    read = parse_label_config(taxonomy_config(tree))
    assert read.tree == tree
    assert (read.kind, read.image_key, read.image_name) == ("taxonomy", "image", "image")


@given(any_trees(max_nodes=20))
def test_a_tree_with_any_ids_comes_back_with_the_same_paths(tree: LabelTree) -> None:
    assert set(parse_label_config(taxonomy_config(tree)).tree.paths) == set(tree.paths)


@given(st.sampled_from(["image", "photo", "image_url"]))
def test_the_field_of_the_picture_is_the_one_asked_for(key: str) -> None:
    assert parse_label_config(taxonomy_config(tree_of(GROCERY), image_key=key)).image_key == key


def test_titles_of_any_letters_stay_text() -> None:
    xml = taxonomy_config(tree_of(GROCERY), title='<What> & "why"?')
    assert 'value="&lt;What&gt; &amp; &quot;why&quot;?"' in xml


def test_coarse_answers_stay_possible() -> None:
    """LeafsOnly forbids them, maxUsages makes deepening them a riddle."""
    xml = taxonomy_config(tree_of(GROCERY))
    assert "leafsOnly" not in xml
    assert "maxUsages" not in xml
