"""Setting a project up in Label Studio, keeping it so, and finding out what is wrong with it."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from studio.checkup import Finding, checks, visible_projects
from studio.client import BasicAuth, LabelStudio, Object
from studio.errors import StudioRequestError
from studio.labelconfig import parse_label_config
from studio.wiring import (
    ACTIONS,
    Foreign,
    at_address,
    authorization,
    backend_faults,
    foreign,
    missing_tabs,
    remarks,
    switches,
    tidy,
    webhook_faults,
    webhook_url,
)

__all__ = [
    "Connected",
    "Finding",
    "Foreign",
    "announce",
    "checks",
    "connect",
    "disconnect",
    "remove_webhooks",
    "visible_projects",
    "would_hide",
]

log = logging.getLogger(__name__)

#: What a change of a project's field means, for the person who asked for it.
MEANINGS = {
    "show_collab_predictions": "Pre-labels are now shown to annotators.",
    "sampling": "The label stream now begins with the tasks that teach the model most.",
    "model_version": "The project now uses the backend's pre-labels ({value}).",
}

#: What is said of a webhook once it is as it must be.
WEBHOOK_RIGHT = (
    "The webhook now carries the password and is sent only for annotations, tasks and changes of"
    " the project."
)


@dataclasses.dataclass(frozen=True)
class Connected:
    """A project that is set up.

    Attributes:
        backend_id: the backend's id in Label Studio.
        webhook_id: the webhook's.
        changes: what was changed, a sentence each; empty if everything was right.
        remarks: what was left alone, but the admin should know.
    """

    backend_id: int
    webhook_id: int
    changes: tuple[str, ...]
    remarks: tuple[str, ...]

    def __str__(self) -> str:
        changes = self.changes or ("Everything was set up already; nothing changed.",)
        return "\n".join([*changes, *(f"Note: {remark}" for remark in self.remarks)])


def connect(  # noqa: PLR0913 - the names are the command's options
    client: LabelStudio,
    project_id: int,
    *,
    backend_url: str,
    user: str,
    password: str,
    version: str,
    ours: Collection[str] = (),
    take_over: bool = False,
) -> Connected:
    """Set a project up, or repair it; a second run changes nothing.

    Label Studio calls the backend's ``/health`` and ``/setup`` meanwhile: the backend must run,
    and its own answer to those calls must not wait for this.

    Args:
        client: signed in as an owner or administrator of the project.
        project_id: the project's id.
        backend_url: the backend's address as Label Studio reaches it.
        user: the backend's user name.
        password: the backend's password, which the webhook must carry in a header.
        version: the version that is live now, which the backend also answers to ``/setup``; the
            backend's title must be the same, or scores and sampling stay empty.
        ours: names that earlier versions of ours bear.
        take_over: show ours even where that hides pre-labels of somebody else.

    Raises:
        StudioError: Label Studio could not be reached, or refused; the message says how to mend it.
        LabelConfigError: the project's labels are no tree. Nothing was changed.
        ValueError: Label Studio could not send this user name and password.
    """
    auth = BasicAuth(user, password)
    authorization(auth)  # can it be sent at all?
    settings = client.settings(project_id)
    config = parse_label_config(str(settings["label_config"]))
    before = would_hide(client, project_id, backend_url, {version, *ours})
    keep = None if take_over else before
    setup = _Setup(client, project_id, tidy(backend_url), version, auth)
    with _plain_words(setup.url):
        backend = setup.backend()
        webhook = setup.webhook(backend)
    setup.switches(keep)
    setup.tabs()
    log.info("connected project=%d backend=%d changes=%d", project_id, backend, len(setup.changes))
    notes = remarks(settings, client.known_backends(project_id), backend)
    left_alone = [f"{what}. {cure}" for what, cure in notes]
    if keep is not None:
        left_alone.insert(0, f"{keep.stays(version)}. {keep.cure(project_id)}")
    elif before is not None:
        left_alone.insert(0, f"{before.hidden()}.")
    return Connected(backend, webhook, tuple(setup.changes), (*left_alone, *config.notes))


def would_hide(
    client: LabelStudio, project_id: int, backend_url: str, ours: Collection[str]
) -> Foreign | None:
    """Pre-labels of somebody else that the project shows, None where it shows ours or none.

    Args:
        client: signed in as somebody who sees the project.
        project_id: the project's id.
        backend_url: the backend's address as Label Studio reaches it.
        ours: names that our versions bear or bore.

    Raises:
        StudioError: Label Studio could not be reached, or refused.
    """
    shown = client.settings(project_id).get("model_version")
    if not shown or shown in ours:
        return None
    rows, counts = client.known_backends(project_id), client.prediction_counts(project_id)
    return foreign(str(shown), rows, counts, backend_url)


def announce(
    client: LabelStudio,
    project_id: int,
    backend_url: str,
    version: str,
    ours: Collection[str] = (),
) -> tuple[str, ...]:
    """Make a version the one that Label Studio shows; says what changed, nothing if it was right.

    Pre-labels of somebody else that the project shows stay: an admin chose them, or imported them.
    Two short requests if there is nothing to do. If there is, Label Studio calls the backend's
    ``/setup`` meanwhile, which must answer ``version`` already and must not wait for this.

    Args:
        client: signed in as an owner or administrator of the project.
        project_id: the project's id.
        backend_url: the backend's address as Label Studio reaches it.
        version: the version that is live now.
        ours: names that earlier versions of ours bear.

    Raises:
        StudioRequestError: with status 404 if the backend is not connected to the project.
        StudioError: Label Studio could not be reached, or refused.
    """
    found = at_address(client.known_backends(project_id), backend_url)
    if not found:
        raise StudioRequestError(
            f"Project {project_id} in Label Studio at {client.url} has no backend at {backend_url}:"
            " connect it first (hrn connect)",
            status=404,
        )
    changes: list[str] = []
    settings = client.settings(project_id)
    if found[0].get("title") != version:
        _retitle(client, project_id, found[0], version)
        changes.append(f"The backend is now called {version}, like its version.")
        settings = client.settings(project_id)  # its model_version follows the title by itself
    # Pre-labels that an admin has switched off stay off, and then there is no version to set.
    if (
        settings.get("show_collab_predictions")
        and settings.get("model_version") != version
        and would_hide(client, project_id, backend_url, {version, *ours}) is None
    ):
        client.update_project(project_id, {"model_version": version})
        changes.append(MEANINGS["model_version"].format(value=version))
    return tuple(changes)


def disconnect(
    client: LabelStudio, project_id: int, *, backend_url: str, version: str, ours: Collection[str]
) -> tuple[str, ...]:
    """Take the backend out of a project; says what changed, nothing where there was nothing of it.

    Predictions that are stored stay, and are shown further where the project showed them.

    Args:
        client: signed in as an owner or administrator of the project.
        project_id: the project's id.
        backend_url: the backend's address as Label Studio reaches it.
        version: the version that is live.
        ours: names that our versions bear or bore.

    Raises:
        ProjectMissingError: there is no such project.
        StudioError: Label Studio could not be reached, or refused.
    """
    changes = []
    before = client.settings(project_id).get("model_version")
    for row in at_address(client.known_backends(project_id), backend_url):
        client.delete_backend(int(row["id"]))
        changes.append(f"The backend at {tidy(backend_url)} is removed from the project.")
    if remove_webhooks(client, project_id, backend_url):
        changes.append("Its webhook is removed: no event goes to the backend any more.")
    if before and not client.settings(project_id).get("model_version"):
        changes.append(_put_back(client, project_id, version, ours))
    return tuple(changes)


def _put_back(client: LabelStudio, project_id: int, version: str, ours: Collection[str]) -> str:
    """Give a project whose backend has gone stored pre-labels to show, and say which."""
    counts = client.prediction_counts(project_id)
    others = {name: count for name, count in counts.items() if name not in ours and count}
    best = max(others, key=lambda name: others[name], default=None)
    if best is None and counts.get(version) and version != "untrained":
        best = version
    if best is None:
        return "The project shows no pre-labels any more."
    client.update_project(project_id, {"model_version": best})
    return (
        f"The project now shows the stored pre-labels {best!r} ({counts[best]}); no new ones come."
    )


def remove_webhooks(client: LabelStudio, project_id: int, backend_url: str) -> int:
    """Remove the project's webhooks that go to the backend; how many there were.

    Raises:
        StudioError: Label Studio could not be reached, or refused.
    """
    found = at_address(client.webhooks(project_id), webhook_url(backend_url))
    for row in found:
        client.delete_webhook(int(row["id"]))
    return len(found)


@contextmanager
def _plain_words(url: str) -> Iterator[None]:
    """Say in our words what Label Studio says of a backend that it cannot use."""
    try:
        yield
    except StudioRequestError as error:
        text = str(error)
        if "health check failed" in text:
            raise StudioRequestError(
                f"Label Studio cannot reach a backend at {url}: start `hrn up` first, or set"
                " HRN_BACKEND_URL to the address at which Label Studio's machine reaches it"
                " (health check failed)",
                status=error.status,
            ) from error
        if "authentication parameters" in text:
            raise StudioRequestError(
                f"The backend at {url} turns away the user and password given here"
                " (HRN_USER, HRN_PASSWORD): set those that the running server was started with,"
                " or start it again with these; then connect again",
                status=error.status,
            ) from error
        raise


def _retitle(client: LabelStudio, project_id: int, row: Object, version: str) -> None:
    """A new title; an empty password keeps the one Label Studio has."""
    user = str(row.get("basic_auth_user") or "")
    client.update_backend(
        int(row["id"]),
        project=project_id,
        url=str(row["url"]),
        title=version,
        auth=BasicAuth(user) if row.get("auth_method") == "BASIC_AUTH" else None,
    )


@dataclasses.dataclass
class _Setup:
    """The steps of `connect`; each changes what is not right and writes down what it was.

    Attributes:
        tried: Label Studio has just called the backend with the password given here.
    """

    client: LabelStudio
    project: int
    url: str
    version: str
    auth: BasicAuth
    changes: list[str] = dataclasses.field(default_factory=list)
    tried: bool = False

    def backend(self) -> int:
        found = at_address(self.client.backends(self.project), self.url)
        if not found:
            row = self.client.add_backend(
                self.project, url=self.url, title=self.version, auth=self.auth
            )
            self.changes.append(f"The backend at {self.url} is registered, with its password.")
            self.tried = True
            return int(row["id"])
        row = found[0]
        faults = backend_faults(row, self.auth.user)
        if row.get("title") != self.version:
            faults.append(f"it was called {row.get('title')!r}")
        if faults:
            self._update(int(row["id"]))
            reasons = "; ".join(faults)
            self.changes.append(f"The backend at {self.url} is registered anew: {reasons}.")
        return int(row["id"])

    def _update(self, backend: int) -> None:
        """Register it as it must be; Label Studio tries the password and refuses a wrong one."""
        self.client.update_backend(
            backend, project=self.project, url=self.url, title=self.version, auth=self.auth
        )
        self.tried = True

    def webhook(self, backend: int) -> int:
        header, first = authorization(self.auth), self.tried
        url, wanted = webhook_url(self.url), {"Authorization": header}
        found = at_address(self.client.webhooks(self.project), url)
        faults = webhook_faults(found[0], header) if found else []
        if (faults or not found) and not self.tried:
            self._update(backend)  # before a wrong password takes the place of the right one
        if not found:
            row = self.client.create_webhook(self.project, url=url, actions=ACTIONS, headers=wanted)
            self.changes.append("Events now go to the backend (a webhook, with its password).")
            return int(row["id"])
        row, *doubles = found
        if faults:
            headers = {**(row.get("headers") or {}), **wanted}
            self.client.update_webhook(int(row["id"]), url=url, actions=ACTIONS, headers=headers)
            before = "" if first else f" Before: {'; '.join(faults)}."
            self.changes.append(f"{WEBHOOK_RIGHT}{before}")
        for double in doubles:  # left by earlier connections; each would send every event
            self.client.delete_webhook(int(double["id"]))
            self.changes.append("A second webhook to the same address is removed.")
        return int(row["id"])

    def switches(self, keep: Foreign | None) -> None:
        # Read anew: Label Studio may have set model_version when the backend came or was renamed.
        shown = self.version if keep is None else keep.version
        wrong = switches(self.client.settings(self.project), shown)
        if wrong:
            self.client.update_project(self.project, wrong)
        self.changes.extend(MEANINGS[field].format(value=wrong[field]) for field in wrong)

    def tabs(self) -> None:
        for tab in missing_tabs(self.client.views(self.project)):
            self.client.create_view(self.project, tab)
            self.changes.append(f'The Data Manager has a new tab "{tab["title"]}".')
