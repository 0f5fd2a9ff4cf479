"""Label config text -> tags. Sizes are bounded and entities refused before anything is built."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final
from xml.etree.ElementTree import ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import DefusedXMLParser

from studio.errors import LabelConfigError

#: Longest label config read, in characters. 100 000 choices take about 4 million.
MAX_CHARACTERS: Final = 8_000_000

#: Most tags in one label config.
MAX_TAGS: Final = 100_000

#: Deepest nesting of tags; far below Python's recursion limit, so that walking them may recurse.
MAX_DEPTH: Final = 128


@dataclass(eq=False)
class Tag:
    """One element of a label config.

    Label Studio's editor compares the names of tags and attributes without regard to case, so both
    are kept in lower case here.

    Attributes:
        kind: the element's name in lower case, such as ``taxonomy``.
        attributes: its attributes, names in lower case.
        above: the element around it; None for the outermost.
        children: the elements in it, in order.
        text: the first piece of character data that is not blank.
    """

    kind: str
    attributes: Mapping[str, str]
    above: Tag | None = field(repr=False)
    children: list[Tag] = field(default_factory=list, repr=False)
    text: str = ""

    def get(self, attribute: str) -> str | None:
        """Text of an attribute (name in lower case), None where it is absent."""
        return self.attributes.get(attribute)

    def says(self, attribute: str) -> bool:
        """Whether an attribute is ``true``, the one spelling the editor takes for yes."""
        return self.attributes.get(attribute) == "true"

    @property
    def name(self) -> str:
        """The ``name`` attribute, empty where it is absent."""
        return self.attributes.get("name", "")

    def around(self) -> Iterator[Tag]:
        """The elements around this one, innermost first."""
        tag = self.above
        while tag is not None:
            yield tag
            tag = tag.above

    def within(self) -> Iterator[Tag]:
        """This element and all in it, in document order."""
        yield self
        for child in self.children:
            yield from child.within()


class _Builder:
    """Target of the XML parser: grows the tags and stops at the first limit passed."""

    def __init__(self) -> None:
        self.tags: list[Tag] = []
        self._open: list[Tag] = []

    def start(self, name: str, attributes: dict[str, str]) -> None:
        if len(self.tags) == MAX_TAGS:
            raise LabelConfigError(f"the label config has more than {MAX_TAGS} tags")
        if len(self._open) == MAX_DEPTH:
            raise LabelConfigError(f"the label config nests tags deeper than {MAX_DEPTH}")
        above = self._open[-1] if self._open else None
        tag = Tag(name.lower(), {key.lower(): text for key, text in attributes.items()}, above)
        if above is not None:
            above.children.append(tag)
        self.tags.append(tag)
        self._open.append(tag)

    def end(self, _name: str) -> None:
        self._open.pop()

    def data(self, text: str) -> None:
        if self._open and not self._open[-1].text:
            self._open[-1].text = text.strip()

    def close(self) -> None:
        """Nothing is left to do when the text ends."""


def read_tags(xml: str) -> Tag:
    """Outermost tag of a label config.

    Args:
        xml: the label config as Label Studio stores and sends it.

    Raises:
        LabelConfigError: if the text is empty, too large, nested too deep, not well-formed, or
            declares a document type or entities.
    """
    if not xml.strip():
        raise LabelConfigError("the label config is empty: give the project a labelling setup")
    if len(xml) > MAX_CHARACTERS:
        raise LabelConfigError(
            f"the label config has {len(xml)} characters, at most {MAX_CHARACTERS} are read"
        )
    builder = _Builder()
    parser = DefusedXMLParser(target=builder, forbid_dtd=True)
    try:
        parser.feed(xml)
        parser.close()
    except DefusedXmlException as error:
        raise LabelConfigError(
            "the label config declares a document type or entities, which are refused: "
            "remove <!DOCTYPE ...>"
        ) from error
    except (ParseError, ValueError) as error:  # ValueError: text that has no UTF-8 form
        raise LabelConfigError(f"the label config is not well-formed XML: {error}") from error
    return builder.tags[0]  # well-formed XML has one outermost tag
