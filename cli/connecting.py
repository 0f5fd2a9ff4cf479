"""Connecting a project of Label Studio to this backend, disconnecting and forgetting it."""

import itertools
from collections.abc import Callable
from dataclasses import replace

import requests

from cli.projects import UsageError, find
from inference.store import CONNECTED, UNTRAINED, project_key
from studio import project_setup
from studio.annotations import read_task
from studio.client import BasicAuth
from studio.errors import ProjectMissingError
from studio.label_config import parse_label_config
from studio.project_checks import visible_projects
from studio.project_setup import Connected, Foreign, authorization, would_hide
from studio.schemas import project_key as studio_key
from studio.tls import TrustAdapter
from worker import presence
from worker.errors import MisconfiguredError
from worker.parts import Parts
from worker.showing import nothing_shown
from worker.snapshot import left_out, take

#: Most labelled tasks that `hrn connect` looks at, at some 2 ms each.
LOOKED_AT = 2000

#: Seconds that our own server has to answer.
PATIENCE = 5.0

#: Asks a person; True for yes.
Ask = Callable[[str], bool]


def connect_project(parts: Parts, number: int, *, take_over: bool, ask: Ask) -> Connected:
    """Set a project up in Label Studio.

    Args:
        parts: the parts.
        number: the project's in Label Studio.
        take_over: show this backend's pre-labels even where that hides those of somebody else.
        ask: asked for that where this backend has something to show.

    Raises:
        UsageError: Label Studio has no such project.
        StudioError, LabelConfigError: with the cure.
        MisconfiguredError: our own address is not known, or the server there has another password.
    """
    settings = parts.settings
    url = presence.own_address(settings)
    key = project_key(settings.label_studio_url, _project_name(parts, number))
    _check_server(parts, key)
    version, ours = parts.store.current(key) or UNTRAINED, parts.store.names(key)
    if not take_over and _shows_something(parts, key, version):
        theirs = would_hide(parts.studio, number, url, ours)
        take_over = theirs is not None and ask(_question(theirs, version))
    done = project_setup.connect(
        parts.studio,
        number,
        backend_url=url,
        user=settings.user,
        password=settings.password.reveal(),
        version=version,
        ours=ours,
        take_over=take_over,
    )
    parts.store.note_state(key, CONNECTED, url)  # which its `/setup` has made
    return replace(done, remarks=(*done.remarks, *_answers(parts, number)))


def _answers(parts: Parts, number: int) -> list[str]:
    """Return what an admin should know of the answers that are there already."""
    config = parse_label_config(str(parts.studio.settings(number)["label_config"]))
    tasks = itertools.islice(parts.studio.tasks(number, annotated_only=True), LOOKED_AT)
    seen = take((read_task(task, config) for task in tasks), config.tree)
    return [f"{sentence}." for sentence in left_out(seen.summary())]


def disconnect_project(parts: Parts, number: int) -> list[str]:
    """Take this backend out of a project; what was changed, a sentence each.

    Raises:
        UsageError: Label Studio has no such project.
        StudioError: with the cure.
        MisconfiguredError: our own address is not known.
    """
    presence.own_address(parts.settings)  # before Label Studio is asked anything
    key = project_key(parts.settings.label_studio_url, _project_name(parts, number))
    changes = presence.disconnect(parts, number, key)
    count = len(parts.store.versions(key))
    if count:
        changes.append(
            f"Its versions stay ({count}): `hrn connect --project {number}` uses them again,"
            f" `hrn forget --project {number}` removes them."
        )
    return changes or [f"There was nothing of this backend in project {number}."]


def forget_project(parts: Parts, wanted: str, ask: Ask) -> str:
    """Remove a project's versions and what is known of it; what was done.

    Raises:
        UsageError: none fits, or the person who was asked said no.
        StillConnectedError: it is still connected.
    """
    project = find(parts, wanted, connected_first=False)
    presence.check_left(parts, project)
    count = len(parts.store.versions(project.key))
    name = f"project {project.number} {project.title!r} ({project.key})"
    if not ask(f"Remove {name} with {count} version(s), for good?"):
        raise UsageError("nothing was removed: it takes a yes, or --yes")
    presence.forget(parts, project.key)
    return f"{name} is forgotten, with {count} version(s). Labels are in Label Studio."


def _project_name(parts: Parts, number: int) -> str:
    """``<id>.<epoch>``, as Label Studio names it to a backend."""
    try:
        return studio_key(number, str(parts.studio.settings(number)["created_at"]))
    except ProjectMissingError as error:
        left = [one for one in parts.store.projects() if one.number == number]
        known = f" `hrn forget --project {number}` removes its versions here." if left else ""
        raise UsageError(f"{error}. {visible_projects(parts.studio)}{known}") from error


def _check_server(parts: Parts, key: str) -> None:
    """Ask the server that runs whether it takes our password: the webhook is about to carry it.

    One that cannot be reached from here may be reached by Label Studio all the same, which then
    tries the password.

    Raises:
        MisconfiguredError: it does not, or no server of ours answers there.
        ValueError: Label Studio could not send this user name and password.
    """
    url, password = parts.settings.backend_url, parts.settings.password.reveal()
    authorization(BasicAuth(parts.settings.user, password))
    with requests.Session() as session:
        session.trust_env = False  # no proxy gets the password
        session.mount("https://", TrustAdapter(parts.trust))
        try:
            reply = session.get(
                f"{url}/versions",
                params={"project": key},
                auth=(parts.settings.user, password),
                timeout=PATIENCE,
                allow_redirects=False,
            )
        except requests.RequestException:
            return
    if reply.status_code == requests.codes.unauthorized:
        here = f"HRN_USER={parts.settings.user} and {'an' if password else 'no'} HRN_PASSWORD"
        raise MisconfiguredError(
            f"the server at {url} was started with another password or user than this command,"
            f" which has {here}; nothing was changed. Give this command the same (unset here, they"
            " are found in the home of that server, see --home), or start the server again with"
            " these; then connect again"
        )
    if reply.status_code < requests.codes.server_error and "versions" not in reply.text:
        raise MisconfiguredError(
            f"what answers at {url} is not this backend (GET /versions: {reply.status_code}):"
            " set HRN_BACKEND_URL to the address of `hrn up` or `hrn serve`"
        )


def _shows_something(parts: Parts, key: str, version: str) -> bool:
    project = parts.store.project(key)
    if project is None or version == UNTRAINED:
        return False
    return nothing_shown(parts, project, version) is None


def _question(theirs: Foreign, version: str) -> str:
    return (
        f"The project shows the pre-labels {theirs}, which are not this backend's. Show this"
        f" backend's ({version}) instead? The others are hidden, not deleted."
    )
