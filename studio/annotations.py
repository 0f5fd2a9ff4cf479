"""Annotations as Label Studio stores them -> targets in the label tree, at whatever depth.

Nothing an annotator or an import can store stops the reading: what teaches nothing becomes an
`Ignored` with the reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeGuard

from hierarchy.tree import LabelTree
from studio.errors import AnnotationError
from studio.json_fields import as_id, as_text, kind_of
from studio.label_config import LabelConfig
from studio.label_controls import nfc

#: Keys of a result's value that place it on a region of the image.
_REGION_KEYS: Final = frozenset({"x", "points", "rle", "vertices"})

#: Why a skip is passed over.
WAS_SKIPPED: Final = "skipped by the annotator"

#: Why an annotation is passed over that holds no label at all.
EMPTY: Final = "submitted without a label"

#: Why one is passed over that hides the labels by a choice of another control.
NOTHING_THERE: Final = "says that nothing of the label tree is there"

#: Longest piece of an annotation repeated in a reason, in characters.
_QUOTED: Final = 100


@dataclass(frozen=True)
class Label:
    """What one annotator said about one image.

    Attributes:
        task_id: the task.
        annotation_id: the annotation.
        target: the deepest node that covers all of ``nodes``; None where none does, as for "Fruit
            or Milk" below two root nodes.
        nodes: the nodes that were ticked, ascending, none above another; one for most labels.
        annotator: id of the user who submitted it.
        updated_at: when it was last changed, as Label Studio writes it (ISO 8601, UTC); may be "".
        ground_truth: whether it is marked as the truth for this task.
        origin: ``manual``, ``prediction`` (submitted as pre-labelled) or ``prediction-changed``;
            None where Label Studio does not say. In a cascade, a pre-label of which only the lower
            levels were cleared still says ``prediction``.
        parent_prediction: id of the prediction it started from.
        note: what of the annotation was left out or read differently, empty if nothing.
    """

    task_id: int
    annotation_id: int
    target: int | None
    nodes: tuple[int, ...]
    annotator: int | None
    updated_at: str
    ground_truth: bool
    origin: str | None
    parent_prediction: int | None
    note: str = ""


@dataclass(frozen=True)
class Ignored:
    """An annotation that teaches nothing, and why; the id is None where it has none."""

    annotation_id: int | None
    reason: str


@dataclass(frozen=True)
class TaskLabels:
    """A task with the labels of its annotations.

    Attributes:
        task_id: the task.
        image: address of its image, None where its data has none.
        labels: one per annotation that counts, in their order.
        ignored: the other annotations.
        data: the task's data.
    """

    task_id: int
    image: str | None
    labels: tuple[Label, ...]
    ignored: tuple[Ignored, ...]
    data: Mapping[str, object]


def read_task(task: object, config: LabelConfig) -> TaskLabels:
    """Read the labels of a task.

    If an annotation is marked as ground truth, only those so marked count. Drafts and predictions
    are not read.

    Args:
        task: a task as the API, an export or a webhook gives it.
        config: the project's labelling setup.

    Raises:
        AnnotationError: if it is no task, that is an object with an ``id``.
    """
    if not isinstance(task, Mapping) or (task_id := as_id(task.get("id"))) is None:
        found = kind_of(task.get("id")) if isinstance(task, Mapping) else kind_of(task)
        raise AnnotationError(f"a task must be an object with an integer id, got {found}")
    data = task.get("data")
    data = data if isinstance(data, Mapping) else {}
    read = list(_read_all(task.get("annotations"), task_id, config))
    return TaskLabels(
        task_id=task_id,
        image=config.image_address(data),
        labels=tuple(label for label in read if isinstance(label, Label)),
        ignored=tuple(other for other in read if isinstance(other, Ignored)),
        data=data,
    )


def _read_all(entries: object, task_id: int, config: LabelConfig) -> Iterator[Label | Ignored]:
    if entries is None:
        return
    if not isinstance(entries, list | tuple):
        yield Ignored(None, f"annotations: expected a list, got {kind_of(entries)}")
        return
    has_truth = any(
        isinstance(entry, Mapping)
        and entry.get("ground_truth") is True
        and not _is_withdrawn(entry)
        for entry in entries
    )
    for entry in entries:
        found = _read_annotation(entry, task_id, config)
        if has_truth and isinstance(found, Label) and not found.ground_truth:
            yield Ignored(found.annotation_id, "another annotation is marked as ground truth")
        else:
            yield found


def _is_withdrawn(entry: Mapping[str, object]) -> bool:
    return bool(entry.get("was_cancelled")) or bool(entry.get("deleted"))


def _read_annotation(entry: object, task_id: int, config: LabelConfig) -> Label | Ignored:
    if not isinstance(entry, Mapping):
        return Ignored(None, f"annotation: expected an object, got {kind_of(entry)}")
    annotation_id = as_id(entry.get("id"))
    if annotation_id is None:
        return Ignored(None, f"annotation id: expected an integer, got {kind_of(entry.get('id'))}")
    if _is_withdrawn(entry):
        gone = "deleted" if entry.get("deleted") else WAS_SKIPPED
        return Ignored(annotation_id, gone)
    results, reason = _own_results(entry.get("result"), config)
    if not results:
        return Ignored(annotation_id, reason)
    nodes, notes = _nodes(results, config)
    if not nodes:
        return Ignored(annotation_id, "; ".join(notes) or EMPTY)
    return Label(
        task_id=task_id,
        annotation_id=annotation_id,
        target=config.tree.common_ancestor(nodes),
        nodes=nodes,
        annotator=_user(entry.get("completed_by")),
        updated_at=as_text(entry.get("updated_at")) or as_text(entry.get("created_at")),
        ground_truth=entry.get("ground_truth") is True,
        origin=_origin(results),
        parent_prediction=as_id(entry.get("parent_prediction")),
        note="; ".join(notes),
    )


def _user(value: object) -> int | None:
    """Return the id of a user, given as an id or, in some exports, as an object."""
    return as_id(value.get("id") if isinstance(value, Mapping) else value)


def _own_results(results: object, config: LabelConfig) -> tuple[list[Mapping[str, object]], str]:
    """Return the results of the pre-labelled controls; where there are none, the reason."""
    if not isinstance(results, list | tuple):
        return [], f"result: expected a list, got {kind_of(results)}"
    if not results:
        return [], EMPTY
    own = [
        result
        for result in results
        if isinstance(result, Mapping) and as_text(result.get("from_name")) in config.control_names
    ]
    if not own and _shows_nothing(results, config):
        return own, NOTHING_THERE
    return own, f"holds no result of {', '.join(sorted(config.control_names)[:5])}"


def _shows_nothing(results: Sequence[object], config: LabelConfig) -> bool:
    for result in results:
        if isinstance(result, Mapping) and isinstance(value := result.get("value"), Mapping):
            ticked = value.get("choices")
            hiding = config.hiding.get(as_text(result.get("from_name")), frozenset())
            if isinstance(ticked, list) and ticked and hiding:
                return all(isinstance(one, str) and nfc(one) in hiding for one in ticked)
    return False


def _quote(words: str | tuple[str, ...]) -> str:
    text = words if isinstance(words, str) else " / ".join(words)
    return f'"{text[:_QUOTED]}{"..." if len(text) > _QUOTED else ""}"'


def _origin(results: Iterable[Mapping[str, object]]) -> str | None:
    """Return where the label came from; a mixture of origins has changed the pre-label."""
    found = {origin for result in results if (origin := as_text(result.get("origin")))}
    if len(found) > 1:
        return "prediction-changed"
    return next(iter(found), None)


# From results to nodes


def _nodes(
    results: Sequence[Mapping[str, object]], config: LabelConfig
) -> tuple[tuple[int, ...], list[str]]:
    """Return the nodes that an annotation names, none above another, and notes on the rest."""
    notes: list[str] = []
    if config.kind == "taxonomy":
        found = _taxonomy_nodes(results, config, notes)
    else:
        found = _choices_nodes(results, config, notes)
    return _deepest(found, config.tree), notes


def _deepest(nodes: set[int], tree: LabelTree) -> tuple[int, ...]:
    """Drop nodes above others: an ancestor says no more than its descendant."""
    above = {up for node in nodes for up in tree.ancestors(node)[:-1]}
    return tuple(sorted(nodes - above))


def _items(
    results: Sequence[Mapping[str, object]], key: str, notes: list[str]
) -> Iterator[tuple[str, object]]:
    """Yield (control, item) for each item of each result's list."""
    for result in results:
        value = result.get("value")
        items = value.get(key) if isinstance(value, Mapping) else None
        if not isinstance(value, Mapping) or not isinstance(items, list | tuple):
            notes.append(f"value.{key}: expected a list, got {kind_of(items)}")
        elif not _REGION_KEYS.isdisjoint(value):
            notes.append("the label is about a region of the image, not about the whole")
        else:
            yield from ((as_text(result.get("from_name")), item) for item in items)


