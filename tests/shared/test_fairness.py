"""The order in which a worker asks for levels of priority, as a simulation on a clock of its own."""

from __future__ import annotations

from collections import Counter

import pytest

from shared.fairness import PATIENCE, STARVED_AFTER, Levels

LEVELS = range(10)
TICK = 0.01
"""Seconds between two fetches of the simulated worker."""


class Worker:
    """Fetches from lists as long as the test says, `places` messages at most at a time."""

    def __init__(self, waiting: dict[int, int], places: int = 1):
        self.now = 0.0
        self.waiting = Counter(waiting)
        self.places = places
        self.levels = Levels(LEVELS, self.now)

    def fetch(self) -> list[int]:
        """Return the levels of the messages that one fetch gets."""
        self.now += TICK
        for level in self.levels.order(self.now):
            if self.waiting[level]:
                count = min(self.levels.most(self.places), self.waiting[level])
                self.waiting[level] -= count
                self.levels.note(level, count, self.now)
                return [level] * count
        self.levels.note(None, 0, self.now)
        return []

    def fetch_many(self, count: int) -> list[int]:
        """Return the levels of the messages of `count` fetches."""
        return [level for _ in range(count) for level in self.fetch()]


SOON = int(STARVED_AFTER / TICK)
"""Fetches until a level that none of them reaches is starved."""


def test_strict_order_until_something_starves() -> None:
    worker = Worker({0: SOON + 5 * PATIENCE, 9: 2})
    assert worker.fetch_many(SOON - 1) == [0] * (SOON - 1)
    assert 9 in worker.fetch_many(PATIENCE + 2)


def test_strict_order_for_ever_where_the_urgent_leave_room() -> None:
    worker = Worker({9: 10_000})
    for _ in range(3 * SOON):
        worker.waiting[0] += 1
        assert worker.fetch_many(2) == [0, 9]


@pytest.mark.parametrize("places", [1, 4, 16, 100])
def test_the_starved_get_one_in_nine(places: int) -> None:
    worker = Worker({0: 10**9, 9: 10**9}, places)
    worker.fetch_many(SOON)
    shares = Counter(worker.fetch_many(1000))
    assert shares[9] * PATIENCE == pytest.approx(shares[0], rel=0.1)


def test_all_that_starve_share_the_turns() -> None:
    worker = Worker(dict.fromkeys(LEVELS, 10**6))
    worker.fetch_many(SOON)
    shares = Counter(worker.fetch_many(9 * 9 * 10))
    assert shares[0] == 9 * 9 * 10 * PATIENCE // (PATIENCE + 1)
    assert {shares[level] for level in LEVELS if level} == {10}


def test_a_level_that_turned_out_to_be_empty_costs_no_turn() -> None:
    """Nothing but the least urgent level waits behind the stream: it need not wait for eight empty ones."""
    worker = Worker({0: 10**6, 9: 100})
    worker.fetch_many(SOON)
    assert worker.fetch_many(PATIENCE + 1).count(9) == 1


def test_a_lone_message_waits_for_a_bounded_number_of_others() -> None:
    worker = Worker({**dict.fromkeys(range(9), 10**6), 9: 1})
    worker.fetch_many(SOON)
    assert 9 in worker.fetch_many(9 * (PATIENCE + 1))


def test_strict_order_again_when_the_stream_is_over() -> None:
    worker = Worker({0: 2 * SOON, 9: 10 * SOON})
    while worker.waiting[0]:
        worker.fetch()
    assert worker.fetch_many(10) == [9] * 10
    worker.waiting[0] = SOON // 2
    assert worker.fetch_many(SOON // 2) == [0] * (SOON // 2)
