"""Downloading under limits: redirects, bytes, seconds and further tries are counted here."""

import contextlib
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from typing import Final
from urllib.parse import urljoin

import urllib3
from urllib3 import exceptions as failures

from studio.addresses import AddressRules, Origin
from studio.answers import PROXY_STATUSES, own_words
from studio.errors import PictureError
from studio.guard import Clock, Guard, GuardedPools, PictureUnavailableError
from studio.limits import PictureLimits
from studio.trust import CURE, trusting

#: Headers of every request. `identity`: pictures are compressed already. `*/*`: Label Studio
#: negotiates content and would answer 406 to `image/*`.
_HEADERS: Final = {"User-Agent": "label-studio-hrn", "Accept": "*/*", "Accept-Encoding": "identity"}
_CHUNK: Final = 65_536  # bytes
#: Bytes read of an answer that is no image, for what it says.
_SAID: Final = 4_096
#: Downloads at once, of all who ask: each may grow to `PictureLimits.max_bytes`.
AT_ONCE: Final = 64
#: What Label Studio 1.23.2 says, with a 500, of an upload whose record is gone.
_FILE_GONE: Final = "'NoneType' object has no attribute 'has_permission'"
#: Statuses below 500 after which the same request may succeed.
_TEMPORARY: Final = frozenset(
    {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS}
)

#: Headers for a request to Label Studio's own origin, by its URL.
Authorize = Callable[[str], Mapping[str, str]]


class StatusError(PictureError):
    """Label Studio itself answered, and not with the image.

    Attributes:
        status: the HTTP status code of the answer.
    """

    def __init__(self, reason: str, *, status: int) -> None:
        """Keep the status beside the reason."""
        super().__init__(reason)
        self.status = status


