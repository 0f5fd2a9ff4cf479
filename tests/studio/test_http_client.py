"""Calls are tried again when that helps and may be done, and errors say what to fix."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from studio.errors import (
    LegacyTokensOffError,
    PermissionMissingError,
    PrivateAddressError,
    StudioError,
    StudioRefusedError,
    StudioRequestError,
    StudioUnavailableError,
)
from studio.http_client import OUR_REALM, Call, HttpClient, RetryLimits
from studio.tls import ssl_context
from tests.end_to_end.label_studio import free_port
from tests.studio.servers import Reply, Request, script, serving

LEGACY = "0123456789abcdef0123456789abcdef01234567"
#: Made once: reading the certificates of all authorities takes a while.
TRUST = ssl_context()
QUICK = RetryLimits(timeout=5, retries=3, backoff=0.01)
WHO = Call("GET", "/api/current-user/whoami")
IMPORT = Call("POST", "/api/projects/1/import", body=[1])


def jwt(kind: str, life: float = 300, serial: int = 0) -> str:
    """A token as Label Studio makes them, but for the signature."""
    claims = {"token_type": kind, "iat": 1000, "exp": 1000 + life, "jti": serial}
    parts = [{"alg": "HS256", "typ": "JWT"}, claims]
    coded = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode() for part in parts]
    return ".".join([*(part.rstrip("=") for part in coded), "signature"])


PERSONAL = jwt("refresh", life=1e9)


class Studio:
    """Trades the personal token and knows the access token it gave last."""

    def __init__(self, *, life: float = 300, forget: int = 0) -> None:
        self.life, self.forget, self.traded = life, forget, 0

    def __call__(self, request: Request) -> Reply:
        if request.path == "/api/token/refresh":
            if request.json != {"refresh": PERSONAL}:
                return Reply({"detail": "Token is blacklisted"}, 401)
            self.traded += 1
            return Reply({"access": self.access})
        if request.token != f"Bearer {self.access}" or self.traded <= self.forget:
            return Reply({"detail": "Authentication credentials were not provided."}, 401)
        return Reply({"email": "a@b"})

    @property
    def access(self) -> str:
        return jwt("access", self.life, self.traded)


def http(url: str, token: str = LEGACY, limits: RetryLimits = QUICK) -> HttpClient:
    return HttpClient(url, token, limits, TRUST)


def fails(
    answer: Callable[[Request], Reply] | Reply,
    call: Call = WHO,
    token: str = LEGACY,
    limits: RetryLimits = QUICK,
) -> StudioError:
    """The error of a call that is answered so."""
    answer = script(answer) if isinstance(answer, Reply) else answer
    with serving(answer) as server, pytest.raises(StudioError) as caught:
        http(server.url, token, limits).send(call)
    return caught.value


# --- tokens ---


def test_a_legacy_token_is_sent_as_it_is() -> None:
    with serving(script(Reply({"email": "a@b"}))) as server:
        assert HttpClient(server.url + "/", f" {LEGACY}\n", QUICK, TRUST).send(WHO) == {
            "email": "a@b"
        }
    assert [request.token for request in server.requests] == [f"Token {LEGACY}"]


def test_a_personal_token_is_traded_once_for_many_calls() -> None:
    studio = Studio()
    with serving(studio) as server:
        client = http(server.url, PERSONAL)
        replies = [client.send(WHO) for _ in range(3)]
    assert replies == [{"email": "a@b"}] * 3
    assert studio.traded == 1
    assert PERSONAL not in [request.token for request in server.requests]


def test_an_access_token_is_renewed_before_its_end() -> None:
    """It lives 0.4 s and is renewed a quarter of that before."""
    studio = Studio(life=0.4)
    with serving(studio) as server:
        client = http(server.url, PERSONAL)
        client.send(WHO)
        time.sleep(0.32)
        client.send(WHO)
    assert studio.traded == 2


def test_a_refused_access_token_is_renewed_once() -> None:
    studio = Studio(forget=1)
    with serving(studio) as server:
        assert http(server.url, PERSONAL).send(WHO) == {"email": "a@b"}
    assert studio.traded == 2


def test_an_access_token_refused_twice_is_an_error() -> None:
    studio = Studio(forget=99)
    error = fails(studio, token=PERSONAL)
    assert isinstance(error, StudioRefusedError)
    assert "API Tokens Settings" in str(error)
    assert studio.traded == 2


def test_a_revoked_personal_token_is_named_as_such() -> None:
    error = fails(Reply({"detail": "Token is blacklisted"}, 401), token=PERSONAL)
    assert isinstance(error, StudioRefusedError)
    assert "Token is blacklisted" in str(error)
    assert PERSONAL not in str(error)


def test_an_access_token_that_does_not_tell_its_end_is_used() -> None:
    """Then it is taken to live as long as Label Studio's do."""
    with serving(script(Reply({"access": "opaque"}), Reply([1]))) as server:
        client = http(server.url, PERSONAL)
        assert [client.send(WHO), client.send(WHO)] == [[1], [1]]
    assert [request.token for request in server.requests[1:]] == ["Bearer opaque"] * 2


