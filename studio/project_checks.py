"""Checks of everything between Label Studio and the backend, and how to fix it. Changes nothing."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterator
from itertools import islice
from typing import Final
from urllib.parse import urlsplit

from studio.client import BasicAuth, LabelStudio, Object
from studio.errors import (
    LabelConfigError,
    LegacyTokensOffError,
    PermissionMissingError,
    ProjectMissingError,
    StudioError,
    StudioRefusedError,
    StudioUnavailableError,
)
from studio.label_config import parse_label_config
from studio.project_setup import (
    OPEN_TABS,
    SAMPLING,
    at_address,
    authorization,
    backend_faults,
    missing_tabs,
    normalised_url,
    remarks,
    webhook_faults,
    webhook_url,
    would_hide,
)
from studio.ssrf import not_public, system_resolver

#: The oldest release on which the calls were observed.
OLDEST: Final = (1, 23)
#: Most projects that are named where another one was asked for.
MOST_NAMED: Final = 10
#: The fix of most findings.
CONNECT: Final = "Run `hrn connect` for this project."
#: Why a private address does not work, and how to fix it.
PRIVATE: Final = (
    " Label Studio calls no private addresses, such as this one, unless it is started with"
    " ML_BLOCK_LOCAL_IP=false and SSRF_PROTECTION_ENABLED=false (both are needed)."
)


@dataclasses.dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        code: its name, for scripts.
        ok: whether all is as it should be.
        what: what was found, a sentence.
        fix: how to fix it; emptied if it is ok.
    """

    code: str
    ok: bool
    what: str
    fix: str = ""

    def __post_init__(self) -> None:
        """Leave nothing to fix where all is as it should be."""
        if self.ok:
            object.__setattr__(self, "fix", "")


def checks(  # noqa: PLR0913 - what is checked, and what it is compared with
    client: LabelStudio,
    project_id: int,
    backend_url: str,
    *,
    auth: BasicAuth | None = None,
    version: str | None = None,
    ours: Collection[str] = (),
) -> tuple[Finding, ...]:
    """Check everything that `connect` sets up, and what it depends on.

    Label Studio calls the backend's ``/health`` and ``/setup`` on the way. What cannot be checked,
    since something before it is wrong, is left out.

    Args:
        client: signed in to the Label Studio in question.
        project_id: the project's id.
        backend_url: the backend's address as Label Studio reaches it.
        auth: what Label Studio must call the backend with; None: any will do.
        version: the version that is live; None: whatever the backend returns to ``/setup``.
        ours: names of our versions, of earlier ones too.
    """
    url = normalised_url(backend_url)
    return tuple(_Checks(client, project_id, url, auth, version, ours).findings())


