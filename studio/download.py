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
from studio.errors import PictureError
from studio.guard import Clock, Guard, GuardedPools, PictureUnavailableError
from studio.limits import PictureLimits

#: Headers of every request. `identity`: pictures are compressed already. `*/*`: Label Studio
#: negotiates content and would answer 406 to `image/*`.
_HEADERS: Final = {"User-Agent": "label-studio-hrn", "Accept": "*/*", "Accept-Encoding": "identity"}
_CHUNK: Final = 65_536  # bytes
#: Downloads at once, of all who ask: each may grow to `PictureLimits.max_bytes`.
AT_ONCE: Final = 64
#: Statuses below 500 after which the same request may succeed.
_TEMPORARY: Final = frozenset(
    {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS}
)

#: Headers for a request to Label Studio's own origin, by its URL.
Authorize = Callable[[str], Mapping[str, str]]


class Downloader:
    """Fetches what stands at a web address. Threads may share it; connections are kept."""

    def __init__(self, rules: AddressRules, limits: PictureLimits, authorize: Authorize) -> None:
        """Connects to nothing yet.

        Args:
            rules: where pictures may come from.
            limits: how much one may cost.
            authorize: gives the headers of a request to Label Studio's own origin; asked for no
                other.
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
            # Verifies; `SSL_CERT_FILE` names a private authority.
            ssl_context=ssl.create_default_context(),
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
            raise self._status_error(response.status, origin)
        if (response.headers.get("Content-Length") or "").isdecimal():
            self._check_size(int(response.headers["Content-Length"]))
        chunks, size = [], 0
        while chunk := response.read1(_CHUNK, decode_content=True):
            chunks.append(chunk)
            size += len(chunk)
            self._check_size(size)
        if not clock.left():  # a cut connection looks like the end of a body of unknown length
            raise TimeoutError
        return b"".join(chunks)

    def _check_size(self, size: int) -> None:
        if size > self._limits.max_bytes:
            raise PictureError(f"larger than the allowed {self._limits.max_bytes} bytes")

    def _status_error(self, status: int, origin: Origin) -> PictureError:
        try:
            words = f"{status} {HTTPStatus(status).phrase}"
        except ValueError:
            words = str(status)
        if status in (401, 403) and origin == self._own:
            words += " from Label Studio: check its access token, and that it may read this project"
        else:
            words += f" from {origin.host}"
        temporary = status >= 500 or status in _TEMPORARY
        return PictureUnavailableError(words) if temporary else PictureError(words)

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
                words = f"the certificate of {origin.host} is not accepted"
                return PictureError(f"{words}: {refused.verify_message}")
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


def _joined(url: str, location: str) -> str:
    """The address that a redirect leads to."""
    with contextlib.suppress(UnicodeError):  # headers are read as Latin-1; many servers write UTF-8
        location = location.encode("latin-1").decode("utf-8")
    try:
        return urljoin(url, location)
    except ValueError as error:
        raise PictureError("redirected to something that is not a valid web address") from error