@pytest.mark.parametrize("reply", [{}, {"access": None}, ["access"]])
def test_a_trade_without_an_access_token_is_reported(reply: object) -> None:
    error = fails(Reply(reply), token=PERSONAL)
    assert isinstance(error, StudioRequestError)
    assert "gave no access token" in str(error)


@pytest.mark.parametrize("refused", [False, True], ids=["at first", "all refused"])
def test_threads_trade_once_for_all(refused: bool) -> None:  # noqa: FBT001
    studio, together = Studio(forget=int(refused)), threading.Barrier(4)

    def answer(request: Request) -> Reply:
        reply = studio(request)
        if reply.status == 401:
            together.wait(5)
        return reply

    with serving(answer) as server:
        client = http(server.url, PERSONAL)
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(client.send, [WHO] * 4)) == [{"email": "a@b"}] * 4
    assert studio.traded == 1 + refused
    assert server.paths().count(WHO.path) == 4 * (1 + refused)


def test_authorization_is_what_calls_carry() -> None:
    studio = Studio()
    with serving(studio) as server:
        client = http(server.url, PERSONAL)
        assert client.authorization() == {"Authorization": f"Bearer {studio.access}"}


def test_no_token_is_printed() -> None:
    for token in (LEGACY, PERSONAL):
        assert token not in repr(http("http://studio", token))
    assert PERSONAL not in repr(Call("POST", "/", body={"refresh": PERSONAL}))


def test_a_netrc_does_not_replace_the_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login other password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    with serving(script(Reply())) as server:
        http(server.url).send(WHO)
    assert server.requests[0].token == f"Token {LEGACY}"


def test_cookies_are_not_stored() -> None:
    with serving(script(Reply(headers={"Set-Cookie": "sessionid=1; Path=/"}))) as server:
        client = http(server.url)
        client.send(WHO)
        client.send(WHO)
    assert "Cookie" not in server.requests[1].headers


@pytest.mark.parametrize("page", ["/projects/22", "/projects/22/data?tab=3", "/user/login/"])
def test_a_page_of_label_studio_s_is_refused_with_its_root(page: str) -> None:
    with pytest.raises(ValueError, match=r"give the address without it, http://ls/a$"):
        http(f"http://ls/a{page}")


def test_our_own_backend_is_not_taken_for_label_studio() -> None:
    refused = Reply({"detail": "no"}, 401, {"WWW-Authenticate": f"Basic {OUR_REALM}"})
    with serving(script(refused)) as server:
        for token in (PERSONAL, LEGACY):
            with pytest.raises(StudioRequestError, match="set LABEL_STUDIO_URL"):
                http(server.url, token).send(WHO)


