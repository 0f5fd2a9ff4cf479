"""How a connected project looks in Label Studio, and the calls that set it up or take it apart."""

from __future__ import annotations

import base64
import dataclasses
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import urlsplit

from studio.client import BasicAuth, LabelStudio, Object
from studio.errors import StudioRequestError
from studio.label_config import parse_label_config

log = logging.getLogger(__name__)

#: The events that change what we know; Label Studio offers more.
ACTIONS: Final = (
    "ANNOTATION_CREATED",
    "ANNOTATION_UPDATED",
    "ANNOTATIONS_CREATED",
    "ANNOTATIONS_DELETED",
    "TASKS_CREATED",
    "TASKS_DELETED",
    "PROJECT_UPDATED",
)
#: Order of the label stream: lowest score first.
SAMPLING: Final = "Uncertainty sampling"
#: What Label Studio itself shows as long as a project has no tab of its own.
DEFAULT_TAB: Final[Mapping[str, object]] = {"title": "Default", "type": "list", "target": "tasks"}


def _tab(title: str, ordering: str, *none_of: str) -> Mapping[str, object]:
    """Return a tab of the tasks that have none of these."""
    items = [
        {"filter": f"filter:tasks:{what}", "operator": "equal", "type": "Number", "value": 0}
        for what in none_of
    ]
    filters = {"conjunction": "and", "items": items}
    shape = {"type": "list", "target": "tasks", "ordering": [ordering], "filters": filters}
    return {"title": title, **shape}


#: Open tasks in the Data Manager: lowest score first to teach the model, highest first to accept
#: what it is sure of. Skipped tasks have the highest score, so the second tab leaves them out.
OPEN_TABS: Final = (
    _tab("Most useful first", "tasks:predictions_score", "total_annotations"),
    _tab(
        "Surest first",
        "-tasks:predictions_score",
        "total_annotations",
        "cancelled_annotations",
    ),
)

#: What a change of a project's field means, for the person who asked for it.
_MEANINGS: Final = {
    "show_collab_predictions": "Pre-labels are now shown to annotators.",
    "sampling": "The label stream now begins with the tasks that teach the model most.",
    "model_version": "The project now uses the backend's pre-labels ({value}).",
}


# Comparing what is with what must be


def normalised_url(url: str) -> str:
    """Return the address as it is compared: no trailing slash, lower-case host."""
    parts = urlsplit(url.strip())
    parts = parts._replace(scheme=parts.scheme.lower(), netloc=parts.netloc.lower())
    return parts.geturl().rstrip("/")


def webhook_url(backend_url: str) -> str:
    """Return where Label Studio sends events: it builds this address when a backend is added."""
    return f"{normalised_url(backend_url)}/webhook"


def at_address(rows: Iterable[Object], url: str) -> list[Object]:
    """Return the backends or webhooks at an address, in their order."""
    wanted = normalised_url(url)
    return [row for row in rows if normalised_url(str(row.get("url", ""))) == wanted]


def authorization(auth: BasicAuth) -> str:
    """Return the header that a webhook must carry: Label Studio adds none by itself.

    In the very bytes that Label Studio's own Basic auth sends (`requests` encodes in Latin-1).

    Raises:
        ValueError: Label Studio could not send this user name and password.
    """
    try:
        raw = f"{auth.user}:{auth.password}".encode("latin-1")
    except UnicodeEncodeError:
        raise ValueError(
            "The backend's user name and password must be of Latin-1 characters, since Label Studio"
            " cannot send others: choose another password"
        ) from None
    return f"Basic {base64.b64encode(raw).decode('ascii')}"


def backend_faults(row: Mapping[str, Any], user: str) -> list[str]:
    """Say what is wrong with the way Label Studio calls the backend."""
    faults = []
    if row.get("auth_method") != "BASIC_AUTH" or not row.get("basic_auth_pass_is_set"):
        faults.append("it has no password for the backend")
    elif row.get("basic_auth_user") != user:
        faults.append(f"it calls the backend as {row.get('basic_auth_user')!r}, not as {user!r}")
    if row.get("state") in {"DI", "ER"}:  # disconnected, error
        reason = row.get("error_message") or "the health check failed"
        faults.append(f"its last call did not succeed ({reason})")
    return faults


