"""HTTP calls to Label Studio: authentication, limits of time and size, retries, and error messages.

Nothing here knows about tasks or projects; `studio.client` does. The access token leaves this
module in one header only, to one address only.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import json
import logging
import re
import ssl
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from http.cookiejar import DefaultCookiePolicy
from typing import Any, Final
from urllib.parse import urlsplit

import requests
from requests.auth import AuthBase
from urllib3.exceptions import InvalidHeader, NameResolutionError, NewConnectionError
from urllib3.util import Retry

from studio.errors import (
    LegacyTokensOffError,
    PermissionMissingError,
    PrivateAddressError,
    StudioRefusedError,
    StudioRequestError,
    StudioUnavailableError,
)
from studio.tls import CERTIFICATE_HELP, TrustAdapter, ssl_context

log = logging.getLogger(__name__)

#: What our own backend asks for a password with (`backend.security`).
OUR_REALM: Final = 'realm="label-studio-hrn"'
#: Statuses with which a proxy or a sign-in page before Label Studio refuses, as it does itself.
PROXY_STATUSES: Final = frozenset({401, 403, 407})
#: Methods that may be sent twice without doing anything twice.
_REPEATABLE: Final = frozenset({"GET", "PUT", "PATCH", "DELETE"})
#: Seconds an access token of Label Studio's is valid, where it does not say so itself.
_ACCESS_SECONDS: Final = 300.0
#: Seconds before its end at which an access token is renewed: a call must not arrive too late.
_RENEW_BEFORE: Final = 30.0
#: A page of Label Studio's, as copied from a browser.
_PAGE: Final = re.compile(r"/(projects/\d+|user/(login|account|signup))(/|$)")
#: Bytes read at a time from a response.
_CHUNK: Final = 1 << 16
#: Characters of Label Studio's own words in our messages, at most.
_QUOTE: Final = 400


@dataclasses.dataclass(frozen=True)
class RetryLimits:
    """How long a call may take, and how often it is tried.

    Attributes:
        timeout: seconds until the response begins, and again until it is complete.
        connect: seconds for the connection alone.
        retries: how often a call is repeated after the first try.
        backoff: seconds before the first retry; doubled each time.
        longest_wait: most seconds between two tries, even if ``Retry-After`` asks for more.
        total: seconds after which no further try begins.
        response_bytes: largest response read; a page of tasks carries all their old predictions.
    """

    timeout: float = 60.0
    connect: float = 5.0
    retries: int = 4
    backoff: float = 0.5
    longest_wait: float = 30.0
    total: float = 180.0
    response_bytes: int = 256 << 20


@dataclasses.dataclass(frozen=True)
class Call:
    """One request to make.

    Attributes:
        method: HTTP method, in capitals.
        path: path below Label Studio's address, with its leading slash.
        params: the query string.
        body: sent as JSON; None for no body.
        files: name and content of each file of a multipart upload.
        repeatable: may be sent again when nobody knows whether it arrived; None: unless a POST.
        timeout: seconds until the response, where this call needs longer than the others.
    """

    method: str
    path: str
    params: Mapping[str, str | int] = dataclasses.field(default_factory=dict)
    body: object = dataclasses.field(default=None, repr=False)  # may hold a secret
    files: Sequence[tuple[str, bytes]] = dataclasses.field(default=(), repr=False)
    repeatable: bool | None = None
    timeout: float | None = None

    def __str__(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def may_repeat(self) -> bool:
        """Whether sending it twice does no harm."""
        return self.method in _REPEATABLE if self.repeatable is None else self.repeatable


@dataclasses.dataclass(frozen=True)
class _Response:
    """A response that was read whole."""

    status: int
    headers: Mapping[str, str]
    body: bytes = dataclasses.field(repr=False)

    @property
    def is_page(self) -> bool:
        kind = self.headers.get("Content-Type", "").split(";")[0].strip().lower()
        return kind == "text/html" or self.body.lstrip()[:1] == b"<"

    @property
    def is_json(self) -> bool:
        """Whether the body is JSON, as all that Label Studio's API says of an error is."""
        try:
            json.loads(self.body)
        except ValueError:
            return False
        return True

    def describe(self) -> str:
        """Say what kind of body this is."""
        if self.is_page:
            return "a web page"
        kind = self.headers.get("Content-Type", "").split(";")[0].strip().lower()
        return f"{len(self.body)} bytes of {kind or 'unknown type'}"

    def detail(self) -> str:
        """Return Label Studio's own words about what is wrong, without markup, on one line."""
        if not self.is_json:
            return self.describe()
        reply: object = json.loads(self.body)
        if not isinstance(reply, dict):
            return str(reply)[:_QUOTE]
        errors = reply.get("validation_errors")
        words = "; ".join(_flat(errors)) if errors else str(reply.get("detail") or "")
        return _one_line(words or "no detail given")


