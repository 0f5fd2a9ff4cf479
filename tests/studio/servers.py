"""Small real HTTP servers on the loopback address, for tests of what is sent and how we bear it."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit


@dataclasses.dataclass(frozen=True)
class Request:
    """What arrived."""

    method: str
    path: str
    params: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def token(self) -> str | None:
        return self.headers.get("Authorization")


@dataclasses.dataclass(frozen=True)
class Reply:
    """What is answered; anything but bytes is sent as JSON. Status 0 drops the connection.

    A header `X-Drip` sends the body byte by byte, with that many seconds after each.
    """

    content: object = dataclasses.field(default_factory=dict)
    status: int = 200
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Server:
    """A server that runs, and what it has been asked so far."""

    url: str
    requests: list[Request]

    def paths(self) -> list[str]:
        return [request.path for request in self.requests]


@contextmanager
def serving(answer: Callable[[Request], Reply]) -> Iterator[Server]:
    """A server that answers with the function, in a thread, until the block ends."""
    requests: list[Request] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            size = int(self.headers.get("Content-Length") or 0)
            request = Request(
                self.command,
                parts.path,
                dict(parse_qsl(parts.query)),
                dict(self.headers),
                self.rfile.read(size),
            )
            requests.append(request)
            reply = answer(request)
            if reply.status == 0:
                self.close_connection = True
                return
            raw = isinstance(reply.content, bytes)
            data = reply.content if isinstance(reply.content, bytes) else b""
            data = data if raw else json.dumps(reply.content).encode()
            headers = {"Content-Type": "application/json", **reply.headers}
            try:
                self.send_response(reply.status)
                for name, value in {**headers, "Content-Length": str(len(data))}.items():
                    self.send_header(name, value)
                self.end_headers()
                pause = float(headers.get("X-Drip", 0))
                for piece in [data[n : n + 1] for n in range(len(data))] if pause else [data]:
                    self.wfile.write(piece)
                    time.sleep(pause)
            except OSError:  # the caller has gone
                self.close_connection = True

        do_POST = do_PATCH = do_DELETE = do_GET  # noqa: N815 - the names http.server looks for

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield Server(f"http://127.0.0.1:{server.server_port}", requests)
    finally:
        server.shutdown()
        server.server_close()
        thread.join(60)


def script(*replies: Reply) -> Callable[[Request], Reply]:
    """One reply after the other; the last one for ever."""
    left = list(replies)

    def answer(request: Request) -> Reply:
        return left.pop(0) if len(left) > 1 else left[0]

    return answer
