"""GET /versions: a project's versions, for Label Studio's model page."""

from flask import Blueprint, request
from flask.typing import ResponseReturnValue

from backend.services import services
from studio.errors import ContractError

bp = Blueprint("versions", __name__)


@bp.get("/versions")
def versions() -> ResponseReturnValue:
    """List the versions, oldest first.

    Answers:
        200: ``{"versions": ["v1", "v2"]}``.
        400: no ``project`` in the query.
    """
    project = request.args.get("project", "")
    if not project:
        raise ContractError("project: expected <id>.<created> in the query, got nothing")
    return {"versions": services().parts.store.versions(services().key(project))}
