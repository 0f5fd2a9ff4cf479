"""What a connected project looks like in Label Studio. Nothing is sent from here: only compared."""

from __future__ import annotations

import base64
import dataclasses
import ipaddress
import socket
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from studio.client import BasicAuth, Object

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

#: Lowest score first, in the label stream.
SAMPLING: Final = "Uncertainty sampling"

#: What Label Studio itself shows as long as a project has no tab of its own.
DEFAULT_TAB: Final[Mapping[str, object]] = {"title": "Default", "type": "list", "target": "tasks"}


def _tab(title: str, order: str, *none_of: str) -> Mapping[str, object]:
    """A tab of the tasks that have none of these."""
    items = [
        {"filter": f"filter:tasks:{what}", "operator": "equal", "type": "Number", "value": 0}
        for what in none_of
    ]
    filters = {"conjunction": "and", "items": items}
    return {
        "title": title,
        "type": "list",
        "target": "tasks",
        "ordering": [order],
        "filters": filters,
    }


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


def tidy(url: str) -> str:
    """The address as we compare it: no trailing slash, host in lower case."""
    parts = urlsplit(url.strip())
    return (
        parts._replace(scheme=parts.scheme.lower(), netloc=parts.netloc.lower())
        .geturl()
        .rstrip("/")
    )


def webhook_url(backend_url: str) -> str:
    """Where Label Studio sends events: it makes this address itself when a backend is added."""
    return f"{tidy(backend_url)}/webhook"


def at_address(rows: Iterable[Object], url: str) -> list[Object]:
    """The backends or webhooks at an address, in their order."""
    return [row for row in rows if tidy(str(row.get("url", ""))) == tidy(url)]


def authorization(auth: BasicAuth) -> str:
    """The header that a webhook must carry: Label Studio adds none by itself.

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
    """What is wrong with the way Label Studio calls the backend, in words."""
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
    """What is wrong with a webhook, in words.

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
    """The project's fields that are not as they must be, with the value they need."""
    wanted = {"show_collab_predictions": True, "sampling": SAMPLING, "model_version": title}
    return {field: value for field, value in wanted.items() if settings.get(field) != value}


@dataclasses.dataclass(frozen=True)
class Foreign:
    """Pre-labels that a project shows and that are not this backend's.

    Attributes:
        version: the name they bear.
        stored: how many of them there are; 0 where another backend brings them.
    """

    version: str
    stored: int

    def stays(self, version: str) -> str:
        """What is so, for people; ours is ``version``."""
        return (
            f"The project goes on showing the pre-labels {self}, not this backend's ({version}),"
            " which would hide them; tasks come by the scores of those that are shown, not by what"
            " teaches the model most"
        )

    def cure(self, project: int) -> str:
        """How to show this backend's instead."""
        return f"`hrn connect --project {project} --take-over` shows this backend's instead."

    def hidden(self) -> str:
        """What was done to them, for people."""
        return (
            f"The pre-labels {self} are hidden now, not deleted: choose them under Settings >"
            " Annotation to show them again"
        )

    def __str__(self) -> str:
        return f"{self.version!r} ({self.stored} stored)" if self.stored else f"{self.version!r}"


def foreign(
    shown: str, backends: Sequence[Object], counts: Mapping[str, int], url: str
) -> Foreign | None:
    """Whether what a project shows is somebody else's, and there is some of it.

    Args:
        shown: the project's ``model_version``, which is no version of this backend.
        backends: the project's.
        counts: stored predictions by their version.
        url: this backend's address.
    """
    ours = at_address(backends, url)
    if any(row.get("title") == shown for row in ours):
        return None
    if counts.get(shown) or any(row.get("title") == shown for row in backends):
        return Foreign(shown, counts.get(shown, 0))
    return None


def missing_tabs(views: Sequence[Mapping[str, Any]]) -> list[Mapping[str, object]]:
    """The tabs to make; with one tab of its own a project no longer shows the default one."""
    titles = [(view.get("data") or {}).get("title") for view in views]
    missing = [tab for tab in OPEN_TABS if tab["title"] not in titles]
    return missing if views or not missing else [DEFAULT_TAB, *missing]


def is_private(url: str) -> bool:
    """Whether the address, as this machine resolves it, is one Label Studio will not call."""
    try:
        found = socket.getaddrinfo(urlsplit(url).hostname, None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return any(not ipaddress.ip_address(place[4][0]).is_global for place in found)


def remarks(
    settings: Mapping[str, Any], backends: Sequence[Mapping[str, Any]], backend: int
) -> list[tuple[str, str]]:
    """What we leave alone, but an admin should know: what it is, and what to do about it."""
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