@pytest.mark.parametrize(
    "url", ["studio:8080", "ftp://studio", "http://", "http://me:secret@studio", "http://studio?x"]
)
def test_an_address_that_cannot_be_one_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="address must"):
        http(url)


def test_an_empty_token_is_refused() -> None:
    with pytest.raises(ValueError, match="token is empty"):
        HttpClient("http://studio", " ", QUICK, TRUST)


# --- trying again ---


def test_a_server_error_is_tried_again() -> None:
    with serving(script(Reply(status=502), Reply(status=500), Reply([1]))) as server:
        assert http(server.url).send(WHO) == [1]
    assert len(server.requests) == 3


def test_tries_end() -> None:
    for reply, words in (
        (Reply({"detail": "busy"}, 503), "503: busy (GET "),
        (Reply(status=429), "slow down"),
    ):
        error = fails(reply)
        assert isinstance(error, StudioUnavailableError)
        assert words in str(error)
        assert "4 tries" in str(error)


def test_tries_end_in_time() -> None:
    limits = RetryLimits(timeout=5, retries=9, backoff=1.0, total=2.5)
    with serving(script(Reply(status=503))) as server:
        with pytest.raises(StudioUnavailableError):
            http(server.url, limits=limits).send(WHO)
        assert len(server.requests) == 2  # the third would begin 3 s after the first


def test_what_is_not_repeatable_is_sent_once() -> None:
    for trouble in (Reply(status=500), Reply(status=0)):
        with serving(script(trouble, Reply())) as server:
            with pytest.raises(StudioUnavailableError):
                http(server.url).send(IMPORT)
            assert len(server.requests) == 1


def test_too_many_requests_waits_as_asked_for_any_method() -> None:
    busy = Reply(status=429, headers={"Retry-After": "1"})
    with serving(script(busy, Reply([2]))) as server:
        began = time.monotonic()
        assert http(server.url).send(IMPORT) == [2]
        assert 1 <= time.monotonic() - began < 3


def test_a_date_may_say_when() -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)
    busy = Reply(status=429, headers={"Retry-After": date})
    with serving(script(busy, Reply([2]))) as server:
        began = time.monotonic()
        http(server.url).send(WHO)
        assert 0.9 <= time.monotonic() - began < 4


@pytest.mark.parametrize("asked", ["20", "soon"])
def test_no_wait_is_longer_than_the_limit(asked: str) -> None:
    busy = Reply(status=429, headers={"Retry-After": asked})
    limits = RetryLimits(timeout=5, retries=1, backoff=0.01, longest_wait=0.05)
    with serving(script(busy, Reply([2]))) as server:
        began = time.monotonic()
        assert http(server.url, limits=limits).send(WHO) == [2]
        assert time.monotonic() - began < 2


def test_a_dropped_connection_is_tried_again() -> None:
    with serving(script(Reply(status=0), Reply([3]))) as server:
        assert http(server.url).send(WHO) == [3]


def test_an_answer_that_is_slow_or_drips_is_given_up() -> None:
    """Each piece of one that drips comes in time, the whole does not."""

    def slow(request: Request) -> Reply:
        time.sleep(0.4)
        return Reply()

    for answer in (slow, Reply(b"x" * 8, headers={"X-Drip": "0.05"})):
        error = fails(answer, limits=RetryLimits(timeout=0.2, retries=0))
        assert "no complete answer came in time" in str(error)


def test_a_port_nobody_listens_on_is_tried_again_even_for_a_post() -> None:
    client = http(f"http://127.0.0.1:{free_port()}")
    with pytest.raises(StudioUnavailableError, match=r"nothing listens there.* 4 tries"):
        client.send(IMPORT)


def test_an_unknown_host_is_said_to_be_unknown() -> None:
    client = HttpClient("http://studio.invalid", LEGACY, RetryLimits(retries=0), TRUST)
    with pytest.raises(StudioUnavailableError, match="host name is not known"):
        client.send(WHO)


