"""Reading ahead: results made by threads before they are asked for."""

from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from queue import SimpleQueue
from typing import TypeVar

ItemT = TypeVar("ItemT")
FoundT = TypeVar("FoundT")


def prefetch(
    items: Iterable[ItemT],
    work: Callable[[ItemT], FoundT],
    *,
    threads: int,
    ahead: int,
    in_order: bool = True,
) -> Generator[FoundT, None, None]:
    """Yield ``work`` of each item, done by threads before it is asked for.

    Close the generator to leave early: what has not been started is dropped.

    Args:
        items: what to work on; read as it is needed.
        work: mostly waits, or does what lets other threads run, as decoding and resizing do.
        threads: how many; 0 does each when it is asked for, without any.
        ahead: items under way or waiting to be taken, at most.
        in_order: as the items are, else as they get ready: a slow one then holds up no other.

    Raises:
        Exception: what ``work`` raised, where its result would have stood.
    """
    if not threads:
        yield from map(work, items)
        return
    todo = iter(items)
    results: SimpleQueue[Future[FoundT]] = SimpleQueue()
    under_way = 0
    pool = ThreadPoolExecutor(threads, thread_name_prefix="prefetch")
    try:
        while True:
            for item in islice(todo, ahead - under_way):
                future = pool.submit(work, item)
                under_way += 1
                if in_order:
                    results.put(future)
                else:
                    future.add_done_callback(results.put)
            if not under_way:
                return
            found = results.get().result()
            under_way -= 1
            yield found
    finally:
        pool.shutdown(cancel_futures=True)
