"""A private authority is named once, for Label Studio's API, images and our own address alike."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from studio.client import LabelStudio
from studio.errors import ImageError, StudioError
from studio.http_client import RetryLimits
from tests.redis import board, redis_url
from tests.studio.image_server import ImageServer, serving
from tests.worker.stand import LEGACY
from worker.doctor import examine_machine
from worker.parts import Parts
from worker.settings import SettingError, Settings

__all__ = ["board", "redis_url"]

CAT = b"the bytes of a cat"
UPLOAD = "/data/upload/1/cat.jpg"
VARIABLES = ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an authority's certificate, and one of 127.0.0.1 that it signed."""
    folder = tmp_path_factory.mktemp("authority")
    curve = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n", encoding="utf-8")
    for command in (
        f"req -x509 {curve} -days 2 -subj /CN=Authority -keyout ca.key -out ca.pem",
        f"req {curve} -subj /CN=127.0.0.1 -keyout key.pem -out request.pem",
        (
            "x509 -req -in request.pem -CA ca.pem -CAkey ca.key -CAcreateserial -days 2"
            " -extfile names -out certificate.pem"
        ),
    ):
        arguments = ["openssl", *command.split()]
        subprocess.run(arguments, check=True, capture_output=True, cwd=folder, timeout=60)
    both = (folder / "certificate.pem").read_text() + (folder / "key.pem").read_text()
    (folder / "both.pem").write_text(both, encoding="utf-8")
    return folder


@pytest.fixture
def server(authority: Path) -> Iterator[ImageServer]:
    """Label Studio and our own server, behind the authority's certificate."""
    with serving(tls=True, certificate=authority / "both.pem") as made:
        made.answers |= {
            UPLOAD: CAT,
            "/api/version": b'{"release": "1.23.2"}',
            "/hrn/health": b"{}",
        }
        yield made


@pytest.fixture
def environ(
    server: ImageServer, tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> pytest.MonkeyPatch:
    """The environment of a server that is set up for it, but for the certificate."""
    for name in (*VARIABLES, "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    settings = {
        "HRN_HOME": str(tmp_path),
        "HRN_DEVICE": "cpu",
        "HRN_BACKBONE": "no_such",
        "REDIS_URL": redis_url,
        "LABEL_STUDIO_URL": server.url,
        "LABEL_STUDIO_API_KEY": LEGACY,
        "HRN_BACKEND_URL": f"{server.url}/hrn",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def parts() -> Parts:
    """As a process begins; with a client that soon gives up."""
    import os

    made = Parts(Settings.from_environ(os.environ))
    quick = RetryLimits(backoff=0.01)
    client = LabelStudio(
        made.settings.label_studio_url, LEGACY, retries=0, limits=quick, trust=made.trust
    )
    assert made.studio.url == client.url
    vars(made)["studio"] = client
    return made


@pytest.mark.parametrize("variable", VARIABLES)
def test_either_variable_is_enough_for_everything(
    environ: pytest.MonkeyPatch, authority: Path, variable: str
) -> None:
    environ.setenv(variable, str(authority / "ca.pem"))
    made = parts()
    assert made.studio.version() == "1.23.2"
    assert made.fetcher.fetch(UPLOAD).data == CAT
    told = {one.code: one for one in examine_machine(made)}["address"]
    assert told.ok, told


def test_where_both_are_set_both_count(environ: pytest.MonkeyPatch, authority: Path) -> None:
    """The other one may be what a company's machines are set up with."""
    other = authority / "other.pem"
    arguments = (
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=Other"
        f" -keyout {authority / 'other.key'} -out {other}"
    )
    subprocess.run(["openssl", *arguments.split()], check=True, capture_output=True, timeout=60)
    for first, second in (VARIABLES, VARIABLES[::-1]):
        environ.setenv(first, str(other))
        environ.setenv(second, str(authority / "ca.pem"))
        made = parts()
        assert made.studio.version() == "1.23.2"
        assert made.fetcher.fetch(UPLOAD).data == CAT


def test_a_folder_of_certificates_will_do(environ: pytest.MonkeyPatch, authority: Path) -> None:
    folder = authority / "hashed"
    folder.mkdir(exist_ok=True)
    (folder / "ca.pem").write_bytes((authority / "ca.pem").read_bytes())
    subprocess.run(["openssl", "rehash", str(folder)], check=True, capture_output=True, timeout=60)
    environ.setenv("REQUESTS_CA_BUNDLE", str(folder))
    assert parts().studio.version() == "1.23.2"
    assert parts().fetcher.fetch(UPLOAD).data == CAT


@pytest.mark.usefixtures("environ")
def test_without_one_each_message_names_them(server: ImageServer) -> None:
    made = parts()
    with pytest.raises(StudioError) as api:
        made.studio.version()
    with pytest.raises(ImageError) as image:
        made.fetcher.fetch(UPLOAD)
    told = {one.code: one for one in examine_machine(made)}["address"]
    assert not told.ok
    for words in (str(api.value), str(image.value), told.fix):
        assert "REQUESTS_CA_BUNDLE or SSL_CERT_FILE" in words
    for words in (str(api.value), str(image.value), told.what):
        assert "unable to get local issuer" in words
    assert server.asked == []


@pytest.mark.parametrize("variable", VARIABLES)
def test_a_file_that_is_not_there_stops_the_start(
    environ: pytest.MonkeyPatch, variable: str
) -> None:
    environ.setenv(variable, "/no/such/ca.pem")
    with pytest.raises(SettingError, match=f"{variable}: expected a file of certificates"):
        parts()
