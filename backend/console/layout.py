"""What pages have in common: the way around, messages, how figures and times are written."""

import re
import sys
import time
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from flask import Response, abort, current_app, g, make_response, render_template, request

from backend.console.blueprint import TABS, bp
from backend.console.state import console
from backend.services import services
from inference.errors import ModelError, ModelStoreError
from inference.store import Project
from worker.showing import nothing_shown

#: The rest of a path, and what stands before one that is not part of an address or a fraction.
_REST: Final = r"(?:/[\w.@~+-]+)*/?"
_BEFORE: Final = r"(?<![\w:/.\]-])"

#: A path of any machine in a sentence, by the folders that systems have at their root. Label
#: Studio's own (/data/upload, /api/projects) are none of these: what to do is said with them.
_SYSTEM: Final = re.compile(
    _BEFORE
    + r"/(?:Users|boot|dev|etc|home|lib\w*|media|mnt|nix|opt|private|proc|root|run|s?bin|srv"
    rf"|sys|tmp|usr|var)/[\w.@~+-]+{_REST}"
)

#: Label Studio's paths, also where a folder of ours has the same beginning.
_STUDIO: Final = r"(?!/data/(?:upload|local-files)\b)"

#: A password in an address.
_CREDENTIALS: Final = re.compile(r"(?<=://)[^\s/@]*@")


def is_live() -> bool:
    """Does a page ask this by itself, to stay up to date? It keeps nobody signed in."""
    return (request.endpoint or "").endswith("_state") or "X-Live" in request.headers


def page(template: str, *, title: str, status: int = 200, **words: Any) -> Response:  # noqa: ANN401 - whatever the template shows
    """A page of the console.

    Args:
        template: its name, without folder and ending.
        title: for the browser's tab and, in most pages, the heading.
        status: of HTTP.
        words: what the template shows.
    """
    shown = render_template(f"console/{template}.html", title=title, **words)
    answer = make_response(shown, status)
    answer.headers["Cache-Control"] = "no-store"
    return answer


def the_project(key: str) -> Project:
    """The project that an address names, found among those that are known.

    Raises:
        NotFound: there is none; what the address says never becomes part of a path.
    """
    known = {project.key: project for project in services().parts.store.projects()}
    return known[key] if key in known else abort(404)


def tell(words: str, kind: str = "good") -> None:
    """Show a message on the next page that this person opens.

    Args:
        words: a sentence.
        kind: ``good``, ``wrong`` or ``plain``.
    """
    console().sessions.note(g.secret, kind, words)


def name_of(project: Project) -> str:
    """What people call a project."""
    return project.title.strip() or f"Project {project.number}"


def studio_link(project: Project, rest: str = "") -> str | None:
    """Where the project stands in Label Studio; None where its address is no web address."""
    settings = services().parts.settings
    address = settings.label_studio_page or settings.label_studio_url or project.label_studio
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname or not project.number:
        return None
    place = parts.hostname if parts.port is None else f"{parts.hostname}:{parts.port}"
    return f"{parts.scheme}://{place}{parts.path.rstrip('/')}/projects/{project.number}/{rest}"


@bp.app_template_filter("plain")
def plain(text: object) -> str:
    """A message without paths of this machine, and without passwords in addresses."""
    words = str(text)
    for known in _folders():
        words = re.sub(
            f"{_BEFORE}{_STUDIO}{re.escape(known)}(?![\\w-]){_REST}", "its folder", words
        )
    return _CREDENTIALS.sub("", _SYSTEM.sub("its folder", words))


def _folders() -> list[str]:
    """Folders and files that settings name, and those of this program; the longest first."""
    ours = services().parts.settings
    set_here = (ours.home, *ours.backbone_weights, ours.local_files)
    store = None if ours.in_bucket else ours.store
    paths = [path for path in (*set_here, store, Path(sys.prefix), Path.cwd()) if path is not None]
    names = {str(form) for path in paths for form in (path, path.resolve())}
    return sorted((name for name in names if name.count("/") and name != "/"), key=len)[::-1]


@bp.app_template_filter("share")
def share(value: float | None, digits: int = 0) -> str:
    """A share as a percentage, a dash where there is none."""
    return "–" if value is None else f"{100 * value:.{digits}f} %"  # noqa: RUF001 - a dash


@bp.app_template_filter("number")
def number(value: float | None) -> str:
    """A count with thin spaces between thousands."""
    return "–" if value is None else f"{value:,}".replace(",", "\u2009")  # noqa: RUF001 - a dash


@bp.app_template_filter("when")
def when(seconds: float | None) -> str:
    """A time of the epoch, in the server's time zone."""
    return "" if seconds is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


@bp.app_template_filter("iso")
def iso(seconds: float | None) -> str:
    """The same for machines."""
    return "" if seconds is None else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


@bp.app_template_filter("ago")
def ago(seconds: float | None) -> str:
    """How long ago a time of the epoch is, in words."""
    if seconds is None:
        return ""
    spent = time.time() - seconds
    return "just now" if spent < 10 else f"{span(spent)} ago"


@bp.app_template_filter("span")
def span(seconds: float | None) -> str:
    """A length of time in words, in the unit that suits it.

    Example:
        >>> [span(seconds) for seconds in (4.2, 75, 4000, 200000)]
        ['4 s', '75 s', '67 min', '2 days']
    """
    if seconds is None:
        return ""
    for unit, size, most in (("s", 1, 100), ("min", 60, 6000), ("h", 3600, 48 * 3600)):
        if seconds < most:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86400:.0f} days"


@bp.app_template_filter("size")
def size(value: float | None) -> str:
    """Bytes in words."""
    if value is None:
        return "–"  # noqa: RUF001 - a dash
    for unit, one in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= one:
            return f"{value / one:.1f} {unit}"
    return f"{value:.0f} bytes"


@bp.context_processor
def _common() -> dict[str, Any]:
    if g.get("session") is None:
        return {"signed_in": False, "notes": (), "others": ()}
    return {
        "signed_in": True,
        "notes": console().sessions.take_notes(g.secret)
        if request.method == "GET" and not is_live()
        else (),
        "others": _others(),
        "tabs": [tab for tab in TABS if tab[0] in current_app.view_functions],
        "name_of": name_of,
        "studio_link": studio_link,
        "shows_labels": _shows_labels,
    }


def _shows_labels(project: Project, version: str) -> bool:
    """Would a version show any label of the project?"""
    try:
        return nothing_shown(services().parts, project, version) is None
    except ModelError:
        return False


def _others() -> list[Project]:
    """All projects, for going from one to another; none where the store cannot be read."""
    try:
        return services().parts.store.projects()
    except ModelStoreError:
        return []
