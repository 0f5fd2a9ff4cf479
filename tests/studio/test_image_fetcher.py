"""Images are fetched from where they may come from, within limits, and the token stays home."""

import gzip
import hashlib
import http.client
import os
import socket
import textwrap
import threading
import time
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from studio.errors import (
    ImageError,
    ImageUnavailableError,
    StudioRefusedError,
    StudioUnavailableError,
)
from studio.image_decoder import ImageLimits
from studio.image_fetcher import ImageFetcher
from studio.tls import ssl_context
from tests.studio.image_server import CERTIFICATE, Handler, ImageServer, redirect, serving

LIMITS = ImageLimits(
    max_bytes=100_000,
    connect_timeout=1,
    read_timeout=1,
    total_timeout=5,
    retry_pauses=(0, 0),
)
#: Made once: reading the certificates of all authorities takes a while.
TRUST = ssl_context()
TOKEN = "Token of-label-studio"
UPLOAD = "/data/upload/1/cat.jpg"
CAT = b"the bytes of a cat"

Make = Callable[..., ImageFetcher]


@pytest.fixture
def studio() -> Iterator[ImageServer]:
    """Stands for Label Studio: one upload, and a token that opens it."""
    with serving() as server:
        server.answers[UPLOAD] = CAT
        yield server


@pytest.fixture
def store() -> Iterator[ImageServer]:
    """Another host's server."""
    with serving() as server:
        server.answers["/cat.jpg"] = CAT
        yield server


@pytest.fixture
def make(studio: ImageServer) -> Iterator[Make]:
    """Makes fetchers of this Label Studio, and closes them."""
    made: list[ImageFetcher] = []

    def fetcher(
        url: str | None = studio.url, limits: ImageLimits = LIMITS, **settings: Any
    ) -> ImageFetcher:
        settings.setdefault("trust", TRUST)
        made.append(ImageFetcher(url, lambda: {"Authorization": TOKEN}, limits, **settings))
        return made[-1]

    yield fetcher
    for each in made:
        each.close()


def reason(fetcher: ImageFetcher, ref: str, *, task_id: int | None = None) -> str:
    """Why the image is refused for good."""
    with pytest.raises(ImageError) as raised:
        fetcher.fetch(ref, task_id=task_id)
    assert not isinstance(raised.value, ImageUnavailableError)
    return raised.value.reason


def passing_reason(fetcher: ImageFetcher, ref: str) -> str:
    """Why the image cannot be had now."""
    with pytest.raises(ImageUnavailableError) as raised:
        fetcher.fetch(ref)
    return raised.value.reason


# What a task may say


def test_an_upload_comes_from_label_studio_with_the_token(make: Make, studio: ImageServer) -> None:
    image = make().fetch(UPLOAD)
    assert image.data == CAT
    assert image.digest == hashlib.sha256(CAT).hexdigest()
    assert studio.tokens == [TOKEN]


def test_an_absolute_address_in_label_studio_gets_the_token_too(
    make: Make, studio: ImageServer
) -> None:
    make().fetch(studio.url + UPLOAD)
    assert studio.tokens == [TOKEN]


def test_a_local_file_comes_from_label_studio(make: Make, studio: ImageServer) -> None:
    studio.answers["/data/local-files/?d=shop/cat.jpg"] = CAT
    assert make().fetch("/data/local-files/?d=shop/cat.jpg").data == CAT
    assert studio.tokens == [TOKEN]


def test_spaces_and_letters_of_all_languages_are_encoded(make: Make, studio: ImageServer) -> None:
    studio.answers["/data/upload/1/my%20K%C3%A4tzchen.jpg"] = CAT
    assert make().fetch("/data/upload/1/my Kätzchen.jpg").data == CAT


def test_label_studio_below_a_path_is_asked_there(make: Make, studio: ImageServer) -> None:
    studio.answers[f"/labels{UPLOAD}"] = CAT
    fetcher = make(f"{studio.url}/labels/")
    for ref in (UPLOAD, f"/labels{UPLOAD}", f"{studio.url}/labels{UPLOAD}"):
        assert fetcher.fetch(ref).data == CAT
    assert studio.tokens == [TOKEN] * 3


