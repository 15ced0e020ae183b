"""Events on their way into Flower's state, which end at once when Flower stops.

Celery's events arrive faster than Flower can index them: after 100,000 submissions its event loop has work for a
minute. A request to stop that waits in that loop is served after all of it, by when a supervisor has killed Flower and
with it its state. So the request also makes the loop drop what has arrived; PostgreSQL tells it again at the next
start.
"""

from __future__ import annotations

import signal
from asyncio import AbstractEventLoop
from collections.abc import Callable
from types import FrameType
from typing import Any


class EventIntake:
    """Hands events to `handle` on the event loop, in order, until the process is asked to stop."""

    def __init__(self, loop: AbstractEventLoop, handle: Callable[[dict[str, Any]], None]):
        self._loop = loop
        self._handle = handle
        self._stopping = False

    def receive(self, event: dict[str, Any]) -> None:
        """Take an event, in the thread that listens to Redis."""
        if not self._stopping:
            self._loop.call_soon_threadsafe(self._feed, event)

    def stop_on_signals(self, stop: Callable[[], None]) -> None:
        """At SIGTERM or SIGINT drop what has not been handled yet, and call `stop` on the event loop."""

        def request(_number: int, _frame: FrameType | None) -> None:
            self._stopping = True
            self._loop.call_soon_threadsafe(stop)

        # Not by the loop's own handlers: those wait for their turn, too.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, request)

    def _feed(self, event: dict[str, Any]) -> None:
        if not self._stopping:
            self._handle(event)
