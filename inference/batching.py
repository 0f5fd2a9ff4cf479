"""Calls that come in while another one runs are answered together, in one call."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

#: Rows taken together at most. On CPUs a pass is cut into eights anyway; on a GPU more would fit.
MOST: Final = 32

Rows = NDArray[Any]


class Several(Protocol):
    """An array or a sequence: some rows can be cut out."""

    def __len__(self) -> int:
        """How many."""
        ...

    def __getitem__(self, rows: slice, /) -> Any:  # noqa: ANN401 - the same kind again
        """Some of them."""
        ...


AskedT = TypeVar("AskedT", bound=Several)
FoundT = TypeVar("FoundT", bound=Several)


class _Ask(Generic[AskedT, FoundT]):
    """One caller's rows and what became of them."""

    def __init__(self, rows: AskedT) -> None:
        self.rows = rows
        self.called = False  # to lead; nobody else takes it along then
        self.woken = threading.Event()
        self.found: FoundT | None = None
        self.error: Exception | None = None

    @property
    def settled(self) -> bool:
        return self.found is not None or self.error is not None


class Together(Generic[AskedT, FoundT]):
    """A function of rows, called by many threads, run once for those that wait at the same time.

    Nothing is delayed on purpose: a lone call runs at once, in its own thread. Calls that arrive
    meanwhile queue up; the first of them then runs for all, in the order of arrival.
    """

    def __init__(
        self,
        work: Callable[[AskedT], FoundT],
        *,
        most: int = MOST,
        lanes: int = 1,
        join: Callable[[Sequence[AskedT]], AskedT] = np.concatenate,  # type: ignore[assignment]
    ) -> None:
        """Nothing is started, now or later: callers lend their threads.

        Args:
            work: n rows -> n rows, each row's answer its own; never called by more threads at once
                than there are lanes.
            most: rows put together at most; a call with more runs alone.
            lanes: groups at work at once.
            join: puts calls' rows together.
        """
        self._work = work
        self._most = most
        self._lanes = lanes
        self._join = join
        self._lock = threading.Lock()
        self._queue: deque[_Ask[AskedT, FoundT]] = deque()
        self._busy = 0

    def __call__(self, rows: AskedT) -> FoundT:
        """The rows' answers.

        Raises whatever ``work`` raises for these rows; a neighbour's failure stays the neighbour's.
        """
        ask: _Ask[AskedT, FoundT] = _Ask(rows)
        with self._lock:
            self._queue.append(ask)
            ask.called = self._busy < self._lanes
            leads = ask.called
            self._busy += leads
        if not leads:
            self._wait(ask)
        if not ask.settled:
            self._lead(ask)
        if ask.error is not None:
            raise ask.error
        assert ask.found is not None  # noqa: S101 - settled without an error
        return ask.found

    def _wait(self, ask: _Ask[AskedT, FoundT]) -> None:
        """Until another thread has answered, or has left the lead to this one."""
        try:
            ask.woken.wait()
        except BaseException:  # interrupted: nobody may be left waiting for this thread
            with self._lock:
                if ask in self._queue:
                    self._queue.remove(ask)
                leads = ask.called and not ask.settled
            if leads:
                self._hand_on()
            raise

    def _lead(self, own: _Ask[AskedT, FoundT]) -> None:
        group = self._take(own)
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

    def _take(self, own: _Ask[AskedT, FoundT]) -> list[_Ask[AskedT, FoundT]]:
        """The one that leads, and as many of those that wait, the first first, as fit."""
        with self._lock:
            self._queue.remove(own)
            group, size = [own], len(own.rows)
            for ask in [ask for ask in self._queue if not ask.called]:
                size += len(ask.rows)
                if size > self._most:
                    break
                self._queue.remove(ask)
                group.append(ask)
        return group

    def _settle(self, group: Sequence[_Ask[AskedT, FoundT]]) -> None:
        if len(group) > 1:
            try:
                found = self._work(self._join([ask.rows for ask in group]))
            except Exception:  # noqa: BLE001, S110 - whose fault it is shows when each runs alone
                pass
            else:
                start = 0
                for ask in group:
                    ask.found = found[start : start + len(ask.rows)]
                    start += len(ask.rows)
                return
        for ask in group:
            try:
                ask.found = self._work(ask.rows)
            except Exception as error:  # noqa: BLE001 - raised in the thread that asked
                ask.error = error

    def _hand_on(self) -> None:
        """Leave the lead to the first who waits."""
        with self._lock:
            following = next((ask for ask in self._queue if not ask.called), None)
            if following is None:
                self._busy -= 1
            else:
                following.called = True
        if following is not None:
            following.woken.set()
