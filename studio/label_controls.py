"""Label config XML -> tags, and controls -> nodes: `<Taxonomy>`, `<Choices>` or a cascade of them.

Names, conditions and separators follow what Label Studio's editor 1.23.2 does with them
(`tags/control/Taxonomy`, `Choice`, `Choices`, `mixins/Visibility`). Sizes are bounded and entities
refused before anything is built.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
#: Most nodes a label tree may have; a cascade with shared controls multiplies its levels.
MAX_NODES: Final = 50_000
#: A reference to task data: the editor puts the data in its place (`utils/data.js`, parseValue).
REFERENCE: Final = re.compile(r"\$[\w\[\].{}]+", re.ASCII)


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
        """Return the text of an attribute (name in lower case), None where it is absent."""
        return self.attributes.get(attribute)

    def is_set(self, attribute: str) -> bool:
        """Return whether an attribute is ``true``, the one spelling the editor takes for yes."""
        return self.attributes.get(attribute) == "true"

    @property
    def name(self) -> str:
        """The ``name`` attribute, empty where it is absent."""
        return self.attributes.get("name", "")

    def around(self) -> Iterator[Tag]:
        """Yield the elements around this one, innermost first."""
        tag = self.above
        while tag is not None:
            yield tag
            tag = tag.above

    def within(self) -> Iterator[Tag]:
        """Yield this element and all in it, in document order."""
        yield self
        for child in self.children:
            yield from child.within()


class _TagBuilder:
    """Target of the XML parser: builds the tags and stops at the first limit passed."""

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
        """Do nothing at the end of the text."""


def read_tags(xml: str) -> Tag:
    """Return the outermost tag of a label config.

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
    builder = _TagBuilder()
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


def describe(control: Tag) -> str:
    """Return a control as an admin would look for it, such as ``<Choices name="kind">``."""
    return f'<{"Taxonomy" if control.kind == "taxonomy" else "Choices"} name="{control.name}">'


def nfc(name: str) -> str:
    """Return a name in the Unicode form in which names are compared (NFC)."""
    return unicodedata.normalize("NFC", name)


# Choices of a control


@dataclass(frozen=True)
class Choice:
    """One `<Choice>`.

    Attributes:
        name: what results carry: the alias where there is one, else the value.
        title: what the annotator reads: the value.
        selected: whether the editor ticks it before the annotator does anything.
        children: the choices below it.
    """

    name: str
    title: str
    selected: bool
    children: tuple[Choice, ...]


def read_choices(control: Tag) -> tuple[Choice, ...]:
    """Return the choices of a control.

    Raises:
        LabelConfigError: if they come from task data or a server, are nested in a `<Choices>`,
            have no value, are given twice under one parent, or if there are none.
    """
    if control.get("apiurl") or (control.get("value") or "").startswith("$"):
        raise LabelConfigError(
            f"{describe(control)} takes its choices from elsewhere (apiUrl or value), so they "
            "cannot be known when a model is trained: write them as <Choice value=...> tags"
        )
    choices = _read_siblings(control, control, ())
    if not choices:
        raise LabelConfigError(f"{describe(control)} has no <Choice>: add at least one")
    return choices


def _read_siblings(control: Tag, above: Tag, path: tuple[str, ...]) -> tuple[Choice, ...]:
    choices = tuple(_read_choice(control, tag, path) for tag in _choice_tags(above))
    for words in ([choice.name for choice in choices], [choice.title for choice in choices]):
        if len(set(words)) < len(words):
            twice = next(word for word in words if words.count(word) > 1)
            raise LabelConfigError(
                f'{describe(control)} has two choices "{twice}" {_under(path)}: Label Studio '
                "cannot tell them apart, so rename one (value and alias must both differ)"
            )
    return _merged(choices)


def _merged(choices: tuple[Choice, ...]) -> tuple[Choice, ...]:
    """Merge choices that differ in their Unicode form only: people cannot tell them apart."""
    found: dict[str, Choice] = {}
    for choice in choices:
        first = found.setdefault(nfc(choice.name), choice)
        if first is not choice:
            both = _merged((*first.children, *choice.children))
            found[nfc(choice.name)] = replace(first, children=both)
    return tuple(found.values())


