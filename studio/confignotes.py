"""What hurts in a labelling setup that can be used all the same, in words for its admin."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from hierarchy import LabelTree
from hierarchy.decisions import leading_levels
from studio.controls import Choice, Row, describe, is_conditional, read_choices
from studio.errors import LabelConfigError
from studio.labelxml import Tag

#: What the editor puts between the names of a Taxonomy path unless told otherwise.
_SEPARATOR: Final = " / "


def path_separator(control: Tag, rows: Sequence[Row]) -> tuple[str | None, tuple[str, ...]]:
    """The path separator of a Taxonomy if it matters, and the note that it does.

    The editor joins a path with it and splits what was ticked at it (`NewTaxonomy.onChange`), so a
    name that contains it comes back as two.

    Raises:
        LabelConfigError: if the cut answers could not be put together again.
    """
    separator = control.attributes.get("pathseparator", _SEPARATOR)
    if not separator:
        raise LabelConfigError(
            f'{describe(control)} has pathSeparator="", at which Label Studio cuts its answers '
            "into letters: remove it"
        )
    split = [row.path[-1] for row in rows if separator in row.path[-1]]
    if not split:
        return None, ()
    mend = 'set pathSeparator to text that is in no name, such as pathSeparator=" > "'
    if len({separator.join(row.path) for row in rows}) < len(rows):
        raise LabelConfigError(
            f'{describe(control)}: the choice "{split[0]}" contains the path separator '
            f'"{separator}", and its path reads like another\'s: {mend}'
        )
    note = (
        f'{describe(control)}: the choice "{split[0]}" contains the path separator "{separator}", '
        f"where Label Studio cuts the answers it stores. They are put together again here; {mend}."
    )
    return separator, (note,)


def taxonomy_notes(control: Tag, choices: Sequence[Choice], rows: Sequence[Row]) -> Iterator[str]:
    """Notes on a Taxonomy."""
    name = describe(control)
    if control.says("leafsonly"):
        yield (
            f"{name} has leafsOnly: annotators cannot tick a coarse answer when they know no "
            "finer one. Remove leafsOnly."
        )
    if (control.get("maxusages") or "").strip() == "1":
        yield (
            f'{name} has maxUsages="1": a deeper tick is ignored until the coarse one is unticked. '
            "Remove maxUsages; a label beside its own parent is read as the deeper one anyway."
        )
    if control.says("required"):
        yield f"{name} is required: an annotator who cannot tell must press Skip."
    if control.says("legacy"):
        yield (
            f"{name} is legacy, so annotators can add labels of their own; those count for the "
            "nearest label of the tree."
        )
    if is_conditional(control):
        yield f"{name} is not always shown; its pre-label is seen only while it is."
    if len({row.title for row in rows}) < len(rows) and not control.says("showfullpath"):
        yield (
            f"{name} has one name under several parents, and the chip of an answer shows the last "
            'name only. Set showFullPath="true".'
        )
    yield from _preselected(name, choices)


def tree_notes(tree: LabelTree) -> Iterator[str]:
    """Notes on the labels themselves."""
    first = leading_levels(tree)
    if first == tree.depth:
        yield "The labels leave no choice, so nothing can be pre-labelled: add a second one."
    elif first:
        (last,) = tree.level_nodes(first - 1)
        names = " > ".join(f"'{name}'" for name in tree.path(last))
        yield (
            f"{names} stands above all other labels and names every image alike: it is never "
            "pre-labelled, and levels that hold it alone are not counted as right."
        )


def ticks_notes(control: Tag) -> Iterator[str]:
    """A note on a Taxonomy that takes several answers, as most do."""
    if control.kind == "taxonomy" and (control.get("maxusages") or "").strip() != "1":
        yield (
            f"{describe(control)} takes several ticks. An answer with several is learnt as the "
            'label above them all, or as "one of these", and each image gets one pre-label.'
        )


def choices_notes(control: Tag, place: int) -> Iterator[str]:
    """Notes on one control of a cascade; ``place`` 0 is its top."""
    name = describe(control)
    if control.get("choice") == "multiple":
        yield (
            f'{name} has choice="multiple": several answers count only for what is above all of '
            'them. Remove it, or write choice="single".'
        )
    if control.says("required") and place:
        yield (
            f"{name} is required: whoever answers the level above must guess this one. "
            "Remove required."
        )
    elif control.says("required"):
        yield f"{name} is required: an annotator who cannot tell must press Skip."
    yield from _preselected(name, read_choices(control))


def _preselected(name: str, choices: Sequence[Choice]) -> Iterator[str]:
    stack = list(choices)
    while stack:
        choice = stack.pop()
        stack.extend(choice.children)
        if choice.selected:
            yield (
                f'{name} ticks "{choice.title}" beforehand (selected), which counts as a label if '
                "it is submitted unseen. Remove selected."
            )
            return
