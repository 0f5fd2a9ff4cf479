"""Fields of decoded JSON: the right type or None, and words for what came instead."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

#: Label Studio's ids are database keys: at most 64 bits.
_LARGEST_ID: Final = 2**63 - 1

#: Words for the types of decoded JSON; bool stands before int, of which it is a subclass.
_KINDS: Final = (
    (bool, "a boolean"),
    (int | float, "a number"),
    (str, "a string"),
    (list | tuple, "a list"),
    (Mapping, "an object"),
)


def kind_of(value: object) -> str:
    """Name the type of a JSON value for an error message.

    Example:
        >>> kind_of([1]), kind_of(None)
        ('a list', 'nothing')
    """
    if value is None:
        return "nothing"
    return next((words for kind, words in _KINDS if isinstance(value, kind)), "something else")


def as_id(value: object) -> int | None:
    """Return a database key, None if the value is none (JSON's true and false are not numbers)."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST_ID:
        return value
    return None


def as_text(value: object) -> str:
    """Return a string, empty if the value is none."""
    return value if isinstance(value, str) else ""


def field_of(data: Mapping[str, object], key: str) -> object:
    """Return a field of a task's data, None where it has none.

    Args:
        data: the task's ``data``.
        key: the field's name, or a path such as ``shots[0].url``, as lodash's get() reads it.

    Example:
        >>> field_of({"shots": [{"url": "/data/upload/1/cat.jpg"}]}, "shots[0].url")
        '/data/upload/1/cat.jpg'
    """
    if key in data:
        return data[key]
    value: object = data
    for step in re.findall(r"[^.\[\]]+", key):
        if isinstance(value, Mapping):
            value = value.get(step)
        elif isinstance(value, list) and re.fullmatch("[0-9]{1,9}", step):
            value = value[int(step)] if int(step) < len(value) else None
        else:
            return None
    return value
