"""What an attacker may send, and what must be true of every answer to it."""

import base64
import contextlib
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from flask import Flask
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode
from schemathesis.checks import CHECKS
from werkzeug.test import TestResponse

from backend.app import create_app
from tests.published import TREE
from tests.studio.configs import taxonomy_xml
from worker.parts import Parts
from worker.settings import Secret

ROOT: Final = Path(__file__).parents[2]

PASSWORD: Final = "secret-of-the-routes"
CONSOLE: Final = "secret-of-the-console"
TOKEN: Final = "secret-token-of-label-studio"
#: Comes in bodies of Label Studio's own.
ACCESS: Final = "secret-access-token-of-a-person"
SECRETS: Final = (PASSWORD, CONSOLE, TOKEN, ACCESS)

CONFIG: Final = taxonomy_xml(TREE)
KIND: Final = "application/json"

#: Marks of code of ours, or of where it lies, in what others get to see.
_INSIDE: Final = re.compile(r"Traceback \(most recent|File \"|\.py\b|line \d+, in ", re.ASCII)


def secured(parts: Parts) -> Parts:
    """The run's parts under passwords and a token."""
    made = Parts(
        replace(
            parts.settings,
            password=Secret(PASSWORD),
            console_password=Secret(CONSOLE),
            label_studio_token=Secret(TOKEN),
        )
    )
    for name in ("fetcher", "extractors", "board", "store"):
        vars(made)[name] = getattr(parts, name)
    return made


def headers(password: str = PASSWORD) -> dict[str, str]:
    """Label Studio's."""
    coded = base64.b64encode(f"label-studio:{password}".encode()).decode()
    return {"Authorization": f"Basic {coded}"}


class _Kept(logging.Handler):
    """Records as they would be written, tracebacks and all."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []
        self.setFormatter(logging.Formatter("%(levelname)s %(name)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.split(".")[0] not in {"hypothesis", "schemathesis", "asyncio"}:
            self.lines.append(self.format(record))


@dataclass(frozen=True)
class Target:
    """The application under attack.

    Attributes:
        app: over real parts.
        home: its folder, which no answer may name.
        log: what it has logged since the last look.
    """

    app: Flask
    home: Path
    log: list[str]

    def send(self, method: str, path: str, data: bytes | str = b"", **more: Any) -> TestResponse:
        """One request, its answer looked at; Label Studio's credentials unless told otherwise."""
        given: Mapping[str, str] = more.pop("headers", None) or headers()
        kind = more.pop("content_type", KIND)
        reply = self.app.test_client().open(
            path, method=method, data=data, headers=given, content_type=kind, **more
        )
        self.look(reply)
        return reply

    def look(self, reply: TestResponse) -> None:
        """The answer is no 500 and tells nothing of the inside, nor does the log of a secret."""
        text = f"{reply.status}\n{reply.headers}\n{reply.get_data(as_text=True)}"
        log = "\n".join(self.log)
        self.log.clear()
        self.harmless(reply.status_code, text, log)

    def harmless(self, status: int, text: str, log: str) -> None:
        """The same for an answer that another client has read."""
        assert status != 500, (text, log)
        assert "Traceback" not in log, log
        for secret in SECRETS:
            assert secret not in text
            assert secret not in log
        for inside in (str(self.home), str(ROOT)):
            assert inside not in text
        assert _INSIDE.search(text) is None, text


@contextlib.contextmanager
def target(parts: Parts) -> Iterator[Target]:
    """The application over these parts; its log is read along."""
    handler, root = _Kept(), logging.getLogger()
    root.addHandler(handler)
    try:
        yield Target(create_app(secured(parts)), parts.settings.home, handler.lines)
    finally:
        root.removeHandler(handler)


#: What schemathesis holds each answer against: the description says which may come.
_WANTED: Final = (
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
)


def ask_all_sorts(attacked: Target, operation: Any, mode: GenerationMode, *, examples: int) -> None:
    """Requests drawn from a route's description (schemathesis), each answer looked at."""
    checks: Any = [CHECKS.get_one(name) for name in _WANTED]

    @settings(max_examples=examples, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode))
    def asked(case: Case[Any]) -> None:
        reply = case.call_and_validate(headers=headers(), checks=checks)
        log = "\n".join(attacked.log)
        attacked.log.clear()
        attacked.harmless(reply.status_code, f"{reply.headers}\n{reply.text}", log)

    with contextlib.suppress(Unsatisfiable):  # a route that takes nothing cannot be asked wrongly
        asked()


# What may be sent

