"""Downloads of images: from checked addresses only, under limits of time, size and redirects."""

import contextlib
import math
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from typing import Any, ClassVar, Final
from urllib.parse import urljoin

import urllib3
from urllib3 import exceptions as failures
from urllib3.connection import HTTPConnection, HTTPSConnection

from studio.errors import ImageError, ImageUnavailableError
from studio.http_client import PROXY_STATUSES, plain_words
from studio.image_decoder import ImageLimits
from studio.ssrf import AddressRules, Origin
from studio.tls import CERTIFICATE_HELP, ssl_context

#: Headers of every request. `identity`: images are compressed already. `*/*`: Label Studio
#: negotiates content and would answer 406 to `image/*`.
_HEADERS: Final = {"User-Agent": "label-studio-hrn", "Accept": "*/*", "Accept-Encoding": "identity"}
_CHUNK: Final = 65_536  # bytes
#: Bytes read of a response that is no image, for the words in it.
_WORDS: Final = 4_096
#: Downloads at once, of all callers: each may grow to `ImageLimits.max_bytes`.
AT_ONCE: Final = 64
#: What Label Studio 1.23.2 says, with a 500, of an upload whose record is gone.
_FILE_GONE: Final = "'NoneType' object has no attribute 'has_permission'"
#: Statuses below 500 after which the same request may succeed.
_TEMPORARY: Final = frozenset(
    {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS}
)

#: Headers for a request to Label Studio's own origin, by its URL.
Authorize = Callable[[str], Mapping[str, str]]


class StatusError(ImageError):
    """Label Studio answered, and not with the image.

    Attributes:
        status: the HTTP status code.
    """

    def __init__(self, reason: str, *, status: int) -> None:
        super().__init__(reason)
        self.status = status


class _Deadline(threading.local):
    """When the fetch that runs in this thread must end, on the monotonic clock."""

    end = math.inf

    def left(self) -> float:
        """Return the seconds left; never negative."""
        return max(0.0, self.end - time.monotonic())


_DEADLINE: Final = _Deadline()


class _UntilDeadline(socket.socket):
    """Ends a wait for data at the deadline: a timeout alone starts again with each byte."""

    def recv_into(self, *args: Any, **kwargs: Any) -> int:  # noqa: ANN401 - the socket's arguments
        left = _DEADLINE.left()
        if not left:
            raise TimeoutError
        if left < math.inf:
            self.settimeout(min(left, self.gettimeout() or left))
        return super().recv_into(*args, **kwargs)


class _TlsUntilDeadline(_UntilDeadline, ssl.SSLSocket):
    """The same over TLS."""


#: Opens a connection to a host's checked address.
Connect = Callable[[Origin], socket.socket]


class _CheckedConnection(HTTPConnection):
    """Connects to a checked address; the host keeps its name in the request and in TLS."""

    scheme: ClassVar[str] = "http"

    def __init__(self, *args: Any, connect_to: Connect, **kwargs: Any) -> None:  # noqa: ANN401 - the pool's own arguments
        super().__init__(*args, **kwargs)
        self._connect_to = connect_to

    def _new_conn(self) -> socket.socket:
        return self._connect_to(Origin(self.scheme, self.host.lower(), self.port))


class _CheckedTlsConnection(_CheckedConnection, HTTPSConnection):
    scheme: ClassVar[str] = "https"


class _CheckedPools(urllib3.PoolManager):
    """Pools of checked connections.

    Proxies named in the environment are ignored: a proxy would look the host up again, out of
    reach of the check.
    """

    def __init__(self, connect_to: Connect, **settings: Any) -> None:  # noqa: ANN401 - urllib3's settings
        super().__init__(**settings)
        self._connect_to = connect_to

    def _new_pool(
        self, scheme: str, host: str, port: int, request_context: dict[str, Any] | None = None
    ) -> urllib3.HTTPConnectionPool:
        """Create a pool; urllib3 documents this method as the place to change what a pool is."""
        pool = super()._new_pool(scheme, host, port, request_context)
        pool.ConnectionCls = _CheckedTlsConnection if scheme == "https" else _CheckedConnection
        pool.conn_kw["connect_to"] = self._connect_to
        return pool


