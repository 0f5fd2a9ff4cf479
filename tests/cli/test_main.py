"""The command line: help, exit statuses, and JSON that a script can read."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rq.job import JobStatus

from backend.console.limits import Tries
from cli import commands
from cli.__main__ import main
from cli.services import write_environment
from inference.store import ModelStore
from tests.published import project, publish
from worker.order import Order
from worker.parts import Parts
from worker.queue import Board
from worker.settings import Secret, Settings

COMMANDS = [
    "demo",
    "up",
    "serve",
    "work",
    "console",
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
        ["paint"],
        ["connect"],
        ["connect", "--project", "x"],
        ["train", "--fine-tune", "--no-fine-tune"],
        ["train", "--cancel", "--force"],
        ["train", "--cancel", "--wait"],
        ["train", "--cancel", "--no-fine-tune"],
    ],
)
def test_wrong_usage_ends_with_2(words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["stats"], "there is no command 'stats', did you mean 'status'? (`hrn` lists all)"),
        (["paint"], "there is no command 'paint' (`hrn` lists all)"),
        (["train", "--cancle"], "--cancle, did you mean '--cancel'?"),
        (["train", "--forec", "--wait"], "--forec, did you mean '--force'?"),
        (["status", "--nothing-like-it"], "unrecognized arguments: --nothing-like-it\n"),
        (["train", "--cancel", "--force"], "--cancel starts no training: leave out --force"),
        (["label-config", "--read", "a.xml", "--out", "b.xml"], "writes no file: leave out --out"),
    ],
)
def test_wrong_usage_says_what_may_have_been_meant(
    clean: Put, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    clean()
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_a_training_of_the_head_alone_may_be_asked_for(
    clean: Put, store: ModelStore, redis_url: str, board: Board
) -> None:
    clean(REDIS_URL=redis_url)
    assert main(["train", "--no-fine-tune"]) == 0
    assert board.wishes(store.projects()[0].key)[0]["order"]["fine_tune"] is False


def test_hrn_alone_is_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "usage: hrn" in capsys.readouterr().out


def test_it_says_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert re.fullmatch(r"hrn \d+\.\d+\.\d+\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("words", "status"),
    [(["--help"], 0), (["status"], 128 + signal.SIGPIPE), (["versions"], 128 + signal.SIGPIPE)],
)
def test_output_that_nobody_reads_ends_a_command_without_a_word(
    store: ModelStore, tmp_path: Path, words: list[str], status: int
) -> None:
    """As in `hrn status | head`."""
    reads, writes = os.pipe()
    os.close(reads)
    command = [sys.executable, "-m", "cli", "--home", str(tmp_path), *words]
    ended = subprocess.run(
        command, stdout=writes, stderr=subprocess.PIPE, text=True, check=False, timeout=60
    )
    os.close(writes)
    assert (ended.returncode, ended.stderr) == (status, "")


def test_up_names_a_redis_that_is_away_at_once(tmp_path: Path) -> None:
    environment = {**os.environ, "HRN_PORT": "19397", "REDIS_URL": "redis://127.0.0.1:1/0"}
    command = [sys.executable, "-m", "cli", "--home", str(tmp_path), "up"]
    ended = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=30
    )
    assert ended.returncode == 1
    assert "Redis cannot be reached: Error 111 connecting to 127.0.0.1:1" in ended.stderr
    assert "correct REDIS_URL" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    assert not list((tmp_path / "logs").glob("*"))  # nothing was started


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
    assert "hrn: Redis cannot be reached: Error 111" in capsys.readouterr().err


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


@pytest.mark.parametrize(
    ("address", "problem"),
    [("redis://127.0.0.1:1/0", "Redis cannot be reached"), ("", "REDIS_URL is not set")],
)
def test_status_without_redis_shows_versions_and_ends_with_1(
    clean: Put, store: ModelStore, capsys: pytest.CaptureFixture[str], address: str, problem: str
) -> None:
    clean(REDIS_URL=address)
    assert main(["status"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("PROBLEM: ")
    assert problem in lines[-1]
    assert lines[-2] == f"home {store.root.parent}"
    assert main(["status", "--json"]) == 1
    told = said(capsys)
    assert problem in told["problem"]
    assert told["workers"] == []
    assert [row["version"] for row in told["projects"]] == ["v2"]


def test_an_empty_home_is_named_with_the_way_to_another(
    clean: Put, tmp_path: Path, redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    clean(REDIS_URL=redis_url, HRN_HOME=tmp_path / "new")
    assert main(["status"]) == 0
    out = capsys.readouterr().out
    assert f"set HRN_HOME if yours are elsewhere than in {tmp_path / 'new'}" in out
    assert f"home {tmp_path / 'new'}" in out
    assert not (tmp_path / "new").exists()
    for words in (["train"], ["versions"], ["predict", "cat.jpg"]):
        assert main(words) == 1
        assert f"in {tmp_path / 'new' / 'models'}" in capsys.readouterr().err


def test_several_projects_are_told_apart_by_number_and_title(
    clean: Put, store: ModelStore, capsys: pytest.CaptureFixture[str]
) -> None:
    clean()
    store.register(replace(project("http://studio", "21.1795440233"), title="Birds"))
    store.register(project("http://other", "22.1795440233"))
    store.register(project("http://third", "22.1795440233"))
    assert main(["versions"]) == 1
    assert "one of: 1, 22-" not in (err := capsys.readouterr().err)
    assert "21 (Birds)" in err
    assert "other-22-1795440233" in err


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
    board.wishes(store.projects()[0].key)
    board._job(store.projects()[0].key).set_status(JobStatus.STARTED)  # type: ignore[union-attr]
    assert main(["train"]) == 0
    capsys.readouterr()
    assert main(["train", "--cancel"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{job.id} was asked to stop, which takes seconds (hrn train)",
        "a training that waited was dropped (hrn train)",
    ]
    board.finished(store.projects()[0].key, job.id)
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
    clean(REDIS_URL=redis_url)
    monkeypatch.setattr(commands, "PATIENCE", 1)
    settings = Settings(home=store.root.parent, redis_url=redis_url)
    assert commands.follow(Parts(settings), store.projects()[0].key, "train-1", as_json=False) == 1
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
    assert "cannot be reached" in said(capsys)["problem"]


def test_a_server_does_not_start_from_what_the_last_one_was_told(
    clean: Put, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_environment(tmp_path, Settings(home=tmp_path, host="0.0.0.0"))
    clean(HRN_PORT="ninety")
    assert main(["up"]) == 2
    assert "HRN_PORT" in capsys.readouterr().err
    from cli.__main__ import _parser, _settings

    arguments = _parser().parse_args(["up"])
    assert _settings(arguments, {"HRN_HOME": str(tmp_path)}).host == "127.0.0.1"


def test_the_demo_has_a_home_of_its_own() -> None:
    from cli.__main__ import _parser, _settings

    arguments = _parser().parse_args(["demo"])
    assert _settings(arguments, {}).home == Path("var/demo")
    assert _settings(arguments, {"HRN_HOME": "elsewhere"}).home == Path("elsewhere")
    named = _parser().parse_args(["--home", "there", "demo"])
    assert _settings(named, {"HRN_HOME": "elsewhere"}).home == Path("there")


def test_the_console_s_password_is_said_again_and_its_lock_is_opened(
    clean: Put, tmp_path: Path, redis_url: str, board: Board, capsys: pytest.CaptureFixture[str]
) -> None:
    secret, ours = Secret("correct-horse"), {"home": tmp_path, "redis_url": redis_url}
    write_environment(tmp_path, Settings(console_password=secret, **ours))  # type: ignore[arg-type]
    clean()
    tries = Tries(Parts(Settings(**ours)))  # type: ignore[arg-type]
    while not tries.take("192.0.2.1"):
        pass
    assert main(["console"]) == 0
    assert "/console, password correct-horse" in capsys.readouterr().out
    assert tries.take("192.0.2.1") > 0
    assert main(["console", "--unlock"]) == 0
    assert tries.take("192.0.2.1") == 0


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
    assert "fix: " in text


def test_predicting_without_a_version_ends_with_1(
    clean: Put, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clean()
    ModelStore(tmp_path / "models").register(project("http://studio"))
    assert main(["predict", "cat.jpg"]) == 1
    assert "untrained" in capsys.readouterr().err
