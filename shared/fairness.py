"""The one rule against starvation: strict order of priority, but the passed over get one turn after `PATIENCE` others.

It holds wherever order is decided: what a worker fetches from Redis next (`Levels`), which batch an engine runs next
(`workers.inference.schedule`), and which lost messages are published again first (`shared.database.job_statements`).
Turns are counted, and what is timed is timed by a clock that nobody sets, so no clock of a host or of PostgreSQL can
make anything starve.
"""

from __future__ import annotations

from collections.abc import Sequence

PATIENCE = 8
"""Turns that may pass a waiting thing over before one is its own, whatever its priority."""

STARVED_AFTER = 5.0
"""Seconds for which a stream of more urgent messages keeps strict order; from then on the rest gets its turns."""


class Levels:
    """The order in which one worker asks for the levels of priority when it fetches messages.

    A level is *starved* when no fetch in strict order has come down to it for `STARVED_AFTER` seconds. While there are
    such levels, one message follows each `PATIENCE` messages from one of them, from each in its turn. So the oldest
    message of a level is fetched after at most `PATIENCE` others for each starved level, and however many are starved,
    the urgent ones keep their share of `PATIENCE` in `PATIENCE + 1`.

    Not thread-safe. Nothing of it has to outlive the worker or Redis: another one sees within seconds what is starved.
    """

    def __init__(self, levels: Sequence[int], now: float):
        """`levels` begins with the most urgent one; `now` is the time of the monotonic clock, here and below."""
        self._strict = tuple(levels)
        self._reached = dict.fromkeys(levels, now)
        """When a fetch in strict order last came down to the level: it was served, or empty."""
        self._served = dict.fromkeys(levels, now)
        self._asked: tuple[int, ...] = self._strict
        self._starved: tuple[int, ...] = ()
        self._passing = 0
        """Messages fetched since the last turn of a starved level."""

    def order(self, now: float) -> tuple[int, ...]:
        """The levels in the order in which the next fetch is to ask for them."""
        starved = [level for level in self._strict if now - self._reached[level] >= STARVED_AFTER]
        if not starved:
            self._passing = 0
        due = starved if self._passing >= PATIENCE else []
        self._starved = tuple(sorted(due, key=self._served.__getitem__))  # stable: the more urgent of equals first
        self._asked = (*self._starved, *(level for level in self._strict if level not in due))
        return self._asked

    def most(self, places: int) -> int:
        """How many messages the fetch of this order may take, where a worker has `places` for them."""
        return min(places, self._passing // PATIENCE) if self._starved else places

    def note(self, level: int | None, count: int, now: float) -> None:
        """Note that the fetch of this order got `count` messages of `level`; with None, that all levels were empty."""
        for empty in self._asked[: None if level is None else self._asked.index(level)]:
            self._reached[empty] = now
        if level is None:
            return
        self._served[level] = now
        if level in self._starved:
            self._passing = 0
        else:
            self._reached[level] = now
            self._passing += count
