"""Label config -> label tree, and which control each node is ticked in.

An image has one tree. If several controls could carry it, the one that does is found here, or the
admin learns how to say which.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, Literal

from hierarchy.decisions import leading_levels
from hierarchy.tree import LabelTree
from studio.errors import LabelConfigError
from studio.json_fields import field_of
from studio.label_controls import (
    CascadeLevel,
    Choice,
    LabelNode,
    Tag,
    cascade_nodes,
    conditions,
    describe,
    is_conditional,
    nfc,
    read_choices,
    read_tags,
    taxonomy_nodes,
)

#: How a project asks for labels: nested choices, one control per level, or one flat control.
Kind = Literal["taxonomy", "cascade", "choices"]

#: Image values that name one field of the task's data, as the editor reads them (parseValue).
FIELD: Final = re.compile(r"\$([\w\[\].{}]+)", re.ASCII)
#: Attribute by which an admin says whether a control carries labels; the editor ignores it.
PRELABEL: Final = "prelabel"
#: What the editor puts between the names of a Taxonomy path by default.
_SEPARATOR: Final = " / "


@dataclass(frozen=True)
class LabelConfig:
    """A project's labelling setup, as far as pre-labels of images need it.

    Node names are what results carry: a choice's alias where it has one, else its value.

    Attributes:
        tree: the label tree, N nodes.
        kind: how the project asks for labels.
        image_key: field of a task's data that holds the image's address; may be a path
            such as ``shots[0].url``.
        image_name: name of the `<Image>`.
        controls: ``(N,)`` name of the control in which each node is ticked.
        titles: ``(N,)`` each node in the annotator's words (the choice's value).
        notes: problems of this setup in words for the admin; none of them stops anything.
        separator: set where names contain the Taxonomy's path separator: the editor then stores
            such a name as several (`NewTaxonomy.onChange` splits there).
        hiding: by name of a control that is asked before the labels, its choices that hide them:
            they say that the image shows nothing of the tree.
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
    def nodes_by_choice(self) -> Mapping[tuple[str, str], tuple[int, ...]]:
        """Nodes by (control, name); by (control, title) where that control has no such name.

        Names and titles are in NFC.
        """
        found: dict[tuple[str, str], list[int]] = {}
        for words in (self.tree.names, self.titles):
            taken = set(found)
            for node, key in enumerate(zip(self.controls, map(nfc, words), strict=True)):
                if key not in taken:
                    found.setdefault(key, []).append(node)
        return {key: tuple(nodes) for key, nodes in found.items()}

    @cached_property
    def nodes_by_text(self) -> Mapping[str, int]:
        """Nodes by path joined with the separator; empty where no name contains it."""
        if self.separator is None:
            return {}
        return {self.separator.join(path): node for node, path in enumerate(self.tree.paths)}

    @cached_property
    def control_names(self) -> frozenset[str]:
        """Names of the controls whose results carry labels."""
        return frozenset(self.controls)

    def image_address(self, data: Mapping[str, object]) -> str | None:
        """Return the address of a task's image, None where its data has none.

        Args:
            data: the task's ``data``.
        """
        value = field_of(data, self.image_key)
        return value if isinstance(value, str) and value.strip() else None


