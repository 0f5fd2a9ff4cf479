"""Which controls of a cascade are levels of labels, and which only ask something beside them.

The attribute `prelabel` decides. Without it, what is asked after every answer, or beside another
control, is no level.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from studio.controls import Choice, Condition, conditions, describe, read_choices
from studio.errors import LabelConfigError
from studio.labelxml import Tag

#: Attribute by which an admin says whether a control carries labels; the editor ignores it.
MARK: Final = "prelabel"


def is_left_out(control: Tag) -> bool:
    """Whether an admin says that a control carries no labels."""
    return control.get(MARK) == "false"


@dataclass(frozen=True, eq=False)
class _Follower:
    """A control that is shown by some answers to another one, its last condition."""

    tag: Tag
    choices: tuple[Choice, ...]
    conditions: tuple[Condition, ...]
    answers: frozenset[str]
    marked: bool

    def beside(self, other: _Follower) -> bool:
        """Whether both can be on the screen at once."""
        return bool(self.answers & other.answers) and all(
            mine.control != theirs.control
            or mine.values is None
            or theirs.values is None
            or not set(mine.values).isdisjoint(theirs.values)
            for mine in self.conditions[:-1]
            for theirs in other.conditions[:-1]
        )


def split_levels(
    top: Tag, waiting: Mapping[str, Sequence[Tag]]
) -> tuple[list[Tag], tuple[str, ...]]:
    """The controls of a cascade that are levels, and notes on those that are not.

    Args:
        top: the control that is shown from the start.
        waiting: by name of a control, those that its answers show.

    Raises:
        LabelConfigError: a control that is marked as a level cannot be one.
    """
    marked = _marked(top, waiting)
    levels, notes, fringe = [top], [], [top]
    while fringe:
        above = fringe.pop(0)
        size = len(read_choices(above))
        found: list[_Follower] = []
        for tag in waiting.get(above.name, ()):
            follower = _follower(tag, above, tag.name in marked)
            if isinstance(follower, str):
                notes.append(_left_out(tag, follower))
            else:
                found.append(follower)
        for one in found:
            beside = [other for other in found if other is not one and one.beside(other)]
            if _is_level(one, beside, size):
                levels.append(one.tag)
                fringe.append(one.tag)
            else:
                reason = f"the same answer shows {describe(beside[0].tag)}"
                notes.append(_left_out(one.tag, reason))
    if len(levels) == 2 and not marked:
        notes.append(
            f"{describe(levels[1])} is read as the level of labels below an answer of "
            f'{describe(top)}. If it asks something else, write {MARK}="false" on it.'
        )
    return levels, tuple(notes)


def _marked(top: Tag, waiting: Mapping[str, Sequence[Tag]]) -> set[str]:
    """Names of the controls that are marked as levels, or have such a one below them."""

    def walk(above: Tag) -> Iterator[str]:
        for tag in waiting.get(above.name, ()):
            below = list(walk(tag))
            yield from below
            if (below or tag.says(MARK)) and not is_left_out(tag):
                yield tag.name

    return {*walk(top), *([top.name] if top.says(MARK) else [])}


def _left_out(tag: Tag, reason: str) -> str:
    cure = "" if is_left_out(tag) else f' If it is one, write {MARK}="true" on it.'
    return f"{describe(tag)} is no level of labels ({reason}) and is not learnt.{cure}"


def _follower(tag: Tag, above: Tag, marked: bool) -> _Follower | str:  # noqa: FBT001
    """A control that may be a level, or why it is none."""
    if is_left_out(tag):
        return f'{MARK}="false"'
    try:
        shown_by, choices = conditions(tag), read_choices(tag)
    except LabelConfigError as error:
        if marked:
            raise
        return str(error)
    asked = read_choices(above)
    answers = frozenset(choice.name for choice in asked if shown_by[-1].met_by(choice))
    every = shown_by[-1].values is None or (len(asked) > 1 and len(answers) == len(asked))
    if every and not marked:
        return f"it is asked after every answer of {describe(above)}"
    return _Follower(tag, choices, shown_by, answers, marked)


def _is_level(one: _Follower, beside: Sequence[_Follower], size: int) -> bool:
    """Whether a control is the one, of those shown at once, that goes on with the labels.

    Of several for one answer it is the one with the most choices, if those are also more than the
    ``size`` choices above: what tells kinds apart has more of them, sex or age have few.
    """
    if one.marked or not beside:
        return True
    if len(one.answers) > 1 or any(other.marked for other in beside):
        return False
    others = [len(other.choices) for other in beside if len(other.answers) == 1]
    return not others or len(one.choices) > max(size, *others)