def webhook_faults(row: Mapping[str, Any], header: str | None) -> list[str]:
    """Say what is wrong with a webhook.

    Args:
        row: the webhook as Label Studio lists it.
        header: the ``Authorization`` it must carry; None if any will do.
    """
    faults = []
    carried = (row.get("headers") or {}).get("Authorization")
    if not carried:
        faults.append("it carries no password, so the backend turns it away")
    elif header is not None and carried != header:
        faults.append("it carries another password than the backend's")
    if row.get("send_for_all_actions"):
        faults.append("it is sent for all events, not only for those that matter")
    elif missing := [action for action in ACTIONS if action not in row.get("actions", [])]:
        faults.append(f"it is not sent for {', '.join(missing)}")
    if not row.get("is_active"):
        faults.append("it is switched off")
    if not row.get("send_payload"):
        faults.append("it is sent without its content")
    return faults


def switches(settings: Mapping[str, Any], title: str) -> dict[str, object]:
    """Return the project's fields that are not as they must be, with the value they need."""
    wanted = {"show_collab_predictions": True, "sampling": SAMPLING, "model_version": title}
    return {field: value for field, value in wanted.items() if settings.get(field) != value}


def missing_tabs(views: Sequence[Mapping[str, Any]]) -> list[Mapping[str, object]]:
    """Return the tabs to create; with a tab of its own a project drops the default one."""
    titles = [(view.get("data") or {}).get("title") for view in views]
    missing = [tab for tab in OPEN_TABS if tab["title"] not in titles]
    return missing if views or not missing else [DEFAULT_TAB, *missing]


def remarks(
    settings: Mapping[str, Any], backends: Sequence[Mapping[str, Any]], backend: int
) -> list[tuple[str, str]]:
    """Return what is left alone but an admin should know: what it is, and how to fix it."""
    found = []
    if backends and backends[0].get("id") != backend:
        found.append(
            (
                f"Label Studio asks only a project's first backend, here {backends[0].get('url')}",
                "Remove that one under Settings > Model.",
            )
        )
    if settings.get("start_training_on_annotation_update"):
        found.append(
            (
                "Label Studio asks for training inside every Submit, which makes each one slower",
                'Switch "Start model training on annotation submission" off in Settings > Model.',
            )
        )
    if settings.get("evaluate_predictions_automatically"):
        found.append(
            (
                "Label Studio fetches predictions each time tasks are listed, which makes it slow",
                "PATCH the project with evaluate_predictions_automatically false.",
            )
        )
    return found


@dataclasses.dataclass(frozen=True)
class Foreign:
    """Pre-labels that a project shows and that are not this backend's.

    Attributes:
        version: their version's name.
        stored: how many of them there are; 0 where another backend brings them.
    """

    version: str
    stored: int

    def stays(self, version: str) -> str:
        """Say that they go on being shown; our version is ``version``."""
        return (
            f"The project goes on showing the pre-labels {self}, not this backend's ({version}),"
            " which would hide them; tasks come by the scores of those that are shown, not by what"
            " teaches the model most"
        )

    def fix(self, project: int) -> str:
        """Say how to show this backend's instead."""
        return f"`hrn connect --project {project} --take-over` shows this backend's instead."

    def hidden(self) -> str:
        """Say that they were hidden."""
        return (
            f"The pre-labels {self} are hidden now, not deleted: choose them under Settings >"
            " Annotation to show them again"
        )

    def __str__(self) -> str:
        return f"{self.version!r} ({self.stored} stored)" if self.stored else f"{self.version!r}"


def would_hide(
    client: LabelStudio, project_id: int, backend_url: str, ours: Collection[str]
) -> Foreign | None:
    """Return the pre-labels of somebody else that the project shows, None where there are none.

    Args:
        client: signed in as somebody who sees the project.
        project_id: the project's id.
        backend_url: the backend's address as Label Studio reaches it.
        ours: names of our versions, of earlier ones too.

    Raises:
        StudioError: Label Studio could not be reached, or refused.
    """
    shown = str(client.settings(project_id).get("model_version") or "")
    if not shown or shown in ours:
        return None
    backends = client.known_backends(project_id)
    if any(row.get("title") == shown for row in at_address(backends, backend_url)):
        return None
    stored = client.prediction_counts(project_id).get(shown, 0)
    others = any(row.get("title") == shown for row in backends)
    return Foreign(shown, stored) if stored or others else None


