"""GET /openapi.json: every route, what it takes and what it may answer.

A test compares the routes here with those of the application, and another asks each of them
whatever the description allows, and whatever it does not.
"""

from typing import Any, Final

from flask import Blueprint
from flask.typing import ResponseReturnValue

bp = Blueprint("openapi", __name__)

Node = dict[str, Any]

_PROJECT: Final[Node] = {
    "type": "string",
    "pattern": r"^[0-9]{1,19}\.[0-9]{1,19}$",
    "description": "The project as Label Studio names it: id, dot, creation time in seconds.",
    "example": "12.1795440233",
}
_ID: Final[Node] = {"type": "integer", "minimum": 0, "maximum": 2**63 - 1}
_TEXT: Final[Node] = {"type": "string"}
_OBJECT: Final[Node] = {"type": "object"}
_DETAIL: Final[Node] = {
    "type": "object",
    "required": ["detail"],
    "properties": {"detail": {"type": "string"}},
}

_SETUP: Final[Node] = {
    "type": "object",
    "required": ["project", "schema"],
    "properties": {
        "project": _PROJECT,
        "schema": {**_TEXT, "description": "The label config, XML."},
        "hostname": {**_TEXT, "description": "Label Studio's own idea of its address."},
        "access_token": {**_TEXT, "description": "Not kept."},
        "extra_params": {**_OBJECT, "nullable": True},
    },
}
_PREDICT: Final[Node] = {
    "type": "object",
    "required": ["tasks", "project", "label_config"],
    "properties": {
        "tasks": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["id"],
                "properties": {"id": _ID, "data": {**_OBJECT, "nullable": True}},
            },
        },
        "project": _PROJECT,
        "label_config": {**_TEXT, "description": "XML."},
        "params": {
            "type": "object",
            "nullable": True,
            "properties": {"context": {**_OBJECT, "nullable": True}},
        },
    },
}
_WEBHOOK: Final[Node] = {
    "type": "object",
    "required": ["action"],
    "properties": {
        "action": {**_TEXT, "example": "ANNOTATION_CREATED"},
        "project": {
            "type": "object",
            "properties": {
                "id": _ID,
                "created_at": {**_TEXT, "format": "date-time"},
                "label_config": _TEXT,
            },
        },
        "annotation": {**_OBJECT, "nullable": True},
        "annotations": {"type": "array", "items": _OBJECT},
        "task": {**_OBJECT, "nullable": True},
        "tasks": {"type": "array", "items": _OBJECT},
    },
}
_ANSWERS: Final[Node] = {
    "type": "object",
    "required": ["results", "model_version"],
    "properties": {
        "model_version": _TEXT,
        "results": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["result", "score"],
                "properties": {
                    "result": {"type": "array", "items": _OBJECT},
                    "score": {"type": "number", "minimum": 0, "maximum": 1},
                    "model_version": _TEXT,
                },
            },
        },
    },
}
_VERSION: Final[Node] = {
    "type": "object",
    "required": ["model_version"],
    "properties": {"model_version": _TEXT},
}
_VERSIONS: Final[Node] = {
    "type": "object",
    "required": ["versions"],
    "properties": {"versions": {"type": "array", "items": _TEXT}, "shown": _OBJECT},
}
_UP: Final[Node] = {
    "type": "object",
    "required": ["status", "model_class"],
    "properties": {"status": {"enum": ["UP"]}, "model_class": _TEXT},
}
_READY: Final[Node] = {
    "type": "object",
    "required": ["ready", "store", "redis", "workers"],
    "properties": {"ready": {"type": "boolean"}, "store": _TEXT, "redis": _TEXT, "workers": _TEXT},
}

_WORDS: Final = {
    "200": "Done.",
    "201": "Noted.",
    "303": "Go on at another page.",
    "400": "What was sent cannot be used; why.",
    "401": "Wrong or missing user and password, or signed out.",
    "403": "A wrong password.",
    "404": "No such page, or the console is off.",
    "409": "The project is disconnected; what brings it back.",
    "413": "The body is too large.",
    "429": "Too many tries; `Retry-After` says how many seconds to wait.",
    "503": "Not now; why.",
}

