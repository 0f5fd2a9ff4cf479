"""What doctor finds: each thing that can be wrong on this machine, with its fix."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rq import Worker

from inference.store import ModelStore
from studio.project_checks import Finding
from tests.published import project
from tests.redis import running
from tests.studio.servers import Reply, Request, serving
from worker.doctor import examine
from worker.parts import Parts
from worker.queue import Board, connect
from worker.settings import Secret, Settings


@pytest.fixture
def settings(tmp_path: Path, redis_url: str, board: Board) -> Settings:
    """An empty store, an empty Redis, and no Label Studio."""
    return Settings(home=tmp_path, redis_url=redis_url, device="cpu", backbone="no_such")


def found(settings: Settings) -> dict[str, Finding]:
    """Findings by what they are about; each that is wrong says how to fix it."""
    findings = examine(Parts(settings))
    assert all(one.ok or one.fix for one in findings)
    return {one.code: one for one in findings}


def test_a_server_without_label_studio_is_told_which_variable_is_missing(
    settings: Settings,
) -> None:
    told = found(settings)["label-studio"]
    assert not told.ok
    assert told.what == "LABEL_STUDIO_URL is not set"
    told = found(replace(settings, label_studio_url="http://studio"))["label-studio"]
    assert told.what == "LABEL_STUDIO_API_KEY is not set"


def test_a_token_that_cannot_be_one_is_told(settings: Settings) -> None:
    wrong = replace(settings, label_studio_url="http://a", label_studio_token=Secret(" "))
    assert not found(wrong)["token"].ok


def test_no_worker_is_told(settings: Settings) -> None:
    told = found(settings)
    assert told["redis"].ok
    assert not told["worker"].ok
    assert "hrn work" in told["worker"].fix


def test_a_worker_is_seen(settings: Settings, board: Board) -> None:
    Worker([board.queue], connection=board.redis, serializer="json").register_birth()
    told = found(settings)["worker"]
    assert told.ok
    assert told.what.startswith("1 worker(s)")


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1/0", ""], ids=["not there", "not set"])
def test_redis_that_cannot_be_reached_is_told(settings: Settings, url: str) -> None:
    told = found(replace(settings, redis_url=url))
    assert not told["redis"].ok
    assert "hrn up" in told["redis"].fix
    assert "worker" not in told


def test_a_store_that_cannot_be_written_is_told(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file where the folder should be", encoding="utf-8")
    told = found(settings)["store"]
    assert not told.ok
    assert "HRN_HOME" in told.fix


def test_a_store_that_can_be_written_is_seen(settings: Settings) -> None:
    assert found(settings)["store"].ok


def test_a_gpu_that_is_asked_for_and_absent_is_told(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    told = found(replace(settings, device="cuda"))["device"]
    assert not told.ok
    assert "HRN_DEVICE=auto" in told.fix
    assert found(settings)["device"].what == "computing on the CPU"


def test_a_backbone_that_is_not_here_is_told(settings: Settings) -> None:
    told = found(settings)["backbone"]
    assert not told.ok
    assert "no_such" in told.what


@pytest.mark.parametrize(
    ("status", "ok", "words"), [(200, True, "answers"), (401, False, "401"), (502, False, "502")]
)
def test_our_own_address_is_tried_with_our_password(
    settings: Settings, status: int, *, ok: bool, words: str
) -> None:
    with serving(lambda _: Reply(status=status)) as server:
        told = found(replace(settings, backend_url=server.url, password=Secret("é")))["address"]
        assert server.requests[0].path == "/health"
        assert str(server.requests[0].token).startswith("Basic ")
    assert told.ok is ok
    assert words in told.what


def test_an_address_that_is_not_set_or_where_nobody_is_is_told(settings: Settings) -> None:
    assert "not set" in found(settings)["address"].what
    assert not found(replace(settings, backend_url="http://127.0.0.1:1"))["address"].ok


def test_our_own_address_is_not_looked_for_through_a_proxy(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with serving(lambda _: Reply()) as server, serving(lambda _: Reply(status=502)) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        settings = replace(
            settings, backend_url=server.url, label_studio_url="http://studio.example"
        )
        told = found(settings)
        assert proxy.requests == []
    assert told["address"].ok
    assert "HTTP_PROXY and HTTPS_PROXY is set" in told["proxy"].what
    assert "Label Studio is asked through it" in told["proxy"].what
    assert "images are always fetched without it" in told["proxy"].what
    monkeypatch.setenv("NO_PROXY", "studio.example")
    assert "Label Studio is asked without it" in found(settings)["proxy"].what
    monkeypatch.delenv("http_proxy")
    monkeypatch.delenv("HTTPS_PROXY")
    assert "proxy" not in found(settings)


def test_a_redis_that_wants_a_password_is_told_in_words(settings: Settings, tmp_path: Path) -> None:
    with running(tmp_path / "locked") as url, connect(url) as connection:
        connection.config_set("requirepass", "s3cret")
        told = found(replace(settings, redis_url=url))["redis"]
    assert not told.ok
    assert "a password is needed: REDIS_URL=redis://:PASSWORD@host" in told.what
    assert "HELLO" not in told.what


def studio(request: Request) -> Reply:
    """A Label Studio with one account and no project."""
    known = {
        "/api/version": {"release": "1.23.2"},
        "/api/current-user/whoami": {"email": "admin@example.com"},
        "/api/projects/": {"results": []},
    }
    return Reply(known[request.path]) if request.path in known else Reply({}, 404)


def test_no_project_is_told_beside_a_label_studio_that_answers(settings: Settings) -> None:
    with serving(studio) as server:
        told = found(
            replace(settings, label_studio_url=server.url, label_studio_token=Secret("a" * 40))
        )
    assert told["label-studio"].ok
    assert "admin@example.com" in told["label-studio"].what
    assert "hrn connect" in told["project"].fix


def test_projects_of_another_label_studio_are_left_out_and_one_number_is_asked_once(
    settings: Settings,
) -> None:
    with serving(studio) as server:
        store = ModelStore(settings.store)
        for url, name in ((server.url, "1.5"), (server.url, "1.6"), ("http://other", "2.7")):
            store.save_project(project(url, name))
        findings = examine(
            Parts(
                replace(settings, label_studio_url=server.url, label_studio_token=Secret("a" * 40))
            )
        )
    about = [one.what for one in findings if "no project" in one.what]
    assert len(about) == 1
    assert "project 1 " in about[0]
