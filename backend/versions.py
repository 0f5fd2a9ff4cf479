"""GET /versions: a project's versions, for Label Studio's model page."""

import logging
from typing import Any

from flask import Blueprint, request
from flask.typing import ResponseReturnValue

from backend.services import services
from inference.errors import ModelStoreError
from inference.store import ModelStore
from studio.errors import ContractError

log = logging.getLogger(__name__)
bp = Blueprint("versions", __name__)


@bp.get("/versions")
def versions() -> ResponseReturnValue:
    """List the versions, oldest first.

    Answers:
        200: ``{"versions": ["v1", "v2"]}``, and under ``shown`` how right the labels were that
            each had shown, by annotators' answers, where there are any. Label Studio reads the
            first.
        400: no ``project`` in the query.
    """
    project = request.args.get("project", "")
    if not project:
        raise ContractError("project: expected <id>.<created> in the query, got nothing")
    store, key = services().parts.store, services().key(project)
    names = store.versions(key)
    told = {name: shown for name in names if (shown := shown_since(store, key, name))}
    return {"versions": names, **({"shown": told} if told else {})}


def shown_since(store: ModelStore, key: str, version: str) -> dict[str, Any] | None:
    """Return how right the labels were that a version showed, None if no annotator answered."""
    if store.following_stamp(key, version) is None:
        return None
    try:
        kept = store.read_following(key, version)
    except ModelStoreError as error:
        log.warning("not told how labels did project=%s version=%s: %s", key, version, error)
        return None
    told: dict[str, Any] | None = None if kept is None else kept.get("told")
    return told
