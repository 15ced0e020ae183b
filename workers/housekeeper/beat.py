"""Celery's beat by a clock that nobody sets: set back an hour, the system's would stop all housekeeping for an hour."""

from __future__ import annotations

import time
from typing import Any

from celery import beat


class MonotonicScheduler(beat.Scheduler):
    """Sends each entry at its interval; schedules other than intervals, such as crontabs, are not for it."""

    def __init__(self, *arguments: Any, **options: Any):
        self._due: dict[str, float] = {}
        super().__init__(*arguments, **options)  # type: ignore[no-untyped-call]

    def tick(self, *_: Any, **__: Any) -> float:
        """Send what is due. Returns the seconds until the next entry is, at most `max_interval`."""
        now = time.monotonic()
        for name, entry in (self.schedule or {}).items():
            interval = entry.schedule.run_every.total_seconds()
            due = self._due.setdefault(name, now + interval)
            if now >= due:
                self._due[name] = now + interval
                self.apply_entry(entry, producer=self.producer)  # type: ignore[no-untyped-call]
        return min([self.max_interval, *(max(0.0, due - now) for due in self._due.values())])
