"""A real HTTP server for tests of fetching: it remembers what was asked."""

import http.server
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

Handler = http.server.BaseHTTPRequestHandler
#: What a path answers with: a body, a (status, headers, body), or a function that writes by itself.
Answer = bytes | tuple[int, Mapping[str, str], bytes] | Callable[[Handler], None]

#: Certificate and key of `images.example`, made for these tests and trusted nowhere else.
CERTIFICATE = Path(__file__).with_name("images_example.pem")


class ImageServer:
    """Where it listens, what it answers, and the requests it got."""

    def __init__(self, port: int, scheme: str) -> None:
        self.port = port
        self.url = f"{scheme}://127.0.0.1:{port}"
        self.answers: dict[str, Answer | list[Answer]] = {}
        self.asked: list[str] = []
        self.tokens: list[str | None] = []
        self.hosts: list[str | None] = []
        self.peers: set[int] = set()

    def take(self, path: str) -> Answer:
        """The next answer; a list gives one a request, and its last for ever."""
        found = self.answers.get(path, (404, {}, b"nothing here"))
        if isinstance(found, list):
            return found.pop(0) if len(found) > 1 else found[0]
        return found


@contextmanager
def serving(*, tls: bool = False, certificate: Path = CERTIFICATE) -> Iterator[ImageServer]:
    """A server on a free port of 127.0.0.1, in its own threads.

    Args:
        tls: speak TLS.
        certificate: its certificate and key.
    """

    class _Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 20
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            known.asked.append(self.path)
            known.tokens.append(self.headers["Authorization"])
            known.hosts.append(self.headers["Host"])
            known.peers.add(self.client_address[1])
            answer = known.take(self.path)
            with suppress(OSError):  # the client may have had enough
                if callable(answer):
                    self.close_connection = True
                    answer(self)
                else:
                    self.reply(answer)

        def reply(self, answer: bytes | tuple[int, Mapping[str, str], bytes]) -> None:
            status, headers, body = (200, {}, answer) if isinstance(answer, bytes) else answer
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
            """Say nothing."""

    class _Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            """A handshake that the client refuses is no error of the server's."""

    server = _Server(("127.0.0.1", 0), _Handler)
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    known = ImageServer(server.server_address[1], "https" if tls else "http")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield known
    finally:
        server.shutdown()
        server.server_close()
        thread.join(60)


def redirect(to: str, status: int = 302) -> Answer:
    """An answer that sends the client on."""
    return status, {"Location": to}, b""
