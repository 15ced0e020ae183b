"""A queue whose own thread handles everything that has arrived, as one group."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

log = logging.getLogger(__name__)

A = TypeVar("A")


class GroupQueue(Generic[A]):
    """`grouped.add(item)` returns at once; a thread calls `do` with everything that came while it was busy.

    Never waits on a timer: a lone item is done at once, and the more there are, the larger the groups.

    Args:
        do: gets the items in their order, at least one; what it raises is logged, and the next group follows.
        most: items that may wait; beyond that the oldest are dropped. Without it, none is.
    """

    def __init__(self, do: Callable[[list[A]], None], name: str, *, most: int | None = None):
        self._do = do
        self._items: deque[A] = deque(maxlen=most)
        self._wake = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def add(self, item: A) -> None:
        """Add an item. Any thread may call this; it never blocks."""
        self._items.append(item)
        if not self._wake.is_set():  # setting takes a lock, looking does not
            self._wake.set()

    def close(self, timeout: float = 5.0) -> None:
        """Do what is left, for at most `timeout` seconds."""
        self._closing = True
        self._wake.set()
        self._thread.join(timeout)

    def _run(self) -> None:
        while not self._closing or self._items:
            self._wake.wait()
            self._wake.clear()  # before looking, so that what comes after the look ends the next wait
            if group := [self._items.popleft() for _ in range(len(self._items))]:
                try:
                    self._do(group)
                except Exception:
                    log.exception("a group of %d failed in %s", len(group), self._thread.name)
