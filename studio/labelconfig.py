"""Label config -> label tree, and which control answers for which node.

An image has one tree. Of several controls the one that carries it is found here, or the admin is
told how to say which.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, Literal

from hierarchy.tree import LabelTree
from studio.confignotes import (
    choices_notes,
    path_separator,
    taxonomy_notes,
    ticks_notes,
    tree_notes,
)
from studio.controls import (
    Row,
    cascade_rows,
    composed,
    conditions,
    describe,
    is_conditional,
    read_choices,
    taxonomy_rows,
)
from studio.errors import LabelConfigError
from studio.fields import field_of
from studio.labelxml import Tag, read_tags
from studio.levels import MARK, is_left_out, split_levels

#: How a project asks for labels: nested choices, one control a level, or one flat control.
Kind = Literal["taxonomy", "cascade", "choices"]

#: Image values that name one field of the task's data, as the editor reads them (parseValue).
FIELD: Final = re.compile(r"\$([\w\[\].{}]+)", re.ASCII)


@dataclass(frozen=True)
class LabelConfig:
    """A project's labelling setup, as far as pre-labels of images need it.

    Node names are what results carry: a choice's alias where it has one, else its value.

    Attributes:
        tree: the label tree, N nodes.
        kind: how the project asks for labels.
        image_key: field of a task's data that holds the picture's address; may be a path
            such as ``shots[0].url``.
        image_name: name of the `<Image>`.
        controls: ``(N,)`` name of the control in which each node is ticked.
        titles: ``(N,)`` each node in the annotator's words (the choice's value).
        notes: what hurts in this setup, in words for the admin; none of it stops anything.
        separator: set where names contain the Taxonomy's path separator: the editor then stores
            such a name as several (`NewTaxonomy.onChange` splits there).
        hiding: by name of a control that is asked before the labels, its answers that hide them:
            they say that nothing of the tree is there.
    """

    tree: LabelTree
    kind: Kind
    image_key: str
    image_name: str
    controls: tuple[str, ...]
    titles: tuple[str, ...]
    notes: tuple[str, ...] = ()
    separator: str | None = None
    hiding: Mapping[str, frozenset[str]] = field(default_factory=dict)

    @cached_property
    def answers(self) -> Mapping[tuple[str, str], tuple[int, ...]]:
        """Nodes by (control, name); by (control, title) where no name of that control is so.

        Names and titles are in NFC.
        """
        found: dict[tuple[str, str], list[int]] = {}
        for words in (self.tree.names, self.titles):
            taken = set(found)
            for node, key in enumerate(zip(self.controls, map(composed, words), strict=True)):
                if key not in taken:
                    found.setdefault(key, []).append(node)
        return {key: tuple(nodes) for key, nodes in found.items()}

    @cached_property
    def joined(self) -> Mapping[str, int]:
        """Nodes by path joined with the separator; empty where no name contains it."""
        if self.separator is None:
            return {}
        return {self.separator.join(path): node for node, path in enumerate(self.tree.paths)}

    @cached_property
    def control_names(self) -> frozenset[str]:
        """Names of the controls whose results carry labels."""
        return frozenset(self.controls)

    def picture(self, data: Mapping[str, object]) -> str | None:
        """Address of a task's picture, None where its data has none.

        Args:
            data: the task's ``data``.
        """
        value = field_of(data, self.image_key)
        return value if isinstance(value, str) and value.strip() else None


def parse_label_config(xml: str) -> LabelConfig:
    """A project's labelling setup.

    Args:
        xml: the label config as Label Studio stores and sends it.

    Raises:
        LabelConfigError: if no label tree of whole images can be read from it; the message says
            why and how to mend it.

    Example:
        >>> config = parse_label_config(
        ...     '<View><Image name="image" value="$image"/>'
        ...     '<Taxonomy name="label" toName="image">'
        ...     '<Choice value="Fruit"><Choice value="Apple"/></Choice></Taxonomy></View>'
        ... )
        >>> config.tree.paths, config.kind, config.image_key
        ((('Fruit',), ('Fruit', 'Apple')), 'taxonomy', 'image')
    """
    root = read_tags(xml)
    images = _images(root)
    controls = _whole_image_controls(root, images)
    groups = _groups(controls)
    group, chosen = _pick(groups)
    others = [control for other in groups if other is not group for control in other]
    image = _image(images, group[0])
    key = _image_key(image)
    rows, notes, separator = _read_group(group)
    kind: Kind = "cascade" if len({row.control for row in rows}) > 1 else "choices"
    kind = "taxonomy" if group[0].kind == "taxonomy" else kind
    tree, ordered = _tree(rows)
    hiding = _hiding(group[0], controls)
    return LabelConfig(
        tree=tree,
        kind=kind,
        image_key=key,
        image_name=image.name,
        controls=tuple(row.control for row in ordered),
        titles=tuple(row.title for row in ordered),
        notes=(
            *chosen,
            *notes,
            *_hiding_notes(hiding),
            *(f"{describe(control)} is not pre-labelled." for control in others),
            *tree_notes(tree),
            *ticks_notes(group[0]),
        ),
        separator=separator,
        hiding=hiding,
    )


def _hiding(labels: Tag, controls: Sequence[Tag]) -> dict[str, frozenset[str]]:
    """Answers that hide the control of the labels, by the control they are given in."""
    try:
        shown_by = {one.control: one for one in conditions(labels) if one.values is not None}
        asked = {tag.name: read_choices(tag) for tag in controls if tag.name in shown_by}
    except LabelConfigError:
        return {}
    found = {
        name: frozenset(composed(one.name) for one in choices if not shown_by[name].met_by(one))
        for name, choices in asked.items()
    }
    return {name: answers for name, answers in found.items() if answers}


def _hiding_notes(hiding: Mapping[str, frozenset[str]]) -> Iterator[str]:
    for name, answers in hiding.items():
        words = ", ".join(f'"{answer}"' for answer in sorted(answers)[:3])
        yield (
            f'<Choices name="{name}"> hides the labels after some answers ({words}). These are not '
            "learnt, and the promised accuracy is about the other images alone."
        )


def _tree(rows: Sequence[Row]) -> tuple[LabelTree, list[Row]]:
    """The tree, and its rows in the order of its nodes."""
    by_path = {row.path: row for row in rows}
    tree = LabelTree.from_paths([row.path for row in rows])
    return tree, [by_path[path] for path in tree.paths]


# Which control carries the labels


def _whole_image_controls(root: Tag, images: Mapping[str, Tag]) -> list[Tag]:
    """The Taxonomy and Choices that classify an image as a whole, in document order."""
    tags = list(root.within())
    controls = [tag for tag in tags if tag.kind in {"taxonomy", "choices"}]
    if not controls:
        raise LabelConfigError(
            "the label config has no <Taxonomy> and no <Choices>: add one that classifies the "
            'image, such as <Taxonomy name="label" toName="image"> with nested <Choice> tags'
        )
    aimed = [control for control in controls if _aim(images, control) is not None]
    if not aimed:
        _image(images, controls[0])  # raises, naming what is missing
    whole = [control for control in aimed if _part(control) is None]
    if not whole:
        raise LabelConfigError(
            f"{describe(aimed[0])} {_part(aimed[0])}; only labels of a whole image can be learnt "
            f"and pre-labelled: add a <Taxonomy> that classifies the image itself"
        )
    _check_names(tags, whole)
    return whole


def _check_names(tags: Sequence[Tag], controls: Sequence[Tag]) -> None:
    names = Counter(tag.name for tag in tags)
    for control in controls:
        if not control.name.strip():
            raise LabelConfigError(f"a <{control.kind}> has no name: results could not name it")
        if names[control.name] > 1:
            raise LabelConfigError(
                f'two tags are named "{control.name}": results could not tell them apart, so '
                "rename one"
            )


def _part(control: Tag) -> str | None:
    """Why a control is about parts of an image; None where it is about the whole."""
    holders = [control, *control.around()]
    if control.says("perregion") or any(
        tag.get("visiblewhen") == "region-selected" for tag in holders
    ):
        return "answers for regions of the image (perRegion or region-selected)"
    if control.says("peritem"):
        return "answers for each of several images of a task (perItem)"
    if control.says("labeling"):
        return "labels regions (labeling)"
    if any(tag.kind == "repeater" for tag in holders):
        return "is repeated for each item of a task (<Repeater>)"
    return None


def _groups(controls: Sequence[Tag]) -> list[list[Tag]]:
    """Controls that make one tree together: a Taxonomy alone, a cascade with its top first."""
    choices = {control.name: control for control in controls if control.kind == "choices"}
    groups: dict[str, list[Tag]] = {}
    for control in controls:
        groups.setdefault(_top(control, choices).name, []).append(control)
    for name, group in groups.items():
        group.sort(key=lambda control: control.name != name)
    return list(groups.values())


def _top(control: Tag, choices: Mapping[str, Tag]) -> Tag:
    """First control of the cascade that a control belongs to."""
    seen = [control]
    while (above := choices.get(_waits_for(seen[-1]))) is not None and above.kind == "choices":
        if above in seen:
            raise LabelConfigError(
                f"{describe(above)} waits for an answer that is shown only after it "
                f'(whenTagName="{_waits_for(above)}"): one control must be shown from the start'
            )
        seen.append(above)
    return seen[-1]


def _waits_for(control: Tag) -> str:
    """Name of the control whose answer shows this Choices, empty where it is always shown."""
    if control.kind != "choices":
        return ""
    holders = (tag for tag in (control, *control.around()) if is_conditional(tag))
    return next((tag.get("whentagname") or "" for tag in holders), "")


def _pick(groups: Sequence[list[Tag]]) -> tuple[list[Tag], tuple[str, ...]]:
    """The group to pre-label, and a note if a rule had to choose it.

    It is the marked one, else the only Taxonomy, else that with the most levels, or else labels, or
    else the first: a question beside the labels stops nothing.
    """
    marked = [group for group in groups if any(tag.says(MARK) for tag in group)]
    open_ones = [group for group in groups if not is_left_out(group[0])]
    if not (marked or open_ones):
        names = ", ".join(describe(group[0]) for group in groups)
        raise LabelConfigError(
            f'every control that could carry the labels says {MARK}="false" ({names}): take it '
            "away from the one to pre-label"
        )
    taxonomies = [group for group in open_ones if group[0].kind == "taxonomy"]
    candidates = marked or taxonomies or open_ones
    if len(candidates) == 1:
        return candidates[0], ()
    names = ", ".join(describe(group[0]) for group in candidates)
    if marked:
        raise LabelConfigError(
            f'several controls say {MARK}="true" ({names}): leave it on the one to pre-label only'
        )
    sizes = [_size(group) for group in candidates]
    best = candidates[sizes.index(max(sizes))]
    which = "has the most" if sizes.count(max(sizes)) == 1 else "comes first"
    note = (
        f"labels are read from {describe(best[0])}, which {which} of {names}. If they are in "
        f'another, write {MARK}="true" on that.'
    )
    return best, (note,)


def _size(group: Sequence[Tag]) -> tuple[int, int]:
    """Levels and labels of a group; none where it cannot be read."""
    try:
        rows, _, _ = _read_group(group)
    except LabelConfigError:
        return 0, 0
    return max(len(row.path) for row in rows), len(rows)


# The image


def _images(root: Tag) -> dict[str, Tag]:
    """The images of a config by name."""
    return {tag.name: tag for tag in root.within() if tag.kind == "image"}


def _aim(images: Mapping[str, Tag], control: Tag) -> Tag | None:
    """The image that a control classifies; a lone image needs no toName."""
    target = control.get("toname")
    if target is None and len(images) == 1:
        return next(iter(images.values()))
    return images.get(target or "")


def _image(images: Mapping[str, Tag], control: Tag) -> Tag:
    image = _aim(images, control)
    if image is None:
        aim = control.get("toname") or ""
        raise LabelConfigError(
            f'{describe(control)} classifies no image: its toName ("{aim}") must be the name of '
            'an <Image value="$...">'
        )
    return image


def _image_key(image: Tag) -> str:
    """Field of a task's data with the picture's address."""
    if image.get("valuelist") is not None:
        raise LabelConfigError(
            f'<Image name="{image.name}"> shows several pictures of one task (valueList), and one '
            'label cannot say which it is about: give each picture its own task and value="$..."'
        )
    value = image.get("value") or ""
    found = FIELD.fullmatch(value.strip())
    if found is None:
        raise LabelConfigError(
            f'<Image name="{image.name}"> has value="{value}", which does not name one field of '
            'the task data: write value="$image" with your field\'s name'
        )
    return found[1]


# The chosen control


def _read_group(group: Sequence[Tag]) -> tuple[list[Row], tuple[str, ...], str | None]:
    """Rows, notes and path separator of the chosen control or cascade."""
    top = group[0]
    if top.kind == "taxonomy":
        choices = read_choices(top)
        rows = taxonomy_rows(top, choices)
        separator, warned = path_separator(top, rows)
        return rows, (*taxonomy_notes(top, choices, rows), *warned), separator
    if conditions(top):
        raise LabelConfigError(
            f'{describe(top)} is shown only after an answer of "{_waits_for(top)}", which is not '
            "a <Choices> for the same image: show it from the start"
        )
    waiting: dict[str, list[Tag]] = {}
    for control in group[1:]:
        waiting.setdefault(_waits_for(control), []).append(control)
    levels, beside = split_levels(top, waiting)
    rows, idle = cascade_rows(levels)
    notes = [note for place, control in enumerate(levels) for note in choices_notes(control, place)]
    return rows, (*notes, *idle, *beside), None
