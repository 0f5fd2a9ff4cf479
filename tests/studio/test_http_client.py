"""Calls are tried again when that helps and may be done, and errors say what to fix."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from studio.errors import (
    LegacyTokensOffError,
    PermissionMissingError,
    PrivateAddressError,
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


def fails(answer: Callable[[Request], Reply], call: Call = WHO, token: str = LEGACY) -> Exception:
    """The error of a call that is answered so."""
    with serving(answer) as server, pytest.raises(Exception) as caught:  # noqa: PT011
        HttpClient(server.url, token, QUICK, TRUST).send(call)
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
        http = HttpClient(server.url, PERSONAL, QUICK, TRUST)
        replies = [http.send(WHO) for _ in range(3)]
    assert replies == [{"email": "a@b"}] * 3
    assert studio.traded == 1
    assert PERSONAL not in [request.token for request in server.requests]


def test_an_access_token_is_renewed_before_its_end() -> None:
    """It lives 0.4 s and is renewed a quarter of that before."""
    studio = Studio(life=0.4)
    with serving(studio) as server:
        http = HttpClient(server.url, PERSONAL, QUICK, TRUST)
        http.send(WHO)
        time.sleep(0.32)
        http.send(WHO)
    assert studio.traded == 2


def test_a_refused_access_token_is_renewed_once() -> None:
    studio = Studio(forget=1)
    with serving(studio) as server:
        assert HttpClient(server.url, PERSONAL, QUICK, TRUST).send(WHO) == {"email": "a@b"}
    assert studio.traded == 2


def test_an_access_token_refused_twice_is_an_error() -> None:
    studio = Studio(forget=99)
    error = fails(studio, token=PERSONAL)
    assert isinstance(error, StudioRefusedError)
    assert "API Tokens Settings" in str(error)
    assert studio.traded == 2


def test_a_revoked_personal_token_is_named_as_such() -> None:
    error = fails(script(Reply({"detail": "Token is blacklisted"}, 401)), token=PERSONAL)
    assert isinstance(error, StudioRefusedError)
    assert "Token is blacklisted" in str(error)
    assert PERSONAL not in str(error)


def test_an_access_token_that_does_not_tell_its_end_is_used() -> None:
    """Then it is taken to live as long as Label Studio's do."""
    with serving(script(Reply({"access": "opaque"}), Reply([1]))) as server:
        http = HttpClient(server.url, PERSONAL, QUICK, TRUST)
        assert [http.send(WHO), http.send(WHO)] == [[1], [1]]
    assert [request.token for request in server.requests[1:]] == ["Bearer opaque"] * 2


@pytest.mark.parametrize("reply", [{}, {"access": None}, ["access"]])
def test_a_trade_without_an_access_token_is_told(reply: object) -> None:
    error = fails(script(Reply(reply)), token=PERSONAL)
    assert isinstance(error, StudioRequestError)
    assert "gave no access token" in str(error)