@pytest.mark.parametrize("scheme", ["s3", "gs", "azure-blob"])
def test_cloud_storage_is_opened_by_label_studio_for_the_task(
    make: Make, studio: ImageServer, store: ImageServer, scheme: str
) -> None:
    uri = f"{scheme}://bucket/a cat ÿ?.jpg"
    coded = urlsafe_b64encode(uri.encode()).decode().replace("=", "%3D")
    studio.answers[f"/tasks/7/presign/?fileuri={coded}"] = redirect(f"{store.url}/cat.jpg", 303)
    assert make(allow_private=True).fetch(uri, task_id=7).data == CAT
    assert studio.tokens == [TOKEN]
    assert store.tokens == [None]


def test_cloud_storage_without_a_task_is_refused(make: Make) -> None:
    assert "for a task only" in reason(make(), "s3://bucket/cat.jpg")


def test_any_web_address_is_fetched_without_the_token(make: Make, store: ImageServer) -> None:
    assert make(allow_private=True).fetch(f"{store.url}/cat.jpg").data == CAT
    assert store.tokens == [None]


@pytest.mark.parametrize(
    ("ref", "words"),
    [
        ("file:///etc/passwd", "file of some machine"),
        ("ftp://images.example/cat.jpg", "not fetched by ftp:"),
        ("data:text/html;base64,iVBORw0KGgo=", "holds data:text/html, which is no image"),
        ("data:,iVBORw0KGgo=", "which is no image"),
        ("data:text/\nhtml,x", "holds data:text/html, which"),
        ("data:image/png;base64", "has no comma"),
        ("data:image/png;base64,iVBORw0KGgo", "no base64"),
        ("data:image/png;base64,<svg>", "no base64"),
        ("data:image/png;base64,", "empty"),
        ("gopher://images.example/", "not fetched by gopher:"),
        ("C:\\cats\\cat.jpg", "not fetched by c:"),
        ("", "no web address and no image path"),
        ("cat.jpg", "no web address and no image path"),
        ("../data/upload/1/cat.jpg", "no web address and no image path"),
        ("//images.example/data/upload/1/cat.jpg", "no web address and no image path"),
        ("/api/users/", "no web address and no image path"),
        ("/etc/passwd", "no web address and no image path"),
        ("/data/upload/../../api/users/", "no web address and no image path"),
        ("/data/upload/%2e%2e/%2E%2E/api/users/", "no web address and no image path"),
    ],
)
def test_anything_else_is_refused_with_the_reason(
    make: Make, studio: ImageServer, ref: str, words: str
) -> None:
    assert words in reason(make(allow_private=True), ref)
    assert studio.asked == []


def test_line_breaks_cannot_add_headers(make: Make, studio: ImageServer) -> None:
    assert "not a valid web address" in reason(make(), f"{UPLOAD}\r\nX-Evil: 1\r\n.jpg")
    assert studio.asked == []


def test_an_image_in_label_studio_needs_its_address(make: Make) -> None:
    assert "address is not set" in reason(make(None), UPLOAD)


def test_label_studio_s_address_must_be_a_web_address() -> None:
    with pytest.raises(ValueError, match="web address"):
        ImageFetcher("studio.internal:8080", None, LIMITS)


