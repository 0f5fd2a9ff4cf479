"""Connections that go only where pictures may come from, and end when a picture's time is up.

Proxies named in the environment are ignored on purpose: a proxy would look the host up again, out
of sight of the check.
"""

import contextlib
import heapq
import itertools
import os
import socket
import threading
import time
from types import TracebackType
from typing import Any, ClassVar, Final, Self

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

from studio.addresses import AddressRules, Origin
from studio.errors import PictureError
from studio.limits import PictureLimits


class PictureUnavailableError(PictureError):
    """The picture cannot be had now: the same request may succeed later."""


class Clock:
    """The time limit of one picture; at its end it cuts the connection in use.

    A timeout of the socket alone does not do: it starts anew with each byte that drips in.
    """

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds
        self.over = False
        self._lock = threading.Lock()
        self._held: socket.socket | None = None

    def __enter__(self) -> Self:
        _WATCH.add(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.over = True
        self._hold(None)

    def left(self) -> float:
        """Seconds left; never negative."""
        return max(0.0, self.end - time.monotonic())

    def watch(self, connection: socket.socket) -> None:
        """Cut this connection when time is up.

        A duplicate is held, since TLS takes the socket over from the object it is given.
        """
        self._hold(socket.fromfd(connection.fileno(), connection.family, connection.type))
        if not self.left():
            raise TimeoutError

    def _hold(self, held: socket.socket | None) -> None:
        with self._lock:
            if self._held is not None:
                self._held.close()
            self._held = held

    def cut(self) -> None:
        """End the connection in use, if there is one."""
        with self._lock, contextlib.suppress(OSError):  # the other side may have hung up already
            if self._held is not None:
                self._held.shutdown(socket.SHUT_RDWR)


class _Watch:
    """Cuts the connections of clocks that have run out: one thread for all of a process.

    A timer a picture would be a thread a picture, which costs more than asking for the picture.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin anew, as in a forked process: it has neither the thread nor its clocks."""
        self._changed = threading.Condition()
        self._due: list[tuple[float, int, Clock]] = []  # a heap; what is over waits for its end
        self._numbers = itertools.count()  # clocks that end together have no order of their own
        self._thread: threading.Thread | None = None

    def add(self, clock: Clock) -> None:
        """Watch it until it is over.

        Raises:
            PictureUnavailableError: the machine has no thread left to do so.
        """
        with self._changed:
            if self._thread is None or not self._thread.is_alive():
                self._thread = self._started()
            self._let_go()
            heapq.heappush(self._due, (clock.end, next(self._numbers), clock))
            if self._due[0][2] is clock:
                self._changed.notify()

    def _started(self) -> threading.Thread:
        thread = threading.Thread(target=self._run, name="watch", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            raise PictureUnavailableError(f"nothing can watch its time: {error}") from error
        return thread

    def _run(self) -> None:
        while True:
            self._next().cut()

    def _let_go(self) -> None:
        """Of clocks that are over, as far as they are the next to run out."""
        while self._due and self._due[0][2].over:
            heapq.heappop(self._due)

    def _next(self) -> Clock:
        """The next clock that runs out, once it has."""
        with self._changed:
            while True:
                self._let_go()
                if self._due and not self._due[0][2].left():
                    return heapq.heappop(self._due)[2]
                self._changed.wait(self._due[0][2].left() if self._due else None)


_WATCH: Final = _Watch()
os.register_at_fork(after_in_child=_WATCH.reset)


class _Current(threading.local):
    """The clock of the picture that this thread fetches: all that a connection can look up."""

    clock: Clock | None = None


class Guard:
    """Makes the connections of one downloader."""

    def __init__(self, rules: AddressRules, limits: PictureLimits) -> None:
        self.current = _Current()
        self._rules = rules
        self._limits = limits

    def watch(self, connection: socket.socket) -> None:
        """Put the connection under this thread's clock."""
        if self.current.clock is not None:
            self.current.clock.watch(connection)

    def connect(self, origin: Origin) -> socket.socket:
        """A connection to one of the addresses that were checked, not to their name.

        A second look-up could answer otherwise.

        Raises:
            PictureError: the host or an address is not allowed.
            PictureUnavailableError: the name is not known, or nothing there accepts a connection.
        """
        try:
            addresses = self._rules.addresses(origin)
        except OSError as error:
            raise PictureUnavailableError(
                f"no address is known for the host {origin.host}"
            ) from error
        for address in addresses:
            with contextlib.suppress(OSError):
                return self._connect(address, origin.port)
        raise PictureUnavailableError(
            f"{origin.host} does not accept connections on port {origin.port}"
        )

    def _connect(self, address: str, port: int) -> socket.socket:
        left = (
            self._limits.total_timeout if self.current.clock is None else self.current.clock.left()
        )
        if not left:
            raise TimeoutError
        made = socket.create_connection((address, port), min(left, self._limits.connect_timeout))
        try:
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.watch(made)
        except BaseException:
            made.close()
            raise
        return made


class _GuardedConnection(HTTPConnection):
    """Connects through the guard; the host keeps its name in the request and in TLS."""

    scheme: ClassVar[str] = "http"

    def __init__(self, *args: Any, guard: Guard, **kwargs: Any) -> None:  # noqa: ANN401 - the pool's own arguments
        super().__init__(*args, **kwargs)
        self._guard = guard

    def _new_conn(self) -> socket.socket:
        return self._guard.connect(Origin(self.scheme, self.host.lower(), self.port))

    def request(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - passed on as they come
        if self.sock is not None:  # kept from an earlier picture, whose clock has stopped
            self._guard.watch(self.sock)
        super().request(*args, **kwargs)


class _GuardedTlsConnection(_GuardedConnection, HTTPSConnection):
    scheme: ClassVar[str] = "https"


class GuardedPools(urllib3.PoolManager):
    """Pools whose connections are guarded."""

    def __init__(self, guard: Guard, **settings: Any) -> None:  # noqa: ANN401 - urllib3's settings
        super().__init__(**settings)
        self._guard = guard

    def _new_pool(
        self, scheme: str, host: str, port: int, request_context: dict[str, Any] | None = None
    ) -> urllib3.HTTPConnectionPool:
        """One pool; urllib3 documents this method as the place to change what a pool is."""
        pool = super()._new_pool(scheme, host, port, request_context)
        pool.ConnectionCls = _GuardedTlsConnection if scheme == "https" else _GuardedConnection
        pool.conn_kw["guard"] = self._guard
        return pool
