"""Common parts of pages: rendering, the way around, messages, how figures are written."""

import re
import sys
import time
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from flask import (
    Response,
    abort,
    current_app,
    flash,
    g,
    get_flashed_messages,
    make_response,
    redirect,
    render_template,
    request,
    session,
    url_for,
)
from flask.typing import ResponseReturnValue

from backend.console.blueprint import TABS, bp
from backend.services import services
from inference.errors import ModelError, ModelStoreError
from inference.records import Known
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

#: Messages that wait for the next page, and characters of each: the cookie holds them.
MOST_NOTES: Final = 4
NOTE_LENGTH: Final = 500

#: A password in an address.
_CREDENTIALS: Final = re.compile(r"(?<=://)[^\s/@]*@")


def is_live() -> bool:
    """Whether a page asks this by itself, to stay up to date: it keeps nobody signed in."""
    return (request.endpoint or "").endswith("_state") or "X-Live" in request.headers


def page(template: str, *, title: str, status: int = 200, **words: Any) -> Response:  # noqa: ANN401 - whatever the template shows
    """Render a page of the console.

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
    """Return the project that an address names, found among those that are known.

    Raises:
        NotFound: there is none; what the address says never becomes part of a path.
    """
    known = {project.key: project for project in services().parts.store.projects()}
    return known[key] if key in known else abort(404)


def asked_version(project: Project) -> tuple[list[str], str | None, str | None]:
    """Return all versions' names, newest first; the live one; the one that ``version`` asks for.

    Raises:
        NotFound: no version has that name.
    """
    store = services().parts.store
    names, live = store.versions(project.key)[::-1], store.current(project.key)
    asked = request.values.get("version") or live
    if asked is not None and asked not in names:
        abort(404)
    return names, live, asked


def chosen(project: Project) -> tuple[Known | None, list[str], str | None]:
    """Read the version that a page is about: the live one, unless the address names another.

    Returns:
        The version, None while untrained; all versions' names, newest first; the live one's name.

    Raises:
        NotFound: no version has that name.
        ModelError: it cannot be read.
    """
    names, live, asked = asked_version(project)
    return None if asked is None else services().records.get(project.key, asked), names, live


def back_to(endpoint: str, **values: Any) -> ResponseReturnValue:  # noqa: ANN401 - of an address
    """Lead to a page of the console after a form."""
    return redirect(url_for(f"console.{endpoint}", **values), HTTPStatus.SEE_OTHER)


def tell(words: str, kind: str = "good") -> None:
    """Show a message on the next page that this person opens.

    Args:
        words: a sentence.
        kind: ``good``, ``wrong`` or ``plain``.
    """
    flash(words[:NOTE_LENGTH], kind)
    session["_flashes"] = session["_flashes"][-MOST_NOTES:]


def name_of(project: Project) -> str:
    """Return what people call a project."""
    return project.title.strip() or f"Project {project.number}"


def studio_link(project: Project, rest: str = "") -> str | None:
    """Return the project's address in Label Studio; None where that is no web address."""
    settings = services().parts.settings
    address = settings.label_studio_page or settings.label_studio_url or project.label_studio
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname or not project.number:
        return None
    place = parts.hostname if parts.port is None else f"{parts.hostname}:{parts.port}"
    return f"{parts.scheme}://{place}{parts.path.rstrip('/')}/projects/{project.number}/{rest}"


@bp.app_template_filter("plain")
def plain(text: object) -> str:
    """Return a message without paths of this machine, and without passwords in addresses."""
    words = str(text)
    for known in _folders():
        words = re.sub(
            f"{_BEFORE}{_STUDIO}{re.escape(known)}(?![\\w-]){_REST}", "its folder", words
        )
    return _CREDENTIALS.sub("", _SYSTEM.sub("its folder", words))


def _folders() -> list[str]:
    """Return folders and files that settings name, and those of this program; the longest first."""
    ours = services().parts.settings
    set_here = (ours.home, *ours.backbone_weights, ours.local_files)
    store = None if ours.in_bucket else ours.store
    paths = [path for path in (*set_here, store, Path(sys.prefix), Path.cwd()) if path is not None]
    names = {str(form) for path in paths for form in (path, path.resolve())}
    return sorted((name for name in names if name.count("/") and name != "/"), key=len)[::-1]


@bp.app_template_filter("share")
def share(value: float | None, digits: int = 0) -> str:
    """Return a share as a percentage, a dash where there is none."""
    return "–" if value is None else f"{100 * value:.{digits}f} %"  # noqa: RUF001 - a dash


@bp.app_template_filter("number")
def number(value: float | None) -> str:
    """Return a count with thin spaces between thousands."""
    return "–" if value is None else f"{value:,}".replace(",", "\u2009")  # noqa: RUF001 - a dash


@bp.app_template_filter("when")
def when(seconds: float | None) -> str:
    """Return a time of the epoch, in the server's time zone."""
    return "" if seconds is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


@bp.app_template_filter("iso")
def iso(seconds: float | None) -> str:
    """Return a time of the epoch as machines read it."""
    return "" if seconds is None else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


@bp.app_template_filter("ago")
def ago(seconds: float | None) -> str:
    """Say how long ago a time of the epoch is."""
    if seconds is None:
        return ""
    spent = time.time() - seconds
    return "just now" if spent < 10 else f"{span(spent)} ago"


@bp.app_template_filter("span")
def span(seconds: float | None) -> str:
    """Return a length of time in words, in the unit that suits it.

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
    """Return a number of bytes in words."""
    if value is None:
        return "–"  # noqa: RUF001 - a dash
    for unit, one in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= one:
            return f"{value / one:.1f} {unit}"
    return f"{value:.0f} bytes"


@bp.context_processor
def _common() -> dict[str, Any]:
    if not g.get("signed_in"):
        return {"signed_in": False, "notes": (), "others": ()}
    shown = request.method == "GET" and not is_live()
    return {
        "signed_in": True,
        "notes": get_flashed_messages(with_categories=True) if shown else (),
        "others": _others(),
        "tabs": [tab for tab in TABS if tab[0] in current_app.view_functions],
        "name_of": name_of,
        "studio_link": studio_link,
        "shows_labels": _shows_labels,
    }


def _shows_labels(project: Project, version: str) -> bool:
    """Whether a version would show any label of the project."""
    try:
        return nothing_shown(services().parts, project, version) is None
    except ModelError:
        return False


def _others() -> list[Project]:
    """Return all projects, to go from one to another; none where the store cannot be read."""
    try:
        return services().parts.store.projects()
    except ModelStoreError:
        return []