def test_threads_share_one_access_token() -> None:
    studio = Studio()
    with serving(studio) as server:
        http = HttpClient(server.url, PERSONAL, QUICK, TRUST)
        threads = [threading.Thread(target=http.send, args=[WHO]) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert server.paths().count("/api/token/refresh") == 1
    assert server.paths().count(WHO.path) == 8


def test_threads_that_are_refused_together_renew_once() -> None:
    studio, together = Studio(forget=1), threading.Barrier(4)

    def answer(request: Request) -> Reply:
        reply = studio(request)
        if reply.status == 401:
            together.wait(5)
        return reply

    with serving(answer) as server:
        http = HttpClient(server.url, PERSONAL, QUICK, TRUST)
        threads = [threading.Thread(target=http.send, args=[WHO]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert studio.traded == 2
    assert server.paths().count(WHO.path) == 8


def test_authorization_is_what_calls_carry() -> None:
    studio = Studio()
    with serving(studio) as server:
        http = HttpClient(server.url, PERSONAL, QUICK, TRUST)
        assert http.authorization() == {"Authorization": f"Bearer {studio.access}"}


def test_no_token_is_printed() -> None:
    for token in (LEGACY, PERSONAL):
        assert token not in repr(HttpClient("http://studio", token, QUICK, TRUST))
    assert PERSONAL not in repr(Call("POST", "/", body={"refresh": PERSONAL}))


def test_a_netrc_does_not_replace_the_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login other password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    with serving(script(Reply())) as server:
        HttpClient(server.url, LEGACY, QUICK, TRUST).send(WHO)
    assert server.requests[0].token == f"Token {LEGACY}"


def test_cookies_are_not_kept() -> None:
    with serving(script(Reply(headers={"Set-Cookie": "sessionid=1; Path=/"}))) as server:
        http = HttpClient(server.url, LEGACY, QUICK, TRUST)
        http.send(WHO)
        http.send(WHO)
    assert "Cookie" not in server.requests[1].headers


@pytest.mark.parametrize("page", ["/projects/22", "/projects/22/data?tab=3", "/user/login/"])
def test_a_page_of_label_studio_s_is_refused_with_its_root(page: str) -> None:
    with pytest.raises(ValueError, match=r"give the address without it, http://ls/a$"):
        HttpClient(f"http://ls/a{page}", LEGACY, QUICK, TRUST)


def test_our_own_backend_is_not_taken_for_label_studio() -> None:
    refused = Reply({"detail": "no"}, 401, {"WWW-Authenticate": f"Basic {OUR_REALM}"})
    with serving(script(refused)) as server:
        for token in (PERSONAL, LEGACY):
            with pytest.raises(StudioRequestError, match="set LABEL_STUDIO_URL"):
                HttpClient(server.url, token, QUICK, TRUST).send(WHO)


def test_a_page_in_place_of_the_api_says_what_to_correct() -> None:
    page = Reply(b"<html>", 404, {"Content-Type": "text/html"})
    with (
        serving(script(page)) as server,
        pytest.raises(StudioRequestError, match="set LABEL_STUDIO_URL to Label Studio's own"),
    ):
        HttpClient(server.url, LEGACY, QUICK, TRUST).send(WHO)


@pytest.mark.parametrize(
    "url", ["studio:8080", "ftp://studio", "http://", "http://me:secret@studio", "http://studio?x"]
)
def test_an_address_that_cannot_be_one_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="address must"):
        HttpClient(url, LEGACY, QUICK, TRUST)


def test_an_empty_token_is_refused() -> None:
    with pytest.raises(ValueError, match="token is empty"):
        HttpClient("http://studio", " ", QUICK, TRUST)


# --- trying again ---


def test_a_server_error_is_tried_again() -> None:
    with serving(script(Reply(status=502), Reply(status=500), Reply([1]))) as server:
        assert HttpClient(server.url, LEGACY, QUICK, TRUST).send(WHO) == [1]
    assert len(server.requests) == 3


def test_tries_end() -> None:
    with (
        serving(script(Reply({"detail": "busy"}, 503))) as server,
        pytest.raises(StudioUnavailableError, match=r"503: busy \(GET .*, 4 tries\)"),
    ):
        HttpClient(server.url, LEGACY, QUICK, TRUST).send(WHO)
    assert len(server.requests) == 4


def test_tries_end_in_time() -> None:
    limits = RetryLimits(timeout=5, retries=9, backoff=1.0, total=2.5)
    with serving(script(Reply(status=503))) as server:
        with pytest.raises(StudioUnavailableError):
            HttpClient(server.url, LEGACY, limits, TRUST).send(WHO)
        assert len(server.requests) == 2  # the third would begin 3 s after the first


def test_what_is_not_repeatable_is_sent_once() -> None:
    for trouble in (Reply(status=500), Reply(status=0)):
        with serving(script(trouble, Reply())) as server:
            with pytest.raises(StudioUnavailableError):
                HttpClient(server.url, LEGACY, QUICK, TRUST).send(IMPORT)
            assert len(server.requests) == 1


def test_too_many_requests_waits_as_asked_for_any_method() -> None:
    busy = Reply(status=429, headers={"Retry-After": "1"})
    with serving(script(busy, Reply([2]))) as server:
        began = time.monotonic()
        assert HttpClient(server.url, LEGACY, QUICK, TRUST).send(IMPORT) == [2]
        assert 1 <= time.monotonic() - began < 3


def test_a_date_may_say_when() -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)
    busy = Reply(status=429, headers={"Retry-After": date})
    with serving(script(busy, Reply([2]))) as server:
        began = time.monotonic()
        HttpClient(server.url, LEGACY, QUICK, TRUST).send(WHO)
        assert 0.9 <= time.monotonic() - began < 4


@pytest.mark.parametrize("asked", ["20", "soon"])
def test_no_wait_is_longer_than_the_limit(asked: str) -> None:
    busy = Reply(status=429, headers={"Retry-After": asked})
    limits = RetryLimits(timeout=5, retries=1, backoff=0.01, longest_wait=0.05)
    with serving(script(busy, Reply([2]))) as server:
        began = time.monotonic()
        assert HttpClient(server.url, LEGACY, limits, TRUST).send(WHO) == [2]
        assert time.monotonic() - began < 2


def test_a_server_that_goes_on_asking_for_patience_is_given_up() -> None:
    with (
        serving(script(Reply(status=429))) as server,
        pytest.raises(StudioUnavailableError, match="slow down"),
    ):
        HttpClient(server.url, LEGACY, QUICK, TRUST).send(WHO)


def test_a_dropped_connection_is_tried_again() -> None:
    with serving(script(Reply(status=0), Reply([3]))) as server:
        assert HttpClient(server.url, LEGACY, QUICK, TRUST).send(WHO) == [3]


def test_a_slow_answer_is_given_up() -> None:
    def slow(request: Request) -> Reply:
        time.sleep(0.4)
        return Reply()

    with (
        serving(slow) as server,
        pytest.raises(StudioUnavailableError, match="no complete answer came in time"),
    ):
        HttpClient(server.url, LEGACY, RetryLimits(timeout=0.1, retries=0), TRUST).send(WHO)


def test_an_answer_that_drips_is_given_up() -> None:
    """Each piece comes in time, the whole does not."""
    reply = Reply(b"x" * 8, headers={"X-Drip": "0.1"})
    with (
        serving(script(reply)) as server,
        pytest.raises(StudioUnavailableError, match="no complete answer came in time"),
    ):
        HttpClient(server.url, LEGACY, RetryLimits(timeout=0.3, retries=0), TRUST).send(WHO)


def test_a_port_nobody_listens_on_is_tried_again_even_for_a_post() -> None:
    http = HttpClient(f"http://127.0.0.1:{free_port()}", LEGACY, QUICK, TRUST)
    with pytest.raises(StudioUnavailableError, match=r"nothing listens there.* 4 tries"):
        http.send(IMPORT)


def test_an_unknown_host_is_said_to_be_unknown() -> None:
    http = HttpClient("http://studio.invalid", LEGACY, RetryLimits(retries=0), TRUST)
    with pytest.raises(StudioUnavailableError, match="host name is not known"):
        http.send(WHO)


def test_https_to_a_plain_server_is_told_apart() -> None:
    with serving(script(Reply())) as server:
        http = HttpClient(
            server.url.replace("http:", "https:"), LEGACY, RetryLimits(retries=0), TRUST
        )
        with pytest.raises(StudioUnavailableError, match="https or http"):
            http.send(WHO)


# --- what answers mean ---


def test_an_empty_answer_is_none() -> None:
    with serving(script(Reply(b"", 204))) as server:
        assert HttpClient(server.url, LEGACY, QUICK, TRUST).send(IMPORT) is None


def test_a_web_page_is_no_answer() -> None:
    error = fails(script(Reply(b"<html>Sign in</html>", headers={"Content-Type": "text/html"})))
    assert isinstance(error, StudioUnavailableError)
    assert "a web page instead of JSON" in str(error)


def test_a_redirect_is_not_followed() -> None:
    with serving(script(Reply())) as other:
        moved = Reply(status=302, headers={"Location": f"{other.url}/login?secret=1"})
        error = fails(script(moved))
    assert isinstance(error, StudioRequestError)
    assert other.requests == []
    assert other.url in str(error)
    assert "secret" not in str(error)


def test_an_answer_beyond_the_limit_is_cut_off() -> None:
    limits = RetryLimits(retries=0, response_bytes=1000)
    with (
        serving(script(Reply(["x" * 2000]))) as server,
        pytest.raises(StudioRequestError, match="more than 1000 bytes"),
    ):
        HttpClient(server.url, LEGACY, limits, TRUST).send(WHO)


def test_an_unknown_legacy_token() -> None:
    error = fails(script(Reply({"detail": "Invalid token."}, 401)))
    assert type(error) is StudioRefusedError
    assert "does not know this legacy token (Invalid token.)" in str(error)


def test_legacy_tokens_switched_off() -> None:
    detail = (
        "Authentication token no longer valid: legacy token authentication has been disabled for"
        " this organization"
    )
    error = fails(script(Reply({"detail": detail}, 401)))
    assert isinstance(error, LegacyTokensOffError)
    assert "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN" in str(error)


def test_a_missing_permission() -> None:
    detail = "You do not have permission to perform this action."
    error = fails(script(Reply({"detail": detail}, 403)))
    assert isinstance(error, PermissionMissingError)
    assert detail in str(error)


def test_a_private_address_is_no_matter_of_permission() -> None:
    detail = "URL resolves to a reserved network address (block: 127.0.0.0/8)"
    error = fails(script(Reply({"detail": detail}, 403)))
    assert isinstance(error, PrivateAddressError)
    assert "ML_BLOCK_LOCAL_IP=false" in str(error)
    assert "SSRF_PROTECTION_ENABLED=false" in str(error)


def test_field_errors_are_told_with_their_fields() -> None:
    errors = {"title": ["too <b>short</b>", "dull"], "non_field_errors": ["no\nway"], "a": {"b": 1}}
    error = fails(script(Reply({"detail": "Validation error", "validation_errors": errors}, 400)))
    assert isinstance(error, StudioRequestError)
    assert error.status == 400
    assert str(error).endswith("with 400: title: too short; title: dull; no way; b: 1")


@pytest.mark.parametrize(
    ("content", "words"),
    [(["a", "b"], "['a', 'b']"), ({}, "no detail given"), (b"\x00\x01", "2 bytes of")],
)
def test_a_refusal_in_another_form_is_told(content: object, words: str) -> None:
    assert words in str(fails(script(Reply(content, 400))))


def test_a_missing_page_keeps_its_status() -> None:
    error = fails(script(Reply(b"<!doctype html>", 404, {"Content-Type": "text/html"})))
    assert isinstance(error, StudioRequestError)
    assert error.status == 404
    assert "404: a web page" in str(error)


# Proxies


@pytest.mark.parametrize("status", [401, 403, 407])
def test_a_proxy_that_refuses_is_not_taken_for_label_studio(status: int) -> None:
    for token in (LEGACY, PERSONAL):
        page = Reply(b"<html>Sign in</html>", status, {"Content-Type": "text/html"})
        error = fails(script(page), token=token)
        assert isinstance(error, StudioRefusedError)
        assert f"with {status} and a web page" in str(error)
        assert "a proxy or sign-in page before it wants to know who asks" in str(error)
        assert "access token" not in str(error)


def test_a_proxy_that_leads_nowhere_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with serving(lambda _: Reply()) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        http = HttpClient("https://studio.example", LEGACY, RetryLimits(retries=0), TRUST)
        with pytest.raises(StudioUnavailableError) as raised:
            http.send(WHO)
    words = str(raised.value)
    assert "the proxy that HTTP_PROXY or HTTPS_PROXY names did not lead to it" in words
    assert "it answered 501" in words
    assert "NO_PROXY" in words