def test_so_many_are_fetched_at_once_and_no_more(
    make: Make, studio: ImageServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each may be as large as is allowed, whoever asks for it."""
    monkeypatch.setattr("studio.image_download.AT_ONCE", 5)
    lock, here, full = threading.Lock(), list[int](), threading.Barrier(5)
    most = 0

    def slow(handler: Handler) -> None:
        nonlocal most
        with lock:
            here.append(1)
            most = max(most, len(here))
        full.wait(4)  # not one fewer
        time.sleep(0.05)  # for one more to come
        with lock:
            here.pop()
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(CAT)

    studio.answers[UPLOAD] = slow
    fetcher = make()
    with ThreadPoolExecutor(15) as callers:
        found = [callers.submit(fetcher.fetch, UPLOAD) for _ in range(15)]
        assert all(one.result(30).data == CAT for one in found)
    assert most == 5


def test_an_empty_file_is_refused(make: Make, studio: ImageServer) -> None:
    studio.answers[UPLOAD] = b""
    assert "empty" in reason(make(), UPLOAD)


# The token


def test_a_redirect_takes_no_token_to_another_port(
    make: Make, studio: ImageServer, store: ImageServer
) -> None:
    studio.answers[UPLOAD] = redirect(f"{store.url}/cat.jpg")
    assert make(allow_private=True).fetch(UPLOAD).data == CAT
    assert (studio.tokens, store.tokens) == ([TOKEN], [None])


def test_a_redirect_takes_no_token_to_another_name_of_the_same_machine(
    make: Make, studio: ImageServer
) -> None:
    studio.answers[UPLOAD] = redirect(f"http://localhost:{studio.port}/data/upload/2/dog.jpg")
    studio.answers["/data/upload/2/dog.jpg"] = b"dog"
    assert make(allow_private=True).fetch(UPLOAD).data == b"dog"
    assert studio.tokens == [TOKEN, None]


def test_a_redirect_within_label_studio_keeps_the_token(make: Make, studio: ImageServer) -> None:
    studio.answers["/data/upload/1/old.jpg"] = redirect(UPLOAD)
    assert make().fetch("/data/upload/1/old.jpg").data == CAT
    assert studio.tokens == [TOKEN, TOKEN]


def test_a_redirect_from_outside_does_not_enter_label_studio(
    make: Make, studio: ImageServer, store: ImageServer
) -> None:
    store.answers["/cat.jpg"] = redirect(f"{studio.url}{UPLOAD}")
    assert "into Label Studio" in reason(make(allow_private=True), f"{store.url}/cat.jpg")
    assert studio.asked == []


def test_a_redirect_out_and_back_does_not_enter_label_studio(
    make: Make, studio: ImageServer, store: ImageServer
) -> None:
    studio.answers["/data/upload/1/out.jpg"] = redirect(f"{store.url}/cat.jpg")
    store.answers["/cat.jpg"] = redirect(f"{studio.url}{UPLOAD}")
    assert "into Label Studio" in reason(make(allow_private=True), "/data/upload/1/out.jpg")
    assert studio.asked == ["/data/upload/1/out.jpg"]


def test_other_paths_of_label_studio_s_host_get_no_token(make: Make, studio: ImageServer) -> None:
    studio.answers["/static/cat.jpg"] = CAT
    assert make().fetch(f"{studio.url}/static/cat.jpg").data == CAT
    make_reason = reason(make(), f"{studio.url}/data/../api/users/")
    assert "404" in make_reason
    assert studio.tokens == [None, None]


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (
            403,
            b"Serving local files is off.\nMore",
            "403 Forbidden from Label Studio: Serving local",
        ),
        (401, b"", "401 Unauthorized from Label Studio: check its access token"),
        (403, b"", "403 Forbidden from Label Studio: check its access token"),
        (403, b"x" * 1_000_000, "403 Forbidden from Label Studio: xxx"),
        (499, b"", "499 from Label Studio"),
        (404, b'{"detail": "No <i>Task</i> matches"}', "Label Studio: No Task matches"),
        (
            424,
            b'{"detail": "\\u0007the bucket\\nis gone"}',
            "Dependency from Label Studio: the bucket",
        ),
        (404, b"<html>Page not found</html>", "404 Not Found from Label Studio"),
    ],
)
def test_label_studio_says_why_in_its_own_words(
    make: Make, studio: ImageServer, status: int, body: bytes, words: str
) -> None:
    studio.answers[UPLOAD] = (status, {}, body)
    found = reason(make(), UPLOAD)
    assert words in found
    assert "More" not in found
    assert found.isprintable()
    assert len(found) < 500
    assert ("access token" in found) is (status < 404 and body == b"")


def test_an_upload_whose_record_is_gone_is_no_outage(make: Make, studio: ImageServer) -> None:
    """Label Studio answers 500 then, each time."""
    said = b"{\"detail\": \"'NoneType' object has no attribute 'has_permission'\"}"
    studio.answers[UPLOAD] = (500, {}, said)
    assert "its upload was deleted" in reason(make(), UPLOAD)
    assert len(studio.asked) == 1


def test_a_storage_says_why_in_its_own_words(make: Make, store: ImageServer) -> None:
    xml = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Request has expired"
    store.answers["/cat.jpg"] = (403, {}, xml + b"</Message></Error>")
    words = reason(make(allow_private=True), f"{store.url}/cat.jpg")
    assert words == f"403 Forbidden from 127.0.0.1:{store.port}: Request has expired"


@pytest.mark.parametrize(
    ("status", "headers", "body"),
    [
        (401, {"WWW-Authenticate": 'Basic realm="intranet"'}, b""),
        (401, {}, b"<html>Sign in</html>"),
        (403, {}, b"<html>Sign in</html>"),
        (407, {}, b""),
    ],
)
def test_a_proxy_before_label_studio_is_not_taken_for_its_word_on_the_token(
    make: Make, studio: ImageServer, status: int, headers: dict[str, str], body: bytes
) -> None:
    studio.answers[UPLOAD] = (status, headers, body)
    words = reason(make(), UPLOAD)
    assert "no answer of Label Studio's own: a proxy or sign-in page before it" in words
    assert "token" not in words


@pytest.mark.parametrize("scheme", ["s3", "gs", "azure-blob"])
def test_a_bucket_that_no_storage_holds_is_named(
    make: Make, studio: ImageServer, scheme: str
) -> None:
    words = reason(make(), f"{scheme}://bucket/folder/cat.jpg", task_id=7)
    assert f"no source storage of this project holds {scheme}://bucket, or" in words
    assert studio.tokens == [TOKEN]


def test_an_object_that_a_storage_does_not_have_is_not_taken_for_a_missing_storage(
    make: Make, studio: ImageServer, store: ImageServer
) -> None:
    coded = urlsafe_b64encode(b"s3://bucket/cat.jpg").decode().replace("=", "%3D")
    studio.answers[f"/tasks/7/presign/?fileuri={coded}"] = redirect(f"{store.url}/gone.jpg", 303)
    store.answers["/gone.jpg"] = (404, {}, b"<Error><Message>No such key</Message></Error>")
    words = reason(make(allow_private=True), "s3://bucket/cat.jpg", task_id=7)
    assert words == f"404 Not Found from 127.0.0.1:{store.port}: No such key"


# Label Studio's other names


@pytest.mark.parametrize(
    "other",
    ["http://localhost:{port}", "https://labels.example/studio", "http://labels.example/studio/"],
)
def test_an_image_at_another_address_of_label_studio_is_asked_for_at_its_own(
    make: Make, studio: ImageServer, other: str
) -> None:
    """A task names it as browsers do; `https` in the setting and `http` in the task, too."""
    fetcher = make(
        other_addresses=lambda: ["not an address", f"http://localhost:{studio.port}",
                                 "https://labels.example/studio"],
        resolve=lambda host, port: ["127.0.0.1"],
    )  # fmt: skip
    ref = other.format(port=studio.port).rstrip("/") + UPLOAD
    assert fetcher.fetch(ref).data == CAT
    assert studio.hosts == [f"127.0.0.1:{studio.port}"]
    assert studio.tokens == [TOKEN]


def test_only_images_are_asked_for_so(make: Make, studio: ImageServer) -> None:
    """Any other path there is a stranger's, and gets no token."""
    other = f"http://localhost:{studio.port}"
    fetcher = make(other_addresses=lambda: [other], allow_private=True)
    reason(fetcher, f"{other}/api/users/")
    assert studio.tokens == [None]


def test_a_host_that_may_be_label_studio_is_named_with_the_setting(
    make: Make, studio: ImageServer, store: ImageServer
) -> None:
    other = f"http://localhost:{store.port}"
    words = reason(make(), other + UPLOAD)
    assert f"{other} is Label Studio as browsers reach it, set HRN_LABEL_STUDIO_PAGE" in words
    store.answers[UPLOAD] = (401, {}, b"{}")
    words = reason(make(allow_private=True), other + UPLOAD)
    assert "HRN_LABEL_STUDIO_PAGE" in words
    assert "token" not in words
    assert "HRN_LABEL_STUDIO_PAGE" not in reason(make(), f"{other}/cat.jpg")
    words = passing_reason(
        make(resolve=lambda host, port: ()), "http://label-studio:8080/data/upload/1/cat.jpg"
    )
    assert "HRN_LABEL_STUDIO_PAGE" in words


# In the task itself


@pytest.mark.parametrize(
    "ref",
    [
        "data:image/jpeg;base64," + b64encode(CAT).decode(),
        "DATA:image/jpeg;charset=utf-8;BASE64," + b64encode(CAT).decode(),
        "data:image/jpeg;base64," + quote(b64encode(CAT + b"?").decode(), safe=""),
        "data:image/jpeg;base64,\n" + "\n".join(textwrap.wrap(b64encode(CAT).decode(), 9)),
        "data:image/jpeg," + quote(CAT),
    ],
)
def test_an_image_in_the_task_is_read(make: Make, studio: ImageServer, ref: str) -> None:
    assert make().fetch(ref).data in (CAT, CAT + b"?")
    assert studio.asked == []


@pytest.mark.parametrize("size", [100_000, 100_001, 1_000_000])
def test_an_image_in_the_task_has_the_limits_of_others(make: Make, size: int) -> None:
    refs = [
        "data:image/png;base64," + b64encode(bytes(size)).decode(),
        "data:image/png," + "%00" * size,
    ]
    for ref in refs:
        if size > 100_000:
            assert "larger than the allowed 100000 bytes" in reason(make(), ref)
        else:
            assert len(make().fetch(ref).data) == size


def test_a_token_that_cannot_be_had_is_an_image_error(studio: ImageServer) -> None:
    def refused() -> dict[str, str]:
        raise StudioRefusedError("the token is out of date")

    def away() -> dict[str, str]:
        raise StudioUnavailableError("Label Studio restarts")

    with ImageFetcher(studio.url, refused, LIMITS) as fetcher:
        assert "out of date" in reason(fetcher, UPLOAD)
    with ImageFetcher(studio.url, away, LIMITS) as fetcher:
        assert "restarts" in passing_reason(fetcher, UPLOAD)


# Addresses


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "localhost.",
        "LOCALHOST",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "0.0.0.0",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
    ],
)
def test_this_machine_is_not_reached_by_any_of_its_names(
    make: Make, store: ImageServer, host: str
) -> None:
    words = reason(make(), f"http://{host}:{store.port}/cat.jpg")
    assert "may not come from" in words or "unusual way" in words
    assert store.asked == []


