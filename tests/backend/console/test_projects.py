"""The page of all projects: states in words, what is wrong, names from outside as mere text."""

import html
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flask.testing import FlaskClient
from rq import Worker
from rq.job import JobStatus

from backend.app import create_app
from backend.console.layout import plain
from backend.console.project_status import project_status, sentence
from hierarchy.calibration import Evidence
from inference.store import Project
from tests.backend.conftest import go_live
from tests.backend.console.conftest import PASSWORD, Post, sign_in
from tests.inference.small import HEAD, head_of
from tests.inference.small import publish as publish_with_evidence
from tests.published import TREE
from worker.order import Order
from worker.parts import Parts
from worker.progress import Progress
from worker.queue import Board
from worker.reading import Read
from worker.settings import Secret, Settings

NASTY = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"


def words_of(parts: Parts, known: Project) -> str:
    """The project's state in words."""
    return sentence(project_status(parts, known), 20, 5.0)


def card(client: FlaskClient, known: Project) -> str:
    """The part of the page that is about a project."""
    page = client.get("/console").text
    return page.split(f'id="p-{known.key}"')[1].split("</article>")[0]


def test_a_project_without_a_version_says_what_it_waits_for(
    parts: Parts, fresh: Callable[..., Project], board: Board
) -> None:
    known = fresh()
    board.note_event(known.key)
    told = words_of(parts, known)
    assert told == (
        "Not trained yet: 1 label so far, first training at 20 new answers, or 5 min after the "
        "last one."
    )


def test_a_live_project_says_what_it_learnt_and_when_it_learns_again(
    parts: Parts, fresh: Callable[..., Project], board: Board
) -> None:
    known = fresh()
    go_live(parts, known)
    assert words_of(parts, known) == (
        "Learning from 20 labels, nothing new since v1, next training at 20 new answers."
    )
    for _ in range(14):
        board.note_event(known.key)
    assert words_of(parts, known) == (
        "Learning from 20 labels, 14 new since v1, next training at 20 new answers, or 5 min after "
        "the last one."
    )


def test_labels_whose_events_were_lost_are_counted_too(
    parts: Parts, fresh: Callable[..., Project], board: Board
) -> None:
    known = fresh()
    go_live(parts, known)
    board.note_unlearnt(known.key, 7)
    assert "7 new since v1" in words_of(parts, known)
    board.events_read(known.key)
    assert "nothing new" in words_of(parts, known)


def test_a_running_training_is_told_with_its_stage(
    parts: Parts, fresh: Callable[..., Project], board: Board, admin: FlaskClient
) -> None:
    known = fresh()
    go_live(parts, known)
    running(board, known)("fitting", 40, 100)
    assert words_of(parts, known).startswith(
        "Learning from 20 labels; training now: fitting the head, 40 %"
    )
    text = card(admin, known)
    assert "Training" in text
    assert '<progress aria-label="Training of' in text
    state = admin.get("/console/state").get_json()
    assert state["pause"] == 1000
    assert state[f"{known.key} percent"] == 40


def running(board: Board, known: Project) -> Progress:
    """A training of the project that says that it runs, as its worker would."""
    asked = board.ask(Order(known.key, "asked"))
    job = board._job(known.key)
    assert job is not None
    job.set_status(JobStatus.STARTED)
    return Progress(board, known.key, asked.job, "asked")


def test_a_card_shows_version_labels_and_figures(
    parts: Parts, fresh: Callable[..., Project], admin: FlaskClient
) -> None:
    known = fresh()
    go_live(parts, known)
    text = card(admin, known)
    for part in ("v1", "Right on level 2", "90 %", "80 %", "Live version"):
        assert part in text


