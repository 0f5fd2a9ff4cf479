"""Reading the XML of a label config: what is well-formed, what is too much, what is an attack."""

import pytest

from studio.errors import LabelConfigError
from studio.label_controls import MAX_CHARACTERS, MAX_DEPTH, MAX_TAGS, read_tags


def test_names_of_tags_and_attributes_lose_their_case() -> None:
    """Label Studio's editor compares them without it."""
    root = read_tags('<VIEW><image NAME="A" Value="$x"/></VIEW>')
    assert root.kind == "view"
    assert root.children[0].kind == "image"
    assert root.children[0].attributes == {"name": "A", "value": "$x"}


def test_tags_come_in_document_order_with_what_is_around_them() -> None:
    tags = list(read_tags("<a><b><c/></b><d/></a>").within())
    assert [tag.kind for tag in tags] == ["a", "b", "c", "d"]
    assert [tag.kind for tag in tags[2].around()] == ["b", "a"]


@pytest.mark.parametrize(
    ("xml", "reason"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("<View>", "not well-formed"),
        ("<!-- nothing -->", "not well-formed"),
        ("<View/><View/>", "not well-formed"),
        ("<View>\0</View>", "not well-formed"),
        ("<View>\ud800</View>", "not well-formed"),
        ("<p:View/>", "not well-formed"),
        ("<!DOCTYPE View><View/>", "document type"),
        ('<!DOCTYPE v [<!ENTITY a "b">]><v>&a;</v>', "document type"),
        ('<!DOCTYPE v [<!ENTITY a SYSTEM "file:///etc/passwd">]><v>&a;</v>', "document type"),
    ],
)
def test_other_text_is_refused_with_the_reason(xml: str, reason: str) -> None:
    with pytest.raises(LabelConfigError, match=reason):
        read_tags(xml)


def test_deepest_nesting_allowed_is_read_and_one_more_refused() -> None:
    depth = MAX_DEPTH
    assert len(list(read_tags("<a>" * depth + "</a>" * depth).within())) == depth
    with pytest.raises(LabelConfigError, match="nests tags deeper than 128"):
        read_tags("<a>" * (depth + 1) + "</a>" * (depth + 1))


def test_nesting_far_beyond_the_limit_is_refused_without_a_recursion_error() -> None:
    with pytest.raises(LabelConfigError, match="deeper"):
        read_tags("<a>" * 1_000_000)


def test_too_many_tags_are_refused() -> None:
    with pytest.raises(LabelConfigError, match="more than 100000 tags"):
        read_tags("<a>" + "<b/>" * MAX_TAGS + "</a>")


def test_too_long_a_text_is_refused() -> None:
    with pytest.raises(LabelConfigError, match="at most 8000000"):
        read_tags(f"<a>{' ' * MAX_CHARACTERS}</a>")