@pytest.mark.parametrize("user", ["images.example", "images.example:80", "a:b"])
def test_a_user_before_the_host_does_not_hide_it(make: Make, store: ImageServer, user: str) -> None:
    ref = f"http://{user}@127.0.0.1:{store.port}/cat.jpg"
    assert "user name" in reason(make(allow_private=True), ref)
    assert store.asked == []


def test_a_redirect_to_a_private_address_is_refused(
    make: Make, studio: ImageServer, store: ImageServer
) -> None:
    studio.answers[UPLOAD] = redirect(f"{store.url}/cat.jpg")
    assert "loopback address (127.0.0.1)" in reason(make(), UPLOAD)
    assert store.asked == []


@pytest.mark.parametrize("to", ["file:///etc/passwd", "ftp://images.example/", "http://[::1"])
def test_a_redirect_to_another_scheme_is_refused(make: Make, studio: ImageServer, to: str) -> None:
    studio.answers[UPLOAD] = redirect(to)
    assert "not a valid web address" in reason(make(), UPLOAD)


def test_a_name_that_changes_its_address_is_not_asked_twice(make: Make, store: ImageServer) -> None:
    """The check and the connection use one look-up, so the second answer is never reached."""
    looked_up: list[str] = []

    def rebinding(host: str, port: int) -> list[str]:
        looked_up.append(host)
        return ["192.0.2.1"] if len(looked_up) == 1 else ["127.0.0.1"]

    short = ImageLimits(connect_timeout=0.2, total_timeout=2, retry_pauses=())
    fetcher = make(limits=short, allowed_hosts={"images.example"}, resolve=rebinding)
    passing_reason(fetcher, f"http://images.example:{store.port}/cat.jpg")
    assert looked_up == ["images.example"]
    assert store.asked == []


