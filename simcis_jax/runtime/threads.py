"""Works ahead of the consumer: with threads on the host, and one item ahead on devices."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent import futures
from typing import Any


def map_ahead(
    function: Callable[[Any], Any], items: Iterable[Any], *, num_threads: int = 4
) -> Generator[Any, None, None]:
    """Maps `function` over items in order, computing up to 2 * num_threads results ahead.

    The threads end with the last item, or when the generator is closed.
    """
    pool = futures.ThreadPoolExecutor(num_threads)
    try:
        items = iter(items)
        pending = collections.deque(
            pool.submit(function, item) for item in itertools.islice(items, 2 * num_threads)
        )
        while pending:
            result = pending.popleft().result()
            pending.extend(pool.submit(function, item) for item in itertools.islice(items, 1))
            yield result
    finally:
        pool.shutdown(cancel_futures=True)


def one_ahead(start: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    """Yields each item with the result of `start` for it, after `start` was called for the next.

    Computation on devices is asynchronous: while the caller waits for one result and uses it, they
    already work on the next.
    """
    running = None
    for item in items:
        upcoming = item, start(item)
        if running is not None:
            yield running
        running = upcoming
    if running is not None:
        yield running