def parse_label_config(xml: str) -> LabelConfig:
    """Parse a project's labelling setup.

    Args:
        xml: the label config as Label Studio stores and sends it.

    Raises:
        LabelConfigError: if no label tree of whole images can be read from it; the message says
            why and how to fix it.

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
    images = {tag.name: tag for tag in root.within() if tag.kind == "image"}
    controls = _whole_image_controls(root, images)
    groups = _groups(controls)
    group, pick_notes = _pick(groups)
    image = _image(images, group[0])
    key = _image_key(image)
    nodes, group_notes, separator = _read_group(group)
    kind: Kind = "cascade" if len({node.control for node in nodes}) > 1 else "choices"
    kind = "taxonomy" if group[0].kind == "taxonomy" else kind
    tree = LabelTree.from_paths([node.path for node in nodes])
    by_path = {node.path: node for node in nodes}
    ordered = [by_path[path] for path in tree.paths]
    hiding = _hiding(group[0], controls)
    others = [control for other in groups if other is not group for control in other]
    return LabelConfig(
        tree=tree,
        kind=kind,
        image_key=key,
        image_name=image.name,
        controls=tuple(node.control for node in ordered),
        titles=tuple(node.title for node in ordered),
        notes=(
            *pick_notes,
            *group_notes,
            *_hiding_notes(hiding),
            *(f"{describe(control)} is not pre-labelled." for control in others),
            *tree_notes(tree),
            *_several_ticks_notes(group[0]),
        ),
        separator=separator,
        hiding=hiding,
    )


# The image


def _target_image(images: Mapping[str, Tag], control: Tag) -> Tag | None:
    """Return the image that a control classifies; a lone image needs no toName."""
    target = control.get("toname")
    if target is None and len(images) == 1:
        return next(iter(images.values()))
    return images.get(target or "")


def _image(images: Mapping[str, Tag], control: Tag) -> Tag:
    image = _target_image(images, control)
    if image is None:
        raise LabelConfigError(
            f'{describe(control)} classifies no image: its toName ("{control.get("toname") or ""}")'
            ' must be the name of an <Image value="$...">'
        )
    return image


def _image_key(image: Tag) -> str:
    """Return the field of a task's data with the image's address."""
    if image.get("valuelist") is not None:
        raise LabelConfigError(
            f'<Image name="{image.name}"> shows several images of one task (valueList), and one '
            'label cannot say which it is about: give each image its own task and value="$..."'
        )
    value = image.get("value") or ""
    found = FIELD.fullmatch(value.strip())
    if found is None:
        raise LabelConfigError(
            f'<Image name="{image.name}"> has value="{value}", which does not name one field of '
            'the task data: write value="$image" with your field\'s name'
        )
    return found[1]


# Which control carries the labels


def _whole_image_controls(root: Tag, images: Mapping[str, Tag]) -> list[Tag]:
    """Return the Taxonomy and Choices that classify an image as a whole, in document order."""
    tags = list(root.within())
    controls = [tag for tag in tags if tag.kind in {"taxonomy", "choices"}]
    if not controls:
        raise LabelConfigError(
            "the label config has no <Taxonomy> and no <Choices>: add one that classifies the "
            'image, such as <Taxonomy name="label" toName="image"> with nested <Choice> tags'
        )
    of_image = [control for control in controls if _target_image(images, control) is not None]
    if not of_image:
        _image(images, controls[0])  # raises, naming what is missing
    whole = [control for control in of_image if _part(control) is None]
    if not whole:
        raise LabelConfigError(
            f"{describe(of_image[0])} {_part(of_image[0])}; only labels of a whole image can be "
            f"learnt and pre-labelled: add a <Taxonomy> that classifies the image itself"
        )
    names = Counter(tag.name for tag in tags)
    for control in whole:
        if not control.name.strip():
            raise LabelConfigError(f"a <{control.kind}> has no name: results could not name it")
        if names[control.name] > 1:
            raise LabelConfigError(
                f'two tags are named "{control.name}": results could not tell them apart, so '
                "rename one"
            )
    return whole


def _part(control: Tag) -> str | None:
    """Say why a control is about parts of an image; None where it is about the whole."""
    holders = [control, *control.around()]
    by_region = any(tag.get("visiblewhen") == "region-selected" for tag in holders)
    if control.is_set("perregion") or by_region:
        return "labels regions of the image (perRegion or region-selected)"
    if control.is_set("peritem"):
        return "labels each of several images of a task (perItem)"
    if control.is_set("labeling"):
        return "labels regions (labeling)"
    if any(tag.kind == "repeater" for tag in holders):
        return "is repeated for each item of a task (<Repeater>)"
    return None


def _groups(controls: Sequence[Tag]) -> list[list[Tag]]:
    """Group controls that make one tree: a Taxonomy alone, a cascade with its top level first."""
    choices = {control.name: control for control in controls if control.kind == "choices"}
    groups: dict[str, list[Tag]] = {}
    for control in controls:
        groups.setdefault(_top(control, choices).name, []).append(control)
    for name, group in groups.items():
        group.sort(key=lambda control: control.name != name)
    return list(groups.values())


def _top(control: Tag, choices: Mapping[str, Tag]) -> Tag:
    """Return the first control of the cascade that a control belongs to."""
    seen = [control]
    while (above := choices.get(_waits_for(seen[-1]))) is not None:
        if above in seen:
            raise LabelConfigError(
                f"{describe(above)} waits for a label that is shown only after it "
                f'(whenTagName="{_waits_for(above)}"): one control must be shown from the start'
            )
        seen.append(above)
    return seen[-1]


def _waits_for(control: Tag) -> str:
    """Return the name of the control that shows this Choices, empty where it is always shown."""
    if control.kind != "choices":
        return ""
    holders = (tag for tag in (control, *control.around()) if is_conditional(tag))
    return next((tag.get("whentagname") or "" for tag in holders), "")


def _is_excluded(control: Tag) -> bool:
    """Return whether the admin says that a control carries no labels."""
    return control.get(PRELABEL) == "false"


def _pick(groups: Sequence[list[Tag]]) -> tuple[list[Tag], tuple[str, ...]]:
    """Return the group to pre-label, and a note if a rule had to choose it.

    It is the one with `PRELABEL`, else the only Taxonomy, else that with the most levels, or else
    labels, or else the first: a question beside the labels stops nothing.
    """
    wanted = [group for group in groups if any(tag.is_set(PRELABEL) for tag in group)]
    allowed = [group for group in groups if not _is_excluded(group[0])]
    if not (wanted or allowed):
        names = ", ".join(describe(group[0]) for group in groups)
        raise LabelConfigError(
            f'every control that could carry the labels says {PRELABEL}="false" ({names}): take it '
            "away from the one to pre-label"
        )
    taxonomies = [group for group in allowed if group[0].kind == "taxonomy"]
    candidates = wanted or taxonomies or allowed
    if len(candidates) == 1:
        return candidates[0], ()
    names = ", ".join(describe(group[0]) for group in candidates)
    if wanted:
        raise LabelConfigError(
            f'several controls say {PRELABEL}="true" ({names}): leave it on the one to pre-label '
            "only"
        )
    sizes = [_size(group) for group in candidates]
    best = candidates[sizes.index(max(sizes))]
    which = "has the most" if sizes.count(max(sizes)) == 1 else "comes first"
    note = (
        f"labels are read from {describe(best[0])}, which {which} of {names}. If they are in "
        f'another, write {PRELABEL}="true" on that.'
    )
    return best, (note,)


def _size(group: Sequence[Tag]) -> tuple[int, int]:
    """Return levels and labels of a group; (0, 0) where it cannot be read."""
    try:
        nodes, _, _ = _read_group(group)
    except LabelConfigError:
        return 0, 0
    return max(len(node.path) for node in nodes), len(nodes)


def _read_group(group: Sequence[Tag]) -> tuple[list[LabelNode], tuple[str, ...], str | None]:
    """Return nodes, notes and path separator of a Taxonomy or a cascade."""
    top = group[0]
    if top.kind == "taxonomy":
        choices = read_choices(top)
        nodes = taxonomy_nodes(top, choices)
        separator, separator_notes = _path_separator(top, nodes)
        return nodes, (*_taxonomy_notes(top, choices, nodes), *separator_notes), separator
    if conditions(top):
        raise LabelConfigError(
            f'{describe(top)} is shown only after a label of "{_waits_for(top)}", which is not '
            "a <Choices> for the same image: show it from the start"
        )
    levels, beside = _cascade_levels(top, group[1:])
    nodes, unused = cascade_nodes(levels)
    notes = [note for depth, level in enumerate(levels) for note in _choices_notes(level, depth)]
    return nodes, (*notes, *unused, *beside), None


# Which controls of a cascade are levels of labels, and which ask something beside them.
# `PRELABEL` decides. Without it, what is asked after every label, or beside another control, is
# no level.


@dataclass(frozen=True, eq=False)
class _Candidate:
    """A control that may be the next level of a cascade.

    Attributes:
        level: the control.
        shown_by: names of the choices above that show it.
        wanted: it, or a control below it, says `PRELABEL`.
    """

    level: CascadeLevel
    shown_by: frozenset[str]
    wanted: bool

    def beside(self, other: _Candidate) -> bool:
        """Return whether both can be on the screen at once."""
        return bool(self.shown_by & other.shown_by) and all(
            mine.control != theirs.control
            or mine.values is None
            or theirs.values is None
            or not set(mine.values).isdisjoint(theirs.values)
            for mine in self.level.conditions[:-1]
            for theirs in other.level.conditions[:-1]
        )

    def is_level(self, beside: Sequence[_Candidate], choices_above: int) -> bool:
        """Return whether this control, of those shown at once, goes on with the labels.

        Of several for one label it is the one with the most choices, if those are also more than
        the choices above: what tells kinds apart has more of them, sex or age have few.
        """
        if self.wanted or not beside:
            return True
        if len(self.shown_by) > 1 or any(other.wanted for other in beside):
            return False
        others = [len(other.level.choices) for other in beside if len(other.shown_by) == 1]
        return not others or len(self.level.choices) > max(choices_above, *others)


def _cascade_levels(top: Tag, others: Sequence[Tag]) -> tuple[list[CascadeLevel], tuple[str, ...]]:
    """Return the controls of a cascade that are levels, and notes on those that are not.

    Args:
        top: the control that is shown from the start.
        others: the controls that labels of it, or of each other, show.

    Raises:
        LabelConfigError: a control with `PRELABEL` cannot be a level.
    """
    waiting: dict[str, list[Tag]] = {}
    for control in others:
        waiting.setdefault(_waits_for(control), []).append(control)
    wanted = set(_wanted(top, waiting))
    levels, notes = [CascadeLevel.of(top)], []
    for above in levels:  # grows while it is walked
        found: list[_Candidate] = []
        for tag in waiting.get(above.tag.name, ()):
            candidate = _candidate(tag, above, wanted=tag.name in wanted)
            if isinstance(candidate, str):
                notes.append(_not_learnt(tag, candidate))
            else:
                found.append(candidate)
        for one in found:
            beside = [other for other in found if other is not one and one.beside(other)]
            if one.is_level(beside, len(above.choices)):
                levels.append(one.level)
            else:
                reason = f"the same label shows {describe(beside[0].level.tag)}"
                notes.append(_not_learnt(one.level.tag, reason))
    if len(levels) == 2 and not (wanted or top.is_set(PRELABEL)):
        notes.append(
            f"{describe(levels[1].tag)} is read as the level of labels below a label of "
            f'{describe(top)}. If it asks something else, write {PRELABEL}="false" on it.'
        )
    return levels, tuple(notes)


def _wanted(above: Tag, waiting: Mapping[str, Sequence[Tag]]) -> Iterator[str]:
    """Yield the names of the controls that say `PRELABEL`, or have such a one below them."""
    for tag in waiting.get(above.name, ()):
        below = list(_wanted(tag, waiting))
        yield from below
        if (below or tag.is_set(PRELABEL)) and not _is_excluded(tag):
            yield tag.name


def _candidate(tag: Tag, above: CascadeLevel, *, wanted: bool) -> _Candidate | str:
    """Return a control that may be a level, or why it is none."""
    if _is_excluded(tag):
        return f'{PRELABEL}="false"'
    try:
        level = CascadeLevel.of(tag)
    except LabelConfigError as error:
        if wanted:
            raise
        return str(error)
    last = level.conditions[-1]
    shown_by = frozenset(choice.name for choice in above.choices if last.met_by(choice))
    always = last.values is None or (len(above.choices) > 1 and len(shown_by) == len(above.choices))
    if always and not wanted:
        return f"it is asked after every label of {describe(above.tag)}"
    return _Candidate(level, shown_by, wanted)


def _not_learnt(tag: Tag, reason: str) -> str:
    fix = "" if _is_excluded(tag) else f' If it is one, write {PRELABEL}="true" on it.'
    return f"{describe(tag)} is no level of labels ({reason}) and is not learnt.{fix}"


def _hiding(labels: Tag, controls: Sequence[Tag]) -> dict[str, frozenset[str]]:
    """Return the choices that hide the control of the labels, by the control they belong to."""
    try:
        shown_by = {one.control: one for one in conditions(labels) if one.values is not None}
        asked = {tag.name: read_choices(tag) for tag in controls if tag.name in shown_by}
    except LabelConfigError:
        return {}
    found = {
        name: frozenset(nfc(one.name) for one in choices if not shown_by[name].met_by(one))
        for name, choices in asked.items()
    }
    return {name: names for name, names in found.items() if names}


# Notes for the admin on what can be used all the same


def _path_separator(control: Tag, nodes: Sequence[LabelNode]) -> tuple[str | None, tuple[str, ...]]:
    """Return the path separator of a Taxonomy if names contain it, and the note that they do.

    The editor joins a path with it and splits what was ticked at it (`NewTaxonomy.onChange`), so a
    name that contains it comes back as two.

    Raises:
        LabelConfigError: if the cut paths could not be put together again.
    """
    separator = control.attributes.get("pathseparator", _SEPARATOR)
    if not separator:
        raise LabelConfigError(
            f'{describe(control)} has pathSeparator="", at which Label Studio cuts its labels '
            "into letters: remove it"
        )
    split = [node.path[-1] for node in nodes if separator in node.path[-1]]
    if not split:
        return None, ()
    fix = 'set pathSeparator to text that is in no name, such as pathSeparator=" > "'
    if len({separator.join(node.path) for node in nodes}) < len(nodes):
        raise LabelConfigError(
            f'{describe(control)}: the choice "{split[0]}" contains the path separator '
            f'"{separator}", and its path reads like another\'s: {fix}'
        )
    note = (
        f'{describe(control)}: the choice "{split[0]}" contains the path separator "{separator}", '
        f"where Label Studio cuts the labels it stores. They are put together again here; {fix}."
    )
    return separator, (note,)


def _taxonomy_notes(
    control: Tag, choices: Sequence[Choice], nodes: Sequence[LabelNode]
) -> Iterator[str]:
    name = describe(control)
    if control.is_set("leafsonly"):
        yield (
            f"{name} has leafsOnly: annotators cannot tick a coarse label when they know no "
            "finer one. Remove leafsOnly."
        )
    if (control.get("maxusages") or "").strip() == "1":
        yield (
            f'{name} has maxUsages="1": a deeper tick is ignored until the coarse one is unticked. '
            "Remove maxUsages; a label beside its own parent is read as the deeper one anyway."
        )
    if control.is_set("required"):
        yield f"{name} is required: an annotator who cannot tell must press Skip."
    if control.is_set("legacy"):
        yield (
            f"{name} is legacy, so annotators can add labels of their own; those count for the "
            "nearest label of the tree."
        )
    if is_conditional(control):
        yield f"{name} is not always shown; its pre-label is seen only while it is."
    if len({node.title for node in nodes}) < len(nodes) and not control.is_set("showfullpath"):
        yield (
            f"{name} has one name under several parents, and the chip of a label shows the last "
            'name only. Set showFullPath="true".'
        )
    yield from _selected_notes(name, choices)


def _choices_notes(level: CascadeLevel, depth: int) -> Iterator[str]:
    """Yield notes on one control of a cascade; ``depth`` 0 is its top."""
    control, name = level.tag, describe(level.tag)
    if control.get("choice") == "multiple":
        yield (
            f'{name} has choice="multiple": several labels count only for what is above all of '
            'them. Remove it, or write choice="single".'
        )
    if control.is_set("required") and depth:
        yield (
            f"{name} is required: whoever labels the level above must guess this one. "
            "Remove required."
        )
    elif control.is_set("required"):
        yield f"{name} is required: an annotator who cannot tell must press Skip."
    yield from _selected_notes(name, level.choices)


def _selected_notes(name: str, choices: Sequence[Choice]) -> Iterator[str]:
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


def _hiding_notes(hiding: Mapping[str, frozenset[str]]) -> Iterator[str]:
    for name, choices in hiding.items():
        words = ", ".join(f'"{choice}"' for choice in sorted(choices)[:3])
        yield (
            f'<Choices name="{name}"> hides the labels after some choices ({words}). These are not '
            "learnt, and the promised accuracy is about the other images alone."
        )


def tree_notes(tree: LabelTree) -> Iterator[str]:
    """Yield notes on the labels themselves."""
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


def _several_ticks_notes(control: Tag) -> Iterator[str]:
    """Yield a note on a Taxonomy that takes several labels, as most do."""
    if control.kind == "taxonomy" and (control.get("maxusages") or "").strip() != "1":
        yield (
            f"{describe(control)} takes several ticks. Several labels are learnt as the "
            'label above them all, or as "one of these", and each image gets one pre-label.'
        )
