"""Which version a page is about: the live one, unless the address names another."""

from flask import abort, request

from backend.services import services
from inference.records import Known
from inference.store import Project


def asked_version(project: Project) -> tuple[list[str], str | None, str | None]:
    """All versions' names, newest first; the live one; the one that ``version`` asks for.

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
    """The version that is asked for, read.

    Returns:
        The version, None while untrained; all versions' names, newest first; the live one's name.

    Raises:
        NotFound: no version has that name.
        ModelError: it cannot be read.
    """
    names, live, asked = asked_version(project)
    return None if asked is None else services().records.get(project.key, asked), names, live
