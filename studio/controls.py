"""Controls of a label config -> nodes: a `<Taxonomy>`, a `<Choices>` or a cascade of them.

Names, conditions and separators follow what Label Studio's editor 1.23.2 does with them
(`tags/control/Taxonomy`, `Choice`, `Choices`, `mixins/Visibility`).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from studio.errors import LabelConfigError
from studio.labelxml import Tag

#: Most nodes a label tree may have; a cascade with shared controls multiplies its levels.
MAX_NODES: Final = 50_000

#: A reference to task data: the editor puts the data in its place (`utils/data.js`, parseValue).
REFERENCE: Final = re.compile(r"\$[\w\[\].{}]+", re.ASCII)


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


@dataclass(frozen=True)
class Row:
    """One node of the label tree, its path in names, its title, and the control it is ticked in."""

    path: tuple[str, ...]
    title: str
    control: str


@dataclass(frozen=True)
class Condition:
    """A control is shown only while ``control`` holds one of ``values`` (None: any answer)."""

    control: str
    values: tuple[str, ...] | None

    def met_by(self, choice: Choice) -> bool:
        """Whether ticking a choice shows the control; value and alias count alike."""
        if self.values is None:
            return True
        values = set(map(composed, self.values))
        return composed(choice.name) in values or composed(choice.title) in values


def describe(control: Tag) -> str:
    """A control as an admin would look for it, such as ``<Choices name="kind">``."""
    return f'<{"Taxonomy" if control.kind == "taxonomy" else "Choices"} name="{control.name}">'


def read_choices(control: Tag) -> tuple[Choice, ...]:
    """Choices of a control.

    Raises:
        LabelConfigError: if they come from task data or a server, are nested in a `<Choices>`,
            have no value, stand twice under one parent, or if there are none.
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


def composed(name: str) -> str:
    """A name in one Unicode form (NFC), in which names are compared."""
    return unicodedata.normalize("NFC", name)


def _merged(choices: tuple[Choice, ...]) -> tuple[Choice, ...]:
    """Choices that people cannot tell apart, since only their Unicode form differs, as one."""
    found: dict[str, Choice] = {}
    for choice in choices:
        first = found.setdefault(composed(choice.name), choice)
        if first is not choice:
            both = _merged((*first.children, *choice.children))
            found[composed(choice.name)] = replace(first, children=both)
    return tuple(found.values())


def _choice_tags(above: Tag) -> Iterator[Tag]:
    """The choices right below a tag, also through the views that only lay them out."""
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
            "Label Studio would store as the answer: fill it in or remove it"
        )
    if control.kind == "choices":
        _check_plain(control, tag, name)
    children = _read_siblings(control, tag, (*path, title))
    return Choice(name, title, tag.says("selected"), children)


def _check_plain(control: Tag, tag: Tag, name: str) -> None:
    """Refuse what a `<Choices>` cannot carry: nesting, and names filled in from task data."""
    if control.says("allownested") or any(True for _ in _choice_tags(tag)):
        raise LabelConfigError(
            f"{describe(control)} nests its choices. Label Studio cannot carry a coarse answer "
            "there: such a pre-label shows nothing, and ticking a parent ticks everything below "
            "it. Use <Taxonomy> with the same nested <Choice> tags instead"
        )
    if REFERENCE.search(name):
        raise LabelConfigError(
            f'{describe(control)}: Label Studio replaces the "$..." in "{name}" by task data, so '
            "the answer cannot be known beforehand: give the choice an alias without it"
        )


def _under(path: Sequence[str]) -> str:
    return f'under "{" / ".join(path)}"' if path else "at the top"


def taxonomy_rows(control: Tag, choices: Sequence[Choice]) -> list[Row]:
    """Nodes of a `<Taxonomy>`, parents before children."""

    def walk(siblings: Sequence[Choice], above: tuple[str, ...]) -> Iterator[Row]:
        for choice in siblings:
            path = (*above, choice.name)
            yield Row(path, choice.title, control.name)
            yield from walk(choice.children, path)

    return list(walk(choices, ()))


