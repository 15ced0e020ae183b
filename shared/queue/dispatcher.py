"""Celery's sender of monitoring events, changed so that it loses none and delays no other thread.

Celery 5.6.3 publishes its buffer and then empties it, and with it every event that another thread added in
between: of 30 short jobs at once, Flower heard of the end of 11 to 19 (celery issue 10434). It also drops events that
fail to be published twice (issue 6487). Both are fixed in later releases, which we cannot use yet.

Celery also publishes from the loop that receives messages, with a round trip for every task. Here a thread publishes,
ten times a second.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from celery.app import events as app_events
from celery.events import dispatcher

INTERVAL = 0.1
"""Seconds for which events are collected; Flower needs no faster updates."""

BUFFER = 500
"""Events that may collect before a thread that adds one has to publish them itself."""


class EventDispatcher(dispatcher.EventDispatcher):
    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **{**options, "buffer_limit": BUFFER})  # type: ignore[no-untyped-call]  # of kombu
        self._gathered = threading.Event()
        self._closed = False
        if self.buffer_group:
            self.on_send_buffered = self._gathered.set
            threading.Thread(target=self._flush_now_and_then, name="events", daemon=True).start()

    def flush(self, errors: bool = True, groups: bool = True) -> None:
        """Publish buffered events: with `errors` those that Redis refused before, with `groups` new ones.

        Events are removed from the buffer before they are published, so that those that another thread appends
        meanwhile, or that fail again, stay.
        """
        publish: Any = self._publish
        with self.mutex:
            for _ in range(len(self._outbound_buffer) if errors else 0):
                event, routing_key, _error = self._outbound_buffer.popleft()
                publish(event, self.producer, routing_key)
            for group, buffer in list(self._group_buffer.items()) if groups else ():
                events = buffer[:]
                del buffer[: len(events)]
                if events:
                    publish(events, self.producer, f"{group}.multi")

    def close(self) -> None:
        """Publish what is buffered, and end the thread."""
        self._closed = True
        self._gathered.set()
        super().close()  # type: ignore[no-untyped-call]  # of kombu

    def _flush_now_and_then(self) -> None:
        while True:
            self._gathered.wait()
            time.sleep(INTERVAL)
            if self._closed:
                return
            self._gathered.clear()
            if self.producer is not None:  # None until it is connected; the events stay
                self.flush()


class Events(app_events.Events):
    dispatcher_cls = f"{__name__}:EventDispatcher"
