"""GET /ready, /metrics and /openapi.json: for operators."""

import logging
import time
from pathlib import Path
from typing import Final

from flask import Blueprint, Flask, Response, g, request
from flask.typing import ResponseReturnValue
from prometheus_client import CONTENT_TYPE_LATEST, Counter, Gauge, Histogram, generate_latest

from backend.services import from_redis, services
from backend.versions import shown_since
from inference.errors import ModelStoreError
from worker.unlike import unlike

log = logging.getLogger(__name__)
bp = Blueprint("operations", __name__)

#: Every route, what it takes and what it may answer, as OpenAPI 3.0. Tests compare its routes with
#: the application's and send each of them what it allows, and what it does not.
OPENAPI: Final = Path(__file__).with_name("openapi.json")

#: Bounds in seconds; Label Studio gives a webhook one second and a prediction a hundred.
BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 1, 2.5, 5, 10, 30, 60, 100)

SECONDS = Histogram(
    "hrn_request_seconds", "Time to answer a request", ["route", "status"], buckets=BOUNDS
)
PICTURES = Counter("hrn_pictures_total", "Images asked about", ["outcome"])
DEPTH = Gauge("hrn_queue_depth", "Jobs that wait")
WORKERS = Gauge("hrn_workers", "Workers that serve the queue")
OF_LEVEL = ["project", "version", "level"]
ACCURACY = Gauge("hrn_shown_accuracy", "Share of shown labels that annotators confirmed", OF_LEVEL)
OF_VERSION = ["project", "version"]
OPEN = Gauge("hrn_open_images", "Open images that the live version has looked at", OF_VERSION)
UNLIKE = Gauge("hrn_open_images_unlike", "Open images unlike the labelled ones", OF_VERSION)
CHECKED = Gauge("hrn_shown_checked", "Shown labels that annotators' answers could check", OF_LEVEL)


def measure(app: Flask) -> None:
    """Time each request."""

    def begin() -> None:
        g.began = time.perf_counter()

    def end(response: Response) -> Response:
        if "began" in g:
            spent = time.perf_counter() - g.began
            SECONDS.labels(request.endpoint or "unknown", response.status_code).observe(spent)
        return response

    app.before_request(begin)
    app.after_request(end)


@bp.get("/ready", endpoint="ready")
def ready() -> ResponseReturnValue:
    """Say whether everything that serving and training need is there.

    Answers:
        200 or 503: ``{"ready": ..., "store": ..., "redis": ..., "workers": ...}``, each in words.
    """
    store, redis, workers = "writable", "reachable", "none: start one with `hrn work`"
    try:
        services().parts.store.check_writable()
    except ModelStoreError as error:
        store = f"not writable: {_reason(error)}"
    running = from_redis(services().parts, lambda board: len(board.workers()), None)
    if running is None:
        redis, workers = "not reachable", "unknown"
    elif running:
        workers = str(running)
    fine = (store, redis) == ("writable", "reachable") and workers.isdecimal()
    state = {"ready": fine, "store": store, "redis": redis, "workers": workers}
    return state, 200 if fine else 503


def _reason(error: ModelStoreError) -> str:
    """Return the system's words without the path, which is no business of who may ask."""
    return getattr(error.__cause__, "strerror", None) or "the log says why"


@bp.get("/metrics")
def metrics() -> ResponseReturnValue:
    """Prometheus text.

    Answers:
        200: always; queue figures are missing while Redis is away.
    """
    depth, workers = from_redis(
        services().parts,
        lambda board: (float(board.depth()), float(len(board.workers()))),
        (float("nan"), float("nan")),
    )
    DEPTH.set(depth)
    WORKERS.set(workers)
    _tell_accuracy()
    return Response(generate_latest(), content_type=CONTENT_TYPE_LATEST)


@bp.get("/openapi.json")
def openapi() -> ResponseReturnValue:
    """Describe every route.

    Answers:
        200: always.
    """
    return Response(OPENAPI.read_bytes(), mimetype="application/json")


def _tell_accuracy() -> None:
    """Set the figures of every live version; those of versions that were live before go."""
    store = services().parts.store
    for gauge in (ACCURACY, CHECKED, OPEN, UNLIKE):
        gauge.clear()
    for project in store.projects():
        try:
            version = store.current(project.key)
        except ModelStoreError as error:  # /ready and doctor tell of it; the other figures stand
            log.warning("no figures project=%s: %s", project.key, error)
            continue
        _tell_unlike(project.key, version)
        told = None if version is None else shown_since(store, project.key, version)
        for row in [] if told is None else told["levels"]:
            labels = (project.key, version, row["level"])
            CHECKED.labels(*labels).set(row["checked"])
            if row["accuracy"] is not None:
                ACCURACY.labels(*labels).set(row["accuracy"])


def _tell_unlike(key: str, version: str | None) -> None:
    """Set how many open images look unlike the labelled ones; nothing while Redis is away."""
    parts = services().parts
    told = from_redis(parts, lambda _: unlike(parts, key, version), None)
    if told is not None:
        OPEN.labels(key, version).set(told["open"])
        UNLIKE.labels(key, version).set(told["unlike"])
