"""Micro-batching: calls that come in while another one runs are computed together, in one call."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

#: Rows computed together at most. A CPU cuts a batch into eights anyway; a GPU could take more.
MOST: Final = 32

Rows = NDArray[Any]
_Call = tuple[Rows, "Future[Rows]"]


class MicroBatcher:
    """A function of rows that runs once for all threads that wait for it at the same time.

    Nothing is delayed on purpose: a lone call runs at once, in its own thread. Calls that arrive
    meanwhile wait; the first of them that gets its turn works for all.
    """

    def __init__(self, work: Callable[[Rows], Rows], *, most: int = MOST) -> None:
        """Nothing is started, now or later: callers lend their threads.

        Args:
            work: n rows -> n rows, each row's result its own.
            most: rows put together at most; a call with more runs alone.
        """
        self._work = work
        self._most = most
        self._turn = threading.Lock()
        self._waiting: deque[_Call] = deque()

    def __call__(self, rows: Rows) -> Rows:
        """Compute the rows' results.

        Raises whatever ``work`` raises for these rows; another call's failure stays its own.
        """
        own: Future[Rows] = Future()
        self._waiting.append((rows, own))
        while not own.done():
            with self._turn:
                if not own.done():
                    self._settle(self._next())
        return own.result()

    def _next(self) -> list[_Call]:
        """Take as many of those that wait as fit, the first first, and one at least."""
        group = [self._waiting.popleft()]
        size = len(group[0][0])
        while self._waiting and size + len(self._waiting[0][0]) <= self._most:
            group.append(self._waiting.popleft())
            size += len(group[-1][0])
        return group

    def _settle(self, group: Sequence[_Call]) -> None:
        try:
            if len(group) == 1 or not self._together(group):
                for call in group:  # whose fault it is shows when each runs alone
                    self._alone(call)
        finally:  # after an interruption the others' turn comes again
            self._waiting.extendleft(call for call in reversed(group) if not call[1].done())

    def _together(self, group: Sequence[_Call]) -> bool:
        """Work once for all; False if that fails."""
        try:
            found = self._work(np.concatenate([rows for rows, _ in group]))
        except Exception:  # noqa: BLE001 - raised where it belongs
            return False
        start = 0
        for rows, future in group:
            future.set_result(found[start : start + len(rows)])
            start += len(rows)
        return True

    def _alone(self, call: _Call) -> None:
        rows, future = call
        try:
            future.set_result(self._work(rows))
        except Exception as error:  # noqa: BLE001 - raised in the thread that asked
            future.set_exception(error)