def _taxonomy_nodes(
    results: Sequence[Mapping[str, object]], config: LabelConfig, notes: list[str]
) -> set[int]:
    found = set()
    for _, item in _items(results, "taxonomy", notes):
        if not _is_path(item):
            notes.append(f"value.taxonomy: expected a list of paths, got {kind_of(item)} in it")
            continue
        path = tuple(item)
        node, exact = _find(path, config)
        if node is not None:
            found.add(node)
        if not exact:
            meant = "" if node is None else f"; counts for {_quote(config.tree.path(node))}"
            notes.append(f"{_quote(path)} is not in the label tree{meant}")
    return found


def _is_path(item: object) -> TypeGuard[Sequence[str]]:
    return (
        isinstance(item, list | tuple)
        and len(item) > 0
        and all(isinstance(name, str) and name for name in item)
    )


def _find(path: tuple[str, ...], config: LabelConfig) -> tuple[int | None, bool]:
    """Return the node at a path, or else the deepest one on it; and whether the path was found.

    A path may also hold titles instead of aliases, as the editor accepts them from an import, or
    be cut at separators inside names.
    """
    tree = config.tree
    node = tree.nearest(path)
    if node is not None and tree.levels[node] == len(path) - 1:
        return node, True
    if config.separator is not None:
        whole = config.nodes_by_text.get(config.separator.join(path))
        if whole is not None:
            return whole, True
    node, depth = _walk(path, config)
    return node, depth == len(path)


