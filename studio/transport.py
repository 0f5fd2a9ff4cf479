"""Calls to Label Studio: who we are, how long we wait, and when we try again.

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
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.cookiejar import DefaultCookiePolicy
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase
from urllib3.exceptions import NameResolutionError, NewConnectionError

from studio.answers import Answer, Call, Reader, detail_of, is_json
from studio.errors import StudioRefusedError, StudioRequestError, StudioUnavailableError
from studio.trust import CURE, trusting

log = logging.getLogger(__name__)

#: What Label Studio gives an access token to live, in seconds, when the token does not say.
ACCESS_SECONDS: Final = 300.0
#: Renewed this long before its end, in seconds: a call on its way must not arrive too late.
RENEW_BEFORE: Final = 30.0
#: What our own backend asks for a password with (`backend.security`).
OUR_REALM: Final = 'realm="label-studio-hrn"'
#: A page of Label Studio's, as copied from a browser.
PAGE: Final = re.compile(r"/(projects/\d+|user/(login|account|signup))(/|$)")
#: Read at a time from an answer, in bytes.
CHUNK: Final = 1 << 16


@dataclasses.dataclass(frozen=True)
class Patience:
    """How long a call may take, and how often it is tried.

    Attributes:
        timeout: seconds until the answer begins, and again until it is complete.
        connect: seconds for the connection alone.
        retries: how often a call is repeated after the first try.
        backoff: seconds before the first repeat; doubled each time.
        longest_wait: most seconds between two tries, even if ``Retry-After`` asks for more.
        total: seconds after which no further try begins.
        answer_bytes: largest answer read; a page of tasks carries all their old predictions.
    """

    timeout: float = 60.0
    connect: float = 5.0
    retries: int = 4
    backoff: float = 0.5
    longest_wait: float = 30.0
    total: float = 180.0
    answer_bytes: int = 256 << 20


class _Token(Protocol):
    """A way to say who we are."""

    def header(self) -> str: ...

    def renew(self, stale: str) -> bool: ...


class _LegacyToken:
    """The 40-character token of the account page, sent as it is."""

    def __init__(self, token: str) -> None:
        self._header = f"Token {token}"

    def header(self) -> str:
        return self._header

    def renew(self, stale: str) -> bool:
        """A legacy token has no successor."""
        del stale
        return False


class _PersonalToken:
    """A personal access token: traded for an access token, again before that one ends."""

    def __init__(self, trade: Callable[[], str]) -> None:
        self._trade = trade
        self._lock = threading.Lock()
        self._header = ""
        self._ends = 0.0  # seconds on the monotonic clock

    def header(self) -> str:
        with self._lock:
            if not self._header or time.monotonic() >= self._ends:
                self._refresh()
            return self._header

    def renew(self, stale: str) -> bool:
        """Trade again, unless another thread has done so since ``stale`` was handed out."""
        with self._lock:
            if self._header == stale:
                self._refresh()
        return True

    def _refresh(self) -> None:
        asked = time.monotonic()
        access = self._trade()
        life = _lifetime(access)
        self._header = f"Bearer {access}"
        self._ends = asked + life - min(RENEW_BEFORE, life / 4)


class _Header(AuthBase):
    """Sets the header last, so that a `.netrc` on the machine cannot put another in its place."""

    def __init__(self, value: str | None) -> None:
        self._value = value

    def __call__(self, r: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._value is not None:
            r.headers["Authorization"] = self._value
        return r


class TrustAdapter(HTTPAdapter):
    """Verifies with our context alone; `requests` would go by variables of its own."""

    def __init__(self, trust: ssl.SSLContext) -> None:
        self._trust = trust
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - passed on
        """Make the pool with our context."""
        super().init_poolmanager(*args, **kwargs, ssl_context=self._trust)

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - passed on
        """Make the pool behind a proxy with our context."""
        return super().proxy_manager_for(*args, **kwargs, ssl_context=self._trust)

    def send(self, *args: Any, **kwargs: Any) -> requests.Response:  # noqa: ANN401 - passed on
        """Send, always verifying."""
        return super().send(*args, **{**kwargs, "verify": True})

    def cert_verify(self, conn: Any, *_: object) -> None:  # noqa: ANN401 - a pool of urllib3
        """Demand a certificate, whatever the environment says."""
        conn.cert_reqs = "CERT_REQUIRED"


class Transport:
    """Sends calls to one Label Studio. Safe to share between threads.

    Args:
        url: address of Label Studio, ``http(s)://host[:port][/path]``.
        token: personal access token or legacy token; which of the two is found by its looks.
        patience: time limits and number of tries.
        trust: whose certificates are accepted; the public authorities' if not given.

    Raises:
        ValueError: the address or the token cannot be one.
    """

    def __init__(
        self, url: str, token: str, patience: Patience, trust: ssl.SSLContext | None = None
    ) -> None:
        token = token.strip()
        if not token:
            raise ValueError(
                "Label Studio's access token is empty: copy it from Account & Settings"
            )
        # A JSON Web Token begins with base64 of '{"'; legacy tokens are hexadecimal.
        personal = token.startswith("eyJ")
        self.url = _checked_address(url)
        self._patience = patience
        self._trust = trust or trusting()
        self._reader = Reader(self.url, personal)
        self._threads = threading.local()
        self._token: _Token = (
            _PersonalToken(lambda: self._trade(token)) if personal else _LegacyToken(token)
        )

    def __repr__(self) -> str:
        kind = "personal" if self._reader.personal else "legacy"
        return f"{type(self).__name__}({self.url!r}, {kind} token)"

    def authorization(self) -> dict[str, str]:
        """The header that says who we are.

        Raises:
            StudioError: a personal access token could not be traded for an access token.
        """
        return {"Authorization": self._token.header()}

    def send(self, call: Call) -> object:
        """Send the call and return the answer's JSON; None if the answer is empty.

        Raises:
            StudioUnavailableError: no answer, or 429 or 5xx to the last.
            StudioRefusedError: 401 or 403; the message says which of the cases it was.
            StudioRequestError: any other answer that is not a success in JSON.
        """
        header = self._token.header()
        answer = self._patiently(call, header)
        if answer.status == 401 and self._token.renew(header):
            answer = self._patiently(call, self._token.header())
        return self._reader.meaning(call, answer)

    def _trade(self, token: str) -> str:
        """A fresh access token for the personal one."""
        call = Call("POST", "/api/token/refresh", body={"refresh": token}, repeatable=True)
        answer = self._patiently(call, None)
        if answer.status == 401 and is_json(answer):
            raise StudioRefusedError(
                f"Label Studio at {self.url} refused the personal access token"
                f" ({detail_of(answer)}):"
                " it was revoked, has run out or is not complete. Make a new one under Account &"
                " Settings > Personal Access Token"
            )
        reply = self._reader.meaning(call, answer)
        access = reply.get("access") if isinstance(reply, dict) else None
        if not isinstance(access, str):
            raise StudioRequestError(
                f"Label Studio at {self.url} gave no access token for the personal access token",
                status=answer.status,
            )
        return access

    def _patiently(self, call: Call, header: str | None) -> Answer:
        """The first answer that is not a reason to try again.

        Raises:
            StudioUnavailableError: there was none within the limits.
        """
        ends = time.monotonic() + self._patience.total
        attempt = 0
        while True:
            wait = self._patience.backoff * 2**attempt
            cause: Exception | None = None
            try:
                answer = self._once(call, header)
            except requests.RequestException as error:
                trouble, cause = _reason(error), error
                again = call.may_repeat or _never_sent(error)
            else:
                if OUR_REALM in answer.challenge:
                    raise StudioRequestError(
                        f"at {self.url} a label-studio-hrn backend answers, not Label Studio: set"
                        " LABEL_STUDIO_URL to Label Studio's address",
                        status=answer.status,
                    )
                if answer.status != 429 and answer.status < 500:
                    return answer
                trouble, wait = _trouble(answer), _asked_wait(answer, wait)
                again = call.may_repeat or answer.status == 429
            attempt += 1
            wait = min(wait, self._patience.longest_wait)
            if not again or attempt > self._patience.retries or time.monotonic() + wait > ends:
                break
            log.info("label studio tried again call=%s attempt=%d wait=%.1f s", call, attempt, wait)
            time.sleep(wait)
        raise StudioUnavailableError(
            f"Label Studio at {self.url} is not available, {trouble}"
            f" ({call}, {'one try' if attempt == 1 else f'{attempt} tries'})"
        ) from cause

    def _once(self, call: Call, header: str | None) -> Answer:
        """Send once and read the whole answer, within the limits of time and size."""
        limit = call.timeout or self._patience.timeout
        # A field for each file: Label Studio takes one file a field.
        files = {f"file{number}": file for number, file in enumerate(call.files)}
        with self._session().request(
            call.method,
            self.url + call.path,
            params=dict(call.params),
            json=call.body,
            files=files or None,
            auth=_Header(header),
            timeout=(self._patience.connect, limit),
            allow_redirects=False,  # the token goes to this address and to no other
            stream=True,
        ) as response:
            body = self._body(response, limit)
        log.debug("label studio call=%s status=%d bytes=%d", call, response.status_code, len(body))
        return Answer(
            status=response.status_code,
            content_type=response.headers.get("Content-Type", "").split(";")[0].strip().lower(),
            retry_after=response.headers.get("Retry-After"),
            location=response.headers.get("Location"),
            body=body,
            challenge=response.headers.get("WWW-Authenticate", ""),
        )

    def _body(self, response: requests.Response, limit: float) -> bytes:
        """The answer's body; a slow drip or an endless one is cut off."""
        ends = time.monotonic() + limit
        body = bytearray()
        for part in response.iter_content(CHUNK):
            body += part
            if len(body) > self._patience.answer_bytes:
                raise StudioRequestError(
                    f"Label Studio at {self.url} sent more than {self._patience.answer_bytes} bytes"
                    " in one answer: ask for smaller pages",
                    status=response.status_code,
                )
            if time.monotonic() > ends:
                raise requests.ReadTimeout(f"the answer was not complete after {limit:g} s")
        return bytes(body)

    def _session(self) -> requests.Session:
        """This thread's connections: `requests` promises no sharing of a session by threads."""
        session: requests.Session | None = getattr(self._threads, "session", None)
        if session is None:
            session = self._threads.session = requests.Session()
            session.mount("https://", TrustAdapter(self._trust))
            session.mount("http://", TrustAdapter(self._trust))  # a proxy may be an https one
            # A session cookie beside the token would make Label Studio ask for a CSRF token.
            session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
            session.headers["Accept"] = "application/json"
        return session


