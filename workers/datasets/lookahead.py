"""Work on a stream in threads, with the results in the order of the stream and only a few items in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
U = TypeVar("U")


def map_ahead(work: Callable[[T], U], items: Iterable[T], *, threads: int, ahead: int | None = None) -> Iterator[U]:
    """Map in `threads` threads, at most `ahead` items before the caller; what `work` raises is raised here."""
    most = ahead or 2 * threads
    pending: deque[Future[U]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="ahead") as pool:
        try:
            for item in items:
                pending.append(pool.submit(work, item))
                if len(pending) > most:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