class Downloader:
    """Fetches what stands at a web address. Threads may share it; connections are kept."""

    def __init__(
        self,
        rules: AddressRules,
        limits: PictureLimits,
        authorize: Authorize,
        trust: ssl.SSLContext | None = None,
    ) -> None:
        """Connects to nothing yet.

        Args:
            rules: where pictures may come from.
            limits: how much one may cost.
            authorize: gives the headers of a request to Label Studio's own origin; asked for no
                other.
            trust: whose certificates are accepted; the public authorities' if not given.
        """
        self._own = rules.own
        self._limits = limits
        self._authorize = authorize
        self._guard = Guard(rules, limits)
        self._turns = threading.BoundedSemaphore(AT_ONCE)
        self._pools = GuardedPools(
            self._guard,
            num_pools=16,
            maxsize=AT_ONCE,  # of a host: those that are used at once stay open
            ssl_context=trust or trusting(),
            timeout=urllib3.Timeout(connect=limits.connect_timeout, read=limits.read_timeout),
        )

    def close(self) -> None:
        """Close the kept connections."""
        self._pools.clear()

    def download(self, url: str) -> bytes:
        """What stands at the address, after redirects; tried again after a failure that may pass.

        Raises:
            PictureError: a limit is passed, an address not allowed, or the server does not give the
                picture.
            PictureUnavailableError: a failure that may pass has not passed.
        """
        with self._turns, Clock(self._limits.total_timeout) as clock:
            self._guard.current.clock = clock
            try:
                return self._persist(url, clock)
            finally:
                self._guard.current.clock = None

    def _persist(self, url: str, clock: Clock) -> bytes:
        for pause in self._limits.retry_pauses:
            try:
                return self._follow(url, clock)
            except PictureUnavailableError:
                if clock.left() <= pause:
                    raise
            time.sleep(pause)
        return self._follow(url, clock)

    def _follow(self, url: str, clock: Clock) -> bytes:
        inside = True  # all went to Label Studio so far: only then may the next one carry its token
        for hop in range(self._limits.max_redirects + 1):
            origin = Origin.of(url)
            if origin == self._own and hop and not inside:
                raise PictureError("the picture's server sends the request on into Label Studio")
            inside = inside and origin == self._own
            headers = {**_HEADERS, **(self._authorize(url) if inside else {})}
            with (
                self._explained(origin, clock),
                contextlib.closing(self._open(url, headers)) as response,
            ):
                location = response.get_redirect_location()
                if not location:
                    return self._body(response, origin, clock)
            url = _joined(url, location)
        raise PictureError(f"more than {self._limits.max_redirects} redirects")

    def _open(self, url: str, headers: Mapping[str, str]) -> urllib3.BaseHTTPResponse:
        """The answer's head. Redirects and retries are ours: both must pass the checks again."""
        return self._pools.urlopen(
            "GET", url, headers=headers, redirect=False, retries=False, preload_content=False
        )

    def _body(self, response: urllib3.BaseHTTPResponse, origin: Origin, clock: Clock) -> bytes:
        if response.status != HTTPStatus.OK:
            raise self._status_error(response, origin)
        if (response.headers.get("Content-Length") or "").isdecimal():
            self._limits.check_bytes(int(response.headers["Content-Length"]))
        chunks, size = [], 0
        while chunk := response.read1(_CHUNK, decode_content=True):
            chunks.append(chunk)
            size += len(chunk)
            self._limits.check_bytes(size)
        if not clock.left():  # a cut connection looks like the end of a body of unknown length
            raise TimeoutError
        return b"".join(chunks)

    def _status_error(self, response: urllib3.BaseHTTPResponse, origin: Origin) -> PictureError:
        """Why it is not given, in the words of the server that was asked."""
        status, said = response.status, response.read1(_SAID, decode_content=True)
        try:
            words = f"{status} {HTTPStatus(status).phrase}"
        except ValueError:
            words = str(status)
        own = origin == self._own
        more = [own_words(said), _advice(response, said) if own else ""]
        words += f" from {'Label Studio' if own else origin.authority}"
        if own and status == HTTPStatus.INTERNAL_SERVER_ERROR and _FILE_GONE in more[0]:
            return StatusError(
                "Label Studio knows no such file: its upload was deleted",
                status=HTTPStatus.NOT_FOUND,
            )
        if any(more):
            words += f": {'; '.join(filter(None, more))}"
        if status >= 500 or status in _TEMPORARY:
            return PictureUnavailableError(words)
        return StatusError(words, status=status) if own else PictureError(words)

    @contextlib.contextmanager
    def _explained(self, origin: Origin, clock: Clock) -> Iterator[None]:
        """Turn what the network stack raises into a picture error in plain words."""
        try:
            yield
        except PictureUnavailableError:
            if clock.left():
                raise
            raise self._too_slow(origin) from None
        except (failures.HTTPError, OSError) as error:
            raise (
                self._in_words(error, origin) if clock.left() else self._too_slow(origin)
            ) from error

    def _too_slow(self, origin: Origin) -> PictureError:
        return PictureUnavailableError(
            f"{origin.host} took longer than {self._limits.total_timeout:g} seconds"
        )

    def _in_words(self, error: Exception, origin: Origin) -> PictureError:
        match error:
            case failures.SSLError(args=(ssl.SSLCertVerificationError() as refused, *_)):
                words = f"the certificate of {origin.authority} is not accepted"
                return PictureError(f"{words}: {refused.verify_message} ({CURE})")
            case failures.DecodeError() | failures.InvalidHeader():
                return PictureError(f"{origin.host} sent an answer that cannot be read: {error}")
            case failures.LocationParseError():
                return PictureError(f"{origin.host} is not a valid host name")
            case failures.TimeoutError():
                return PictureUnavailableError(
                    f"{origin.host} was silent for {self._limits.read_timeout:g} seconds"
                )
            case _:
                return PictureUnavailableError(
                    f"the connection to {origin.host} broke: {type(error).__name__}"
                )


def _advice(response: urllib3.BaseHTTPResponse, said: bytes) -> str:
    """What to look at where Label Studio's address refuses and does not say why itself."""
    status = response.status
    asks = response.headers.get("WWW-Authenticate", "").lower()
    if status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED or (
        status in PROXY_STATUSES and (said.lstrip().startswith(b"<") or asks.startswith("basic"))
    ):
        return (
            "that is no answer of Label Studio's own: a proxy or sign-in page before it wants to"
            " know who asks; let this backend past it"
        )
    if status == HTTPStatus.UNAUTHORIZED or (
        status == HTTPStatus.FORBIDDEN and not own_words(said)
    ):
        return "check its access token, and that it may read this project"
    return ""


def _joined(url: str, location: str) -> str:
    """The address that a redirect leads to."""
    with contextlib.suppress(UnicodeError):  # headers are read as Latin-1; many servers write UTF-8
        location = location.encode("latin-1").decode("utf-8")
    try:
        return urljoin(url, location)
    except ValueError as error:
        raise PictureError("redirected to something that is not a valid web address") from error