class Downloader:
    """Downloads from web addresses. Threads may share it; connections are kept open."""

    def __init__(
        self,
        rules: AddressRules,
        limits: ImageLimits,
        authorize: Authorize,
        trust: ssl.SSLContext | None,
    ) -> None:
        self._rules = rules
        self._limits = limits
        self._authorize = authorize
        self._slots = threading.BoundedSemaphore(AT_ONCE)
        context = trust or ssl_context()
        context.sslsocket_class = _TlsUntilDeadline
        self._pools = _CheckedPools(
            self._connect,
            num_pools=16,
            maxsize=AT_ONCE,  # per host: connections that are used at once stay open
            ssl_context=context,
            timeout=urllib3.Timeout(connect=limits.connect_timeout, read=limits.read_timeout),
        )

    def close(self) -> None:
        """Close the connections that are kept open."""
        self._pools.clear()

    def download(self, url: str) -> bytes:
        """Return the body at an address, after redirects, and after retries of what may pass.

        Raises:
            ImageError: a limit is passed, an address is not allowed, or the server refuses.
            ImageUnavailableError: a failure that may pass did not pass.
        """
        with self._slots:
            _DEADLINE.end = time.monotonic() + self._limits.total_timeout
            try:
                for pause in self._limits.retry_pauses:
                    try:
                        return self._follow(url)
                    except ImageUnavailableError:
                        if _DEADLINE.left() <= pause:
                            raise
                    time.sleep(pause)
                return self._follow(url)
            finally:
                _DEADLINE.end = math.inf

    def _connect(self, origin: Origin) -> socket.socket:
        """Return a connection to an address that was checked; a second look-up could differ.

        Raises:
            ImageError: the host or an address is not allowed.
            ImageUnavailableError: the name is not known, or nothing there accepts a connection.
        """
        try:
            addresses = self._rules.addresses(origin)
        except OSError as error:
            raise ImageUnavailableError(
                f"no address is known for the host {origin.host}"
            ) from error
        for address in addresses:
            seconds = min(_DEADLINE.left(), self._limits.connect_timeout)
            if not seconds:
                break
            with contextlib.suppress(OSError):
                plain = socket.create_connection((address, origin.port), seconds)
                plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection = _UntilDeadline(fileno=plain.detach())
                connection.settimeout(seconds)
                return connection
        raise ImageUnavailableError(
            f"{origin.host} does not accept connections on port {origin.port}"
        )

    def _follow(self, url: str) -> bytes:
        inside = True  # only Label Studio was asked so far: only then may it get its token
        for hop in range(self._limits.max_redirects + 1):
            origin = Origin.of(url)
            if origin == self._rules.own and hop and not inside:
                raise ImageError("the image's server sends the request on into Label Studio")
            inside = inside and origin == self._rules.own
            headers = {**_HEADERS, **(self._authorize(url) if inside else {})}
            with (
                self._explained(origin),
                # Redirects and retries are ours: both must pass the checks again.
                contextlib.closing(
                    self._pools.urlopen(
                        "GET",
                        url,
                        headers=headers,
                        redirect=False,
                        retries=False,
                        preload_content=False,
                    )
                ) as response,
            ):
                location = response.get_redirect_location()
                if not location:
                    return self._body(response, origin)
            url = _joined(url, location)
        raise ImageError(f"more than {self._limits.max_redirects} redirects")

    def _body(self, response: urllib3.BaseHTTPResponse, origin: Origin) -> bytes:
        if response.status != HTTPStatus.OK:
            raise self._status_error(response, origin)
        if (length := response.headers.get("Content-Length") or "").isdecimal():
            self._limits.check_bytes(int(length))
        body = bytearray()
        while chunk := response.read1(_CHUNK, decode_content=True):
            body += chunk
            self._limits.check_bytes(len(body))
        return bytes(body)

    def _status_error(self, response: urllib3.BaseHTTPResponse, origin: Origin) -> ImageError:
        """Say why the image is not given, in the words of the server that was asked."""
        status, body = response.status, response.read1(_WORDS, decode_content=True)
        own, words = origin == self._rules.own, plain_words(body)
        if own and status == HTTPStatus.INTERNAL_SERVER_ERROR and _FILE_GONE in words:
            return StatusError(
                "Label Studio knows no such file: its upload was deleted",
                status=HTTPStatus.NOT_FOUND,
            )
        phrase = next((f" {known.phrase}" for known in HTTPStatus if known == status), "")
        reason = f"{status}{phrase} from {'Label Studio' if own else origin.authority}"
        if more := "; ".join(filter(None, [words, _advice(response, body) if own else ""])):
            reason += f": {more}"
        if status >= 500 or status in _TEMPORARY:
            return ImageUnavailableError(reason)
        return StatusError(reason, status=status) if own else ImageError(reason)

    @contextlib.contextmanager
    def _explained(self, origin: Origin) -> Iterator[None]:
        """Turn what the network stack raises into an image error in plain words."""
        try:
            yield
        except (ImageUnavailableError, failures.HTTPError, OSError) as error:
            if not _DEADLINE.left():
                raise ImageUnavailableError(
                    f"{origin.host} took longer than {self._limits.total_timeout:g} seconds"
                ) from error
            if isinstance(error, ImageUnavailableError):
                raise
            raise self._network_error(error, origin) from error

    def _network_error(self, error: Exception, origin: Origin) -> ImageError:
        match error:
            case failures.SSLError(args=(ssl.SSLCertVerificationError() as refused, *_)):
                return ImageError(
                    f"the certificate of {origin.authority} is not accepted:"
                    f" {refused.verify_message} ({CERTIFICATE_HELP})"
                )
            case failures.DecodeError() | failures.InvalidHeader():
                return ImageError(f"{origin.host} sent a response that cannot be read: {error}")
            case failures.LocationParseError():
                return ImageError(f"{origin.host} is not a valid host name")
            case failures.TimeoutError():
                return ImageUnavailableError(
                    f"{origin.host} was silent for {self._limits.read_timeout:g} seconds"
                )
            case _:
                return ImageUnavailableError(
                    f"the connection to {origin.host} broke: {type(error).__name__}"
                )


def _advice(response: urllib3.BaseHTTPResponse, body: bytes) -> str:
    """Say what to check where Label Studio's address refuses and gives no reason."""
    status = response.status
    challenge = response.headers.get("WWW-Authenticate", "").lower()
    is_page = body.lstrip().startswith(b"<") or challenge.startswith("basic")
    if status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED or (status in PROXY_STATUSES and is_page):
        return (
            "that is no answer of Label Studio's own: a proxy or sign-in page before it wants to"
            " know who asks; let this backend past it"
        )
    if status == HTTPStatus.UNAUTHORIZED or (
        status == HTTPStatus.FORBIDDEN and not plain_words(body)
    ):
        return "check its access token, and that it may read this project"
    return ""


def _joined(url: str, location: str) -> str:
    """Return the address that a redirect leads to."""
    with contextlib.suppress(UnicodeError):  # headers are read as Latin-1; many servers write UTF-8
        location = location.encode("latin-1").decode("utf-8")
    try:
        return urljoin(url, location)
    except ValueError as error:
        raise ImageError("redirected to something that is not a valid web address") from error
