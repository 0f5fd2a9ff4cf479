"""/console/projects/<key>/training: start, watch, cancel; the queue, the workers, past runs."""

import re
import unicodedata
from collections.abc import Mapping
from typing import Any, Final

from flask import jsonify, request
from flask.typing import ResponseReturnValue

from backend.console.blueprint import bp
from backend.console.layout import back_to, page, plain, tell, the_project
from backend.console.project_status import (
    STAGES,
    Training,
    curves,
    figures_of,
    project_status,
    revision,
    sentence,
)
from backend.services import from_redis, services
from inference.store import DISCONNECTED, GONE, Project
from worker import presence
from worker.order import Order
from worker.queue import Board

#: Longest note of a person on why a training is asked for, in characters.
NOTE: Final = 200

#: Past runs on the page.
SHOWN: Final = 30

#: Ways to train, as the form sends them: whether the backbone learns too.
WAYS: Final[Mapping[str, bool | None]] = {"usual": None, "head": False, "tune": True}

#: How a run ended -> kind of its chip.
ENDS: Final[Mapping[str, str]] = {
    "published": "good",
    "nothing new": "plain",
    "kept back": "plain",
    "cancelled": "plain",
    "disconnected": "plain",
    "refused": "warn",
    "postponed": "warn",
    "too few labels": "warn",
    "failed": "wrong",
    "died": "wrong",
}


@bp.get("/projects/<key>/training", endpoint="training")
def _training(key: str) -> ResponseReturnValue:
    """Show a project's trainings."""
    project = the_project(key)
    parts, settings = services().parts, services().parts.settings
    told = project_status(parts, project)
    return page(
        "training",
        title="Training",
        project=project,
        told=told,
        training=told.training,
        sentence=sentence(told, settings.train_every, settings.train_after, brief=True),
        curves=curves(told.training),
        figures=figures_of(told.training),
        asked=_asked(project, told.training),
        refresh=_refresh(project),
        workers=_workers(),
        waiting=_depth(),
        runs=[_run(run) for run in told.training.runs[:SHOWN]],
        wishes=[_wish(wish) for wish in told.training.wishes],
        stages=STAGES,
        note=NOTE,
        revision=_revision(project, told.training),
    )


@bp.get("/projects/<key>/training/state", endpoint="training_state")
def _state(key: str) -> ResponseReturnValue:
    """Return what keeps the page up to date: asked for every second while something runs."""
    project = the_project(key)
    parts, settings = services().parts, services().parts.settings
    told = project_status(parts, project)
    training, drawn, refresh = told.training, curves(told.training), _refresh(project)
    busy = training.state != "idle" or refresh is not None
    quarter = training.percent // 25 * 25
    state: dict[str, Any] = {
        "pause": 1000 if busy else 5000,
        "revision": _revision(project, training),
        "sentence": sentence(told, settings.train_every, settings.train_after, brief=True),
        "stage": training.stage,
        "percent": training.percent,
        "percent_text": f"{training.percent} %" if training.stage else "",
        "left": training.left,
        "figures": figures_of(training),
        "loss": drawn.get("loss"),
        "accuracy": drawn.get("accuracy"),
        "refresh_percent": (refresh or {}).get("percent"),
        "refresh_text": (refresh or {}).get("words", ""),
        "announce": f"{training.stage}, {quarter} per cent" if training.stage else told.chip,
    }
    return jsonify(state)


@bp.post("/projects/<key>/training/start", endpoint="training_start")
def _start(key: str) -> ResponseReturnValue:
    """Ask for a training."""
    project = the_project(key)
    if project.state in (DISCONNECTED, GONE):
        tell(f"Nothing was asked for: {presence.sentence(project)}.", "wrong")
        return back_to("training", key=key)
    tune = WAYS.get(request.form.get("way", ""))
    note = _one_line(request.form.get("note", ""))
    reason = f"asked in the console: {note}" if note else "asked in the console"
    order = Order(project.key, reason, request.form.get("force") == "yes", tune)
    asked = services().parts.board.ask(order)
    return back_to("training", key=key, asked=asked.job)


@bp.post("/projects/<key>/training/cancel", endpoint="training_cancel")
def _cancel(key: str) -> ResponseReturnValue:
    """Stop what runs, or drop what waits or was put off: the one that the form names."""
    project = the_project(key)
    stopped = services().parts.board.cancel(project.key, request.form.get("only", ""))
    if not stopped:
        tell("Nothing was stopped: that training has begun or ended meanwhile.", "plain")
    if any(one["state"] != "running" for one in stopped):
        tell("The training that had not begun was dropped; it is among the past trainings.")
    running = next((one["job"] for one in stopped if one["state"] == "running"), None)
    return back_to("training", key=key, asked=running)


