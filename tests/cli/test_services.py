"""The processes of a server: what they are told, and when they are ready."""

from dataclasses import fields, replace
from pathlib import Path

import pytest

from cli import redis_server, services
from cli.supervisor import StartError, Supervisor
from inference.store import ModelStore
from tests.published import project
from tests.redis import running
from tests.studio.image_server import CERTIFICATE
from tests.studio.servers import Reply, serving
from worker.settings import Secret, Settings


def test_a_child_reads_back_the_settings_it_is_given(tmp_path: Path) -> None:
    weights = tmp_path / "weights.pth"
    weights.touch()
    settings = Settings(
        home=tmp_path.resolve(),
        store_url="s3://bucket/models",
        redis_url="unix:///run/r.sock",
        label_studio_url="http://studio",
        label_studio_page="https://labels.example",
        label_studio_token=Secret("token"),
        backend_url="http://backend",
        user="me",
        password=Secret("a=b é"),
        console_password=Secret("c"),
        host="0.0.0.0",
        port=1234,
        threads=4,
        device="cuda",
        backbone="resnet18+resnet34",
        backbone_weights=(None, weights.resolve()),
        target_accuracy=0.75,
        train_every=7,
        train_after=0.25,
        follow_minutes=3.0,
        fine_tune="off",
        group_field="store",
        allowed_hosts=frozenset({"public", "*.b.example", "minio:9000"}),
        allow_private=True,
        local_files=tmp_path.resolve(),
        max_megabytes=300.0,
        max_megapixels=250.5,
        requests_ca_bundle=CERTIFICATE.resolve(),
        ssl_cert_file=CERTIFICATE.resolve(),
        cache_gb=1.5,
        keep_versions=7,
    )
    same = [one.name for one in fields(Settings) if getattr(settings, one.name) == one.default]
    assert same == [], "give each setting another value than its default above"
    assert Settings.from_environ(services.as_environment(settings)) == settings
    services.write_environment(tmp_path, settings)
    assert Settings.from_environ(services.read_environment(tmp_path)) == settings


def test_what_other_commands_find_is_for_this_user_alone(tmp_path: Path) -> None:
    path = tmp_path / "home" / services.ENVIRONMENT_FILE
    path.parent.mkdir()
    path.touch(mode=0o666)
    services.write_environment(tmp_path / "home", Settings(password=Secret("secret")))
    assert path.stat().st_mode & 0o077 == 0


def test_where_no_server_was_nothing_is_found(tmp_path: Path) -> None:
    assert services.read_environment(tmp_path / "absent") == {}


def test_the_redis_that_is_set_goes_before_the_embedded_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("REDIS_URL", raising=False)
    assert services.redis_url(tmp_path) == redis_server.url(tmp_path)
    monkeypatch.setenv("REDIS_URL", "redis://elsewhere")
    assert services.redis_url(tmp_path) == "redis://elsewhere"


def test_a_second_server_in_one_home_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two Redis servers would write into one file."""
    monkeypatch.delenv("REDIS_URL", raising=False)
    with (
        running(tmp_path) as address,
        Supervisor(tmp_path / "logs") as supervisor,
        pytest.raises(StartError, match="a server runs already"),
    ):
        services.start_all(supervisor, Settings(home=tmp_path, redis_url=address))


@pytest.mark.parametrize(("status", "well"), [(200, True), (204, True), (401, False), (500, False)])
def test_a_server_is_there_when_it_answers_well(status: int, *, well: bool) -> None:
    with serving(lambda _: Reply(status=status)) as server:
        assert services.answers_http(server.url) is well
    assert not services.answers_http(server.url)


def test_on_loopback_the_console_gets_a_password_that_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HRN_CONSOLE_PASSWORD", raising=False)
    made = services.with_console(Settings(home=tmp_path))
    assert len(made.console_password.reveal()) >= 16
    assert made.console_password.reveal() in services.console_words(made)
    services.write_environment(tmp_path, made)
    assert services.with_console(Settings(home=tmp_path)) == made
    other = services.with_console(Settings(home=tmp_path / "other"))
    assert other.console_password != made.console_password


def test_where_others_can_reach_it_the_console_has_the_password_given_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HRN_CONSOLE_PASSWORD", raising=False)
    bare = Settings(home=tmp_path, host="0.0.0.0")
    assert not services.with_console(bare).console_password
    assert "HRN_CONSOLE_PASSWORD" in services.console_words(bare)
    monkeypatch.setenv("HRN_CONSOLE_PASSWORD", "given")
    given = replace(bare, console_password=Secret("given"))
    assert services.with_console(given) == given
    assert "given" not in services.console_words(given)


def test_this_machine_is_never_asked_through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with serving(lambda _: Reply()) as server, serving(lambda _: Reply(status=502)) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        assert services.answers_http(server.url)
        assert proxy.requests == []


def test_what_is_missing_for_a_project_is_said_before_it_is_tried(tmp_path: Path) -> None:
    bare = Settings(home=tmp_path, label_studio_url="http://studio")
    words = services.next_words(bare)
    assert "LABEL_STUDIO_API_KEY, HRN_BACKEND_URL" in words
    assert "LABEL_STUDIO_URL" not in words
    assert "hrn connect" not in words
    whole = replace(bare, label_studio_token=Secret("token"), backend_url="http://backend")
    assert services.next_words(whole) == "Next: hrn connect --project NUMBER"


def test_a_home_without_models_is_said_with_the_way_to_another(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    assert services.home_words(settings) == (
        f"No models in {tmp_path}/models yet: set HRN_HOME (or HRN_STORE) if yours are elsewhere"
    )
    ModelStore(tmp_path / "models").register(project("http://studio"))
    assert services.home_words(settings) == f"Models in {tmp_path}/models"


def test_a_redis_that_does_not_answer_is_named_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://:hunter2@127.0.0.1:1/0")
    settings = Settings(home=tmp_path, port=19398, redis_url="redis://:hunter2@127.0.0.1:1/0")
    with (
        Supervisor(tmp_path / "logs") as supervisor,
        pytest.raises(redis_server.NoRedisError, match=r"127\.0\.0\.1:1\.") as told,
    ):
        services.start_all(supervisor, settings)
    assert supervisor.children == []
    assert "hunter2" not in str(told.value)