# Changing what is


@dataclasses.dataclass(frozen=True)
class Connected:
    """A project that is set up.

    Attributes:
        changes: what was changed, a sentence each; empty if everything was right.
        remarks: what was left alone, but the admin should know.
    """

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
    and its own response to those calls must not wait for this.

    Args:
        client: signed in as an owner or administrator of the project.
        project_id: the project's id.
        backend_url: the backend's address as Label Studio reaches it.
        user: the backend's user name.
        password: the backend's password, which the webhook must carry in a header.
        version: the version that is live now, which ``/setup`` also returns; the backend's title
            must be the same, or scores and sampling stay empty.
        ours: names of our earlier versions.
        take_over: show ours even where that hides pre-labels of somebody else.

    Raises:
        StudioError: Label Studio could not be reached, or refused; the message says how to fix it.
        LabelConfigError: the project's labels are no tree. Nothing was changed.
        ValueError: Label Studio could not send this user name and password.
    """
    auth = BasicAuth(user, password)
    authorization(auth)  # can it be sent at all?
    settings = client.settings(project_id)
    config = parse_label_config(str(settings["label_config"]))
    others = would_hide(client, project_id, backend_url, {version, *ours})
    setup = _Setup(client, project_id, normalised_url(backend_url), version, auth)
    with _explained(setup.url):
        backend = setup.backend()
        setup.webhook(backend)
    setup.switches(others.version if others and not take_over else version)
    setup.tabs()
    log.info("connected project=%d backend=%d changes=%d", project_id, backend, len(setup.changes))
    found = remarks(settings, client.known_backends(project_id), backend)
    notes = [f"{what}. {fix}" for what, fix in found]
    if others is not None and take_over:
        notes.insert(0, f"{others.hidden()}.")
    elif others is not None:
        notes.insert(0, f"{others.stays(version)}. {others.fix(project_id)}")
    return Connected(tuple(setup.changes), (*notes, *config.notes))


@contextmanager
def _explained(url: str) -> Iterator[None]:
    """Say in our words what Label Studio says of a backend that it cannot use."""
    try:
        yield
    except StudioRequestError as error:
        if "health check failed" in str(error):
            words = (
                f"Label Studio cannot reach a backend at {url}: start `hrn up` first, or set"
                " HRN_BACKEND_URL to the address at which Label Studio's machine reaches it"
                " (health check failed)"
            )
        elif "authentication parameters" in str(error):
            words = (
                f"The backend at {url} turns away the user and password given here"
                " (HRN_USER, HRN_PASSWORD): set those that the running server was started with,"
                " or start it again with these; then connect again"
            )
        else:
            raise
        raise StudioRequestError(words, status=error.status) from error


@dataclasses.dataclass
class _Setup:
    """The steps of `connect`; each changes what is not right and records what it was.

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
            self.changes.append(f"The backend at {self.url} is registered again: {reasons}.")
        return int(row["id"])

    def _update(self, backend: int) -> None:
        """Register it as it must be; Label Studio tries the password and refuses a wrong one."""
        self.client.update_backend(
            backend, project=self.project, url=self.url, title=self.version, auth=self.auth
        )
        self.tried = True

    def webhook(self, backend: int) -> None:
        header, first = authorization(self.auth), self.tried
        url, wanted = webhook_url(self.url), {"Authorization": header}
        found = at_address(self.client.webhooks(self.project), url)
        faults = webhook_faults(found[0], header) if found else []
        if (faults or not found) and not self.tried:
            self._update(backend)  # before a wrong password replaces the right one
        if not found:
            self.client.create_webhook(self.project, url=url, actions=ACTIONS, headers=wanted)
            self.changes.append("Events now go to the backend (a webhook, with its password).")
            return
        row, *doubles = found
        if faults:
            headers = {**(row.get("headers") or {}), **wanted}
            self.client.update_webhook(int(row["id"]), url=url, actions=ACTIONS, headers=headers)
            before = "" if first else f" Before: {'; '.join(faults)}."
            self.changes.append(
                "The webhook now carries the password and is sent only for annotations, tasks and"
                f" changes of the project.{before}"
            )
        for double in doubles:  # left by earlier connections; each would send every event
            self.client.delete_webhook(int(double["id"]))
            self.changes.append("A second webhook to the same address is removed.")

    def switches(self, shown: str) -> None:
        # Read again: Label Studio may have set model_version when the backend came or was renamed.
        wrong = switches(self.client.settings(self.project), shown)
        if wrong:
            self.client.update_project(self.project, wrong)
        self.changes.extend(_MEANINGS[field].format(value=wrong[field]) for field in wrong)

    def tabs(self) -> None:
        for tab in missing_tabs(self.client.views(self.project)):
            self.client.create_view(self.project, tab)
            self.changes.append(f'The Data Manager has a new tab "{tab["title"]}".')