def test_a_name_that_turns_private_is_refused_at_the_next_connection(
    make: Make, store: ImageServer
) -> None:
    answers = iter([["8.8.8.8", "127.0.0.1"], ["127.0.0.1"]])
    fetcher = make(resolve=lambda host, port: next(answers))
    for _ in range(2):
        assert "loopback" in reason(fetcher, f"http://images.example:{store.port}/cat.jpg")
    assert store.asked == []


def test_the_connection_goes_to_the_checked_address_and_keeps_the_host_s_name(
    make: Make, store: ImageServer
) -> None:
    """The system knows no images.example: only the injected look-up can have led here."""
    fetcher = make(allowed_hosts={"Images.Example."}, resolve=lambda host, port: ["127.0.0.1"])
    assert fetcher.fetch(f"http://images.example:{store.port}/cat.jpg").data == CAT
    assert store.hosts == [f"images.example:{store.port}"]


def test_the_next_address_is_tried_if_one_does_not_answer(make: Make, store: ImageServer) -> None:
    fetcher = make(allow_private=True, resolve=lambda host, port: ["127.0.0.2", "127.0.0.1"])
    assert fetcher.fetch(f"http://images.example:{store.port}/cat.jpg").data == CAT


def test_hosts_that_are_not_named_are_refused_after_a_redirect_too(
    make: Make, studio: ImageServer, store: ImageServer
) -> None:
    studio.answers[UPLOAD] = redirect(f"http://localhost:{store.port}/cat.jpg")
    words = reason(make(allowed_hosts={"127.0.0.1"}), UPLOAD)
    assert f"localhost:{store.port} is not in HRN_ALLOWED_HOSTS" in words
    assert store.asked == []


