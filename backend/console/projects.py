"""/console: each project with its state, what is wrong, and how to fix it."""

from collections.abc import Sequence
from typing import Any

from flask import jsonify
from flask.typing import ResponseReturnValue

from backend.console.blueprint import bp
from backend.console.checkup import Found
from backend.console.layout import back_to, page, plain
from backend.console.project_status import ProjectStatus, project_status, revision, sentence
from backend.console.state import console
from backend.services import services
from studio.project_checks import Finding

#: Seconds that the page waits for a checkup that runs; its findings are shown later otherwise.
PATIENCE = 0.3


@bp.get("", endpoint="projects", strict_slashes=False)
def _projects() -> ResponseReturnValue:
    """Show all projects."""
    found = console().checkup.look(wait=PATIENCE)
    told = _statuses()
    return page(
        "projects",
        title="Projects",
        statuses=[(one, _sentence(one), _problems(one, found)) for one in told],
        machine=[] if found is None else [_plain(one) for one in found.wrong()],
        fine=[] if found is None else [plain(one.what) for one in found.machine if one.ok],
        found=found,
        looking=console().checkup.is_looking(),
        revision=_revision(told, found),
    )


@bp.get("/state", endpoint="projects_state")
def _state() -> ResponseReturnValue:
    """Return what keeps the page up to date."""
    found, told = console().checkup.latest(), _statuses()
    busy = any(one.training.state != "idle" for one in told) or console().checkup.is_looking()
    state: dict[str, Any] = {
        "pause": 1000 if busy else 5000,
        "revision": _revision(told, found),
        "announce": "; ".join(f"{one.project.title}: {one.chip}" for one in told[:5]),
    }
    for one in told:
        state[f"{one.project.key} sentence"] = _sentence(one)
        state[f"{one.project.key} percent"] = one.training.percent
    return jsonify(state)


@bp.post("/checkup", endpoint="checkup")
def _checkup() -> ResponseReturnValue:
    """Start a checkup."""
    console().checkup.look(within=0, wait=5)
    return back_to("projects")


def _statuses() -> list[ProjectStatus]:
    parts = services().parts
    return [project_status(parts, project) for project in parts.store.projects()]


def _sentence(one: ProjectStatus) -> str:
    settings = services().parts.settings
    return sentence(one, settings.train_every, settings.train_after)


def _plain(one: Finding) -> tuple[str, str]:
    return plain(one.what), plain(one.fix)


def _problems(one: ProjectStatus, found: Found | None) -> Sequence[tuple[str, str]]:
    """Return what the project itself shows, then what doctor says of it."""
    wrong = [] if found is None else found.wrong(one.project.number)
    return [*one.problems, *(_plain(finding) for finding in wrong)]


def _revision(told: list[ProjectStatus], found: Found | None) -> str:
    """Return a text that changes with all but what moves all the time."""
    shown = [
        (
            one.project.key,
            one.project.title,
            one.version,
            one.chip,
            one.missing,
            one.unlike,
            one.problems and one.problems[0][0],
        )
        for one in told
    ]
    return revision(shown, None if found is None else found.at, console().checkup.is_looking())
