"""Prefetching with threads."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from typing import Any


def map_ahead(
    function: Callable[[Any], Any], items: Iterable[Any], *, num_threads: int = 4
) -> Iterator[Any]:
    """Maps `function` over items in order, computing up to 2 * num_threads results ahead."""
    with futures.ThreadPoolExecutor(num_threads) as pool:
        items = iter(items)
        pending = collections.deque(
            pool.submit(function, item) for item in itertools.islice(items, 2 * num_threads)
        )
        while pending:
            result = pending.popleft().result()
            pending.extend(pool.submit(function, item) for item in itertools.islice(items, 1))
            yield result
