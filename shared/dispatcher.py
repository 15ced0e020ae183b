"""Celery's sender of monitoring events, made to keep those that threads send while it is sending.

Celery 5.6.3 publishes its buffer and then empties it, and with it every event that another thread put there in
between: of 30 short jobs at once, Flower heard of the end of 11 to 19 (celery issue 10434). What fails to be
published twice it drops as well (issue 6487). Both are mended in later releases, which we cannot use yet.
"""

from __future__ import annotations

from typing import Any

from celery.app import events as app_events
from celery.events import dispatcher


class EventDispatcher(dispatcher.EventDispatcher):
    def flush(self, errors: bool = True, groups: bool = True) -> None:
        """Publish what is buffered: with `errors` what Redis did not take before, with `groups` what is new.

        What is published is taken out first: what another thread appends meanwhile, or fails again, stays.
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


class Events(app_events.Events):
    dispatcher_cls = f"{__name__}:EventDispatcher"
