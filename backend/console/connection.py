"""/console/projects/<key>/connection: whether Label Studio uses this backend; the ways out."""

from flask.typing import ResponseReturnValue

from backend.console.blueprint import bp
from backend.console.layout import back_to, name_of, page, plain, tell, the_project
from backend.console.project_status import STATES
from backend.services import services
from inference.store import CONNECTED, UNCONFIRMED, Project
from studio.errors import ProjectMissingError
from worker import presence
from worker.identity import check_same, is_ours
from worker.presence import StillConnectedError


@bp.get("/projects/<key>/connection", endpoint="connection")
def _connection(key: str) -> ResponseReturnValue:
    """Show whether the project is connected, and the ways out."""
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
        return back_to("connection", key=key)
    try:
        check_same(project, parts.studio.settings(project.number))
        changes = presence.disconnect(parts, project.number, key)
    except ProjectMissingError as error:
        tell(f"Nothing was changed: {plain(error)}. It can be forgotten.", "wrong")
    else:
        told = " ".join(changes) or "There was nothing of this backend in it."
        tell(f"{name_of(project)} is disconnected. {plain(told)}")
    return back_to("connection", key=key)


@bp.get("/projects/<key>/connection/forget", endpoint="connection_forget")
def _ask(key: str) -> ResponseReturnValue:
    """Ask before a project is forgotten: what goes, and what stays."""
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
    """Remove the project's versions and record."""
    project, parts = the_project(key), services().parts
    if project.state == CONNECTED and not _is_ours(project):
        tell(
            "Nothing was removed: the project belongs to another Label Studio, and a server that"
            " shares these versions may use it. If none does: `hrn forget` on this machine.",
            "wrong",
        )
        return back_to("connection", key=key)
    try:
        presence.check_left(parts, project)
    except StillConnectedError as error:
        tell(f"Nothing was removed: {plain(error)}.", "wrong")
        return back_to("connection", key=key)
    count = len(parts.store.versions(key))
    presence.forget(parts, key)
    versions = "1 version" if count == 1 else f"{count} versions"
    tell(f"{name_of(project)} is forgotten, with {versions}. Its labels are in Label Studio.")
    return back_to("projects")


def _is_ours(project: Project) -> bool:
    """Whether it belongs to the Label Studio that this server is set up for."""
    return is_ours(project, services().parts.settings.label_studio_url)


def _is_connected(project: Project) -> bool:
    """Whether it is known to call this server."""
    return _is_ours(project) and project.state == CONNECTED
