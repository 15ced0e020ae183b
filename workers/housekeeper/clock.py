"""Notices when PostgreSQL's clock is set to another time, and has the times in the database follow."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from datetime import datetime, timedelta

from shared.database import Database
from shared.database.clock import ClockReading

log = logging.getLogger(__name__)

TOLERANCE = 1.0
"""Seconds that the clock may gain or lose between two looks: less than a worker's lease has to spare."""


@dataclass(frozen=True, slots=True)
class _Look:
    reading: ClockReading
    before: float
    after: float
    """By our monotonic clock, before and after the reading."""


class ClockWatch:
    """Compares PostgreSQL's clock with our monotonic one, which nobody sets."""

    def __init__(self, database: Database):
        self._database = database
        self._last: _Look | None = None

    def look(self) -> tuple[datetime, bool]:
        """PostgreSQL's time, and whether it jumped since the last look; if so, all that is not over was shifted."""
        before = time.monotonic()
        reading = self._database.clock.read()
        look, last = _Look(reading, before, time.monotonic()), self._last
        self._last = look
        self._database.clock.recall()
        if last is None:
            return reading.now, False
        passed = (reading.now - last.reading.now).total_seconds()
        shortest, longest = look.before - last.after, look.after - last.before
        jump = passed - min(max(passed, shortest), longest)
        # What another housekeeper saw before us is done.
        jump_left = jump - (reading.shifted - last.reading.shifted)
        if abs(jump_left) > TOLERANCE:
            log.warning("PostgreSQL's clock jumped by %+.1f s: the times of what is not over are shifted", jump_left)
            self._database.clock.shift(jump_left, since=reading.now - timedelta(seconds=longest))
            self._last = _Look(ClockReading(reading.now, reading.shifted + jump_left), look.before, look.after)
        return reading.now, abs(jump) > TOLERANCE
