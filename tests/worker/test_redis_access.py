"""A Redis behind a password and TLS is reached by its address alone, by every process."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import pytest
from redis import Redis
from redis.exceptions import AuthenticationError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError

from cli.services import as_environment
from tests.end_to_end.label_studio import free_port
from tests.worker.test_worker_process import until
from worker.order import Order
from worker.queue import Board, connect
from worker.settings import Settings

pytestmark = pytest.mark.slow

#: With everything that must be encoded in an address.
PASSWORD: Final = "pa/ss#w@rd?:ö"
CODED: Final = "pa%2Fss%23w%40rd%3F%3A%C3%B6"


@dataclass(frozen=True)
class SecuredRedis:
    """A server of two ports.

    Attributes:
        plain: its port without TLS.
        tls: its port with TLS.
        certificate: of the server, made by itself.
    """

    plain: int
    tls: int
    certificate: Path

    def url(self, scheme: str = "rediss", password: str = CODED) -> str:
        """An address as an operator writes it."""
        port = self.tls if scheme == "rediss" else self.plain
        return f"{scheme}://:{password}@localhost:{port}/0"


def _certificate(folder: Path) -> Path:
    """A certificate of localhost, signed by itself; its key lies beside it."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    what = ["req", "-x509", *curve, "-nodes", "-days", "2"]
    whose = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command = ["openssl", *what, *whose, "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return certificate


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredRedis]:
    folder = tmp_path_factory.mktemp("secured")
    certificate = _certificate(folder)
    made = SecuredRedis(free_port(), free_port(), certificate)
    # Not one of an environment that is active: the bundled one has no TLS.
    folders = os.environ["PATH"].split(os.pathsep)
    ours = [one for one in folders if not (Path(one).parent / "pyvenv.cfg").exists()]
    path = os.pathsep.join(ours)
    binary = shutil.which("redis-server", path=path) or shutil.which("valkey-server", path=path)
    assert binary, "no redis-server with TLS on PATH: `make redis` installs one"
    options = {
        "port": made.plain,
        "tls-port": made.tls,
        "tls-cert-file": certificate,
        "tls-key-file": folder / "key.pem",
        "tls-auth-clients": "no",
        "requirepass": PASSWORD,
        "bind": "127.0.0.1",
        "dir": folder,
        "save": "",
    }
    flat = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    process = subprocess.Popen([binary, *flat], stdout=subprocess.DEVNULL)
    try:
        until(lambda: _answers(made), 20)
        yield made
    finally:
        process.terminate()
        process.wait(10)


def _answers(made: SecuredRedis) -> bool:
    try:
        with Redis(port=made.plain, password=PASSWORD) as connection:
            return bool(connection.ping())
    except RedisError:
        return False


def settings(secured: SecuredRedis, home: Path) -> Settings:
    """As read from the environment: the address passes through the same door as in production."""
    return replace(Settings.from_environ({"REDIS_URL": secured.url()}), home=home, device="cpu")


def test_the_password_and_tls_come_from_the_address(
    secured: SecuredRedis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(secured.certificate))
    board = Board(connect(settings(secured, tmp_path).redis_url))
    assert board.ask(Order("studio-1-1", "over TLS")).state == "queued"
    assert board.state("studio-1-1")[0] == "queued"
    board.redis.flushdb()
    board.redis.close()


def test_a_certificate_that_nobody_vouches_for_is_refused(secured: SecuredRedis) -> None:
    with connect(secured.url()) as connection, pytest.raises(RedisConnectionError) as raised:
        connection.ping()
    assert "certificate" in str(raised.value).lower()
    assert PASSWORD not in str(raised.value)


@pytest.mark.parametrize("password", ["wrong", ""])
def test_a_wrong_password_is_refused(secured: SecuredRedis, password: str) -> None:
    with (
        connect(secured.url("redis", password)) as connection,
        pytest.raises(AuthenticationError),
    ):
        connection.ping()


def test_a_worker_works_over_tls_and_says_nothing_of_the_password(
    secured: SecuredRedis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(secured.certificate))
    ours = settings(secured, tmp_path)
    environment = {**os.environ, **as_environment(ours), "PYTHONPATH": str(Path.cwd())}
    board = Board(connect(ours.redis_url))
    log = tmp_path / "worker.log"
    with log.open("wb") as file:
        command = [sys.executable, "-m", "worker"]
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
    try:
        until(board.workers, 60)
        board.ask(Order("studio-1-1", "over TLS"))
        run = until(lambda: board.runs("studio-1-1"), 30)[0]
        assert run["state"] == "misconfigured"  # the job ran: nobody knows that project
    finally:
        process.kill()
        process.wait(10)
        board.redis.flushdb()
        board.redis.close()
    for secret in (PASSWORD, CODED):
        assert secret not in log.read_text(encoding="utf-8", errors="replace")


def test_a_worker_whose_password_is_wrong_says_so_without_it(
    secured: SecuredRedis, tmp_path: Path
) -> None:
    ours = replace(settings(secured, tmp_path), redis_url=secured.url("redis", "wrong-secret"))
    environment = {**os.environ, **as_environment(ours), "PYTHONPATH": str(Path.cwd())}
    log = tmp_path / "worker.log"
    with log.open("wb") as file:
        command = [sys.executable, "-m", "worker"]
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            if b"WRONGPASS" in log.read_bytes() or b"invalid username" in log.read_bytes():
                break
            time.sleep(0.2)
        told = log.read_text(encoding="utf-8", errors="replace")
        assert "WRONGPASS" in told or "invalid username-password" in told
        assert "wrong-secret" not in told
    finally:
        process.kill()
        process.wait(10)
