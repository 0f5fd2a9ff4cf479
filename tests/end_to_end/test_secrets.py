"""After everything else: no password and no token lies where the product, or the suite, wrote.

Runs last of this folder (`conftest.py`), when all the others have left their traces.
"""

import base64
import json
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import pytest
import requests
from redis import Redis
from rq.utils import as_text

from cli.services import ENVIRONMENT_FILE, read_environment
from tests.end_to_end.backend import RunningBackend
from tests.end_to_end.campaign import Campaign
from tests.end_to_end.label_studio import RunningLabelStudio

pytestmark = [pytest.mark.slow, pytest.mark.label_studio]

#: An access token made from the personal one, or a part of it, whoever's it is.
WEB_TOKEN: Final = re.compile(rb"eyJ[\w-]{10,}\.[\w-]{10,}")

Secrets = Mapping[str, bytes]


@pytest.fixture(scope="module")
def secrets(backend: RunningBackend, label_studio: RunningLabelStudio) -> Secrets:
    """What must not be found, by what it is."""
    user, password = backend.auth
    kept = read_environment(backend.home)
    plain = {
        "password of the routes": password,
        "password of the console": kept["HRN_CONSOLE_PASSWORD"],
        "token of Label Studio": backend.environment["LABEL_STUDIO_API_KEY"],
        "legacy token of Label Studio": label_studio.legacy_token,
        "password of Label Studio": label_studio.password,
    }
    header = base64.b64encode(f"{user}:{password}".encode()).decode()
    found = {**plain, "header of the routes": header}
    quoted = {f"{name}, in an address": quote(text, safe="") for name, text in plain.items()}
    assert all(len(text) >= 12 for text in found.values())
    return {name: text.encode() for name, text in {**found, **quoted}.items()}


def revealed(data: bytes, secrets: Secrets) -> list[str]:
    """Names of the secrets that stand there."""
    found = [name for name, text in secrets.items() if text in data]
    return [*found, *(["an access token"] if WEB_TOKEN.search(data) else [])]


def test_the_search_finds_what_is_there(backend: RunningBackend, secrets: Secrets) -> None:
    """The file that other commands read the settings from holds them, for its owner alone."""
    file = backend.home / ENVIRONMENT_FILE
    found = revealed(file.read_bytes(), secrets)
    assert {"password of the routes", "password of the console", "an access token"} <= set(found)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_no_file_holds_a_secret(
    campaign: Campaign,
    label_studio: RunningLabelStudio,
    secrets: Secrets,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Logs, manifests, projects, sessions, Redis's own files: all that the suite wrote."""
    _make_it_complain(campaign)
    checked, offences = 0, []
    for path in _written(tmp_path_factory.getbasetemp(), label_studio.data):
        checked += 1
        offences += [f"{path}: {name}" for name in revealed(path.read_bytes(), secrets)]
    assert offences == []
    assert checked > 20
    logs = {path.name for path in (campaign.backend.home / "logs").glob("*.log")}
    assert {"server.log", "worker.log", "reconciler.log"} <= logs


def _make_it_complain(campaign: Campaign) -> None:
    """Wrong passwords, broken bodies and pages that are not there: what a log would tell of."""
    url, auth = campaign.backend.url, campaign.backend.auth
    for path in ("setup", "predict", "webhook"):
        requests.post(f"{url}/{path}", data=b"[" * 10_000, auth=auth, timeout=10)
        wrong = (auth[0], f"{auth[1]}x")
        requests.post(f"{url}/{path}", json={}, auth=wrong, timeout=10)
        secret = {"access_token": campaign.studio.legacy_token, "project": 7}
        requests.post(f"{url}/{path}", json=secret, auth=auth, timeout=10)


def _written(base: Path, not_ours: Path) -> Iterator[Path]:
    """Files below the suite's folder, but Label Studio's own and the settings'."""
    for path in base.rglob("*"):
        if path.is_symlink() or not path.is_file() or not_ours in path.parents:
            continue
        if path.name != ENVIRONMENT_FILE and not path.name.startswith("label_studio.sqlite3"):
            yield path


def test_nothing_in_redis_holds_a_secret(campaign: Campaign, secrets: Secrets) -> None:
    """Job arguments, results, errors, progress, workers."""
    redis = campaign.backend.parts().board.redis
    kept = {key: _dump(redis, key) for key in redis.scan_iter(count=1000)}
    assert any(key.startswith(b"hrn:") for key in kept)
    assert any(key.startswith(b"rq:") for key in kept)
    offences = [
        f"{key!r}: {name}"
        for key, value in kept.items()
        for name in revealed(key + b"\n" + value, secrets)
    ]
    assert offences == []


def _dump(redis: Redis, key: bytes) -> bytes:
    kind = as_text(redis.type(key))
    values: dict[str, Any] = {
        "string": lambda: redis.get(key),
        "list": lambda: redis.lrange(key, 0, -1),
        "set": lambda: redis.smembers(key),
        "zset": lambda: redis.zrange(key, 0, -1),
        "hash": lambda: redis.hgetall(key),
        "stream": lambda: redis.xrange(key),
        "none": lambda: b"",  # it has ended meanwhile
    }
    return repr(values[kind]()).encode()


def test_no_page_and_no_answer_shows_a_secret(campaign: Campaign, secrets: Secrets) -> None:
    backend, key = campaign.backend, campaign.status()["key"]
    shown: dict[str, bytes] = {}
    for path in ("/", "/health", "/ready", "/metrics", "/openapi.json", "/nowhere", "/versions"):
        reply = requests.get(f"{backend.url}{path}", auth=backend.auth, timeout=10)
        shown[path] = _whole(reply)
    with requests.Session() as session:
        _sign_in(session, backend)
        version = campaign.status()["version"]
        for page in ("", "/state", "/nowhere", *(f"/projects/{key}/{tab}" for tab in TABS),
                     f"/projects/{key}/versions/{version}/download"):  # fmt: skip
            reply = session.get(f"{backend.url}/console{page}", timeout=60)
            shown[f"/console{page}"] = reply.content
            assert reply.url.endswith(page), "led back to the sign-in"
    offences = [
        f"{page}: {name}" for page, seen in shown.items() for name in revealed(seen, secrets)
    ]
    assert offences == []


TABS: Final = ("training", "training/state", "versions", "tree", "trust", "look", "connection")


def _whole(reply: requests.Response) -> bytes:
    return f"{reply.reason}\n{reply.headers}\n".encode() + reply.content


def _sign_in(session: requests.Session, backend: RunningBackend) -> None:
    page = session.get(f"{backend.url}/console/sign-in", timeout=10).text
    token = re.search(r'name="csrf" value="(\w+)"', page)
    assert token is not None
    form = {"csrf": token[1], "password": read_environment(backend.home)["HRN_CONSOLE_PASSWORD"]}
    session.post(f"{backend.url}/console/sign-in", data=form, timeout=10).raise_for_status()


def test_no_command_prints_a_secret(campaign: Campaign, secrets: Secrets) -> None:
    printed = [
        campaign.backend.hrn(*words, status=None)
        for words in (["status"], ["status", "--json"], ["doctor"], ["doctor", "--json"])
    ]
    for text in printed:
        assert revealed(text.encode(), secrets) == []
    assert json.loads(printed[1])


def test_parts_and_settings_show_none_in_their_repr(campaign: Campaign, secrets: Secrets) -> None:
    parts = campaign.backend.parts()
    shown = [repr(one) for one in (parts, parts.settings, parts.studio, parts.board, parts.fetcher)]
    for text in shown:
        assert revealed(text.encode(), secrets) == []
