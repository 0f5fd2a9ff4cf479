"""Logs without secrets: the second line, for what a library's message or a traceback may carry.

The first line is that nothing of ours hands a secret to a log (`worker.settings.Secret`).
"""

import base64
import logging
import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import parse_qs, quote, unquote, urlsplit

from worker.settings import Settings

FORMAT: Final = "%(asctime)s %(levelname)s %(name)s %(message)s"

#: Stands where a secret stood.
HIDDEN: Final = "***"

#: Shortest setting that is looked for word by word: a shorter one would blot out half of the log.
SHORTEST: Final = 6

#: What looks like a secret, whoever's it is: users in addresses, headers that prove who one is,
#: signatures of addresses in cloud storage, JSON Web Tokens.
_SHAPES: Final = (
    (re.compile(r"(?<=://)[^/\s'\"@]*(?:/[^\s'\"@]*)?@"), f"{HIDDEN}@"),
    (
        re.compile(
            r"(?i)((?:proxy-)?authorization|(?:set-)?cookie|x-api-key)(['\"]?\s*[:=]\s*)[^\r\n,}]+"
        ),
        rf"\1\2{HIDDEN}",
    ),
    (re.compile(r"\b(Basic|Bearer|Token) [\w+/=.~-]{8,}"), rf"\1 {HIDDEN}"),
    (
        re.compile(r"(?i)\b(access_token|token|signature|password|x-amz-[\w-]+|sig)=[^&\s'\"]+"),
        rf"\1={HIDDEN}",
    ),
    (re.compile(r"\beyJ[\w-]+\.[\w-]+(?:\.[\w-]*)?"), HIDDEN),
)


class Redacting(logging.Formatter):
    """Writes records, tracebacks too, and then takes out what is secret.

    Args:
        secrets: texts that never appear.
        inner: lays the record out.
    """

    def __init__(self, secrets: Iterable[str], inner: logging.Formatter | None = None) -> None:
        super().__init__(FORMAT)
        self._inner = inner
        written = {form for text in secrets for form in _forms(text)}
        longest_first = sorted(written, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line = super().format(record) if self._inner is None else self._inner.format(record)
        line = self._known.sub(HIDDEN, line)
        for shape, shown in _SHAPES:
            line = shape.sub(shown, line)
        return line


def secrets_of(settings: Settings) -> tuple[str, ...]:
    """Return every text among the settings that must not be seen."""
    redis = urlsplit(settings.redis_url)
    # Given before the host, or among the options behind a "?".
    password = redis.password or parse_qs(redis.query).get("password", [""])[0]
    own = (settings.label_studio_token, settings.password, settings.console_password)
    written = (password, unquote(password))  # as in the address, and as Redis is sent it
    return tuple(text for text in (*dict.fromkeys(written), *(one.reveal() for one in own)) if text)


def start_logging(settings: Settings) -> None:
    """Log to standard error, without secrets."""
    handler = logging.StreamHandler()
    handler.setFormatter(Redacting(secrets_of(settings)))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def cover(logger: str, settings: Settings) -> None:
    """Hide secrets in a library's logger that has handlers of its own."""
    for handler in logging.getLogger(logger).handlers:
        if not isinstance(handler.formatter, Redacting):
            handler.setFormatter(Redacting(secrets_of(settings), handler.formatter))


def _forms(text: str) -> Iterable[str]:
    """Return a secret as it is, as in an address and as in a repr; none if too short."""
    if len(text) < SHORTEST:
        return ()
    coded = base64.b64encode(text.encode()).decode().rstrip("=")
    return (text, quote(text, safe=""), quote(text), repr(text)[1:-1], coded)