_NUMBERS: Final = st.one_of(
    st.integers(),
    st.sampled_from([0, -1, 2**31, 2**63, 2**64, 10**300, -(10**300)]),
    st.floats(allow_nan=True, allow_infinity=True),
)
#: Text of all kinds, halves of characters too.
_TEXTS: Final = st.one_of(
    st.text(max_size=30),
    st.text(st.characters(categories=["Cs"]), min_size=1, max_size=3),
    st.sampled_from(
        ["", "\x00", "\r\nX-Evil: 1", "../../etc/passwd", "{{7*7}}", "%s%n", "<script>", "\u202e",
         "file:///etc/passwd", "http://169.254.169.254/", "1.5", "1.1795440233", ACCESS, CONFIG,
         "<!DOCTYPE x [<!ENTITY a 'b'>]><View>&a;</View>", "<View><Taxonomy/></View>",
         "START_TRAINING"]
    ),
)  # fmt: skip
JSON: Final = st.recursive(
    st.one_of(st.none(), st.booleans(), _NUMBERS, _TEXTS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(_TEXTS, inner, max_size=4)
    ),
    max_leaves=12,
)


def _bent(right: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A right body of which some fields are replaced, missing or joined by others."""
    fields = {name: st.one_of(st.just(value), JSON) for name, value in right.items()}
    some = st.fixed_dictionaries({}, optional=fields)
    return st.builds(lambda a, b: {**b, **a}, some, st.dictionaries(_TEXTS, JSON, max_size=2))


_TASK: Final = {"id": 1, "data": {"image": "/data/upload/1/0.jpg"}, "predictions": []}
RIGHT: Final[dict[str, dict[str, Any]]] = {
    "/setup": {"project": "7.5", "schema": CONFIG, "hostname": "", "access_token": ACCESS,
               "extra_params": "{}"},
    "/predict": {"tasks": [_TASK], "project": "7.5", "label_config": CONFIG,
                 "params": {"context": None, "password": ACCESS}},
    "/webhook": {"action": "ANNOTATION_CREATED", "annotation": {"id": 1, "task": 1},
                 "project": {"id": 7, "created_at": "1970-01-01T00:00:05Z",
                             "label_config": CONFIG}},
}  # fmt: skip
#: Bodies that differ from right ones in some fields.
BENT: Final = {
    path: st.one_of(
        _bent(right), st.fixed_dictionaries({"tasks": st.lists(_bent(_TASK), max_size=3)}), JSON
    )
    for path, right in RIGHT.items()
}


def written(body: object) -> bytes:
    """As JSON; NaN and halves of characters stand as Python writes them."""
    return json.dumps(body).encode()


def whole(path: str, **changes: bytes) -> bytes:
    """A right body as text, with raw text in place of some values: what no writer would make."""
    parts = {name: written(value) for name, value in RIGHT[path].items()} | changes
    return b"{" + b",".join(written(k) + b":" + v for k, v in parts.items()) + b"}"


DEEP: Final = 10_000

#: Name -> a whole body for a path.
BODIES: Final[dict[str, Callable[[str], bytes]]] = {
    "lists in lists": lambda _: b"[" * DEEP + b"]" * DEEP,
    "objects in objects": lambda _: b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "lists that do not end": lambda _: b"[" * DEEP,
    "a deep field": lambda path: whole(path, project=b"[" * DEEP + b"]" * DEEP),
    "deep extra parameters": lambda path: whole(path, extra_params=written("[" * DEEP)),
    "a huge integer": lambda path: whole(path, project=b"9" * 5000),
    "a huge id": lambda path: whole(path, tasks=b'[{"id": 1' + b"0" * 400 + b"}]"),
    "a huge exponent": lambda path: whole(path, project=b"1e999999"),
    "not a number": lambda path: whole(path, tasks=b'[{"id": NaN}]'),
    "infinity": lambda path: whole(path, project=b"-Infinity", tasks=b'[{"id": Infinity}]'),
    "half a character": lambda path: whole(
        path, schema=b'"\\ud800"', label_config=b'"\\udfff"', hostname=b'"\\ud800"'
    ),
    "half a character for a name": lambda _: b'{"\\ud800": 1}',
    "a key twice": lambda path: whole(path)[:-1] + b',"project":7,"project":"7.5"}',
    "no UTF-8": lambda path: whole(path, project=b'"\xff\xfe"'),
    "UTF-16": lambda path: whole(path).decode().encode("utf-16"),
    "a byte order mark": lambda path: b"\xef\xbb\xbf" + whole(path),
    "NUL": lambda path: whole(path, project=b'"7.5\\u0000"', schema=b'"\\u0000"'),
    "nothing": lambda _: b"",
    "null": lambda _: b"null",
    "a comma too many": lambda path: whole(path)[:-1] + b",}",
    "entities": lambda path: whole(
        path, schema=written("<!DOCTYPE a [<!ENTITY b 'c'>]><View>&b;</View>")
    ),
    "tags in tags": lambda path: whole(
        path,
        schema=written("<View>" * DEEP),
        label_config=written("<View>" * DEEP),
    ),
}
KINDS: Final = (
    "text/plain", "application/xml", "multipart/form-data; boundary=x", "",
    "application/json; charset=x", "application/x-www-form-urlencoded", "application/json\x00",
    "application/vnd.x+json", "*/*",
)  # fmt: skip
