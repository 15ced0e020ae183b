"""Events of running jobs on their way to whoever watches, off the path of the jobs themselves."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from shared.queue import JobQueue

Event = tuple[UUID, Mapping[str, Any]]


class Announcer:
    """A thread that hands events to Redis in order, many in one round trip.

    A frozen Redis blocks this thread and nothing else; then the oldest events are dropped, since
    watchers look at PostgreSQL as well.
    """

    def __init__(self, queue: JobQueue, *, most: int = 10_000):
        self._queue = queue
        self._events: deque[Event] = deque(maxlen=most)
        self._wake = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="announcer", daemon=True)
        self._thread.start()

    def announce(self, job_id: UUID, event: Mapping[str, Any]) -> None:
        """Returns at once."""
        self._events.append((job_id, event))
        self._wake.set()

    def close(self, timeout: float = 5.0) -> None:
        """Hand over what is left, for at most `timeout` seconds."""
        self._closing = True
        self._wake.set()
        self._thread.join(timeout)

    def _run(self) -> None:
        while not self._closing or self._events:
            self._wake.wait()
            self._wake.clear()
            if events := [self._events.popleft() for _ in range(len(self._events))]:
                self._queue.announce(events)