def _choice_tags(above: Tag) -> Iterator[Tag]:
    """Yield the choices right below a tag, also through the views that only lay them out."""
    for child in above.children:
        if child.kind == "choice":
            yield child
        elif child.kind == "view":
            yield from _choice_tags(child)


def _read_choice(control: Tag, tag: Tag, path: tuple[str, ...]) -> Choice:
    title = tag.get("value") or ""
    if not title.strip() or tag.text:
        found = f' (with the text "{tag.text[:40]}")' if tag.text else ""
        raise LabelConfigError(
            f"{describe(control)} has a <Choice>{found} {_under(path)} without a value: "
            'write <Choice value="..."/>'
        )
    name = tag.attributes.get("alias", title)
    if not name.strip():
        raise LabelConfigError(
            f'{describe(control)}: the choice "{title}" {_under(path)} has an empty alias, which '
            "Label Studio would store as the label: fill it in or remove it"
        )
    if control.kind == "choices":
        _check_flat(control, tag, name)
    children = _read_siblings(control, tag, (*path, title))
    return Choice(name, title, tag.is_set("selected"), children)


def _check_flat(control: Tag, tag: Tag, name: str) -> None:
    """Refuse what a `<Choices>` cannot carry: nesting, and names filled in from task data."""
    if control.is_set("allownested") or any(True for _ in _choice_tags(tag)):
        raise LabelConfigError(
            f"{describe(control)} nests its choices. Label Studio cannot carry a coarse label "
            "there: such a pre-label shows nothing, and ticking a parent ticks everything below "
            "it. Use <Taxonomy> with the same nested <Choice> tags instead"
        )
    if REFERENCE.search(name):
        raise LabelConfigError(
            f'{describe(control)}: Label Studio replaces the "$..." in "{name}" by task data, so '
            "the label cannot be known beforehand: give the choice an alias without it"
        )


def _under(path: Sequence[str]) -> str:
    return f'under "{" / ".join(path)}"' if path else "at the top"


# Nodes of the tree


@dataclass(frozen=True)
class LabelNode:
    """One node of the label tree: its path in names, its title, and the control it is ticked in."""

    path: tuple[str, ...]
    title: str
    control: str


def taxonomy_nodes(control: Tag, choices: Sequence[Choice]) -> list[LabelNode]:
    """Return the nodes of a `<Taxonomy>`, parents before children."""

    def walk(siblings: Sequence[Choice], above: tuple[str, ...]) -> Iterator[LabelNode]:
        for choice in siblings:
            path = (*above, choice.name)
            yield LabelNode(path, choice.title, control.name)
            yield from walk(choice.children, path)

    return list(walk(choices, ()))


@dataclass(frozen=True)
class Condition:
    """A control is shown only while ``control`` holds one of ``values`` (None: any label)."""

    control: str
    values: tuple[str, ...] | None

    def met_by(self, choice: Choice) -> bool:
        """Return whether ticking a choice shows the control; value and alias count alike."""
        return self.values is None or not {nfc(choice.name), nfc(choice.title)}.isdisjoint(
            map(nfc, self.values)
        )


def is_conditional(tag: Tag) -> bool:
    """Return whether a tag is shown only at times."""
    return tag.get("visiblewhen") is not None or tag.get("whenchoicevalue") is not None


def conditions(control: Tag) -> tuple[Condition, ...]:
    """Return what must be ticked for a control to be shown, outermost condition first.

    Label Studio honours conditions on the control and on the views around it.

    Raises:
        LabelConfigError: if a condition is of a kind that a cascade cannot be made of.
    """
    found = []
    for tag in (control, *control.around()):
        if not is_conditional(tag):
            continue
        when, name = tag.get("visiblewhen"), tag.get("whentagname")
        if when != "choice-selected" or not name:
            raise LabelConfigError(
                f"{describe(control)} is shown under a condition that cannot be read as a level of "
                f'labels (visibleWhen="{when or ""}" whenTagName="{name or ""}"): write '
                'visibleWhen="choice-selected" whenTagName="..." whenChoiceValue="..."'
            )
        values = tag.get("whenchoicevalue")
        found.append(Condition(name, tuple(values.split(",")) if values else None))
    return tuple(reversed(found))