def test_https_to_a_plain_server_is_distinguished() -> None:
    with serving(script(Reply())) as server:
        client = HttpClient(
            server.url.replace("http:", "https:"), LEGACY, RetryLimits(retries=0), TRUST
        )
        with pytest.raises(StudioUnavailableError, match="https or http"):
            client.send(WHO)


# --- what answers mean ---


def test_an_empty_answer_is_none() -> None:
    with serving(script(Reply(b"", 204))) as server:
        assert http(server.url).send(IMPORT) is None


def test_a_redirect_is_not_followed() -> None:
    with serving(script(Reply())) as other:
        moved = Reply(status=302, headers={"Location": f"{other.url}/login?secret=1"})
        error = fails(moved)
    assert isinstance(error, StudioRequestError)
    assert other.requests == []
    assert other.url in str(error)
    assert "secret" not in str(error)


LEGACY_OFF = "no longer valid: legacy token authentication has been disabled for this organization"
RESERVED = "URL resolves to a reserved network address (block: 127.0.0.0/8)"
FIELDS = {"title": ["too <b>short</b>", "dull"], "non_field_errors": ["no\nway"], "a": {"b": 1}}
PAGE = {"Content-Type": "text/html"}


@pytest.mark.parametrize(
    ("reply", "kind", "words"),
    [
        (
            Reply({"detail": "Invalid token."}, 401),
            StudioRefusedError,
            "this legacy token (Invalid",
        ),
        (
            Reply({"detail": LEGACY_OFF}, 401),
            LegacyTokensOffError,
            "LABEL_STUDIO_ENABLE_LEGACY_API",
        ),
        (Reply({"detail": "No permission."}, 403), PermissionMissingError, "(No permission.)"),
        (
            Reply({"detail": RESERVED}, 403),
            PrivateAddressError,
            "ML_BLOCK_LOCAL_IP=false and SSRF_",
        ),
        (
            Reply({"detail": "Validation error", "validation_errors": FIELDS}, 400),
            StudioRequestError,
            "with 400: title: too short; title: dull; no way; b: 1",
        ),
        (Reply(["a", "b"], 400), StudioRequestError, "['a', 'b']"),
        (Reply({}, 400), StudioRequestError, "no detail given"),
        (Reply(b"\x00\x01", 400), StudioRequestError, "2 bytes of"),
        (Reply(b"<!doctype html>", 404, PAGE), StudioRequestError, "404: a web page: set LABEL_ST"),
        (Reply(b"<html>Sign in</html>", 200, PAGE), StudioUnavailableError, "page instead of JSON"),
        (Reply(["x" * 2000]), StudioRequestError, "more than 1000 bytes"),
    ],
)
def test_an_answer_that_is_no_success_is_explained(
    reply: Reply, kind: type[StudioError], words: str
) -> None:
    error = fails(reply, limits=replace(QUICK, response_bytes=1000))
    assert type(error) is kind
    assert words in str(error)
    if isinstance(error, StudioRequestError):
        assert error.status == reply.status


# Proxies


@pytest.mark.parametrize("status", [401, 403, 407])
def test_a_proxy_that_refuses_is_not_taken_for_label_studio(status: int) -> None:
    for token in (LEGACY, PERSONAL):
        page = Reply(b"<html>Sign in</html>", status, {"Content-Type": "text/html"})
        error = fails(page, token=token)
        assert isinstance(error, StudioRefusedError)
        assert f"with {status} and a web page" in str(error)
        assert "a proxy or sign-in page before it wants to know who asks" in str(error)
        assert "access token" not in str(error)


def test_a_proxy_that_leads_nowhere_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with serving(lambda _: Reply()) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        client = HttpClient("https://studio.example", LEGACY, RetryLimits(retries=0), TRUST)
        with pytest.raises(StudioUnavailableError) as raised:
            client.send(WHO)
    words = str(raised.value)
    assert "the proxy that HTTP_PROXY or HTTPS_PROXY names did not lead to it" in words
    assert "it answered 501" in words
    assert "NO_PROXY" in words
