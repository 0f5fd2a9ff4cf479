"""Reading a request's body: JSON within bounds, in text that can be stored."""

import json
import re
from typing import Final

from flask import request

from studio.errors import ContractError

#: Most values in one body. A batch of 100,000 tasks has about 2 million; each takes some 100 bytes
#: of memory, however few it has in the body.
MAX_VALUES: Final = 5_000_000

#: One half of a character of UTF-16, written out and followed by no other half: it is no text, and
#: neither a file nor a database takes it. JSON allows it all the same.
_HALF: Final = re.compile("[\ud800-\udfff]")


def read_json() -> object:
    """Return the body's JSON; None where it is none, or is not said to be.

    Raises:
        ContractError: it is nested deeper than Python's parser goes (some 900 levels; Label Studio
            stays below 20), holds too many values, or text that is none.
    """
    if not request.is_json:
        return None
    data = request.get_data(cache=False)
    # Commas inside strings count too: an upper bound that takes no parser and 0.1 s for 64 MB.
    if data.count(b",") + data.count(b"[") + data.count(b"{") > MAX_VALUES:
        raise ContractError(f"body: expected at most {MAX_VALUES} values, got more")
    try:
        read: object = json.loads(data)
    except ValueError:  # no JSON, no UTF-8, or a number of thousands of digits
        return None
    except RecursionError:
        raise ContractError("body: nested too deep") from None  # a thousand lines of traceback less
    if _holds_half(read):
        raise ContractError(
            "body: expected text, got half of a character (\\ud800 to \\udfff) that stands alone"
        )
    return read


def _holds_half(read: object) -> bool:
    """Whether there is text anywhere that has no form in UTF-8."""
    waiting = [read]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            if _HALF.search(value):
                return True
        elif isinstance(value, dict):
            waiting += [*value, *value.values()]
        elif isinstance(value, list):
            waiting += value
    return False