def test_a_live_version_that_shows_nothing_is_not_green_and_says_what_is_missing(
    parts: Parts, fresh: Callable[..., Project], admin: FlaskClient
) -> None:
    known = fresh()
    six = np.linspace(0.95, 0.99, 6)
    few = Evidence(np.column_stack([six, six]), np.ones((6, 2), dtype=np.int64))
    version = publish_with_evidence(parts.store, known, TREE, head_of(TREE, HEAD), known=few)
    parts.store.point(known.key, version, reason="test")
    text = card(admin, known)
    assert "Shows nothing yet" in text
    assert re.search(r"Shows nothing yet: too little evidence; about \d+ more answers?\.", text)
    assert 'class="chip good"' not in text
    assert ">Live<" not in text
    training = admin.get(f"/console/projects/{known.key}/training").text
    assert "Shows nothing yet: too little evidence; about" in training
    for tab in ("tree", "look", "trust"):
        assert 'class="tag live"' not in admin.get(f"/console/projects/{known.key}/{tab}").text


def test_after_going_back_newer_answers_are_not_nothing(
    parts: Parts, fresh: Callable[..., Project], board: Board
) -> None:
    known = fresh()
    go_live(parts, known, trained_through="2026-11-23T14:00:00.000000Z")
    board.note_attempt(known.key, Read("2026-11-23T15:00:00.000000Z", {}))
    assert "newer answers than those of v1 are being counted" in words_of(parts, known)
    board.note_behind(known.key, "v1", 15)
    assert words_of(parts, known) == (
        "Learning from 20 labels, 15 new since v1 (a training has read them already), next "
        "training at 20 new answers."
    )
    board.note_unlearnt(known.key, 2)
    assert "17 new since v1 (a training has read 15 of them already)" in words_of(parts, known)


def test_what_names_come_from_outside_is_text(
    parts: Parts, fresh: Callable[..., Project], board: Board, admin: FlaskClient
) -> None:
    known = replace(fresh(), title=NASTY)
    parts.store.save_project(known)
    board.log_run(known.key, {"job": "j", "state": "failed", "why": NASTY, "reason": NASTY})
    for path in ("/console", f"/console/projects/{known.key}/training"):
        text = admin.get(path).text
        assert NASTY not in text
        assert "<script>alert" not in text
        assert "<img" not in text
        assert (
            html.escape(NASTY, quote=True).replace("&quot;", "&#34;").replace("&#x27;", "&#39;")
            in text
        )


@pytest.mark.parametrize(
    ("address", "link"),
    [
        ("javascript:alert(1)", None),
        ("http://studio:8080", "http://studio:8080/projects/{number}/data"),
        ("https://user:secret@studio/ls", "https://studio/ls/projects/{number}/data"),
        ("studio", None),
    ],
)
def test_only_web_addresses_are_linked_to(
    bare: Callable[..., FlaskClient], address: str, link: str | None
) -> None:
    client = bare(console_password=Secret(PASSWORD))
    services = client.application.extensions["services"]
    services.parts.store.register(Project("k-1", 7, "7.1", address, "<View/>", "Title"))
    sign_in(client)
    text = client.get("/console").text
    assert "javascript:" not in text
    assert "secret" not in text.replace("hrn", "")
    if link is None:
        assert "Open in Label Studio" not in text
    else:
        assert f'href="{link.format(number=7)}"' in text


def test_links_lead_where_browsers_reach_label_studio(bare: Callable[..., FlaskClient]) -> None:
    """In a compose network the servers' name for it means nothing outside."""
    client = bare(
        console_password=Secret(PASSWORD),
        label_studio_url="http://label-studio:8080",
        label_studio_page="https://labels.example",
    )
    store = client.application.extensions["services"].parts.store
    store.register(Project("k-1", 7, "7.1", "http://label-studio:8080", "<View/>", "Title"))
    sign_in(client)
    text = client.get("/console").text
    assert 'href="https://labels.example/projects/7/data"' in text
    assert "http://label-studio:8080/projects" not in text


def test_a_version_chosen_by_hand_is_told(
    parts: Parts, fresh: Callable[..., Project], admin: FlaskClient
) -> None:
    known = fresh()
    go_live(parts, known)
    parts.store.save_project(replace(known, pinned=True))
    assert "chosen by hand and stays live" in card(admin, known)


