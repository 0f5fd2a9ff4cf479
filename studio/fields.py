"""Reading fields of decoded JSON: the right type, or None; and words for what came instead."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

#: Label Studio's ids are database keys: at most 64 bits.
_LARGEST_ID: Final = 2**63 - 1

#: A place in a list, short enough for any list there is.
_INDEX: Final = re.compile(r"[0-9]{1,9}")

#: Words for the types of decoded JSON; bool stands before int, of which it is a subclass.
_KINDS: Final = (
    (bool, "a boolean"),
    (int | float, "a number"),
    (str, "a string"),
    (list | tuple, "a list"),
    (Mapping, "an object"),
)


def kind_of(value: object) -> str:
    """What a JSON value is, in words for an error message.

    Example:
        >>> kind_of([1]), kind_of(None)
        ('a list', 'nothing')
    """
    if value is None:
        return "nothing"
    return next((words for kind, words in _KINDS if isinstance(value, kind)), "something else")


def as_id(value: object) -> int | None:
    """A database key, None if the value is none (JSON's true and false are not numbers here)."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST_ID:
        return value
    return None


def as_text(value: object) -> str:
    """A string, empty if the value is none."""
    return value if isinstance(value, str) else ""


def field_of(data: Mapping[str, object], key: str) -> object:
    """A field of a task's data, None where it has none; the one way to read it by name.

    Args:
        data: the task's ``data``.
        key: its name, or a path such as ``shots[0].url``, as lodash's get() reads it.

    Example:
        >>> field_of({"shots": [{"url": "/data/upload/1/cat.jpg"}]}, "shots[0].url")
        '/data/upload/1/cat.jpg'
    """
    if key in data:
        return data[key]
    value: object = data
    for step in re.findall(r"[^.\[\]]+", key):
        value = _step(value, step)
    return value


def _step(value: object, step: str) -> object:
    if isinstance(value, Mapping):
        return value.get(step)
    if isinstance(value, list) and _INDEX.fullmatch(step) and int(step) < len(value):
        return value[int(step)]
    return None
