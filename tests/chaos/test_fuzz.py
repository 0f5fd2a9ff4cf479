"""The fast suite's attacks at length: thousands of bodies, requests and pictures."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any, Final

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode

from backend.operations import OPENAPI
from studio.errors import ImageError
from studio.image_decoder import ImageLimits, decode
from tests.backend.conftest import parts, pictures
from tests.backend.hostile import BENT, RIGHT, Target, ask_all_sorts, headers, target, written
from tests.chaos.ledger import Ledger
from tests.redis import redis_url
from tests.studio.test_image_decoder import corners, saved
from worker.parts import Parts

__all__ = ["parts", "pictures", "redis_url"]

pytestmark = pytest.mark.chaos

OPERATIONS: Final = [
    (path, method)
    for path, found in json.loads(OPENAPI.read_bytes())["paths"].items()
    for method in found
]
#: A busy machine draws slowly; that is no fault of what is attacked.
SLOW: Final = (HealthCheck.too_slow,)
KINDS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")


@pytest.fixture(scope="module")
def attacked(parts: Parts) -> Iterator[Target]:
    with target(parts) as made:
        yield made


@pytest.fixture(scope="module")
def api(attacked: Target) -> Any:
    return schemathesis.openapi.from_wsgi("/openapi.json", attacked.app, headers=headers())


@pytest.mark.parametrize("path", RIGHT)
@settings(max_examples=400, suppress_health_check=SLOW)
@given(data=st.data())
def test_bodies_bent_in_any_field(
    attacked: Target, path: str, ledger: Ledger, data: st.DataObject
) -> None:
    reply = attacked.send("POST", path, written(data.draw(BENT[path])))
    assert reply.status_code in (200, 201, 400)
    ledger.tell("request bodies bent in any field")


@pytest.mark.parametrize("path", RIGHT)
@settings(max_examples=400, suppress_health_check=SLOW)
@given(body=st.binary(max_size=400))
def test_bodies_of_any_bytes(attacked: Target, path: str, ledger: Ledger, body: bytes) -> None:
    assert attacked.send("POST", path, body).status_code == 400
    ledger.tell("request bodies of any bytes")


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: str(mode.value))
@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_all_sorts_of_requests(
    attacked: Target, api: Any, path: str, method: str, mode: GenerationMode, ledger: Ledger
) -> None:
    ask_all_sorts(attacked, api[path][method], mode, examples=25)
    ledger.tell("requests drawn from the OpenAPI description (at most)", 25)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=800, suppress_health_check=SLOW)
@given(data=st.data())
def test_pictures_of_wrong_bytes(kind: str, ledger: Ledger, data: st.DataObject) -> None:
    """A picture or a picture error, nothing else."""
    right = bytearray(saved(corners(), kind))
    for place, value in data.draw(
        st.lists(st.tuples(st.integers(0, len(right) - 1), st.integers(0, 255)), max_size=12)
    ):
        right[place] = value
    cut = data.draw(st.integers(0, len(right)))
    with contextlib.suppress(ImageError):
        decode(bytes(right[: cut or None]), limits=ImageLimits(max_pixels=1_000_000))
    ledger.tell("images with wrong bytes")