#: Pages of the console: path -> methods. A browser's; their forms carry a token of their page.
_CONSOLE: Final = {
    "/console": "get",
    "/console/checkup": "post",
    "/console/projects/{key}/connection": "get",
    "/console/projects/{key}/connection/disconnect": "post",
    "/console/projects/{key}/connection/forget": "get post",
    "/console/projects/{key}/look": "get post",
    "/console/projects/{key}/training": "get",
    "/console/projects/{key}/training/cancel": "post",
    "/console/projects/{key}/training/start": "post",
    "/console/projects/{key}/training/state": "get",
    "/console/projects/{key}/training/stop-refresh": "post",
    "/console/projects/{key}/tree": "get",
    "/console/projects/{key}/trust": "get post",
    "/console/projects/{key}/versions": "get",
    "/console/projects/{key}/versions/compare": "get",
    "/console/projects/{key}/versions/rollback": "post",
    "/console/projects/{key}/versions/{version}/delete": "post",
    "/console/projects/{key}/versions/{version}/download": "get",
    "/console/projects/{key}/versions/{version}/note": "post",
    "/console/projects/{key}/versions/{version}/promote": "post",
    "/console/sign-in": "get post",
    "/console/sign-out": "post",
    "/console/state": "get",
    "/console/static/{filename}": "get",
}


def describe() -> Node:
    """The description, OpenAPI 3.0."""
    basic: list[Node] = [{"basic": []}]
    query = {"name": "project", "in": "query", "required": True, "schema": _PROJECT}
    paths: Node = {
        "/": {"get": _route("This server answers.", {"200": _UP, "401": _DETAIL})},
        "/health": {"get": _route("This server answers.", {"200": _UP, "401": _DETAIL})},
        "/ready": {
            "get": _route(
                "Is all there that training needs?",
                {"200": _READY, "503": _READY, "401": _DETAIL},
            )
        },
        "/metrics": {"get": {**_text_route("Figures for Prometheus."), "security": basic}},
        "/openapi.json": {
            "get": {
                **_route("This description.", {"200": _OBJECT, "401": _DETAIL}),
                "security": basic,
            }
        },
        "/versions": {
            "get": {
                **_route("A project's versions.", {"200": _VERSIONS, **_refusals("400 401 503")}),
                "parameters": [query],
                "security": basic,
            }
        },
        "/setup": {"post": _taking(_SETUP, "A project introduces itself.", "200", _VERSION)},
        "/predict": {"post": _taking(_PREDICT, "One answer a task.", "200", _ANSWERS)},
        "/webhook": {"post": _taking(_WEBHOOK, "Something happened.", "201", _OBJECT, "409")},
    }
    for path, methods in _CONSOLE.items():
        paths[path] = {method: _page(path, method) for method in methods.split()}
    return {
        "openapi": "3.0.3",
        "info": {"title": "label-studio-hrn", "version": "1"},
        "components": {"securitySchemes": {"basic": {"type": "http", "scheme": "basic"}}},
        "paths": paths,
    }


def _route(words: str, answers: Node) -> Node:
    told = {
        status: {"description": _WORDS[status], "content": {"application/json": {"schema": schema}}}
        for status, schema in answers.items()
    }
    return {"summary": words, "responses": told}


def _refusals(statuses: str) -> Node:
    return dict.fromkeys(statuses.split(), _DETAIL)


def _taking(body: Node, words: str, status: str, answer: Node, more: str = "") -> Node:
    return {
        **_route(words, {status: answer, **_refusals(f"400 401 413 503 {more}")}),
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        "security": [{"basic": []}],
    }


def _text_route(words: str) -> Node:
    text = {"description": _WORDS["200"], "content": {"text/plain": {"schema": _TEXT}}}
    refused = {
        "description": _WORDS["401"],
        "content": {"application/json": {"schema": _DETAIL}},
    }
    return {"summary": words, "responses": {"200": text, "401": refused}}


def _page(path: str, method: str) -> Node:
    statuses = (
        "200 303 400 401 404 503" if method == "get" else "200 303 400 401 403 404 413 429 503"
    )
    found: Node = {
        "summary": "A page of the console." if method == "get" else "A form of the console.",
        "responses": {status: {"description": _WORDS[status]} for status in statuses.split()},
    }
    names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    if names:
        found["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": _TEXT} for name in names
        ]
    if method == "post":
        form = {"type": "object", "properties": {"csrf": _TEXT}}
        kind = "application/x-www-form-urlencoded"
        found["requestBody"] = {"content": {kind: {"schema": form}}}
    return found


@bp.get("/openapi.json", endpoint="openapi")
def openapi() -> ResponseReturnValue:
    """Describe every route.

    Answers:
        200: always.
    """
    return describe()
