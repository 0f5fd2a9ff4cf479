"""Who is signed in. The server decides: a cookie holds a random name and nothing else.

A session is a small file below HRN_HOME, so it holds for every process and server that shares that
folder, and while Redis is away. Where the disk cannot be written it is kept in this process.
"""

import contextlib
import hashlib
import hmac
import json
import logging
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from worker.settings import Secret

log = logging.getLogger(__name__)

#: Seconds without a request of a person's, and seconds in all, after which a session ends.
IDLE: Final = 30 * 60
LONGEST: Final = 12 * 3600

#: Seconds between two notes that a session is in use: each is a write.
SEEN_EVERY: Final = 30

#: Messages that wait for the next page, at most.
MOST_NOTES: Final = 5


@dataclass(frozen=True)
class Session:
    """What is known of one that is signed in.

    Attributes:
        made: when it was begun, seconds since the epoch.
        seen: when a person last asked for something, the same clock.
        notes: kind and words to show on the next page.
    """

    made: float
    seen: float
    notes: tuple[tuple[str, str], ...] = ()


class Sessions:
    """All sessions of one console.

    Args:
        folder: made when the first session begins.
        password: the console's; a new one ends all sessions.
        now: the clock, seconds since the epoch.
    """

    def __init__(
        self, folder: Path, password: Secret, now: Callable[[], float] = time.time
    ) -> None:
        self._folder = folder
        self._key = password.reveal().encode()
        self._now = now
        self._memory: dict[str, Session] = {}
        self._lock = threading.Lock()

    def begin(self) -> str:
        """A new session's secret name."""
        self._prune()
        secret = secrets.token_urlsafe(32)
        self._write(self._name(secret), Session(self._now(), self._now()))
        return secret

    def find(self, secret: str, *, by_person: bool = True) -> Session | None:
        """The session of that name; None if there is none, or it has ended.

        Args:
            secret: what the cookie says.
            by_person: a person asked; pages that keep themselves up to date keep nobody signed in.
        """
        name = self._name(secret)
        session = self._read(name) if secret else None
        if session is None:
            return None
        now = self._now()
        if now - session.seen > IDLE or now - session.made > LONGEST:
            self._remove(name)
            return None
        if by_person and now - session.seen >= SEEN_EVERY:
            session = replace(session, seen=now)
            self._write(name, session)
        return session

    def end(self, secret: str) -> None:
        """Sign out."""
        self._remove(self._name(secret))

    def note(self, secret: str, kind: str, words: str) -> None:
        """Show a message on the session's next page."""
        name = self._name(secret)
        if (session := self._read(name)) is not None:
            notes = (*session.notes, (kind, words))[-MOST_NOTES:]
            self._write(name, replace(session, notes=notes))

    def take_notes(self, secret: str) -> tuple[tuple[str, str], ...]:
        """The messages that wait, once."""
        name = self._name(secret)
        session = self._read(name)
        if session is None or not session.notes:
            return ()
        self._write(name, replace(session, notes=()))
        return session.notes

    def _name(self, secret: str) -> str:
        """The file's name, from which neither the cookie nor the password can be had."""
        return hmac.new(self._key, secret.encode(errors="replace"), hashlib.sha256).hexdigest()

    def _read(self, name: str) -> Session | None:
        with self._lock:
            if (kept := self._memory.get(name)) is not None:
                return kept
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            told = json.loads((self._folder / name).read_bytes())
            notes = tuple((str(kind), str(words)) for kind, words in told["notes"])
            return Session(float(told["made"]), float(told["seen"]), notes)
        return None

    def _write(self, name: str, session: Session) -> None:
        work = self._folder / f".{name}-{secrets.token_hex(4)}"
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            work.touch(mode=0o600)
            work.write_text(json.dumps(asdict(session)), encoding="utf-8")
            work.replace(self._folder / name)
        except OSError as error:
            log.warning("a session is kept in this process only: %s", error.strerror)
            with contextlib.suppress(OSError):
                work.unlink(missing_ok=True)
            with self._lock:
                self._memory[name] = session
        else:
            with self._lock:
                self._memory.pop(name, None)

    def _remove(self, name: str) -> None:
        with self._lock:
            self._memory.pop(name, None)
        with contextlib.suppress(OSError):
            (self._folder / name).unlink(missing_ok=True)

    def _prune(self) -> None:
        """Drop what has ended; a file's own time is that of its last use."""
        with contextlib.suppress(OSError):
            for path in self._folder.iterdir():
                with contextlib.suppress(OSError):
                    if self._now() - path.stat().st_mtime > IDLE + SEEN_EVERY:
                        path.unlink(missing_ok=True)
        with self._lock:
            ended = [n for n, one in self._memory.items() if self._now() - one.seen > IDLE]
            for name in ended:
                del self._memory[name]
