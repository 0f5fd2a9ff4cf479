"""What is asked of Label Studio, and what an answer means: JSON, or an error in plain words."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final
from urllib.parse import urlsplit

from studio.errors import StudioRefusedError, StudioRequestError, StudioUnavailableError

#: Longest stretch of Label Studio's own words in our messages, in characters.
QUOTE: Final = 400
#: Methods that may be sent twice without doing anything twice.
REPEATABLE: Final = frozenset({"GET", "PUT", "PATCH", "DELETE"})
#: With what a proxy or a sign-in page before Label Studio refuses, as Label Studio does too.
PROXY_STATUSES: Final = frozenset({401, 403, 407})


class LegacyTokensOffError(StudioRefusedError):
    """The legacy token is known, but legacy tokens are switched off in Label Studio."""


class PermissionMissingError(StudioRefusedError):
    """The token is good; its account may not do what was asked."""


class PrivateAddressError(StudioRequestError):
    """Label Studio does not call the private address it was given."""


@dataclasses.dataclass(frozen=True)
class Call:
    """One request to make.

    Attributes:
        method: HTTP method, in capitals.
        path: path below Label Studio's address, with its leading slash.
        params: the query string.
        body: what is sent as JSON; None for no body.
        files: name and content of each file of a multipart upload.
        repeatable: may be sent again when nobody knows whether it arrived; None: unless a POST.
        timeout: seconds until the answer, where this call needs longer than the others.
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
        """Whether a second sending does no harm."""
        return self.method in REPEATABLE if self.repeatable is None else self.repeatable


@dataclasses.dataclass(frozen=True)
class Answer:
    """What came back: status, content type, the headers we look at, and the whole body."""

    status: int
    content_type: str
    retry_after: str | None
    location: str | None
    body: bytes = dataclasses.field(repr=False)
    challenge: str = ""


@dataclasses.dataclass(frozen=True)
class Reader:
    """Reads the answers of one Label Studio.

    Attributes:
        url: its address, for the messages.
        personal: a personal access token is in use, not a legacy one.
    """

    url: str
    personal: bool

    def meaning(self, call: Call, answer: Answer) -> object:
        """The answer's JSON; None if it is empty.

        Raises:
            StudioRefusedError: 401 or 403; the message says which of the cases it was.
            StudioUnavailableError: a page that is no JSON.
            StudioRequestError: any other answer that is not a success.
        """
        if 200 <= answer.status < 300:
            return self._json(call, answer)
        if 300 <= answer.status < 400:
            raise self._elsewhere(call, answer)
        detail = detail_of(answer)
        if answer.status in PROXY_STATUSES and not is_json(answer):
            raise StudioRefusedError(
                f"{self.url} answered {call} with {answer.status} and {_looks(answer)}, no answer"
                " of Label Studio's own: a proxy or sign-in page before it wants to know who asks;"
                " let this backend past it, or set LABEL_STUDIO_URL to Label Studio's own address"
            )
        if answer.status == 401:
            raise self._unknown(detail)
        if answer.status == 403:
            raise self._forbidden(call, detail)
        root = ""
        if answer.status == 404 and _is_page(answer):
            root = f": set LABEL_STUDIO_URL to Label Studio's own address; {self.url} has no API"
        raise StudioRequestError(
            f"Label Studio at {self.url} answered {call} with {answer.status}: {detail}{root}",
            status=answer.status,
        )

    def _json(self, call: Call, answer: Answer) -> object:
        if not answer.body.strip():
            return None
        try:
            reply: object = json.loads(answer.body)
        except ValueError as error:
            # A proxy's page of maintenance comes like this too, so it may pass.
            raise StudioUnavailableError(
                f"{self.url} answered {call} with {_looks(answer)} instead of JSON: check that"
                " this is Label Studio's own address, that it is not in maintenance and that no"
                " sign-in page or proxy stands before it"
            ) from error
        return reply

    def _elsewhere(self, call: Call, answer: Answer) -> StudioRequestError:
        parts = urlsplit(answer.location or "")
        there = f"{parts.scheme}://{parts.netloc}" if parts.netloc else "another page"
        return StudioRequestError(
            f"Label Studio at {self.url} sends {call} on to {there}: set Label Studio's address to"
            " the"
            " one it really has (http or https, host, port); the token is not sent anywhere else",
            status=answer.status,
        )

    def _unknown(self, detail: str) -> StudioRefusedError:
        if "legacy token authentication has been disabled" in detail:
            return LegacyTokensOffError(
                f"Label Studio at {self.url} knows this legacy token, but legacy tokens are"
                " switched off"
                " there: switch them on under Organization > API Tokens Settings (or start Label"
                " Studio"
                " the first time with LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN=true), or use a personal"
                " access token from Account & Settings"
            )
        if self.personal:
            return StudioRefusedError(
                f"Label Studio at {self.url} refused the access token it had just issued"
                f" ({detail}):"
                " personal access tokens may be switched off under Organization > API Tokens"
                " Settings"
            )
        return StudioRefusedError(
            f"Label Studio at {self.url} does not know this legacy token ({detail}): copy it again"
            " from"
            " Account & Settings > Legacy Token, and mind which Label Studio it belongs to"
        )

    def _forbidden(self, call: Call, detail: str) -> StudioRefusedError | StudioRequestError:
        if "reserved network address" in detail:
            return PrivateAddressError(
                f"Label Studio at {self.url} refused {call}, since it calls no private addresses"
                f" ({detail}): start it with ML_BLOCK_LOCAL_IP=false and"
                " SSRF_PROTECTION_ENABLED=false"
                " (both are needed), or give this backend a public address",
                status=403,
            )
        return PermissionMissingError(
            f"The account behind the token may not do {call} in Label Studio at {self.url}"
            f" ({detail}):"
            " use the token of an owner or administrator of the project"
        )


def is_json(answer: Answer) -> bool:
    """Is the body JSON, as all that Label Studio's API says of an error?"""
    try:
        json.loads(answer.body)
    except ValueError:
        return False
    return True


def own_words(body: bytes) -> str:
    """What an error's body says in words, on one line; "" where it says nothing or is a page.

    Args:
        body: JSON with a ``detail``, plain text, or the XML of a storage.

    Example:
        >>> own_words(b'{"detail": "Not <b>here</b>"}'), own_words(b"<html>Oops</html>")
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
    bare = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", "", text)).strip()
    return "".join(char for char in bare if char.isprintable())[:QUOTE]


def detail_of(answer: Answer) -> str:
    """Label Studio's own words about what is wrong, without markup, on one line."""
    try:
        reply: object = json.loads(answer.body)
    except ValueError:
        return _looks(answer)
    if not isinstance(reply, dict):
        return str(reply)[:QUOTE]
    errors = reply.get("validation_errors")
    words = "; ".join(_flat(errors)) if errors else str(reply.get("detail") or "no detail given")
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", "", words)).strip()[:QUOTE]


def _flat(errors: object, field: str = "") -> Iterable[str]:
    """Django's nested lists and dicts of messages, one by one, each with its field."""
    if isinstance(errors, dict):
        for key, value in errors.items():
            yield from _flat(value, "" if key == "non_field_errors" else f"{key}: ")
    elif isinstance(errors, list):
        for value in errors:
            yield from _flat(value, field)
    else:
        yield f"{field}{errors}"


def _is_page(answer: Answer) -> bool:
    return answer.content_type == "text/html" or answer.body.lstrip()[:1] == b"<"


def _looks(answer: Answer) -> str:
    if _is_page(answer):
        return "a web page"
    return f"{len(answer.body)} bytes of {answer.content_type or 'unknown type'}"