@dataclass(frozen=True, eq=False)
class CascadeLevel:
    """One control of a cascade, with its choices and the conditions under which it is shown."""

    tag: Tag
    choices: tuple[Choice, ...]
    conditions: tuple[Condition, ...]

    @classmethod
    def of(cls, tag: Tag) -> CascadeLevel:
        """Read a control.

        Raises:
            LabelConfigError: see `conditions` and `read_choices`.
        """
        shown_by = conditions(tag)
        return cls(tag, read_choices(tag), shown_by)


@dataclass(frozen=True)
class _Branch:
    """A branch of the growing tree: its path, and the choice ticked in each control on the way."""

    path: tuple[str, ...]
    ticked: Mapping[str, Choice]

    def shown(self, waiting: Sequence[CascadeLevel]) -> CascadeLevel | None:
        """Return the control that the ticks so far show below the last of them."""
        found = [
            level
            for level in waiting
            if all(
                one.control in self.ticked and one.met_by(self.ticked[one.control])
                for one in level.conditions
            )
        ]
        if len(found) > 1:
            raise LabelConfigError(
                f"{describe(found[0].tag)} and {describe(found[1].tag)} are both shown by "
                f'"{" / ".join(self.path)}": one label may show one control only, so narrow their '
                "whenChoiceValue"
            )
        return found[0] if found else None


def cascade_nodes(levels: Sequence[CascadeLevel]) -> tuple[list[LabelNode], tuple[str, ...]]:
    """Return the nodes of a cascade of `<Choices>`, or of one `<Choices>` alone, level by level.

    Args:
        levels: the first is the top level; the others are shown by labels of one of these.

    Returns:
        The nodes, and notes on controls and conditions that no label can fulfil.

    Raises:
        LabelConfigError: if two controls are shown by the same label, or the levels multiply to
            more than `MAX_NODES` nodes.
    """
    top = levels[0]
    waiting: dict[str, list[CascadeLevel]] = {}
    for level in levels[1:]:
        waiting.setdefault(level.conditions[-1].control, []).append(level)
    nodes: list[LabelNode] = []
    growing = [(_Branch((), {}), top)]
    while growing:
        grown = []
        for above, level in growing:
            for choice in level.choices:
                ticked = {**above.ticked, level.tag.name: choice}
                branch = _Branch((*above.path, choice.name), ticked)
                nodes.append(LabelNode(branch.path, choice.title, level.tag.name))
                if (below := branch.shown(waiting.get(level.tag.name, ()))) is not None:
                    grown.append((branch, below))
            if len(nodes) > MAX_NODES:
                raise LabelConfigError(
                    f"the cascade that starts at {describe(top.tag)} makes more than {MAX_NODES} "
                    "labels: controls that several labels share multiply, so give fewer choices"
                )
        growing = grown
    return nodes, tuple(_unused_notes(levels, {node.control for node in nodes}))


def _unused_notes(levels: Sequence[CascadeLevel], shown: set[str]) -> Iterator[str]:
    """Yield notes on conditions that name no choice, and on controls that are never shown."""
    known = {
        level.tag.name: {word for one in level.choices for word in (one.name, one.title)}
        for level in levels
    }
    for level in levels:
        for condition in level.conditions:
            for value in set(condition.values or ()) - known.get(condition.control, set()):
                yield (
                    f'{describe(level.tag)} waits for "{value}" of "{condition.control}", which '
                    "has no such choice. Label Studio splits whenChoiceValue at every comma and "
                    "keeps the blanks around it."
                )
        if level.tag.name not in shown:
            yield f"{describe(level.tag)} is never shown, so its choices are not in the tree."
