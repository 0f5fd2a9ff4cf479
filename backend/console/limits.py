"""Rate limits of sign-in: by address, and by all addresses together.

Counted in Redis, for all processes and servers; in this process while Redis is away.
"""

import hashlib
import ipaddress
import logging
import math
import threading
import time
from collections.abc import Callable
from typing import Final

from worker.errors import MisconfiguredError
from worker.parts import Parts
from worker.queue import RedisError

log = logging.getLogger(__name__)

#: Seconds in which tries are counted, and how many are allowed: of one address, and of all.
WINDOW: Final = 15 * 60
OF_ONE: Final = 10
OF_ALL: Final = 200

#: Seconds for which an address that has signed in is not stopped by what others try.
KNOWN: Final = 30 * 86400

PREFIX: Final = "hrn-console"


class Tries:
    """Counts tries to sign in."""

    def __init__(self, parts: Parts, now: Callable[[], float] = time.monotonic) -> None:
        self._parts = parts
        self._now = now
        self._lock = threading.Lock()
        self._counts: dict[str, tuple[int, float]] = {}  # count, when it ends
        self._known: dict[str, float] = {}

    def take(self, address: str) -> int:
        """Count a try, before the password is read; return seconds to wait, 0 if it is allowed."""
        who = _network(address)
        try:
            return self._take_shared(who)
        except (RedisError, MisconfiguredError):
            return self._take_here(who)

    def forgive(self, address: str) -> None:
        """Begin again for an address whose try was right; others cannot lock it out."""
        who = _network(address)
        with self._lock:
            self._counts.pop(who, None)
            self._known[who] = self._now() + KNOWN
        try:
            redis = self._parts.board.redis
            redis.delete(f"{PREFIX}:tries:{who}")
            redis.set(f"{PREFIX}:known:{who}", 1, ex=KNOWN)
        except (RedisError, MisconfiguredError) as error:
            log.debug("counted in this process only: %s", error)

    def unlock(self) -> None:
        """Forget all tries, of all addresses, for all servers.

        Raises:
            RedisError, MisconfiguredError: what was counted in another process stays until that
                one ends.
        """
        with self._lock:
            self._counts.clear()
        redis = self._parts.board.redis
        for key in redis.scan_iter(f"{PREFIX}:tries*"):
            redis.delete(key)

    def _take_shared(self, who: str) -> int:
        redis = self._parts.board.redis
        pipe = redis.pipeline()
        for key in (f"{PREFIX}:tries:{who}", f"{PREFIX}:tries"):
            pipe.set(key, 0, ex=WINDOW, nx=True)
            pipe.incr(key)
            pipe.ttl(key)
        pipe.exists(f"{PREFIX}:known:{who}")
        _, own, own_left, _, every, all_left, known = pipe.execute()
        return _wait((own, own_left), (every, all_left), known=bool(known))

    def _take_here(self, who: str) -> int:
        now = self._now()
        with self._lock:
            self._counts = {key: one for key, one in self._counts.items() if one[1] > now}
            found = []
            for key in (who, ""):
                count, ends = self._counts.get(key, (0, now + WINDOW))
                self._counts[key] = (count + 1, ends)
                found.append((count + 1, math.ceil(ends - now)))
            return _wait(found[0], found[1], known=self._known.get(who, 0) > now)


def _wait(own: tuple[int, int], every: tuple[int, int], *, known: bool) -> int:
    if own[0] > OF_ONE:
        return max(1, own[1])
    return max(1, every[1]) if every[0] > OF_ALL and not known else 0


def _network(address: str) -> str:
    """Return a name for an address's network: a customer has 2**64 addresses of IPv6."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        who = "unknown"
    else:
        prefix = 64 if found.version == 6 else 32
        who = str(ipaddress.ip_network((found, prefix), strict=False))
    return hashlib.sha256(who.encode()).hexdigest()[:16]