def conditions(control: Tag) -> tuple[Condition, ...]:
    """What must be ticked for a control to be shown, outermost condition first.

    Label Studio honours conditions on the control and on the views around it.

    Raises:
        LabelConfigError: if a condition is of a kind that a cascade cannot be made of.
    """
    holders = [tag for tag in (control, *control.around()) if is_conditional(tag)]
    return tuple(_condition(control, tag) for tag in reversed(holders))


def is_conditional(tag: Tag) -> bool:
    """Whether a tag is shown only at times."""
    return tag.get("visiblewhen") is not None or tag.get("whenchoicevalue") is not None


def _condition(control: Tag, holder: Tag) -> Condition:
    when, name = holder.get("visiblewhen"), holder.get("whentagname")
    if when != "choice-selected" or not name:
        raise LabelConfigError(
            f"{describe(control)} is shown under a condition that cannot be read as a level of "
            f'labels (visibleWhen="{when or ""}" whenTagName="{name or ""}"): write '
            'visibleWhen="choice-selected" whenTagName="..." whenChoiceValue="..."'
        )
    values = holder.get("whenchoicevalue")
    return Condition(name, tuple(values.split(",")) if values else None)


@dataclass(frozen=True)
class _Level:
    """One control of a cascade."""

    tag: Tag
    choices: tuple[Choice, ...]
    conditions: tuple[Condition, ...]


@dataclass(frozen=True)
class _Stand:
    """A place in the growing tree: its path, and the choice ticked in each control on the way."""

    path: tuple[str, ...]
    ticked: Mapping[str, Choice]

    def step(self, level: _Level, choice: Choice) -> _Stand:
        ticked = {**self.ticked, level.tag.name: choice}  # keeps the order: the last is deepest
        return _Stand((*self.path, choice.name), ticked)


def cascade_rows(controls: Sequence[Tag]) -> tuple[list[Row], tuple[str, ...]]:
    """Nodes of a cascade of `<Choices>`, or of one `<Choices>` alone, level by level.

    Args:
        controls: the first is the top level; the others are shown by answers to one of these.

    Returns:
        The nodes, and notes on controls and conditions that no answer can fulfil.

    Raises:
        LabelConfigError: if two controls are shown by the same answer, or the levels multiply to
            more than `MAX_NODES` nodes.
    """
    top, *lower = [_Level(tag, read_choices(tag), conditions(tag)) for tag in controls]
    waiting: dict[str, list[_Level]] = {}
    for level in lower:
        waiting.setdefault(level.conditions[-1].control, []).append(level)
    rows: list[Row] = []
    fringe = [(_Stand((), {}), top)]
    while fringe:
        grown = []
        for above, level in fringe:
            for choice in level.choices:
                here = above.step(level, choice)
                rows.append(Row(here.path, choice.title, level.tag.name))
                if (below := _shown(waiting.get(level.tag.name, ()), here)) is not None:
                    grown.append((here, below))
            if len(rows) > MAX_NODES:
                raise LabelConfigError(
                    f"the cascade that starts at {describe(top.tag)} makes more than {MAX_NODES} "
                    "labels: controls that several answers share multiply, so give fewer choices"
                )
        fringe = grown
    return rows, tuple(_idle([top, *lower], {row.control for row in rows}))


def _shown(waiting: Sequence[_Level], here: _Stand) -> _Level | None:
    """The control that the ticks so far show below the last of them."""
    found = [
        level
        for level in waiting
        if all(
            c.control in here.ticked and c.met_by(here.ticked[c.control]) for c in level.conditions
        )
    ]
    if len(found) > 1:
        raise LabelConfigError(
            f"{describe(found[0].tag)} and {describe(found[1].tag)} are both shown by "
            f'"{" / ".join(here.path)}": one answer may show one control only, so narrow their '
            "whenChoiceValue"
        )
    return found[0] if found else None


def _idle(levels: Sequence[_Level], shown: set[str]) -> Iterator[str]:
    """Notes on conditions that name no choice, and on controls that are never shown."""
    known = {
        level.tag.name: {word for c in level.choices for word in (c.name, c.title)}
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
