"""Hostile bodies on every route: an answer in words, soon, and nothing of the inside in it."""

import time
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backend.app import MAX_BODY
from tests.backend.hostile import (
    BENT,
    BODIES,
    CONSOLE,
    KINDS,
    RIGHT,
    Target,
    target,
    whole,
    written,
)
from worker.parts import Parts

#: A busy machine draws slowly; that is no fault of what is attacked.
SLOW = (HealthCheck.too_slow,)


@pytest.fixture(scope="module")
def attacked(parts: Parts) -> Iterator[Target]:
    with target(parts) as made:
        yield made


@pytest.mark.parametrize("path", RIGHT)
@pytest.mark.parametrize("name", BODIES)
def test_an_odd_body_is_answered_in_words(attacked: Target, path: str, name: str) -> None:
    reply = attacked.send("POST", path, BODIES[name](path))
    assert reply.status_code in (200, 201, 400)
    assert reply.is_json


@pytest.mark.parametrize("path", RIGHT)
@pytest.mark.parametrize("kind", KINDS)
def test_another_type_of_content_is_no_fault_of_ours(
    attacked: Target, path: str, kind: str
) -> None:
    assert attacked.send("POST", path, whole(path), content_type=kind).status_code in (
        200,
        201,
        400,
    )


@pytest.mark.parametrize("path", RIGHT)
@settings(max_examples=60, suppress_health_check=SLOW)
@given(data=st.data())
def test_bodies_bent_in_any_field(attacked: Target, path: str, data: st.DataObject) -> None:
    reply = attacked.send("POST", path, written(data.draw(BENT[path])))
    assert reply.status_code in (200, 201, 400)


@settings(max_examples=60, suppress_health_check=SLOW)
@given(query=st.text(max_size=40), name=st.sampled_from(["project", "x", "project[]"]))
def test_any_project_may_be_asked_for(attacked: Target, query: str, name: str) -> None:
    reply = attacked.send("GET", "/versions", query_string={name: query})
    assert reply.status_code in (200, 400)


@pytest.mark.parametrize("raw", ["project=%ff%fe", "project=%00", "project=..%2f", "project=%"])
def test_a_query_that_is_no_text(attacked: Target, raw: str) -> None:
    assert attacked.send("GET", f"/versions?{raw}").status_code in (200, 400)


@settings(max_examples=40, suppress_health_check=SLOW)
@given(
    form=st.dictionaries(
        st.sampled_from(["password", "csrf", "next", "x"]), st.text(max_size=40), max_size=4
    ),
    cookie=st.text(st.characters(codec="ascii", exclude_characters=";\r\n\x00"), max_size=40),
)
def test_signing_in_with_anything(attacked: Target, form: dict[str, str], cookie: str) -> None:
    """Without a token of a page of ours no password is looked at, so nothing is counted either."""
    client = attacked.app.test_client()
    reply = client.post("/console/sign-in", data=form, headers={"Cookie": f"hrn_console={cookie}"})
    attacked.look(reply)
    assert reply.status_code == 400
    assert CONSOLE not in reply.text


@pytest.mark.parametrize("path", ["/console/sign-in", "/console/sign-out", "/console/checkup"])
@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data", "text/plain"])
def test_the_console_s_forms_take_no_other_content(attacked: Target, path: str, kind: str) -> None:
    reply = attacked.app.test_client().post(path, data=b"\xff" * 1000, content_type=kind)
    attacked.look(reply)
    assert reply.status_code in (303, 400)


@pytest.mark.slow
@pytest.mark.parametrize("path", RIGHT)
@pytest.mark.parametrize(
    ("filling", "end"), [(b"[],", b"[]"), (b'{"id":1},', b"1"), (b'"' + b"x" * 1000 + b'",', b"1")]
)
def test_64_mb_are_answered_within_bounds(
    attacked: Target, path: str, filling: bytes, end: bytes
) -> None:
    """The first two would take gigabytes of memory if they were read."""
    room = MAX_BODY - len(whole(path)) - 100
    body = whole(path, tasks=b"[" + filling * (room // len(filling) - 1) + end + b"]")
    started = time.monotonic()
    assert attacked.send("POST", path, body).status_code in (200, 201, 400)
    assert time.monotonic() - started < 30  # it takes one second
