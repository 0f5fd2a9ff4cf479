"""The web server: the Flask application under gunicorn, one process with threads."""

import atexit
import ctypes
import gc
import ipaddress
import logging
import os
import sys
import threading
from argparse import Namespace
from typing import TYPE_CHECKING, Any, Final

from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter

from cli.opening import Opening
from worker.redaction import cover, start_logging
from worker.settings import SettingError, Settings

if TYPE_CHECKING:
    from flask import Flask

    from worker.parts import Parts

log = logging.getLogger(__name__)


#: Of malloc.h.
M_ARENA_MAX: Final = -8

#: Seconds for which a thread may keep the interpreter from others, a fifth of Python's own: of 32
#: requests at once 4 to 8 % more are answered.
SWITCH_S: Final = 0.001


class Server(BaseApplication):  # type: ignore[misc]
    """gunicorn with our application and settings instead of its command line.

    One process: the model is in memory once, inference releases the interpreter's lock, and
    `/health` is answered by another thread meanwhile.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        super().__init__()

    def load_config(self) -> None:
        """Set what differs from gunicorn's defaults, each with its reason."""
        choices: dict[str, Any] = {
            "bind": authority(self._settings.host, self._settings.port),
            "workers": 1,
            "worker_class": "gthread",
            "threads": self._settings.threads,
            "timeout": 120,  # Label Studio gives up on a prediction after 100 s
            "graceful_timeout": 30,
            "keepalive": 5,
            "accesslog": None,  # /metrics counts; a line per probe would hide what matters
            "loglevel": "info",
            "control_socket_disable": True,
        }
        for name, value in choices.items():
            if name in self.cfg.settings:
                self.cfg.set(name, value)

    def load(self) -> Opening:
        """Return the application, which is still being loaded while the first requests come in."""
        cover("gunicorn.error", self._settings)
        return Opening(lambda: _application(self._settings), _leave)


def _leave() -> None:
    """End this process so that gunicorn ends too, and whoever watches it sees that it failed.

    From the thread that loads; the process has served nothing but `/health`.
    """
    logging.shutdown()
    os._exit(Arbiter.WORKER_BOOT_ERROR)


def authority(host: str, port: int) -> str:
    """Return ``host:port``, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _application(settings: Settings) -> "Flask":
    """Make the application; a thread loads its backbone."""
    _few_arenas()
    sys.setswitchinterval(SWITCH_S)
    import torch  # seconds, which `/health` need not wait

    from backend.app import create_app
    from worker.parts import Parts

    if "OMP_NUM_THREADS" not in os.environ:
        # As many requests compute at once as there are threads that serve; what more threads in
        # each of them gain alone they lose by waiting for each other.
        torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))
    parts = Parts(settings)
    app = create_app(parts)
    threading.Thread(target=_warm, args=(parts,), daemon=True, name="warm-up").start()
    return app


def _few_arenas() -> None:
    """Let threads share freed memory: else each keeps its own, 100 MB in all."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # of glibc alone
    if mallopt is not None:
        mallopt(M_ARENA_MAX, 2)


def _warm(parts: "Parts") -> None:
    from inference.errors import ModelError

    try:
        parts.extractors.base()
    except ModelError as error:  # the request that needs it answers with it
        log.error("backbone not loaded: %s", error)  # noqa: TRY400 - the message says it all
    # Left to itself Python's collector walks through all that is loaded now and then, and for a
    # quarter of a second nobody is answered. Before that, what loading has left behind.
    gc.collect()
    gc.freeze()
    atexit.register(gc.unfreeze)  # see `worker.__main__.load`


def is_local(host: str) -> bool:
    """Whether only this machine can reach what listens there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_exposure(settings: Settings) -> None:
    """Refuse to be open to a network without a password.

    Raises:
        SettingError: with what to set.
    """
    if not settings.password and not is_local(settings.host):
        raise SettingError(
            f"HRN_PASSWORD is not set and HRN_HOST={settings.host} can be reached from outside: "
            "set HRN_PASSWORD, then run `hrn connect` so that Label Studio knows it"
        )


def run(_arguments: Namespace, settings: Settings) -> int:
    """Run the web server alone, until told to stop."""
    serve(settings)
    return 0


def serve(settings: Settings) -> None:
    """Serve until told to stop.

    Raises:
        SettingError: see `check_exposure`.
    """
    check_exposure(settings)
    start_logging(settings)
    Server(settings).run()