def test_proxies_of_the_environment_are_ignored(
    make: Make, studio: ImageServer, store: ImageServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", store.url)
    monkeypatch.setenv("ALL_PROXY", store.url)
    assert make().fetch(UPLOAD).data == CAT
    assert store.asked == []


def test_an_unknown_host_may_be_known_later(make: Make) -> None:
    def nowhere(host: str, port: int) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "not known")

    words = passing_reason(make(resolve=nowhere), "http://images.example/cat.jpg")
    assert "no address is known for the host images.example" in words


# TLS


def tls_fetcher(make: Make, limits: ImageLimits = LIMITS) -> ImageFetcher:
    """Trusts the test's certificate, and finds every host on this machine."""
    return make(
        allow_private=True,
        trust=ssl_context([CERTIFICATE]),
        resolve=lambda host, port: ["127.0.0.1"],
        limits=limits,
    )


def test_tls_verifies_the_host_s_name_not_its_address(make: Make) -> None:
    with serving(tls=True) as server:
        server.answers["/cat.jpg"] = CAT
        fetcher = tls_fetcher(make)
        assert fetcher.fetch(f"https://images.example:{server.port}/cat.jpg").data == CAT
        words = reason(fetcher, f"https://other.example:{server.port}/cat.jpg")
        fetcher.close()
    assert f"certificate of other.example:{server.port} is not accepted" in words
    assert len(server.asked) == 1


def test_an_unknown_certificate_is_refused(make: Make) -> None:
    with serving(tls=True) as server:
        words = reason(make(allow_private=True), f"{server.url}/cat.jpg")
    assert f"certificate of 127.0.0.1:{server.port} is not accepted" in words
    assert "REQUESTS_CA_BUNDLE or SSL_CERT_FILE" in words
    assert server.asked == []


def test_the_total_time_limit_cuts_tls_too(make: Make) -> None:
    with serving(tls=True) as server:
        server.answers["/cat.jpg"] = drip(b"x", 50)
        fetcher = tls_fetcher(make, ImageLimits(total_timeout=0.5))
        started = time.monotonic()
        words = passing_reason(fetcher, f"https://images.example:{server.port}/cat.jpg")
    assert "took longer than 0.5 seconds" in words
    assert time.monotonic() - started < 2


# Limits


def drip(byte: bytes, times: int, *, before: bytes = b"") -> Callable[[Handler], None]:
    """Writes a byte each tenth of a second: no single wait is long."""

    def answer(handler: Handler) -> None:
        handler.wfile.write(before or b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        for _ in range(times):
            handler.wfile.write(byte)
            handler.wfile.flush()
            time.sleep(0.1)

    return answer


@pytest.mark.parametrize(
    "before",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1",
        b"HTTP/1.1 200 OK\r\nX-Long: ",
        b"HTTP/1.1 2",
    ],
    ids=["body", "body of known length", "chunk size", "header", "status"],
)
def test_a_slow_drip_ends_with_the_total_time(
    make: Make, studio: ImageServer, before: bytes
) -> None:
    studio.answers[UPLOAD] = drip(b"0", 50, before=before)
    limits = ImageLimits(read_timeout=1, total_timeout=0.5)
    started = time.monotonic()
    assert "took longer than 0.5 seconds" in passing_reason(make(limits=limits), UPLOAD)
    assert time.monotonic() - started < 1.5


def test_a_silent_server_ends_with_the_read_timeout(make: Make, studio: ImageServer) -> None:
    studio.answers[UPLOAD] = lambda handler: time.sleep(1)
    limits = ImageLimits(read_timeout=0.2, retry_pauses=())
    assert "was silent for 0.2 seconds" in passing_reason(make(limits=limits), UPLOAD)


def test_a_host_that_takes_no_connection_is_unavailable(make: Make) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        words = passing_reason(make(allow_private=True), f"http://127.0.0.1:{port}/")
    assert f"does not accept connections on port {port}" in words


