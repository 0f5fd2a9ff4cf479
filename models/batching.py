"""Calls that come in while another one runs are answered together, in one call."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

#: Rows taken together at most. On CPUs a pass is cut into eights anyway; on a GPU more would fit.
MOST: Final = 32

Rows = NDArray[Any]


class _Ask:
    """One caller's rows and what became of them."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.woken = threading.Event()
        self.found: Rows | None = None
        self.error: Exception | None = None

    @property
    def settled(self) -> bool:
        return self.found is not None or self.error is not None


class Together:
    """A function of rows, called by many threads, run once for those that wait at the same time.

    Nothing is delayed on purpose: a lone call runs at once, in its own thread. Calls that arrive
    meanwhile queue up; the first of them then runs for all, in the order of arrival.
    """

    def __init__(self, work: Callable[[Rows], Rows], *, most: int = MOST) -> None:
        """Nothing is started, now or later: callers lend their threads.

        Args:
            work: ``(n, ...)`` rows -> ``(n, ...)`` rows, each row's answer its own; never called
                by two threads at once.
            most: rows put together at most; a call with more runs alone.
        """
        self._work = work
        self._most = most
        self._lock = threading.Lock()
        self._queue: deque[_Ask] = deque()
        self._busy = False

    def __call__(self, rows: Rows) -> Rows:
        """The rows' answers.

        Raises whatever ``work`` raises for these rows; a neighbour's failure stays the neighbour's.
        """
        ask = _Ask(rows)
        with self._lock:
            self._queue.append(ask)
            leads, self._busy = not self._busy, True
        if not leads:
            self._wait(ask)
        if not ask.settled:
            self._lead(ask)
        if ask.error is not None:
            raise ask.error
        assert ask.found is not None  # noqa: S101 - settled without an error
        return ask.found

    def _wait(self, ask: _Ask) -> None:
        """Until another thread has answered, or has left the lead to this one."""
        try:
            ask.woken.wait()
        except BaseException:  # interrupted: nobody may be left waiting for this thread
            with self._lock:
                if ask in self._queue:
                    self._queue.remove(ask)
                leads = ask.woken.is_set() and not ask.settled
            if leads:
                self._hand_on()
            raise

    def _lead(self, own: _Ask) -> None:
        group = self._take()
        try:
            self._settle(group)
        finally:
            with self._lock:  # after an interruption: the others' turn comes again
                self._queue.extendleft(
                    ask for ask in reversed(group) if not ask.settled and ask is not own
                )
            for ask in group:
                if ask.settled:
                    ask.woken.set()
            self._hand_on()

    def _take(self) -> list[_Ask]:
        """The first who waits, and as many behind as fit."""
        with self._lock:
            group = [self._queue.popleft()]
            size = len(group[0].rows)
            while self._queue and size + len(self._queue[0].rows) <= self._most:
                size += len(self._queue[0].rows)
                group.append(self._queue.popleft())
        return group

    def _settle(self, group: Sequence[_Ask]) -> None:
        if len(group) > 1:
            try:
                found = self._work(np.concatenate([ask.rows for ask in group]))
            except Exception:  # noqa: BLE001, S110 - whose fault it is shows when each runs alone
                pass
            else:
                ends = np.cumsum([len(ask.rows) for ask in group])
                for ask, own in zip(group, np.split(found, ends[:-1]), strict=True):
                    ask.found = own
                return
        for ask in group:
            try:
                ask.found = self._work(ask.rows)
            except Exception as error:  # noqa: BLE001 - raised in the thread that asked
                ask.error = error

    def _hand_on(self) -> None:
        """Leave the lead to the first who waits."""
        with self._lock:
            following = self._queue[0] if self._queue else None
            self._busy = following is not None
        if following is not None:
            following.woken.set()
