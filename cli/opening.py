"""A server that says it is up before its application is loaded."""

import json
import logging
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import TYPE_CHECKING

from backend.health import UP

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

log = logging.getLogger(__name__)


class Opening:
    """A WSGI application that loads another one in a thread and then hands everything to it.

    Until then `/health` is answered here, so that a load balancer sees a process that starts well;
    everything else waits. So does a `/health` with credentials, which only the application checks.
    """

    def __init__(
        self, make: "Callable[[], WSGIApplication]", failed: Callable[[], None] = lambda: None
    ) -> None:
        """Begin to load.

        Args:
            make: returns the application; what it raises is raised for every request from then on.
            failed: called after it raised, to end a process that is of no use.
        """
        self._make = make
        self._failed = failed
        self._made: Future[WSGIApplication] = Future()
        threading.Thread(target=self._load, daemon=True, name="loading").start()

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        """One request."""
        if not self._made.done() and _asks_for_health(environ):
            body = json.dumps(UP).encode()
            headers = [
                ("Content-Type", "application/json"),
                ("Content-Length", str(len(body))),
                ("X-Content-Type-Options", "nosniff"),
                ("Cache-Control", "no-store"),
            ]
            start_response("200 OK", headers)
            return [body]
        return self._made.result()(environ, start_response)

    def _load(self) -> None:
        try:
            self._made.set_result(self._make())
        except BaseException as error:
            log.exception("the application cannot be loaded")
            self._made.set_exception(error)
            self._failed()


def _asks_for_health(environ: "WSGIEnvironment") -> bool:
    return (
        environ.get("REQUEST_METHOD") == "GET"
        and environ.get("PATH_INFO") in {"/", "/health"}
        and "HTTP_AUTHORIZATION" not in environ
    )
