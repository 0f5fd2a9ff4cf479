"""The command line: help, exit statuses, and JSON that a script can read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from command.__main__ import main
from command.services import write_environment
from models.store import ModelStore
from tests.published import project, publish
from worker.order import Order
from worker.queue import Board
from worker.settings import Settings

COMMANDS = [
    "demo",
    "up",
    "serve",
    "work",
    "connect",
    "disconnect",
    "forget",
    "train",
    "status",
    "versions",
    "promote",
    "rollback",
    "predict",
    "backup",
    "restore",
    "doctor",
]

Put = Callable[..., None]


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    """One project with two versions, the second live."""
    made = ModelStore(tmp_path / "models")
    known = made.register(project("http://studio"))
    publish(made, known)
    publish(made, known)
    return made


def said(capsys: pytest.CaptureFixture[str]) -> Any:
    """What was printed, as JSON."""
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("words", [["--help"], *([name, "--help"] for name in COMMANDS)])
def test_every_command_explains_itself(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "usage: hrn" in text
    assert all(name in text for name in COMMANDS) or words != ["--help"]


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["paint"],
        ["connect"],
        ["connect", "--project", "x"],
        ["train", "--fine-tune", "--no-fine-tune"],
    ],
)
def test_wrong_usage_ends_with_2(words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2


def test_a_wrong_setting_ends_with_2_and_its_name(
    clean: Put, capsys: pytest.CaptureFixture[str]
) -> None:
    clean(HRN_PORT="ninety")
    assert main(["status"]) == 2
    assert capsys.readouterr().err.startswith("hrn: HRN_PORT: expected a port")


@pytest.mark.parametrize("command", ["up", "serve"])
def test_an_open_server_without_a_password_is_refused(
    clean: Put, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    clean(HRN_HOST="0.0.0.0")
    assert main([command]) == 2
    assert "HRN_PASSWORD is not set" in capsys.readouterr().err


def test_an_unknown_project_ends_with_1_and_the_known_ones(
    clean: Put, store: ModelStore, capsys: pytest.CaptureFixture[str]
) -> None:
    clean()
    assert main(["versions", "--project", "7"]) == 1
    assert "no project fits '7'" in capsys.readouterr().err


def test_errors_of_ours_can_be_seen_whole(clean: Put, store: ModelStore) -> None:
    clean()
    with pytest.raises(Exception, match="no project fits"):
        main(["--verbose", "versions", "--project", "7"])


@pytest.mark.parametrize("command", ["work", "train"])
def test_what_needs_redis_says_so(
    clean: Put, store: ModelStore, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    clean()
    assert main([command]) == 1
    assert "REDIS_URL is not set" in capsys.readouterr().err
    clean(REDIS_URL="redis://127.0.0.1:1/0")
    assert main([command]) == 1
    assert "hrn: " in capsys.readouterr().err


def test_a_worker_is_not_started_where_redis_does_not_answer(
    clean: Put, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clean(REDIS_URL="redis://127.0.0.1:1/0")
    assert main(["work"]) == 1
    assert not (tmp_path / "logs").exists()


def test_versions_as_words_and_as_json(
    clean: Put, store: ModelStore, capsys: pytest.CaptureFixture[str]
) -> None:
    clean()
    assert main(["versions"]) == 0
    assert "* v2" in capsys.readouterr().out
    assert main(["versions", "--json"]) == 0
    assert [(row["version"], row["live"]) for row in said(capsys)] == [("v1", False), ("v2", True)]


def test_rollback_and_promote(
    clean: Put, store: ModelStore, capsys: pytest.CaptureFixture[str]
) -> None:
    clean()
    (known,) = store.projects()
    assert main(["rollback"]) == 0
    assert store.current(known.key) == "v1"
    assert main(["rollback"]) == 1
    assert main(["promote", "v2"]) == 0
    assert store.current(known.key) == "v2"
    assert main(["promote", "v7"]) == 1
    assert "v7" in capsys.readouterr().err


def test_a_backup_is_restored_into_another_home(
    clean: Put, store: ModelStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clean()
    file, home = str(tmp_path / "kept.zip"), tmp_path / "new"
    assert main(["backup", file]) == 0
    assert main(["--home", str(home), "restore", file]) == 0
    assert ModelStore(home / "models").current(store.projects()[0].key) == "v2"
    assert main(["--home", str(home), "restore", file]) == 1
    assert "holds projects already" in capsys.readouterr().err


def test_status_as_json_without_redis(
    clean: Put, store: ModelStore, capsys: pytest.CaptureFixture[str]
) -> None:
    clean()
    assert main(["status", "--json"]) == 0
    told = said(capsys)
    assert told["workers"] == []
    assert [row["version"] for row in told["projects"]] == ["v2"]


def test_a_training_is_asked_for_and_cancelled(
    clean: Put,
    store: ModelStore,
    redis_url: str,
    board: Board,
    capsys: pytest.CaptureFixture[str],
) -> None:
    clean(REDIS_URL=redis_url)
    assert main(["train", "--json", "--force", "--no-fine-tune"]) == 0
    told = said(capsys)
    (job,) = board.queue.jobs
    assert told == {"project": store.projects()[0].key, "job": job.id, "state": "queued"}
    assert (job.args[0]["force"], job.args[0]["fine_tune"]) == (True, False)
    assert main(["train", "--cancel"]) == 0
    assert board.depth() == 0
    assert main(["train", "--cancel"]) == 1


@pytest.mark.parametrize(("state", "status"), [("published", 0), ("nothing new", 0), ("failed", 1)])
def test_waiting_for_a_training_follows_it_over_a_death_to_its_end(
    clean: Put,
    store: ModelStore,
    redis_url: str,
    board: Board,
    capsys: pytest.CaptureFixture[str],
    state: str,
    status: int,
) -> None:
    clean(REDIS_URL=redis_url)
    key = store.projects()[0].key
    first = board.ask(Order(key)).job
    board.log_run(key, {"job": first, "state": "died", "why": "killed", "again": "train-2"})
    board.log_run(key, {"job": "train-2", "state": state, "why": "because"})
    assert main(["train", "--wait", "--json"]) == status
    assert said(capsys)["state"] == state


def test_waiting_for_a_training_that_redis_forgot_ends(
    clean: Put,
    store: ModelStore,
    redis_url: str,
    board: Board,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from command.__main__ import _follow
    from worker.parts import Parts

    clean(REDIS_URL=redis_url)
    monkeypatch.setattr("command.__main__.PATIENCE", 1)
    settings = Settings(home=store.root.parent, redis_url=redis_url)
    assert _follow(Parts(settings), store.projects()[0].key, "train-1", as_json=False) == 1
    assert "gone from Redis" in capsys.readouterr().err


def test_other_commands_find_a_running_server_and_the_environment_goes_first(
    clean: Put, tmp_path: Path, redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_environment(tmp_path, Settings(home=tmp_path, redis_url=redis_url))
    clean()
    main(["status", "--json"])
    assert said(capsys)["waiting_jobs"] == 0
    clean(REDIS_URL="redis://127.0.0.1:1/0")
    main(["status", "--json"])
    assert "cannot be reached" in said(capsys)["waiting_jobs"]


def test_a_server_does_not_start_from_what_the_last_one_was_told(
    clean: Put, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_environment(tmp_path, Settings(home=tmp_path, host="0.0.0.0"))
    clean(HRN_PORT="ninety")
    assert main(["up"]) == 2
    assert "HRN_PORT" in capsys.readouterr().err
    from command.__main__ import _parser, _settings

    arguments = _parser().parse_args(["up"])
    assert _settings(arguments, {"HRN_HOME": str(tmp_path)}).host == "127.0.0.1"


def test_the_demo_has_a_home_of_its_own() -> None:
    from command.__main__ import _parser, _settings

    arguments = _parser().parse_args(["demo"])
    assert _settings(arguments, {}).home == Path("var/demo")
    assert _settings(arguments, {"HRN_HOME": "elsewhere"}).home == Path("elsewhere")
    named = _parser().parse_args(["--home", "there", "demo"])
    assert _settings(named, {"HRN_HOME": "elsewhere"}).home == Path("there")


def test_doctor_ends_with_1_and_names_what_is_wrong(
    clean: Put, capsys: pytest.CaptureFixture[str]
) -> None:
    clean(HRN_BACKBONE="no_such")
    assert main(["doctor", "--json"]) == 1
    codes = {row["code"]: row["ok"] for row in said(capsys)}
    assert codes["store"] is True
    assert codes["redis"] is False
    assert main(["doctor"]) == 1
    text = capsys.readouterr().out
    assert "WRONG" in text
    assert "mend: " in text


def test_predicting_without_a_version_ends_with_1(
    clean: Put, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clean()
    ModelStore(tmp_path / "models").register(project("http://studio"))
    assert main(["predict", "cat.jpg"]) == 1
    assert "untrained" in capsys.readouterr().err
