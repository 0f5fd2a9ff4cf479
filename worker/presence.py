"""Whether a project is still in Label Studio, and this backend one of its backends.

What an admin decides there holds here: without the backend nothing is trained and no pre-label is
written, and of a project that is deleted nothing but its versions is left. Nobody tells us of
either, so each look asks.
"""

import logging
import time
from contextlib import suppress
from dataclasses import replace

from inference.store import CONNECTED, DISCONNECTED, GONE, UNCONFIRMED, UNTRAINED, Project
from studio import project_setup
from studio.errors import ProjectMissingError, StudioError
from studio.project_setup import at_address
from worker.errors import JobError, MisconfiguredError
from worker.identity import OtherProjectError, check_same, is_ours
from worker.order import RunState
from worker.parts import Parts
from worker.settings import Settings

log = logging.getLogger(__name__)


class DisconnectedError(JobError):
    """The project has no use for this backend any more; the message says what brings it back."""

    state = RunState.DISCONNECTED


class StillConnectedError(JobError):
    """The project is connected, or may be, so nothing of it is removed; the message says why."""


def own_address(settings: Settings) -> str:
    """Return where Label Studio reaches this backend.

    Raises:
        MisconfiguredError: it is not known.
    """
    if not settings.backend_url:
        raise MisconfiguredError(
            "HRN_BACKEND_URL is not set: give the address at which Label Studio reaches this "
            "backend"
        )
    return settings.backend_url


def registered_at(parts: Parts, project: Project) -> str | None:
    """Return where this backend stands among the project's; None where it does not.

    Empty where that is not known: we have no address, or were never seen at it, and the project's
    other backends may be this one under another address, which doctor tells of.

    Raises:
        StudioError: Label Studio could not be reached, or refused.
    """
    ours = parts.settings.backend_url
    if not ours:
        return ""
    rows = parts.studio.known_backends(project.number)
    for address in (ours, project.backend):
        if address and at_address(rows, address):
            return address
    return "" if rows and not project.backend else None


def check_registered(parts: Parts, project: Project) -> None:
    """Refuse work for a project that this backend was taken out of.

    Raises:
        DisconnectedError: so it is; it is written down.
        StudioError: Label Studio could not be reached, or refused.
    """
    if registered_at(parts, project) is not None:
        return
    if project.state == CONNECTED:  # an unconfirmed one Label Studio may be about to register
        end(parts, project, DISCONNECTED)
    raise DisconnectedError(sentence(replace(project, state=DISCONNECTED, since=0.0)))


def end(parts: Parts, project: Project, state: str) -> None:
    """Write down that there is nothing more to do for a project, and say so, once.

    Raises:
        ModelStoreError: the store cannot be written.
    """
    now = parts.store.note_state(project.key, state)
    log.warning("project=%s: %s", project.key, sentence(now or project))


def disconnect(parts: Parts, number: int, key: str) -> list[str]:
    """Take this backend out of a project in Label Studio; what was changed, a sentence each.

    Args:
        parts: the parts.
        number: the project's in Label Studio.
        key: the project's in the store.

    Raises:
        ProjectMissingError: Label Studio has no such project.
        StudioError: Label Studio could not be reached, or refused.
        MisconfiguredError: our own address is not known.
        ModelStoreError: the store cannot be written.
    """
    from worker.queue import RedisError  # trainings also run where no queue is installed

    ours = own_address(parts.settings)
    known, version = parts.store.project(key), parts.store.current(key) or UNTRAINED
    changes: list[str] = []
    for address in dict.fromkeys([known.backend if known else "", ours]):
        if address:
            changes += project_setup.disconnect(
                parts.studio,
                number,
                backend_url=address,
                version=version,
                ours=parts.store.names(key),
            )
    parts.store.note_state(key, DISCONNECTED)
    with suppress(RedisError, MisconfiguredError):  # a job asks by itself whether it is wanted
        parts.board.cancel(key)
    return changes


def check_left(parts: Parts, project: Project) -> None:
    """Refuse to forget a project that Label Studio uses this backend for: it would call again.

    Label Studio is not asked where that is known.

    Raises:
        StillConnectedError: it does, or that is not known.
    """
    ours = is_ours(project, parts.settings.label_studio_url)
    if project.state in (DISCONNECTED, GONE) or not ours:
        return
    number = project.number
    try:
        check_same(project, parts.studio.settings(number))
        connected = registered_at(parts, project) is not None
    except (ProjectMissingError, OtherProjectError):
        return
    except StudioError as error:
        raise StillConnectedError(
            f"it is not known whether project {number} is still connected: {error}; with"
            " LABEL_STUDIO_URL set to nothing it is not asked"
        ) from error
    if connected:
        raise StillConnectedError(
            f"project {number} ({project.key}) is connected in Label Studio and would call again: "
            f"`hrn disconnect --project {number}` first"
        )


def forget(parts: Parts, key: str) -> None:
    """Remove a project's versions and what is known of its work.

    Raises:
        ModelStoreError: the store cannot be written.
    """
    from worker.queue import RedisError  # trainings also run where no queue is installed

    try:
        parts.board.forget(key)
    except (RedisError, MisconfiguredError) as error:  # hints, which nobody will read
        log.warning("not forgotten in redis project=%s: %s", key, error)
    parts.store.forget(key)


def sentence(project: Project) -> str:
    """Return `words` in one text, "" for a project that is connected."""
    return ". ".join(words(project) or ())


def words(project: Project) -> tuple[str, str] | None:
    """Say what is with a project that is not connected, and what to do; None for others."""
    number, when = project.number, time.strftime("%Y-%m-%d %H:%M", time.localtime(project.since))
    since = f" (seen {when})" if project.since else ""
    forgets = f"`hrn forget --project {number}` removes its versions"
    if project.state == UNCONFIRMED:
        what = f"Project {number} has called, and Label Studio has yet to confirm that it uses us"
        return what, f"wait half a minute, or run `hrn connect --project {number}`"
    if project.state == DISCONNECTED:
        what = (
            f"Project {number} is disconnected: this backend is not among those of the project in"
            f" Label Studio{since}, so nothing is trained and no pre-label is written"
        )
        return what, f"`hrn connect --project {number}` brings it back, {forgets}"
    if project.state == GONE:
        what = (
            f"Project {number} is not in Label Studio any more{since}: it was deleted, or the"
            " account of LABEL_STUDIO_API_KEY does not see it"
        )
        return what, f"{forgets}; if Label Studio shows it again, it comes back by itself"
    return None
