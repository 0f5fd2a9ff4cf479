"""/console/projects/<key>/connection: whether Label Studio uses this backend; the ways out."""

from http import HTTPStatus

from flask import redirect, url_for
from flask.typing import ResponseReturnValue

from backend.console.blueprint import bp
from backend.console.layout import name_of, page, plain, tell, the_project
from backend.console.standing import STATES
from backend.services import services
from inference.store import CONNECTED, UNCONFIRMED, Project
from studio.errors import ProjectMissingError
from worker import presence
from worker.identity import check_same, is_ours
from worker.presence import StillConnectedError


@bp.get("/projects/<key>/connection", endpoint="connection")
def _connection(key: str) -> ResponseReturnValue:
    """The page: how the project stands, and the ways out."""
    project = the_project(key)
    ours = _is_ours(project)
    return page(
        "connection",
        title="Connection",
        project=project,
        state=STATES.get(project.state, "Connected"),
        words=presence.words(project),
        ours=ours,
        connected=_is_connected(project),
        may_call=ours and project.state in (CONNECTED, UNCONFIRMED),
        versions=services().parts.store.versions(key),
        live=services().parts.store.current(key),
    )


@bp.post("/projects/<key>/connection/disconnect", endpoint="connection_disconnect")
def _disconnect(key: str) -> ResponseReturnValue:
    """Take this backend out of the project in Label Studio."""
    project, parts = the_project(key), services().parts
    if not _is_ours(project):
        tell("Nothing was changed: the project belongs to another Label Studio.", "wrong")
        return _back(project)
    try:
        check_same(project, parts.studio.settings(project.number))
        changes = presence.disconnect(parts, project.number, key)
    except ProjectMissingError as error:
        tell(f"Nothing was changed: {plain(error)}. It can be forgotten.", "wrong")
    else:
        told = " ".join(changes) or "There was nothing of this backend in it."
        tell(f"{name_of(project)} is disconnected. {plain(told)}")
    return _back(project)


@bp.get("/projects/<key>/connection/forget", endpoint="connection_forget")
def _ask(key: str) -> ResponseReturnValue:
    """The question before a project is forgotten: what goes, and what stays."""
    project = the_project(key)
    return page(
        "forget",
        title=f"Forget {name_of(project)}?",
        project=project,
        connected=_is_connected(project),
        versions=services().parts.store.versions(key),
    )


@bp.post("/projects/<key>/connection/forget", endpoint="connection_forgotten")
def _forget(key: str) -> ResponseReturnValue:
    """Remove the project's versions and what is known of it."""
    project, parts = the_project(key), services().parts
    if project.state == CONNECTED and not _is_ours(project):
        tell(
            "Nothing was removed: the project belongs to another Label Studio, and a server that"
            " shares these versions may use it. If none does: `hrn forget` on this machine.",
            "wrong",
        )
        return _back(project)
    try:
        presence.check_left(parts, project)
    except StillConnectedError as error:
        tell(f"Nothing was removed: {plain(error)}.", "wrong")
        return _back(project)
    count = len(parts.store.versions(key))
    presence.forget(parts, key)
    versions = "1 version" if count == 1 else f"{count} versions"
    tell(f"{name_of(project)} is forgotten, with {versions}. Its labels are in Label Studio.")
    return redirect(url_for("console.projects"), HTTPStatus.SEE_OTHER)


def _is_ours(project: Project) -> bool:
    """Does it belong to the Label Studio that this server is set up for?"""
    return is_ours(project, services().parts.settings.label_studio_url)


def _is_connected(project: Project) -> bool:
    """Is it known to call this server?"""
    return _is_ours(project) and project.state == CONNECTED


def _back(project: Project) -> ResponseReturnValue:
    return redirect(url_for("console.connection", key=project.key), HTTPStatus.SEE_OTHER)
