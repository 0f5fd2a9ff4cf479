"""GET /ready and /metrics: for operators."""

import logging
import time

from flask import Blueprint, Flask, Response, g, request
from flask.typing import ResponseReturnValue
from prometheus_client import CONTENT_TYPE_LATEST, Counter, Gauge, Histogram, generate_latest

from backend.services import services
from backend.versions import shown_since
from inference.errors import ModelStoreError
from worker.errors import MisconfiguredError
from worker.queue import RedisError
from worker.unlike import unlike

log = logging.getLogger(__name__)
bp = Blueprint("operations", __name__)

#: Bounds in seconds; Label Studio gives a webhook one second and a prediction a hundred.
BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 1, 2.5, 5, 10, 30, 60, 100)

SECONDS = Histogram(
    "hrn_request_seconds", "Time to answer a request", ["route", "status"], buckets=BOUNDS
)
PICTURES = Counter("hrn_pictures_total", "Pictures asked about", ["outcome"])
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
    try:
        running = len(services().parts.board.workers())
        workers = str(running) if running else workers
    except (RedisError, MisconfiguredError):
        redis, workers = "not reachable", "unknown"
    fine = (store, redis) == ("writable", "reachable") and workers.isdecimal()
    state = {"ready": fine, "store": store, "redis": redis, "workers": workers}
    return state, 200 if fine else 503


def _reason(error: ModelStoreError) -> str:
    """What the system says, without the path, which is no business of whoever may ask."""
    return getattr(error.__cause__, "strerror", None) or "the log says why"


@bp.get("/metrics")
def metrics() -> ResponseReturnValue:
    """Prometheus text.

    Answers:
        200: always; queue figures are missing while Redis is away.
    """
    try:
        DEPTH.set(services().parts.board.depth())
        WORKERS.set(len(services().parts.board.workers()))
    except (RedisError, MisconfiguredError):
        DEPTH.set(float("nan"))
        WORKERS.set(float("nan"))
    _tell_accuracy()
    return Response(generate_latest(), content_type=CONTENT_TYPE_LATEST)


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
    try:
        told = unlike(services().parts, key, version)
    except (RedisError, MisconfiguredError):
        return
    if told is not None:
        OPEN.labels(key, version).set(told["open"])
        UNLIKE.labels(key, version).set(told["unlike"])
