"""No secret reaches a log: as a setting, in an address, in a header, in an error of a library."""

import base64
import io
import logging
from collections.abc import Callable, Iterator

import pytest
import requests
from redis import Redis
from redis.exceptions import RedisError

from tests.studio.servers import serving
from tests.worker.stand import Stand
from worker.redaction import HIDDEN, Redacting, cover, secrets_of
from worker.settings import Secret, SettingError, Settings

PASSWORD = "p@ss/wörd#1"
TOKEN = "0123456789abcdef0123456789abcdef01234567"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJleHAiOjF9.c2lnbmF0dXJl"
SETTINGS = Settings(
    redis_url="rediss://default:redis-secret@redis.internal:6380/0",
    label_studio_token=Secret(TOKEN),
    password=Secret(PASSWORD),
    console_password=Secret("console-secret"),
)
SECRETS = (PASSWORD, TOKEN, JWT, "redis-secret", "console-secret")

Written = Callable[[], str]


@pytest.fixture
def logger() -> Iterator[tuple[logging.Logger, Written]]:
    """A logger, and what it has written."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(Redacting(secrets_of(SETTINGS)))
    made = logging.getLogger("test.redaction")
    made.addHandler(handler)
    made.propagate = False
    yield made, stream.getvalue
    made.removeHandler(handler)


@pytest.mark.parametrize(
    "line",
    [
        f"token {TOKEN}",
        f"password={PASSWORD}",
        f"{SETTINGS.redis_url} is away",
        "http://me:console-secret@host/path",
        "http://me:other/one@host/path and more",
        f"{{'Authorization': 'Token {TOKEN}', 'Accept': '*/*'}}",
        f"Authorization: Bearer {JWT}",
        f"Basic {base64.b64encode(b'user:' + PASSWORD.encode()).decode()}",
        f"cookie: hrn_console={JWT}",
        f"refused {JWT}",
        "https://store/cat.jpg?X-Amz-Signature=deadbeefdeadbeef&X-Amz-Credential=me",
        "p%40ss%2Fw%C3%B6rd%231",
    ],
)
def test_a_line_keeps_its_secrets(logger: tuple[logging.Logger, Written], line: str) -> None:
    log, written = logger
    log.warning("seen: %s", line)
    text = written()
    assert HIDDEN in text
    assert text.startswith("20")
    for secret in (*SECRETS, "other/one", "deadbeef", base64.b64encode(b"user:").decode()[:-2]):
        assert secret not in text


@pytest.mark.parametrize(
    "line",
    [
        "training ended job=train-1 project=localhost-8080-1 state=done",
        "GET http://127.0.0.1:8080/api/tasks?project=1&page=2",
        "mail to admin@example.com",
        "no token is set: LABEL_STUDIO_API_KEY",
    ],
)
def test_other_lines_stay_as_they_are(logger: tuple[logging.Logger, Written], line: str) -> None:
    log, written = logger
    log.warning(line)
    assert line in written()


def test_a_traceback_keeps_them_too(logger: tuple[logging.Logger, Written]) -> None:
    log, written = logger
    with pytest.raises(ValueError, match="invalid literal") as raised:
        int(f"{TOKEN} at {SETTINGS.redis_url}")
    log.error("unexpected", exc_info=raised.value)
    assert "Traceback" in written()
    assert "'*** at rediss://***@redis.internal" in written()
    assert "redis-secret" not in written()


def test_an_error_of_requests_keeps_them(logger: tuple[logging.Logger, Written]) -> None:
    log, written = logger
    with serving(Stand()) as server:
        address = server.url
    url = address.replace("//", f"//me:{PASSWORD.replace('/', '%2F').replace('#', '%23')}@")
    with pytest.raises(requests.RequestException) as raised:
        requests.get(f"{url}?access_token={JWT}", headers={"Authorization": TOKEN}, timeout=2)
    log.warning("away: %r", raised.value, exc_info=raised.value)
    assert "away" in written()
    for secret in SECRETS:
        assert secret not in written()


def test_an_error_of_redis_keeps_them(logger: tuple[logging.Logger, Written]) -> None:
    log, written = logger
    with pytest.raises(RedisError) as raised:
        Redis.from_url("redis://default:redis-secret@127.0.0.1:1/0").ping()
    log.warning("away: %r", raised.value, exc_info=raised.value)
    assert "redis-secret" not in written()


def test_a_library_s_own_handler_is_covered() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("[%(levelname)s] %(message)s"))
    log = logging.getLogger("test.library")
    log.propagate = False
    log.addHandler(handler)
    try:
        cover("test.library", SETTINGS)
        cover("test.library", SETTINGS)
        log.error("with %s", TOKEN)
    finally:
        log.removeHandler(handler)
    assert stream.getvalue() == "[ERROR] with ***\n"


def test_nothing_secret_is_in_the_repr_of_the_settings() -> None:
    for secret in SECRETS:
        assert secret not in repr(SETTINGS)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("REDIS_URL", "redis://:console/secret@host"),
        ("REDIS_URL", "redis://:conso#le-secret@host:x"),
        ("REDIS_URL", "http://:conso@le-secret@host"),
        ("LABEL_STUDIO_URL", "http://me:le-secret@host"),
        ("HRN_BACKEND_URL", "http://me:conso/le-secret@host"),
    ],
)
def test_an_address_that_is_refused_is_shown_without_its_password(name: str, text: str) -> None:
    with pytest.raises(SettingError) as raised:
        Settings.from_environ({name: text})
    told = f"{raised.value} {raised.value.__cause__}"
    assert name in told
    for part in ("conso", "secret"):
        assert part not in told
