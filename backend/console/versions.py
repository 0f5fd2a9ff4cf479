"""/console/projects/<key>/versions: what each version can do, and which one is live."""

from dataclasses import dataclass
from typing import Any

from flask import Response, abort, request
from flask.typing import ResponseReturnValue

from backend.console.blueprint import bp
from backend.console.layout import back_to, page, tell, the_project
from backend.services import services
from backend.versions import shown_since
from inference.errors import ModelError, ModelStoreError, UnknownVersionError, VersionInUseError
from inference.insight import Missing, NodeChange, compare_manifests, node_changes
from inference.manifest import Manifest
from inference.store import NOTE_LENGTH, Project
from worker import choosing
from worker.choosing import ChoiceError
from worker.showing import nothing_shown

#: Rows of a comparison of nodes, of each kind.
CHANGES = 10

#: Where a page has so many versions, older ones are on the next.
PER_PAGE = 25


@dataclass(frozen=True)
class Row:
    """A version in the table.

    Attributes:
        version: its name.
        live: whether it is.
        manifest: without the tree, None where it cannot be read.
        problem: why it cannot be read, "" if it can.
        note: a person's.
        needed: why it may not be deleted, "" if it may.
        shown: what annotators' answers say of what it showed, None if nothing.
        levels: accuracy on each level of the held-out images whose label reaches it, by level.
        missing: of the live one, what it needs before it shows a label; None if it shows some.
    """

    version: str
    live: bool
    manifest: Manifest | None
    problem: str
    note: str
    needed: str
    shown: dict[str, Any] | None
    levels: dict[int, dict[str, Any]]
    missing: Missing | None


@bp.get("/projects/<key>/versions")
def versions(key: str) -> ResponseReturnValue:
    """Show the table, newest first; a project without versions says what comes next."""
    project = the_project(key)
    store = services().parts.store
    names = store.versions(key)[::-1]
    pages = max(1, -(-len(names) // PER_PAGE))
    number = min(max(1, request.args.get("page", 1, type=int)), pages)
    shown = names[(number - 1) * PER_PAGE : number * PER_PAGE]
    rows = rows_of(project, shown)
    levels = sorted({level for row in rows for level in row.levels})
    return page(
        "versions",
        title="Versions",
        project=project,
        rows=rows,
        levels=levels,
        names=names,
        live=store.current(key),
        previous=store.previous(key),
        note_length=NOTE_LENGTH,
        number=number,
        pages=pages,
    )


def rows_of(project: Project, names: list[str]) -> list[Row]:
    """Return all that the table shows of some versions."""
    store, records = services().parts.store, services().records
    live = store.current(project.key)
    try:
        needed = store.needed(project.key)
    except ModelStoreError as error:  # the live one is damaged: nothing may go before it is fixed
        needed = dict.fromkeys(names, str(error))
    rows = []
    for name in names:
        missing = None
        try:
            manifest, problem = records.summary(project.key, name), ""
            if name == live:
                missing = nothing_shown(services().parts, project, name)
        except ModelError as error:
            manifest, problem = None, str(error)
        told = (name, name == live, manifest, problem, store.note(project.key, name))
        by_level = manifest.metrics.get("by_level", []) if manifest else []
        levels = {row["level"]: row for row in by_level}
        rows.append(Row(*told, needed.get(name, ""), _shown(project, name), levels, missing))
    return rows


def _shown(project: Project, version: str) -> dict[str, Any] | None:
    """Return how right shown labels were on all levels; None if nothing could be checked."""
    found = shown_since(services().parts.store, project.key, version) or {}
    every: dict[str, Any] = (found.get("levels") or [{}])[0]
    return every if every.get("checked") else None


@bp.get("/projects/<key>/versions/compare")
def versions_compare(key: str) -> ResponseReturnValue:
    """Show two versions side by side, each by its own held-out images.

    Answers:
        404: one of them is not there.
    """
    project = the_project(key)
    names = services().parts.store.versions(key)
    asked = [request.args.get(name, "") for name in ("first", "second")]
    if not all(asked):
        return back_to("versions", key=key)
    if not set(asked) <= set(names):
        abort(404)
    first, second = (services().records.get(key, name) for name in asked)
    changes: list[NodeChange] = []
    if first.figures is not None and second.figures is not None and first.by_node:
        changes = node_changes((first.figures, first.tree), (second.figures, second.tree))
    return page(
        "compare",
        title=f"{first.version} and {second.version}",
        project=project,
        first=first,
        second=second,
        names=names[::-1],
        rows=compare_manifests(first.manifest, second.manifest),
        worse=[one for one in changes if one.difference < 0][:CHANGES],
        better=[one for one in changes[::-1] if one.difference > 0][:CHANGES],
        by_node=first.by_node and second.by_node,
        same_tree=first.tree == second.tree,
    )


@bp.post("/projects/<key>/versions/<version>/promote")
def promote_version(key: str, version: str) -> ResponseReturnValue:
    """Make a version live; with ``pin`` it stays so whatever is trained next."""
    project, pin = the_project(key), request.form.get("pin") == "on"
    _there(key, version)
    choosing.promote(services().parts, project, version, pin=pin)
    then = "and stays so until you choose another" if pin else "and new ones follow it again"
    tell(f"{version} is live, {then}. Open tasks get its pre-labels in the background.")
    return back_to("versions", key=key)


@bp.post("/projects/<key>/versions/rollback")
def roll_back(key: str) -> ResponseReturnValue:
    """Go back to the version that was live before."""
    project = the_project(key)
    try:
        version = choosing.rollback(services().parts, project)
    except ChoiceError:
        tell("There is no earlier live version to go back to.", "wrong")
    else:
        tell(
            f"{version} is live again and stays so until you promote another. "
            "Open tasks get its pre-labels in the background."
        )
    return back_to("versions", key=key)


@bp.post("/projects/<key>/versions/<version>/delete")
def delete_version(key: str, version: str) -> ResponseReturnValue:
    """Remove a version for good."""
    the_project(key)
    _there(key, version)
    try:
        services().parts.store.delete(key, version)
    except VersionInUseError as error:
        tell(f"Nothing was deleted: {error}.", "wrong")
    else:
        tell(f"{version} was deleted.")
    return back_to("versions", key=key)


@bp.post("/projects/<key>/versions/<version>/note")
def note_version(key: str, version: str) -> ResponseReturnValue:
    """Keep a person's note beside a version."""
    the_project(key)
    _there(key, version)
    services().parts.store.write_note(key, version, request.form.get("note", ""))
    tell(f"The note on {version} was kept.")
    return back_to("versions", key=key)


@bp.get("/projects/<key>/versions/<version>/download")
def download_version(key: str, version: str) -> ResponseReturnValue:
    """Send a zip of manifest and weights, streamed."""
    the_project(key)
    _there(key, version)
    answer = Response(
        services().parts.store.archive(key, version),
        mimetype="application/zip",
    )
    answer.headers["Content-Disposition"] = f'attachment; filename="{key}-{version}.zip"'
    return answer


def _there(key: str, version: str) -> None:
    """Refuse a name that no version has, also one that is no name at all.

    Raises:
        NotFound: with what is known.
    """
    try:
        known = services().parts.store.versions(key)
    except UnknownVersionError:
        known = []
    if version not in known:
        abort(404)