def test_a_length_above_the_limit_is_refused_before_the_body(
    make: Make, studio: ImageServer
) -> None:
    def announces(handler: Handler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100001\r\n\r\n")
        time.sleep(3)

    studio.answers[UPLOAD] = announces
    started = time.monotonic()
    assert "larger than the allowed 100000 bytes" in reason(make(), UPLOAD)
    assert time.monotonic() - started < 2


def test_a_body_of_no_stated_length_is_counted(make: Make, studio: ImageServer) -> None:
    sent = 0

    def endless(handler: Handler) -> None:
        nonlocal sent
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        for _ in range(1000):
            sent += handler.wfile.write(bytes(100_000))

    studio.answers[UPLOAD] = endless
    assert "larger than the allowed" in reason(make(), UPLOAD)
    assert sent < 50_000_000


def test_a_file_of_just_the_allowed_size_passes(make: Make, studio: ImageServer) -> None:
    studio.answers[UPLOAD] = bytes(100_000)
    assert len(make().fetch(UPLOAD).data) == 100_000


def test_what_gzip_hides_is_counted(make: Make, studio: ImageServer) -> None:
    packed = gzip.compress(bytes(5_000_000))
    assert len(packed) < 100_000
    studio.answers[UPLOAD] = (200, {"Content-Encoding": "gzip"}, packed)
    assert "larger than the allowed" in reason(make(), UPLOAD)


def test_gzip_is_unpacked_although_not_asked_for(make: Make, studio: ImageServer) -> None:
    studio.answers[UPLOAD] = (200, {"Content-Encoding": "gzip"}, gzip.compress(CAT))
    assert make().fetch(UPLOAD).data == CAT
    studio.answers[UPLOAD] = (200, {"Content-Encoding": "gzip"}, b"no gzip at all")
    assert "cannot be read" in reason(make(), UPLOAD)


@pytest.mark.parametrize(
    "raw", [b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + CAT, b"SSH-2.0-OpenSSH_9.6\r\n"]
)
def test_an_answer_that_is_cut_or_no_http_is_not_an_image(
    make: Make, studio: ImageServer, raw: bytes
) -> None:
    def answer(handler: Handler) -> None:
        handler.wfile.write(raw)

    studio.answers[UPLOAD] = answer
    assert "broke" in passing_reason(make(), UPLOAD)


def test_redirects_in_a_circle_end(make: Make, studio: ImageServer) -> None:
    studio.answers[UPLOAD] = redirect(UPLOAD)
    assert "more than 5 redirects" in reason(make(), UPLOAD)
    assert len(studio.asked) == 6


def test_as_many_redirects_as_allowed_are_followed(make: Make, studio: ImageServer) -> None:
    for n in range(5):
        studio.answers[f"/data/{n}"] = redirect(f"/data/{n + 1}", [301, 302, 303, 307, 308][n])
    studio.answers["/data/5"] = CAT
    assert make().fetch("/data/0").data == CAT


@pytest.mark.parametrize("limit", ["max_bytes", "max_pixels", "read_timeout", "total_timeout"])
def test_a_limit_of_nothing_is_a_mistake(limit: str) -> None:
    settings: dict[str, Any] = {limit: 0}
    with pytest.raises(ValueError, match=limit):
        replace(LIMITS, **settings)
    with pytest.raises(ValueError, match="negative"):
        ImageLimits(retry_pauses=(0.1, -1))


# Failures that pass and others


@pytest.mark.parametrize("status", [400, 403, 404, 410, 204, 304])
def test_a_status_is_reported_and_not_tried_again(
    make: Make, store: ImageServer, status: int
) -> None:
    store.answers["/cat.jpg"] = (status, {}, b"")
    words = reason(make(allow_private=True), f"{store.url}/cat.jpg")
    host = f"127.0.0.1:{store.port}"
    assert words == f"{status} {http.client.responses[status]} from {host}"
    assert len(store.asked) == 1


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_passing_status_is_tried_three_times(
    make: Make, studio: ImageServer, status: int
) -> None:
    studio.answers[UPLOAD] = (status, {}, b"")
    assert f"{status} {http.client.responses[status]}" in passing_reason(make(), UPLOAD)
    assert len(studio.asked) == 3


def test_a_failure_that_passes_costs_nothing(make: Make, studio: ImageServer) -> None:
    studio.answers[UPLOAD] = [(503, {}, b""), lambda handler: None, CAT]
    assert make().fetch(UPLOAD).data == CAT


def test_no_try_begins_that_could_not_end_in_time(make: Make, studio: ImageServer) -> None:
    studio.answers[UPLOAD] = (503, {}, b"")
    limits = ImageLimits(total_timeout=1, retry_pauses=(5,))
    assert "503" in passing_reason(make(limits=limits), UPLOAD)
    assert len(studio.asked) == 1


# Threads and connections


def test_sixteen_threads_share_one_fetcher_and_its_connections(
    make: Make, studio: ImageServer
) -> None:
    for n in range(200):
        studio.answers[f"/data/upload/1/{n}.jpg"] = b"image %d" % n
    fetcher = make()
    with ThreadPoolExecutor(16) as threads:
        fetched = list(threads.map(lambda n: fetcher.fetch(f"/data/upload/1/{n}.jpg"), range(200)))
    assert [image.data for image in fetched] == [b"image %d" % n for n in range(200)]
    assert len(studio.peers) <= 16


def test_an_open_connection_has_the_next_image_s_time_limit(
    make: Make, studio: ImageServer
) -> None:
    fetcher = make(limits=ImageLimits(read_timeout=1, total_timeout=0.5))
    fetcher.fetch(UPLOAD)
    studio.answers["/data/slow"] = drip(b"0", 50, before=b"HTTP/1.1 200 OK\r\nX-Long: ")
    started = time.monotonic()
    assert "took longer" in passing_reason(fetcher, "/data/slow")
    assert time.monotonic() - started < 1.5
    assert len(studio.peers) == 1


def test_a_connection_closed_meanwhile_is_made_anew(make: Make, studio: ImageServer) -> None:
    studio.answers[UPLOAD] = (200, {"Connection": "close"}, CAT)
    fetcher = make()
    assert fetcher.fetch(UPLOAD).data == fetcher.fetch(UPLOAD).data


# Local files read directly


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of local files with a secret beside it."""
    (tmp_path / "secret.txt").write_bytes(b"secret")
    root = tmp_path / "files"
    (root / "shop").mkdir(parents=True)
    (root / "shop" / "a cat.jpg").write_bytes(CAT)
    return root


def local(path: str) -> str:
    return f"/data/local-files/?d={path}"


def test_a_mounted_file_is_read_without_label_studio(
    make: Make, studio: ImageServer, folder: Path
) -> None:
    for url in (studio.url, None):
        fetcher = make(url, local_files={"": folder})
        assert fetcher.fetch(local("shop/a%20cat.jpg")).data == CAT
    assert make(local_files={"": folder}).fetch(studio.url + local("shop/a cat.jpg")).data == CAT
    assert studio.asked == []


def test_the_longest_beginning_chooses_the_folder(
    make: Make, studio: ImageServer, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "dog.jpg").write_bytes(b"dog")
    fetcher = make(local_files={"shop": folder / "shop", "shop/dogs": tmp_path})
    assert fetcher.fetch(local("shop/a cat.jpg")).data == CAT
    assert fetcher.fetch(local("shop/dogs/dog.jpg")).data == b"dog"
    studio.answers["/data/local-files/?d=other/cat.jpg"] = b"from Label Studio"
    assert fetcher.fetch(local("other/cat.jpg")).data == b"from Label Studio"


@pytest.mark.parametrize(
    "path",
    [
        "../secret.txt",
        "shop/../../secret.txt",
        "%2e%2e/secret.txt",
        "/etc/passwd",
        "//etc/passwd",
        "link.txt",
        "out/secret.txt",
    ],
)
def test_nothing_outside_the_folder_is_read(
    make: Make, studio: ImageServer, folder: Path, path: str
) -> None:
    (folder / "link.txt").symlink_to(folder.parent / "secret.txt")
    (folder / "out").symlink_to(folder.parent)
    assert "leads out of the folder" in reason(make(local_files={"": folder}), local(path))
    assert studio.asked == []


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("shop/dog.jpg", "No such file"),
        ("shop", "Is a directory"),
        ("pipe", "is not a file"),
        ("circle", "cannot be read"),
        ("a%00b", "cannot be read"),
        ("x" * 300, "File name too long"),
        ("big", "larger than the allowed 100000 bytes"),
        ("none", "empty"),
    ],
)
def test_what_is_no_readable_file_is_explained(
    make: Make, folder: Path, path: str, words: str
) -> None:
    os.mkfifo(folder / "pipe")
    (folder / "circle").symlink_to(folder / "circle")
    (folder / "big").write_bytes(bytes(100_001))
    (folder / "none").write_bytes(b"")
    assert words in reason(make(local_files={"": folder}), local(path))
