"""The description names every route there is, and every answer to whatever is asked is in it."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest
import schemathesis
from flask.testing import FlaskClient
from schemathesis import GenerationMode

from backend.operations import OPENAPI
from tests.backend.hostile import Target, ask_all_sorts, headers, target
from worker.parts import Parts


def test_the_description_names_every_route_and_no_other(client: FlaskClient) -> None:
    rules = {
        (re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", str(rule)), method)
        for rule in client.application.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    told = {
        (path, method.upper())
        for path, methods in json.loads(OPENAPI.read_bytes())["paths"].items()
        for method in methods
    }
    assert told == rules


def test_the_description_is_served_to_who_may_call(bare: Callable[..., FlaskClient]) -> None:
    assert bare().get("/openapi.json").get_json() == json.loads(OPENAPI.read_bytes())


@pytest.fixture(scope="module")
def attacked(parts: Parts) -> Iterator[Target]:
    with target(parts) as made:
        yield made


@pytest.fixture(scope="module")
def api(attacked: Target) -> Any:
    return schemathesis.openapi.from_wsgi("/openapi.json", attacked.app, headers=headers())


OPERATIONS: Final = [
    (path, method)
    for path, found in json.loads(OPENAPI.read_bytes())["paths"].items()
    for method in found
]


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: str(mode.value))
@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_whatever_is_asked_the_answer_is_one_that_is_described(
    attacked: Target, api: Any, path: str, method: str, mode: GenerationMode
) -> None:
    """Schemathesis draws requests that fit the description, and such as do not."""
    ask_all_sorts(attacked, api[path][method], mode, examples=8)