def test_a_version_that_cannot_be_read_is_a_problem_not_an_error(
    parts: Parts, fresh: Callable[..., Project], admin: FlaskClient
) -> None:
    known = fresh()
    go_live(parts, known)
    path = parts.store.root / "projects" / known.key / "versions" / "v1" / "manifest.json"
    path.write_text("{", encoding="utf-8")
    text = card(admin, known)
    assert "Needs attention" in text
    assert "Promote another version" in text
    assert str(parts.store.root) not in text


def test_a_training_that_was_put_off_is_told_with_its_reason(
    parts: Parts, fresh: Callable[..., Project], board: Board, admin: FlaskClient
) -> None:
    known = fresh()
    board.postpone(Order(known.key), 60)
    why = "Label Studio answered 502; tried again in 60 s"
    board.log_run(known.key, {"job": "j", "state": "postponed", "why": why})
    text = card(admin, known)
    assert f"A training was put off: {why}" in text
    assert "by itself" in text


def test_doctor_is_inside(post: Post, board: Board) -> None:
    text = post("/console/checkup").text
    assert "no worker runs" in text
    assert "start one with `hrn work`" in html.unescape(text)
    assert "LABEL_STUDIO_API_KEY is not set" in text
    Worker([board.queue], connection=board.redis, serializer="json").register_birth()
    assert "1 worker(s)" in post("/console/checkup").text


def test_no_page_names_a_path_or_a_secret(
    post: Post, admin: FlaskClient, console_parts: Parts
) -> None:
    text = post("/console/checkup").text + admin.get("/console").text
    assert str(console_parts.settings.home) not in text
    assert PASSWORD not in text
    assert console_parts.settings.redis_url not in text


def test_the_page_stands_while_redis_is_away(
    admin_without_redis: FlaskClient, fresh: Callable[..., Project]
) -> None:
    fresh()
    reply = admin_without_redis.get("/console")
    assert reply.status_code == 200
    assert "predictions go on, trainings wait" in reply.text


def test_without_a_project_one_is_told_how_to_connect(bare: Callable[..., FlaskClient]) -> None:
    client = bare(console_password=Secret(PASSWORD))
    sign_in(client)
    assert "hrn connect" in client.get("/console").text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cannot write to the model store at /srv/hrn/models: full", "at its folder: full"),
        ("connecting to unix socket: /run/redis/redis.sock.", "its folder"),
        ("see http://studio:8080/projects/3/data", "see http://studio:8080/projects/3/data"),
        ("redis://user:pw@host:6379/0 is away", "redis://host:6379/0 is away"),
        ("12/40 pictures and/or more", "12/40 pictures and/or more"),
        ("answered GET /api/tasks/99 with 404", "answered GET /api/tasks/99 with 404"),
        ("a path (/data/upload/3/a.jpg) is none", "a path (/data/upload/3/a.jpg) is none"),
        ("/data/local-files/?d=a/b.jpg", "/data/local-files/?d=a/b.jpg"),
        (
            "see POST /api/token/refresh or /projects/22",
            "see POST /api/token/refresh or /projects/22",
        ),
        ("[Errno 2] No such file: '/home/anna/x.jpg'", "No such file: 'its folder'"),
    ],
)
def test_messages_lose_paths_and_passwords(admin: FlaskClient, text: str, shown: str) -> None:
    with admin.application.test_request_context():
        told = plain(text)
    assert shown in told
    for part in ("/srv", "/run", "/home", "pw@"):
        assert part not in told


@pytest.mark.parametrize("home", ["/data", "/opt/hrn home", "/scratch"])
def test_folders_that_settings_name_are_hidden_and_label_studio_s_paths_are_not(
    tmp_path: Path, home: str
) -> None:
    app = create_app(Parts(Settings(home=Path(home), local_files=tmp_path)))
    with app.test_request_context():
        told = plain(f"{home}/models/x.json and {tmp_path}/a.jpg are not /data/upload/1/a.jpg")
    assert told == "its folder and its folder are not /data/upload/1/a.jpg"


def test_the_revision_changes_with_what_is_shown(
    admin: FlaskClient, parts: Parts, fresh: Callable[..., Project]
) -> None:
    def told() -> Any:
        return admin.get("/console/state").get_json()["revision"]

    known = fresh()
    first = told()
    go_live(parts, known)
    assert told() != first