@bp.post("/projects/<key>/training/stop-refresh", endpoint="training_stop_refresh")
def _stop_refresh(key: str) -> ResponseReturnValue:
    """Stop giving open tasks new answers; what is stored stays."""
    project = the_project(key)
    board = services().parts.board
    told = board.refresh_progress(project.key)
    if told is None:
        tell("No refresh runs.", "plain")
    else:
        board.stop_refresh(project.key, str(told.get("version")))
        tell("The refresh was asked to stop; what is stored stays.")
    return back_to("training", key=key)


def _asked(project: Project, training: Training) -> tuple[str, str] | None:
    """Return kind and words of a message about the training that the address names."""
    job = request.args.get("asked")
    ended = {run.get("job"): run for run in training.runs}
    for _ in training.runs:  # its process died, another took its place
        job = ended.get(job, {}).get("again", job)
    if (run := ended.get(job)) is not None and job:
        how, why = str(run.get("state")), plain(run.get("why", ""))
        return ENDS.get(how, "warn"), f"The training has ended, {how}: {why}."
    state = next((w["state"] for w in training.wishes if job in (w.get("job"), w.get("id"))), None)
    if job is None or state is None:
        return None
    if state == "running" and services().parts.board.is_stopping(project.key):
        return "plain", "The training was asked to stop; it does so within seconds."
    words = {
        "running": "The training runs.",
        "queued": "The training is in the queue.",
        "waiting": "The training waits: another one of this project is before it.",
    }
    return "good", words[state]


def _one_line(text: str) -> str:
    """Return a person's text without line breaks and other signs that cannot be seen."""
    seen = "".join(" " if unicodedata.category(sign)[0] == "C" else sign for sign in text)
    return re.sub(r"\s+", " ", seen).strip()[:NOTE]


def _workers() -> list[dict[str, Any]] | None:
    """Return the workers that serve the queue; None while Redis is away."""
    found = from_redis(services().parts, lambda board: board.workers(), None)
    return None if found is None else sorted(found, key=lambda one: str(one["host"]))


def _depth() -> int:
    """Count jobs in the queue, and trainings that wait behind a running one of their project."""

    def count(board: Board) -> int:
        projects = services().parts.store.projects()
        wishes = [wish for one in projects for wish in board.wishes(one.key)]
        behind: int = sum(wish["state"] == "waiting" for wish in wishes)
        return board.depth() + behind

    return from_redis(services().parts, count, 0)


def _refresh(project: Project) -> dict[str, Any] | None:
    """Return how far the pre-label sync is, None while none runs."""
    told = from_redis(services().parts, lambda board: board.refresh_progress(project.key), None)
    if told is None:
        return None
    done, total = int(told.get("done") or 0), int(told.get("total") or 0)
    stage = str(told.get("stage") or "refreshing")
    return {
        "percent": min(100, int(100 * done / total)) if total else 0,
        "words": f"Open tasks get the answers of {told.get('version')}: {stage}, {done} of {total}",
    }


def _run(run: Mapping[str, Any]) -> dict[str, Any]:
    state = str(run.get("state", ""))
    return {
        **run,
        "kind": ENDS.get(state, "warn"),
        "state": state,
        "why": plain(run.get("why", "")),
        "reason": plain(run.get("reason", "")),
    }


def _wish(wish: Mapping[str, Any]) -> dict[str, Any]:
    order = wish.get("order") or {}
    way = "the backbone too" if order.get("fine_tune") else ""
    words = {
        "running": "Runs now",
        "queued": "Waits for a worker",
        "waiting": "Waits for the one that runs",
        "put off": "Put off; tried again by itself",
    }
    return {
        "state": words.get(str(wish["state"]), str(wish["state"])),
        "kind": "busy" if wish["state"] == "running" else "plain",
        "reason": plain(order.get("reason", "")),
        "way": way,
        "force": bool(order.get("force")),
        "name": wish["state"],
        "asked_at": wish.get("asked_at"),
        "not_before": wish.get("not_before"),
    }


def _revision(project: Project, training: Training) -> str:
    """Return a text that changes with all but what moves all the time."""
    newest = training.runs[0].get("job") if training.runs else None
    ended = training.runs[0].get("ended_at") if training.runs else None
    wishes = [(wish["state"], wish.get("job"), wish.get("id")) for wish in training.wishes]
    workers = [(one["name"], one["state"], one["device"]) for one in _workers() or ()]
    shown = (_refresh(project) is not None, _asked(project, training))
    return revision(shown, project.key, training.known, newest, ended, wishes, workers)