@dataclasses.dataclass(frozen=True)
class _Checks:
    client: LabelStudio
    project: int
    url: str
    auth: BasicAuth | None
    version: str | None
    ours: Collection[str]

    def findings(self) -> Iterator[Finding]:
        """Yield findings in the order in which they build on each other; an error ends them."""
        try:
            yield from self._access()
            settings = self.client.settings(self.project)
            yield Finding("project", ok=True, what=f"Project {self.project}: {settings['title']}")
            yield _label_config(str(settings["label_config"]))
            backends = self.client.backends(self.project)
            found = at_address(backends, self.url)
            yield self._registered(found, backends)
            title = str(found[0].get("title")) if found else None
            if found:
                yield self._called(found[0])
                yield self._titled(found[0])
            yield self._webhook(registered=bool(found))
            yield from self._switches(settings, title)
            yield self._tab()
            backend = int(found[0]["id"]) if found else -1
            for what, fix in remarks(settings, backends if found else [], backend):
                yield Finding("remark", ok=False, what=what, fix=fix)
        except ProjectMissingError as error:
            yield Finding("request", ok=False, what=str(error), fix=visible_projects(self.client))
        except StudioError as error:
            yield _stopped(error)

    def _access(self) -> Iterator[Finding]:
        release = self.client.version()
        numbers = tuple(int(part) for part in re.findall(r"\d+", release)[:2])
        what = f"Label Studio {release} answers at {self.client.url}"
        fix = "Upgrade Label Studio to 1.23 or a later release."
        yield Finding("label_studio", ok=numbers >= OLDEST, what=what, fix=fix)
        me = self.client.whoami()
        yield Finding("token", ok=True, what=f"The access token belongs to {me.get('email')}")

    def _registered(self, found: list[Object], backends: list[Object]) -> Finding:
        others = ", ".join(str(row.get("url")) for row in backends) or "none"
        missing = "" if found else f" is not registered (registered: {others})"
        what = f"The backend {self.url}{missing or ' is registered'}"
        fix = "" if found else CONNECT + self._private()
        return Finding("backend", ok=bool(found), what=what, fix=fix)

    def _called(self, row: Object) -> Finding:
        user = self.auth.user if self.auth else str(row.get("basic_auth_user"))
        faults = backend_faults(row, user)
        if not faults:
            return Finding("state", ok=True, what="Label Studio reaches the backend")
        what = f"Label Studio cannot use the backend: {'; '.join(faults)}"
        fix = f"Start the backend, see that Label Studio's machine reaches {self.url}. {CONNECT}"
        return Finding("state", ok=False, what=what, fix=fix + self._private())

    def _titled(self, row: Object) -> Finding:
        title, version = row.get("title"), self.version or row.get("model_version")
        what = f"The backend is called {title!r} in Label Studio, its version is {version!r}"
        fix = f"Without equal names there are no scores and no sampling by them. {CONNECT}"
        return Finding("title", ok=title == version, what=what, fix=fix)

    def _webhook(self, *, registered: bool) -> Finding:
        found = at_address(self.client.webhooks(self.project), webhook_url(self.url))
        if not found:
            # Half of the protection against private addresses leaves just this behind.
            why = self._private() if registered else ""
            what = "There is no webhook: no annotation reaches the backend"
            return Finding("webhook", ok=False, what=what, fix=CONNECT + why)
        faults = webhook_faults(found[0], authorization(self.auth) if self.auth else None)
        if len(found) > 1:
            faults.append(f"there are {len(found)} of them, and each sends every event")
        what = f"The webhook is wrong: {'; '.join(faults)}" if faults else "The webhook is right"
        return Finding("webhook", ok=not faults, what=what, fix=CONNECT)

    def _switches(self, settings: Object, title: str | None) -> Iterator[Finding]:
        shown = bool(settings.get("show_collab_predictions"))
        what = f"Pre-labels are {'shown to' if shown else 'hidden from'} annotators"
        yield Finding("prelabels", ok=shown, what=what, fix=CONNECT)
        if title is not None:
            yield self._shown(settings.get("model_version"), title)
        sampling = settings.get("sampling")
        what = f"The label stream's order is {sampling!r}"
        fix = f"{SAMPLING!r} brings the tasks that teach the model most. {CONNECT}"
        yield Finding("sampling", ok=sampling == SAMPLING, what=what, fix=fix)

    def _shown(self, used: object, title: str) -> Finding:
        """Check whose pre-labels the project shows; somebody else's were set by an admin."""
        live = used == title
        if not live:
            theirs = would_hide(self.client, self.project, self.url, self.ours)
            if theirs is not None:
                what = f"{theirs.stays(title)}. {theirs.fix(self.project)}"
                return Finding("model_version", ok=True, what=what)
        what = f"The project uses the pre-labels of {used!r}" if used else "It uses no pre-labels"
        fix = f"Only {title!r} is live and brings scores. {CONNECT}"
        return Finding("model_version", ok=live, what=what, fix=fix)

    def _tab(self) -> Finding:
        missing = missing_tabs(self.client.views(self.project))
        names = " and ".join(f'"{tab["title"]}"' for tab in missing or OPEN_TABS)
        what = f"The Data Manager {'lacks' if missing else 'has'} the tabs {names}"
        return Finding("tab", ok=not missing, what=what, fix=CONNECT)

    def _private(self) -> str:
        """Return why a private address does not work; empty where the backend's is public."""
        try:
            found = system_resolver(urlsplit(self.url).hostname or "", 0)
        except OSError:
            return ""
        return PRIVATE if any(not_public(address) is not None for address in found) else ""


def visible_projects(client: LabelStudio) -> str:
    """Say which projects can be meant.

    Raises:
        StudioError: Label Studio could not be reached, or refused.
    """
    first = list(islice(client.projects(), MOST_NAMED + 1))
    if not first:
        return "This account sees no project: use the token of a member of their organization."
    names = ", ".join(f"{row['id']} ({row.get('title')})" for row in first[:MOST_NAMED])
    more = ", and more" if len(first) > MOST_NAMED else ""
    return f"This account sees these projects: {names}{more}."


def _label_config(xml: str) -> Finding:
    try:
        config = parse_label_config(xml)
    except LabelConfigError as error:
        fix = "Change the labeling interface under Settings > Labeling Interface."
        return Finding("label_config", ok=False, what=str(error), fix=fix)
    what = f"The labels are a tree of {len(config.tree)} nodes on {config.tree.depth} levels"
    return Finding("label_config", ok=True, what=what)


def _stopped(error: StudioError) -> Finding:
    """Return the finding for an error that ends the checks."""
    table = {
        StudioUnavailableError: ("label_studio", "Start Label Studio, or correct its address."),
        LegacyTokensOffError: (
            "legacy_tokens_off",
            "Switch legacy tokens on, or use a personal access token.",
        ),
        PermissionMissingError: ("permission", "Use the token of an owner or administrator."),
        StudioRefusedError: ("token", "Set the access token of this Label Studio."),
    }
    for kind, (code, fix) in table.items():
        if isinstance(error, kind):
            return Finding(code, ok=False, what=str(error), fix=fix)
    return Finding("request", ok=False, what=str(error), fix="Check address and project number.")
