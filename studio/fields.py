"""Reading fields of decoded JSON: the right type, or None; and words for what came instead."""

from __future__ import annotations

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
