"""Bodies of Label Studio's requests as frozen types; errors name the first bad field.

What Label Studio 1.23.2 sends was recorded; tests read those bodies. Secrets in them (access
token, project token, data passwords) are not kept.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final, Self

from studio.errors import ContractError
from studio.json_fields import as_id, as_text, kind_of

#: A project as Label Studio names it to a backend: id, dot, creation time in whole seconds.
_PROJECT_KEY: Final = re.compile(r"[0-9]{1,19}\.[0-9]{1,19}", re.ASCII)


@dataclass(frozen=True)
class TaskRef:
    """A task to predict: its id and its data. Old predictions are dropped."""

    id: int
    data: Mapping[str, object]


@dataclass(frozen=True)
class PredictCall:
    """Body of `POST /predict`.

    Attributes:
        tasks: in the order of the results.
        project: ``<id>.<creation time>``.
        label_config: XML.
    """

    tasks: tuple[TaskRef, ...]
    project: str
    label_config: str

    @classmethod
    def from_json(cls, obj: object) -> Self:
        """Parse the body.

        One task may come without the list around it. A task without data stays: it gets an empty
        result, and the others theirs.

        Raises:
            ContractError: if a field is missing or of another type; names the first.
        """
        body = _object(obj, "body")
        tasks = body.get("tasks")
        entries = [tasks] if isinstance(tasks, Mapping) else _list(tasks, "tasks")
        return cls(
            tasks=tuple(_task(task, f"tasks[{n}]") for n, task in enumerate(entries)),
            project=_project_key(body.get("project"), "project"),
            label_config=_text(body.get("label_config"), "label_config"),
        )


@dataclass(frozen=True)
class SetupCall:
    """Body of `POST /setup`.

    The access token in it is the project creator's, in clear; it is deliberately dropped.

    Attributes:
        project: ``<id>.<creation time>``.
        schema: the label config, XML.
        hostname: Label Studio's own idea of its address; may be empty.
    """

    project: str
    schema: str
    hostname: str

    @classmethod
    def from_json(cls, obj: object) -> Self:
        """Parse the body.

        Raises:
            ContractError: if a field is missing or of another type; names the first.
        """
        body = _object(obj, "body")
        return cls(
            project=_project_key(body.get("project"), "project"),
            schema=_text(body.get("schema"), "schema"),
            hostname=as_text(body.get("hostname")),
        )


class Event(StrEnum):
    """The action of a webhook; OTHER is any that this backend does not know."""

    START_TRAINING = "START_TRAINING"
    ANNOTATION_CREATED = "ANNOTATION_CREATED"
    ANNOTATION_UPDATED = "ANNOTATION_UPDATED"
    ANNOTATIONS_CREATED = "ANNOTATIONS_CREATED"
    ANNOTATIONS_DELETED = "ANNOTATIONS_DELETED"
    TASKS_CREATED = "TASKS_CREATED"
    TASKS_DELETED = "TASKS_DELETED"
    PROJECT_UPDATED = "PROJECT_UPDATED"
    OTHER = "other"

    @property
    def changes_labels(self) -> bool:
        """Whether a project's labels may change with it (tasks come and go with annotations)."""
        return self not in {Event.START_TRAINING, Event.PROJECT_UPDATED, Event.OTHER}


@dataclass(frozen=True)
class WebhookCall:
    """Body of `POST /webhook`: it says that something changed, the API says what is true.

    Attributes:
        action: as sent.
        kind: the same as a type, `Event.OTHER` where it is not known.
        project_key: ``<id>.<creation time>``, if both are given.
        label_config: the project's label config, XML, if given.
        skipped: whether an annotator skipped a task.
    """

    action: str
    kind: Event
    project_key: str | None
    label_config: str | None
    skipped: bool = False

    @classmethod
    def from_json(cls, obj: object) -> Self:
        """Parse the body.

        Raises:
            ContractError: if a field is of another type, or there is no action; names the first.
        """
        body = _object(obj, "body")
        action = _text(body.get("action"), "action")
        project = _optional_object(body.get("project"), "project")
        project_id = _optional_id(project.get("id"), "project.id")
        annotations = [*_entries(body, "annotation"), *_entries(body, "annotations")]
        config = project.get("label_config")
        return cls(
            action=action,
            kind=Event(action) if action in set(Event) - {Event.OTHER} else Event.OTHER,
            project_key=_key_of(project_id, project.get("created_at")),
            label_config=None if config is None else _text(config, "project.label_config"),
            skipped=any(entry.get("was_cancelled") is True for entry in annotations),
        )


def project_key(project_id: int, created_at: str) -> str:
    """Return the name by which Label Studio refers to a project in calls to a backend.

    Label Studio 1.23.2 computes it as ``int(project.created_at.timestamp())`` after the id
    (`ml/api_connector.py`, `_create_project_uid`).

    Args:
        project_id: the project's id.
        created_at: its creation time, ISO 8601; without an offset it is read as UTC.

    Raises:
        ContractError: if the time cannot be read.

    Example:
        >>> project_key(1, "2026-11-23T13:23:53.513743Z")
        '1.1795440233'
    """
    try:
        moment = datetime.fromisoformat(created_at)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return f"{project_id}.{int(moment.timestamp())}"
    except (ValueError, OverflowError) as error:
        raise ContractError(
            "project.created_at: expected a time such as 2026-11-23T13:23:53.513743Z, "
            f"got {created_at!r:.60}"
        ) from error


def _key_of(project_id: int | None, created_at: object) -> str | None:
    if project_id is None or created_at is None:
        return None
    return project_key(project_id, _text(created_at, "project.created_at"))


def _entries(body: Mapping[str, object], field: str) -> list[Mapping[str, object]]:
    """Return the objects of a field that holds one or a list."""
    value = body.get(field)
    if isinstance(value, list):
        return [_object(entry, f"{field}[{n}]") for n, entry in enumerate(value)]
    return [] if value is None else [_object(value, field)]


def _task(value: object, where: str) -> TaskRef:
    task = _object(value, where)
    task_id = _optional_id(task.get("id"), f"{where}.id")
    if task_id is None:
        raise _wrong(f"{where}.id", "an integer", None)
    return TaskRef(task_id, _optional_object(task.get("data"), f"{where}.data"))


def _project_key(value: object, where: str) -> str:
    text = _text(value, where)
    if _PROJECT_KEY.fullmatch(text) is None:
        raise ContractError(f'{where}: expected "<id>.<creation time>", got {text!r:.60}')
    return text


def _wrong(where: str, expected: str, value: object) -> ContractError:
    return ContractError(f"{where}: expected {expected}, got {kind_of(value)}")


def _object(value: object, where: str) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise _wrong(where, "an object", value)
    return value


def _optional_object(value: object, where: str) -> Mapping[str, object]:
    return {} if value is None else _object(value, where)


def _list(value: object, where: str) -> list[object]:
    if not isinstance(value, list):
        raise _wrong(where, "a list", value)
    return value


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise _wrong(where, "a string", value)
    return value


def _optional_id(value: object, where: str) -> int | None:
    if value is not None and as_id(value) is None:
        raise _wrong(where, "an integer", value)
    return as_id(value)