class _Header(AuthBase):
    """Sets the header last, so that a `.netrc` on the machine cannot put another in its place."""

    def __init__(self, value: str | None) -> None:
        self._value = value

    def __call__(self, r: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._value is not None:
            r.headers["Authorization"] = self._value
        return r


class HttpClient:
    """Sends calls to one Label Studio. Safe to share between threads.

    A legacy token is sent as it is. A personal access token is traded for an access token, and
    again before that one expires.

    Args:
        url: address of Label Studio, ``http(s)://host[:port][/path]``.
        token: personal access token or legacy token; which of the two is seen from its beginning.
        limits: time limits and number of tries.
        trust: whose certificates are accepted; the public authorities' if not given.

    Raises:
        ValueError: the address or the token cannot be one.
    """

    def __init__(
        self, url: str, token: str, limits: RetryLimits, trust: ssl.SSLContext | None = None
    ) -> None:
        self._token = token.strip()
        if not self._token:
            raise ValueError(
                "Label Studio's access token is empty: copy it from Account & Settings"
            )
        # A JSON Web Token begins with base64 of '{"'; legacy tokens are hexadecimal.
        self._personal = self._token.startswith("eyJ")
        self.url = _checked_address(url)
        self._limits = limits
        self._trust = trust or ssl_context()
        self._threads = threading.local()
        self._renewing = threading.Lock()
        self._header = "" if self._personal else f"Token {self._token}"
        self._expires = 0.0  # of a personal token's access token, on the monotonic clock

    def __repr__(self) -> str:
        kind = "personal" if self._personal else "legacy"
        return f"{type(self).__name__}({self.url!r}, {kind} token)"

    def authorization(self) -> dict[str, str]:
        """Return the header that authenticates us.

        Raises:
            StudioError: a personal access token could not be traded for an access token.
        """
        if not self._personal:
            return {"Authorization": self._header}
        with self._renewing:
            if not self._header or time.monotonic() >= self._expires:
                self._trade()
            return {"Authorization": self._header}

    def send(self, call: Call) -> object:
        """Send the call and return the response's JSON; None if the response is empty.

        Raises:
            StudioUnavailableError: no response, or 429 or 5xx to the last, or no JSON.
            StudioRefusedError: 401 or 403; the message says which of the cases it was.
            StudioRequestError: any other response that is no success.
        """
        header = self.authorization()["Authorization"]
        response = self._retry(call, header)
        if response.status == 401 and self._personal:
            with self._renewing:
                if self._header == header:  # no other thread has renewed it since
                    self._trade()
                header = self._header
            response = self._retry(call, header)
        return self._result(call, response)

    def _trade(self) -> None:
        """Trade the personal access token for an access token."""
        call = Call("POST", "/api/token/refresh", body={"refresh": self._token}, repeatable=True)
        asked = time.monotonic()
        response = self._retry(call, None)
        if response.status == 401 and response.is_json:
            raise StudioRefusedError(
                f"Label Studio at {self.url} refused the personal access token"
                f" ({response.detail()}): it was revoked, has run out or is not complete. Make a"
                " new one under Account & Settings > Personal Access Token"
            )
        reply = self._result(call, response)
        access = reply.get("access") if isinstance(reply, dict) else None
        if not isinstance(access, str):
            raise StudioRequestError(
                f"Label Studio at {self.url} gave no access token for the personal access token",
                status=response.status,
            )
        seconds = _lifetime(access)
        self._header = f"Bearer {access}"
        self._expires = asked + seconds - min(_RENEW_BEFORE, seconds / 4)

    def _retry(self, call: Call, header: str | None) -> _Response:
        """Return the first response that is no reason to try again.

        urllib3's own retries know neither a limit for all tries together nor a POST that may be
        repeated after 429.

        Raises:
            StudioUnavailableError: there was none within the limits.
        """
        limits, ends = self._limits, time.monotonic() + self._limits.total
        attempt = 0
        while True:
            wait = limits.backoff * 2**attempt
            cause: Exception | None = None
            try:
                response = self._send_once(call, header)
            except requests.RequestException as error:
                trouble, cause = _network_trouble(error), error
                again = call.may_repeat or _never_sent(error)
            else:
                if OUR_REALM in response.headers.get("WWW-Authenticate", ""):
                    raise StudioRequestError(
                        f"at {self.url} a label-studio-hrn backend answers, not Label Studio: set"
                        " LABEL_STUDIO_URL to Label Studio's address",
                        status=response.status,
                    )
                if response.status != 429 and response.status < 500:
                    return response
                trouble = "it asks us to slow down (429)"
                if response.status != 429:
                    trouble = f"it answered {response.status}: {response.detail()}"
                wait = _retry_after(response, wait)
                again = call.may_repeat or response.status == 429
            attempt += 1
            wait = min(wait, limits.longest_wait)
            if not again or attempt > limits.retries or time.monotonic() + wait > ends:
                break
            log.info("label studio tried again call=%s attempt=%d wait=%.1f s", call, attempt, wait)
            time.sleep(wait)
        raise StudioUnavailableError(
            f"Label Studio at {self.url} is not available, {trouble}"
            f" ({call}, {'one try' if attempt == 1 else f'{attempt} tries'})"
        ) from cause

    def _send_once(self, call: Call, header: str | None) -> _Response:
        """Send once and read the whole response, within the limits of time and size."""
        limit = call.timeout or self._limits.timeout
        # One field per file: Label Studio takes one file per field.
        files = {f"file{number}": file for number, file in enumerate(call.files)}
        with self._session().request(
            call.method,
            self.url + call.path,
            params=dict(call.params),
            json=call.body,
            files=files or None,
            auth=_Header(header),
            timeout=(self._limits.connect, limit),
            allow_redirects=False,  # the token goes to this address and to no other
            stream=True,
        ) as response:
            body = self._body(response, limit)
        log.debug("label studio call=%s status=%d bytes=%d", call, response.status_code, len(body))
        return _Response(response.status_code, response.headers, body)

    def _body(self, response: requests.Response, limit: float) -> bytes:
        """Read the body; one that comes too slowly or never ends is cut off."""
        ends = time.monotonic() + limit
        body = bytearray()
        for part in response.iter_content(_CHUNK):
            body += part
            if len(body) > self._limits.response_bytes:
                raise StudioRequestError(
                    f"Label Studio at {self.url} sent more than {self._limits.response_bytes} bytes"
                    " in one answer: ask for smaller pages",
                    status=response.status_code,
                )
            if time.monotonic() > ends:
                raise requests.ReadTimeout(f"the response was not complete after {limit:g} s")
        return bytes(body)

    def _session(self) -> requests.Session:
        """Return this thread's session: `requests` does not promise that threads may share one."""
        session: requests.Session | None = getattr(self._threads, "session", None)
        if session is None:
            session = self._threads.session = requests.Session()
            session.mount("https://", TrustAdapter(self._trust))
            session.mount("http://", TrustAdapter(self._trust))  # a proxy may be an https one
            # A session cookie beside the token would make Label Studio ask for a CSRF token.
            session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
            session.headers["Accept"] = "application/json"
        return session

    # What a response means

    def _result(self, call: Call, response: _Response) -> object:
        """Return the response's JSON, None if it is empty, or raise what it means."""
        status = response.status
        if 200 <= status < 300:
            if not response.body.strip():
                return None
            try:
                reply: object = json.loads(response.body)
            except ValueError as error:
                # A proxy's page of maintenance comes like this too, so it may pass.
                raise StudioUnavailableError(
                    f"{self.url} answered {call} with {response.describe()} instead of JSON: check"
                    " that this is Label Studio's own address, that it is not in maintenance and"
                    " that no sign-in page or proxy stands before it"
                ) from error
            return reply
        if 300 <= status < 400:
            parts = urlsplit(response.headers.get("Location", ""))
            target = f"{parts.scheme}://{parts.netloc}" if parts.netloc else "another page"
            raise StudioRequestError(
                f"Label Studio at {self.url} sends {call} on to {target}: set Label Studio's"
                " address to the one it really has (http or https, host, port); the token is not"
                " sent anywhere else",
                status=status,
            )
        detail = response.detail()
        if status in PROXY_STATUSES and not response.is_json:
            raise StudioRefusedError(
                f"{self.url} answered {call} with {status} and {response.describe()}, no answer"
                " of Label Studio's own: a proxy or sign-in page before it wants to know who asks;"
                " let this backend past it, or set LABEL_STUDIO_URL to Label Studio's own address"
            )
        if status == 401:
            raise self._unknown_token(detail)
        if status == 403 and "reserved network address" in detail:
            raise PrivateAddressError(
                f"Label Studio at {self.url} refused {call}, since it calls no private addresses"
                f" ({detail}): start it with ML_BLOCK_LOCAL_IP=false and"
                " SSRF_PROTECTION_ENABLED=false (both are needed), or give this backend a public"
                " address",
                status=403,
            )
        if status == 403:
            raise PermissionMissingError(
                f"The account behind the token may not do {call} in Label Studio at {self.url}"
                f" ({detail}): use the token of an owner or administrator of the project"
            )
        no_api = ""
        if status == 404 and response.is_page:
            no_api = f": set LABEL_STUDIO_URL to Label Studio's own address; {self.url} has no API"
        raise StudioRequestError(
            f"Label Studio at {self.url} answered {call} with {status}: {detail}{no_api}",
            status=status,
        )

    def _unknown_token(self, detail: str) -> StudioRefusedError:
        if "legacy token authentication has been disabled" in detail:
            return LegacyTokensOffError(
                f"Label Studio at {self.url} knows this legacy token, but legacy tokens are"
                " switched off there: switch them on under Organization > API Tokens Settings (or"
                " start Label Studio the first time with"
                " LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN=true), or use a personal access token from"
                " Account & Settings"
            )
        if self._personal:
            return StudioRefusedError(
                f"Label Studio at {self.url} refused the access token it had just issued"
                f" ({detail}): personal access tokens may be switched off under Organization > API"
                " Tokens Settings"
            )
        return StudioRefusedError(
            f"Label Studio at {self.url} does not know this legacy token ({detail}): copy it again"
            " from Account & Settings > Legacy Token, and check which Label Studio it belongs to"
        )


def plain_words(body: bytes) -> str:
    """Return what an error's body says in words, on one line; "" for a web page or nothing.

    Args:
        body: JSON with a ``detail``, plain text, or the XML of a storage.

    Example:
        >>> plain_words(b'{"detail": "Not <b>here</b>"}'), plain_words(b"<html>Oops</html>")
        ('Not here', '')
    """
    text = body.decode("utf-8", "replace").strip()
    if text.startswith("<"):
        found = re.search(r"<Message>([^<]*)</Message>", text)
        text = found[1] if found else ""
    else:
        try:
            reply = json.loads(text)
            text = str(reply.get("detail") or "") if isinstance(reply, dict) else ""
        except ValueError:
            text = text.partition("\n")[0]
    return "".join(filter(str.isprintable, _one_line(text)))


def _one_line(text: str) -> str:
    """Return text without markup, on one line, cut if it is long."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", "", text)).strip()[:_QUOTE]


def _flat(errors: object, field: str = "") -> Iterable[str]:
    """Yield Django's nested lists and dicts of messages one by one, each with its field."""
    if isinstance(errors, dict):
        for key, value in errors.items():
            yield from _flat(value, "" if key == "non_field_errors" else f"{key}: ")
    elif isinstance(errors, list):
        for value in errors:
            yield from _flat(value, field)
    else:
        yield f"{field}{errors}"


def _checked_address(url: str) -> str:
    """Return the address without a trailing slash."""
    parts = urlsplit(url.strip())
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError(f"Label Studio's address must be http://host or https://host, got {url!r}")
    if parts.username is None and (page := _PAGE.search(parts.path)):
        root = f"{parts.scheme}://{parts.netloc}{parts.path[: page.start()]}"
        raise ValueError(
            f"{url!r} is a page of Label Studio's: give the address without it, {root}"
        )
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError("Label Studio's address must hold no user name, password, '?' or '#'")
    return f"{parts.scheme}://{parts.netloc}{parts.path}".rstrip("/")


def _lifetime(access: str) -> float:
    """Return the seconds an access token is valid, from its own two times: clocks may differ."""
    try:
        part = access.split(".")[1]
        claims: Any = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
        return max(0.0, float(claims["exp"]) - float(claims["iat"]))
    except (IndexError, KeyError, TypeError, ValueError, binascii.Error):
        return _ACCESS_SECONDS


def _retry_after(response: _Response, default: float) -> float:
    """Return the seconds that ``Retry-After`` asks for (a number or a date), else ``default``."""
    try:
        asked = response.headers.get("Retry-After")
        return default if asked is None else Retry().parse_retry_after(asked)
    except (InvalidHeader, ValueError):
        return default


def _inner(error: BaseException) -> object:
    """Return the urllib3 error inside one of `requests`."""
    first = error.args[0] if error.args else None
    return getattr(first, "reason", first)


def _never_sent(error: requests.RequestException) -> bool:
    """Return whether the connection already failed, so that even a POST cannot have arrived."""
    failed = (requests.ConnectTimeout, NewConnectionError)
    return isinstance(error, failed) or isinstance(_inner(error), failed)


def _network_trouble(error: requests.RequestException) -> str:
    """Say what failed on the way to Label Studio."""
    if isinstance(error, requests.exceptions.SSLError):
        found = re.search(r"certificate verify failed: ([^(]+)", str(error))
        reason = f"{found[1].strip()}; " if found else ""
        words = "the TLS connection failed: check https or http, and the certificate"
        return f"{words} ({reason}{CERTIFICATE_HELP})"
    if isinstance(error, requests.exceptions.ProxyError):
        found = re.search(r"Tunnel connection failed: (\d+)", str(error))
        reason = f"it answered {found[1]}; " if found else ""
        if found and found[1] == "407":
            reason = "it answered 407, it asks for a user name and password; "
        words = "the proxy that HTTP_PROXY or HTTPS_PROXY names did not lead to it"
        return f"{words} ({reason}hosts in NO_PROXY are asked without it)"
    if isinstance(error, requests.Timeout):
        connecting = isinstance(error, requests.ConnectTimeout)
        never = "its host did not take the connection in time"
        return never if connecting else "no complete answer came in time"
    inner = _inner(error)
    if isinstance(inner, NameResolutionError):
        return "its host name is not known: check the address"
    if isinstance(inner, NewConnectionError):
        return "nothing listens there: check the address and that Label Studio runs"
    return f"the connection was lost ({type(error).__name__})"