def announce(
    client: LabelStudio,
    project_id: int,
    backend_url: str,
    version: str,
    ours: Collection[str] = (),
) -> tuple[str, ...]:
    """Make a version the one that Label Studio shows; return what changed.

    Pre-labels of somebody else that the project shows stay: an admin chose them, or imported them.
    Two short requests if there is nothing to do. If there is, Label Studio calls the backend's
    ``/setup`` meanwhile, which must return ``version`` already and must not wait for this.

    Args:
        client: signed in as an owner or administrator of the project.
        project_id: the project's id.
        backend_url: the backend's address as Label Studio reaches it.
        version: the version that is live now.
        ours: names of our earlier versions.

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
    settings, row = client.settings(project_id), found[0]
    if row.get("title") != version:
        has_password = row.get("auth_method") == "BASIC_AUTH"
        client.update_backend(
            int(row["id"]),
            project=project_id,
            url=str(row["url"]),
            title=version,
            # An empty password keeps the one that Label Studio has.
            auth=BasicAuth(str(row.get("basic_auth_user") or "")) if has_password else None,
        )
        changes.append(f"The backend is now called {version}, like its version.")
        settings = client.settings(project_id)  # its model_version follows the title by itself
    # Pre-labels that an admin has switched off stay off, and then there is no version to set.
    if (
        settings.get("show_collab_predictions")
        and settings.get("model_version") != version
        and would_hide(client, project_id, backend_url, {version, *ours}) is None
    ):
        client.update_project(project_id, {"model_version": version})
        changes.append(_MEANINGS["model_version"].format(value=version))
    return tuple(changes)


def disconnect(
    client: LabelStudio, project_id: int, *, backend_url: str, version: str, ours: Collection[str]
) -> tuple[str, ...]:
    """Take the backend out of a project; return what changed.

    Stored predictions stay, and go on being shown where the project showed them.

    Args:
        client: signed in as an owner or administrator of the project.
        project_id: the project's id.
        backend_url: the backend's address as Label Studio reaches it.
        version: the version that is live.
        ours: names of our versions, of earlier ones too.

    Raises:
        ProjectMissingError: there is no such project.
        StudioError: Label Studio could not be reached, or refused.
    """
    changes = []
    before = client.settings(project_id).get("model_version")
    for row in at_address(client.known_backends(project_id), backend_url):
        client.delete_backend(int(row["id"]))
        changes.append(f"The backend at {normalised_url(backend_url)} is removed from the project.")
    if remove_webhooks(client, project_id, backend_url):
        changes.append("Its webhook is removed: no event goes to the backend any more.")
    if before and not client.settings(project_id).get("model_version"):
        changes.append(_show_stored(client, project_id, version, ours))
    return tuple(changes)


def _show_stored(client: LabelStudio, project_id: int, version: str, ours: Collection[str]) -> str:
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
    """Remove the project's webhooks that go to the backend; return how many there were.

    Raises:
        StudioError: Label Studio could not be reached, or refused.
    """
    found = at_address(client.webhooks(project_id), webhook_url(backend_url))
    for row in found:
        client.delete_webhook(int(row["id"]))
    return len(found)