def _checked_address(url: str) -> str:
    """The address without a trailing slash."""
    parts = urlsplit(url.strip())
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError(f"Label Studio's address must be http://host or https://host, got {url!r}")
    if parts.username is None and (page := PAGE.search(parts.path)):
        root = f"{parts.scheme}://{parts.netloc}{parts.path[: page.start()]}"
        raise ValueError(
            f"{url!r} is a page of Label Studio's: give the address without it, {root}"
        )
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError("Label Studio's address must hold no user name, password, '?' or '#'")
    return f"{parts.scheme}://{parts.netloc}{parts.path}".rstrip("/")


def _lifetime(access: str) -> float:
    """Seconds an access token lives: from its own two times, so that clocks need not agree."""
    try:
        part = access.split(".")[1]
        claims: Any = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
        return max(0.0, float(claims["exp"]) - float(claims["iat"]))
    except (IndexError, KeyError, TypeError, ValueError, binascii.Error):
        return ACCESS_SECONDS


def _inner(error: BaseException) -> object:
    """The urllib3 error inside one of `requests`."""
    first = error.args[0] if error.args else None
    return getattr(first, "reason", first)


def _never_sent(error: requests.RequestException) -> bool:
    """Whether the connection already failed, so that even a POST cannot have arrived."""
    failed = (requests.ConnectTimeout, NewConnectionError)
    return isinstance(error, failed) or isinstance(_inner(error), failed)