def _walk(path: tuple[str, ...], config: LabelConfig) -> tuple[int | None, int]:
    """Return the deepest node reached by names or else titles, and the number of steps."""
    tree = config.tree
    node, below = None, tree.level_nodes(0)
    for depth, word in enumerate(map(nfc, path)):
        named = (child for child in below if nfc(tree.names[child]) == word)
        titled = (child for child in below if nfc(config.titles[child]) == word)
        step = next(named, next(titled, None))
        if step is None:
            return node, depth
        node, below = step, tree.children[step]
    return node, len(path)


def _choices_nodes(
    results: Sequence[Mapping[str, object]], config: LabelConfig, notes: list[str]
) -> set[int]:
    """Return the nodes that no control above contradicts."""
    named: dict[tuple[str, str], tuple[int, ...]] = {}
    for control, item in _items(results, "choices", notes):
        if not isinstance(item, str):
            notes.append(f"value.choices: expected a list of strings, got {kind_of(item)} in it")
        elif (key := (control, nfc(item))) in config.nodes_by_choice:
            named[key] = config.nodes_by_choice[key]
        else:
            notes.append(f'{_quote(item)} is no choice of "{control}"')
    ticked = {node for nodes in named.values() for node in nodes}
    labelled = {control for control, _ in named}
    found = {
        node
        for node in ticked
        if all(
            up in ticked or config.controls[up] not in labelled
            for up in config.tree.ancestors(node)[:-1]
        )
    }
    for (control, item), nodes in named.items():
        if found.isdisjoint(nodes):
            notes.append(f'{_quote(item)} of "{control}" does not belong to the label above it')
    return found
