"""Setting a project up in Label Studio, keeping it so, and finding out what is wrong with it."""

from __future__ import annotations

import dataclasses
import logging

from studio.checkup import Finding, checks
from studio.client import BasicAuth, LabelStudio, Object
from studio.errors import StudioRequestError
from studio.labelconfig import parse_label_config
from studio.wiring import (
    ACTIONS,
    at_address,
    authorization,
    backend_faults,
    missing_tabs,
    remarks,
    switches,
    tidy,
    webhook_faults,
    webhook_url,
)

__all__ = ["Connected", "Finding", "announce", "checks", "connect"]

log = logging.getLogger(__name__)

#: What a change of a project's field means, for the person who asked for it.
MEANINGS = {
    "show_collab_predictions": "Pre-labels are now shown to annotators.",
    "sampling": "The label stream now begins with the tasks that teach the model most.",
    "model_version": "The project now uses the backend's pre-labels ({value}).",
}


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
) -> Connected:
    """Set a project up, or repair it; a second run changes nothing.

    Label Studio calls the backend's ``/health`` and ``/setup`` meanwhile: the backend must run,
    and its own answer to those calls must not wait for this.

    Args:
        client: signed in as an owner or administrator of the project.
        project_id: the project's id.
        backend_url: the backend's address as Label Studio reaches it.
        user: with which Label Studio calls the backend.
        password: the same.
        version: the version the backend answers to ``/setup``. The backend's title in Label Studio
            must be equal to it, or there are no scores and no sampling by them.

    Raises:
        LabelConfigError: the project's labels are no tree; nothing was changed.
        StudioError: Label Studio could not be reached, or refused; what was done stays done.
        ValueError: Label Studio could not send this user name and password.
    """
    auth = BasicAuth(user, password)
    header = authorization(auth)
    settings = client.settings(project_id)
    config = parse_label_config(str(settings["label_config"]))
    setup = _Setup(client, project_id, tidy(backend_url), version)
    backend = setup.backend(auth)
    webhook = setup.webhook(header)
    setup.switches()
    setup.tabs()
    log.info("connected project=%d backend=%d changes=%d", project_id, backend, len(setup.changes))
    notes = remarks(settings, client.known_backends(project_id), backend)
    told = tuple(f"{what}. {mend}" for what, mend in notes)
    return Connected(backend, webhook, tuple(setup.changes), (*told, *config.notes))


def announce(
    client: LabelStudio, project_id: int, backend_url: str, version: str
) -> tuple[str, ...]:
    """Make a version the one that Label Studio shows; says what changed, nothing if it was right.

    Two short requests if there is nothing to do. If there is, Label Studio calls the backend's
    ``/setup`` meanwhile, which must answer ``version`` already and must not wait for this.

    Args:
        client: signed in as an owner or administrator of the project.
        project_id: the project's id.
        backend_url: the backend's address as Label Studio reaches it.
        version: the version that is live now.

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
    if found[0].get("title") != version:
        _retitle(client, project_id, found[0], version)
        changes.append(f"The backend is now called {version}, like its version.")
    settings = client.settings(project_id)
    # Pre-labels that an admin has switched off stay off, and then there is no version to set.
    if settings.get("show_collab_predictions") and settings.get("model_version") != version:
        client.update_project(project_id, {"model_version": version})
        changes.append(MEANINGS["model_version"].format(value=version))
    return tuple(changes)


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


@dataclasses.dataclass(frozen=True)
class _Setup:
    """The steps of `connect`; each changes what is not right and writes down what it was."""

    client: LabelStudio
    project: int
    url: str
    version: str
    changes: list[str] = dataclasses.field(default_factory=list)

    def backend(self, auth: BasicAuth) -> int:
        found = at_address(self.client.backends(self.project), self.url)
        if not found:
            row = self.client.add_backend(self.project, url=self.url, title=self.version, auth=auth)
            self.changes.append(f"The backend at {self.url} is registered, with its password.")
            return int(row["id"])
        row = found[0]
        faults = backend_faults(row, auth.user)
        if row.get("title") != self.version:
            faults.append(f"it was called {row.get('title')!r}")
        if faults:
            self.client.update_backend(
                int(row["id"]), project=self.project, url=self.url, title=self.version, auth=auth
            )
            reasons = "; ".join(faults)
            self.changes.append(f"The backend at {self.url} is registered anew: {reasons}.")
        return int(row["id"])

    def webhook(self, header: str) -> int:
        url, wanted = webhook_url(self.url), {"Authorization": header}
        found = at_address(self.client.webhooks(self.project), url)
        if not found:
            row = self.client.create_webhook(self.project, url=url, actions=ACTIONS, headers=wanted)
            self.changes.append("Events now go to the backend (a webhook, with its password).")
            return int(row["id"])
        row, *doubles = found
        if faults := webhook_faults(row, header):
            headers = {**(row.get("headers") or {}), **wanted}
            self.client.update_webhook(int(row["id"]), url=url, actions=ACTIONS, headers=headers)
            self.changes.append(f"The webhook is set right: {'; '.join(faults)}.")
        for double in doubles:  # left by earlier connections; each would send every event
            self.client.delete_webhook(int(double["id"]))
            self.changes.append("A second webhook to the same address is removed.")
        return int(row["id"])

    def switches(self) -> None:
        # Read anew: Label Studio may have set model_version when the backend came or was renamed.
        wrong = switches(self.client.settings(self.project), self.version)
        if wrong:
            self.client.update_project(self.project, wrong)
        self.changes.extend(MEANINGS[field].format(value=wrong[field]) for field in wrong)

    def tabs(self) -> None:
        for tab in missing_tabs(self.client.views(self.project)):
            self.client.create_view(self.project, tab)
            self.changes.append(f'The Data Manager has a new tab "{tab["title"]}".')