def _reason(error: requests.RequestException) -> str:
    """What went wrong on the way, in words."""
    if isinstance(error, requests.exceptions.SSLError | requests.exceptions.ProxyError):
        return _not_let_through(error)
    if isinstance(error, requests.ConnectTimeout):
        return "its host did not take the connection in time"
    if isinstance(error, requests.Timeout):
        return "no complete answer came in time"
    inner = _inner(error)
    if isinstance(inner, NameResolutionError):
        return "its host name is not known: check the address"
    if isinstance(inner, NewConnectionError):
        return "nothing listens there: check the address and that Label Studio runs"
    return f"the connection was lost ({type(error).__name__})"


def _not_let_through(error: requests.RequestException) -> str:
    """What a certificate or a proxy lacks, in words."""
    if isinstance(error, requests.exceptions.SSLError):
        found = re.search(r"certificate verify failed: ([^(]+)", str(error))
        said = f"{found[1].strip()}; " if found else ""
        words = "the TLS connection failed: check https or http, and the certificate"
        return f"{words} ({said}{CURE})"
    found = re.search(r"Tunnel connection failed: (\d+)", str(error))
    said = f"it answered {found[1]}; " if found else ""
    if found and found[1] == "407":
        said = "it answered 407, it asks for a user name and password; "
    words = "the proxy that HTTP_PROXY or HTTPS_PROXY names did not lead to it"
    return f"{words} ({said}hosts in NO_PROXY are asked without it)"


def _trouble(answer: Answer) -> str:
    if answer.status == 429:
        return "it asks us to slow down (429)"
    return f"it answered {answer.status}: {detail_of(answer)}"


def _asked_wait(answer: Answer, wait: float) -> float:
    """Seconds to wait, as ``Retry-After`` says (a number or a date), else ``wait``."""
    if answer.retry_after is None:
        return wait
    if answer.retry_after.isdecimal():
        return float(answer.retry_after)
    try:
        date = parsedate_to_datetime(answer.retry_after)
    except ValueError:
        return wait
    return max(0.0, (date.astimezone(UTC) - datetime.now(UTC)).total_seconds())
