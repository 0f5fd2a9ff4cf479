"""The web server: its settings, its caution, and the process itself."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from cli.serve import Server, _warm, authority, check_exposure
from cli.services import answers_http, as_environment
from inference.backbone import load_backbone
from inference.store import ModelStore
from tests.end_to_end.label_studio import free_port
from tests.published import TREE, project, publish
from tests.studio.configs import taxonomy_xml
from tests.studio.image_server import Handler, serving
from worker.parts import Parts
from worker.settings import Secret, SettingError, Settings


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.9", "::1", "localhost"])
def test_loopback_needs_no_password(host: str) -> None:
    check_exposure(Settings(host=host))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.5", "backend.example"])
def test_a_network_needs_one(host: str) -> None:
    with pytest.raises(SettingError, match="HRN_PASSWORD is not set"):
        check_exposure(Settings(host=host))
    check_exposure(Settings(host=host, password=Secret("x")))


def test_addresses_of_both_kinds_can_be_listened_on() -> None:
    assert authority("127.0.0.1", 90) == "127.0.0.1:90"
    assert authority("::1", 90) == "[::1]:90"


def test_one_process_answers_with_threads(tmp_path: Path) -> None:
    config = Server(Settings(home=tmp_path, port=1234, threads=5)).cfg
    assert config.bind == ["127.0.0.1:1234"]
    assert (config.workers, config.threads) == (1, 5)
    assert config.timeout > 100  # Label Studio's own patience


def test_what_is_loaded_is_out_of_the_collectors_sight(tmp_path: Path) -> None:
    """Where the backbone cannot be loaded, too."""
    assert not gc.get_freeze_count()
    try:
        _warm(Parts(Settings(home=tmp_path, backbone="no such network")))
        assert gc.get_freeze_count()
    finally:
        gc.unfreeze()


@pytest.mark.slow
def test_the_process_answers_health_and_ends_when_told(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, port=free_port(), redis_url="redis://127.0.0.1:1/0")
    url = f"http://127.0.0.1:{settings.port}"
    environment = {**os.environ, **as_environment(settings)}
    command = [sys.executable, "-m", "cli", "serve"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stderr=log, stdout=log)
    try:
        deadline = time.monotonic() + 60
        while not answers_http(f"{url}/health"):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        body = b'{"project": "1.2", "schema": "<View>\\u6c49</View>"}'
        headers = {"Content-Type": "application/json"}
        with pytest.raises(urllib.error.HTTPError) as told:
            urllib.request.urlopen(urllib.request.Request(f"{url}/setup", body, headers))
        told.value.close()
        assert told.value.code == 400
        assert "Image" in told.value.reason or "Taxonomy" in told.value.reason
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait(10)


@pytest.mark.slow
def test_health_is_answered_while_a_crowd_waits_for_its_pictures(tmp_path: Path) -> None:
    """Each of forty people waits for a picture that does not come; nobody else waits for them."""
    come = threading.Event()

    def late(_handler: Handler) -> None:
        come.wait(60)

    with serving() as pictures, ThreadPoolExecutor(40) as crowd:
        pictures.answers["/data/late.jpg"] = late
        settings = Settings(
            home=tmp_path,
            port=free_port(),
            redis_url="redis://127.0.0.1:1/0",
            label_studio_url=pictures.url,
            device="cpu",
            backbone="tf_efficientnet_lite0",
        )
        known = project(pictures.url, xml=taxonomy_xml(TREE))
        store = ModelStore(tmp_path / "models")
        store.register(known)
        publish(store, known, fingerprint=load_backbone().fingerprint)
        url = f"http://127.0.0.1:{settings.port}"
        task = {"id": 1, "data": {"image": "/data/late.jpg"}}
        call = {"project": known.project, "label_config": known.label_config, "tasks": [task]}

        def predict() -> bool:
            try:
                requests.post(f"{url}/predict", json=call, timeout=60)
            except requests.ConnectionError:  # ended below
                return False
            return True

        environment = {**os.environ, **as_environment(settings)}
        command = [sys.executable, "-m", "cli", "serve"]
        with (tmp_path / "log").open("wb") as log:
            process = subprocess.Popen(command, env=environment, stderr=log, stdout=log)
        try:
            waiting: list[Future[bool]] = []
            deadline = time.monotonic() + 180
            while not answers_http(f"{url}/health"):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            waiting = [crowd.submit(predict) for _ in range(40)]
            while len(pictures.asked) < 40:
                assert time.monotonic() < deadline, (tmp_path / "log").read_text()
                time.sleep(0.05)
            assert answers_http(f"{url}/health")
            assert not any(one.done() for one in waiting)
        finally:
            come.set()
            process.kill()
            process.wait(10)


@pytest.mark.slow
def test_a_server_whose_application_cannot_be_loaded_ends_with_an_error(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, port=free_port(), redis_url="redis://127.0.0.1:1/0")
    program = (
        "import os; from cli import serve; from worker.settings import Settings\n"
        "def broken(_): raise OSError('no such disk')\n"
        "serve._application = broken\n"
        "serve.serve(Settings.from_environ(os.environ))"
    )
    environment = {**os.environ, **as_environment(settings)}
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 3
    assert "no such disk" in ended.stderr
