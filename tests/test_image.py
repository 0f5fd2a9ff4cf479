"""What the container image holds starts and works, with nothing else around.

The same checks twice: `make test` runs them on a wheel of the very files that the image copies, in
an environment of the very packages that it installs; `make image` builds the image and runs them in
it, as its unprivileged user.
"""

import re
import secrets
import signal
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import certifi
import pytest
import yaml  # type: ignore[import-untyped]

from cli import redis_server
from tests.image import ROOT, Shipped, container, copied, installed
from tests.processes import end
from tests.test_packaging import filled_in
from tests.test_readme import commands

PACKAGES = [source for source in copied() if (ROOT / source).is_dir()]
KINDS = [
    pytest.param(installed, marks=pytest.mark.slow, id="installed"),
    pytest.param(container, marks=[pytest.mark.image, pytest.mark.timeout(1800)], id="container"),
]

#: Imports every module, but those of another program's environment and those that start at once.
IMPORT_ALL = """
import importlib, pkgutil, sys
for package in sys.argv[1:]:
    path = importlib.import_module(package).__path__
    for module in pkgutil.walk_packages(path, package + "."):
        if module.name not in ("backend.upstream", "backend.wsgi"):
            importlib.import_module(module.name)
"""
FILES = """
import importlib, pathlib, sys
for name in sys.argv[1:]:
    folder = pathlib.Path(importlib.import_module(name).__path__[0])
    for file in folder.rglob("*"):
        if file.is_file() and file.parent.name != "__pycache__":
            print(name, file.relative_to(folder).as_posix(), sep="/")
"""


@pytest.fixture(scope="module", params=KINDS)
def shipped(request: pytest.FixtureRequest) -> Iterator[Shipped]:
    with request.param() as made:
        yield made


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


@contextmanager
def process(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command until the block ends; then it has to end by itself when it is asked to."""
    with log.open("wb") as file:
        started = subprocess.Popen(command, stdout=file, stderr=file)
        try:
            yield started
        finally:
            end(started, grace=60)


def status(url: str) -> int:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def wait_until_ok(url: str, *logs: Path) -> None:
    deadline = time.monotonic() + 180
    while (last := status(url)) != 200:
        assert time.monotonic() < deadline, "\n".join(
            [f"{url}: {last}", *(log.read_text() for log in logs)]
        )
        time.sleep(0.3)


def test_help_lists_every_command(shipped: Shipped) -> None:
    done = shipped.run("hrn", "--help")
    assert done.returncode == 0, done.stderr
    assert set(re.findall(r"^    ([a-z-]+)", done.stdout, re.MULTILINE)) >= commands()


def test_every_module_finds_what_it_imports(shipped: Shipped) -> None:
    done = shipped.run("python", "-c", IMPORT_ALL, *PACKAGES)
    assert done.returncode == 0, done.stderr


def test_every_file_of_every_package_is_there(shipped: Shipped) -> None:
    """Templates and style sheets too: an editable installation hides that they are left out."""
    done = shipped.run("python", "-c", FILES, *PACKAGES)
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *PACKAGES],
        cwd=ROOT, check=True, capture_output=True, text=True,
    timeout=300)  # fmt: skip
    assert sorted(done.stdout.splitlines()) == sorted(listed.stdout.splitlines())


def test_doctor_says_what_is_not_set(shipped: Shipped) -> None:
    done = shipped.run("hrn", "doctor")
    assert done.returncode == 1, done.stderr
    assert "LABEL_STUDIO_URL is not set" in done.stdout
    assert re.search(r"^ok +backbone ", done.stdout, re.MULTILINE)
    assert "Traceback" not in done.stderr


def test_a_misspelled_setting_stops_the_start(shipped: Shipped) -> None:
    done = shipped.run("hrn", "serve", HRN_PASSWROD="s3cret")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "hrn: HRN_PASSWROD is no setting: did you mean HRN_PASSWORD?\n"


def test_it_serves_and_works(shipped: Shipped, tmp_path: Path) -> None:
    redis, port, password = free_port(), free_port(), secrets.token_hex()
    address = f"http://127.0.0.1:{port}"
    environ = {
        "REDIS_URL": f"redis://:{password}@127.0.0.1:{redis}/0",
        "HRN_HOST": "127.0.0.1",
        "HRN_PORT": str(port),
        "HRN_PASSWORD": "some",
        "HRN_CONSOLE_PASSWORD": "some",
    }
    store = [redis_server.bundled(), "--port", str(redis), "--bind", "127.0.0.1"]
    store += ["--requirepass", password, "--dir", str(tmp_path), "--save", ""]
    logs = [tmp_path / name for name in ("redis", "serve", "work")]
    with (
        process(store, logs[0]),
        process(shipped.command(["hrn", "serve"], environ), logs[1]) as serving,
    ):
        wait_until_ok(f"{address}/health", *logs[:2])
        assert status(f"{address}/ready") == 503  # no worker yet
        with process(shipped.command(["hrn", "work"], environ), logs[2]) as working:
            wait_until_ok(f"{address}/ready", *logs)
        assert working.returncode == 0, logs[2].read_text()
        assert status(f"{address}/console/sign-in") == 200
        if shipped.health:
            assert shipped.run(*shipped.health, **environ).returncode == 0
    assert serving.returncode in {0, -signal.SIGTERM}, logs[1].read_text()
    if shipped.health:
        assert shipped.run(*shipped.health, **environ).returncode == 1


# The container alone


@pytest.mark.parametrize("shipped", KINDS[1:], indirect=True)
def test_an_unprivileged_user_can_write_to_its_home_only(shipped: Shipped) -> None:
    code = "import os; print(os.getuid(), os.getgid(), os.getgroups())"
    assert shipped.run("python", "-c", code).stdout == "10001 10001 []\n"
    done = shipped.run("find", "/", "-xdev", "-writable", "-not", "-type", "l")
    assert sorted(done.stdout.split()) == ["/tmp", "/var/lib/hrn"]


@pytest.mark.parametrize("shipped", KINDS[1:], indirect=True)
def test_it_takes_every_setting_that_compose_passes_on(shipped: Shipped) -> None:
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))
    given = {
        name: filled_in(text, files=True)
        for name, text in compose["services"]["web"]["environment"].items()
        if text is not None
    }
    code = "import os; from worker.settings import Settings as S; print(S.from_environ(os.environ))"
    certificates = ssl.get_default_verify_paths().cafile or certifi.where()
    done = shipped.run("python", "-c", code, certificates=certificates, **given)
    assert "local_files=PosixPath('/run/hrn/local-files')" in done.stdout, done.stderr
