from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from workers.grouping import Grouped


class Gate:
    """Doubles numbers, one group at a time, each when the test lets it."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.entered = threading.Semaphore(0)
        self.open = threading.Semaphore(0)

    def __call__(self, numbers: Sequence[int]) -> list[int]:
        self.groups.append(list(numbers))
        self.entered.release()
        assert self.open.acquire(timeout=10)
        if 13 in numbers:
            raise ValueError("unlucky")
        return [2 * number for number in numbers]


def waiting(grouped: Grouped[int, int], count: int) -> None:
    """Until that many callers have queued up behind the group at work."""
    while len(grouped._waiting) < count:
        threading.Event().wait(0.005)


def test_a_lone_caller_is_served_at_once() -> None:
    gate = Gate()
    gate.open.release()
    assert Grouped(gate)(4) == 8


def test_callers_gather_while_a_group_is_at_work() -> None:
    gate = Gate()
    grouped = Grouped(gate)
    with ThreadPoolExecutor(6) as pool:
        first = pool.submit(grouped, 1)
        gate.entered.acquire()
        others = [pool.submit(grouped, number) for number in range(2, 7)]
        waiting(grouped, 5)
        gate.open.release(2)
        assert first.result() == 2
        assert [other.result() for other in others] == [4, 6, 8, 10, 12]
    assert gate.groups[0] == [1]
    assert sorted(gate.groups[1]) == [2, 3, 4, 5, 6]
    assert len(gate.groups) == 2


def test_an_error_reaches_every_caller_of_its_group_and_no_other() -> None:
    gate = Gate()
    grouped = Grouped(gate)
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(grouped, 1)
        gate.entered.acquire()
        unlucky = [pool.submit(grouped, number) for number in (13, 14)]
        waiting(grouped, 2)
        gate.open.release(2)
        assert first.result() == 2
        for caller in unlucky:
            with pytest.raises(ValueError, match="unlucky"):
                caller.result()
        gate.open.release()
        assert pool.submit(grouped, 5).result() == 10


def test_many_callers_each_get_their_own_answer() -> None:
    def double(numbers: Sequence[int]) -> list[int]:
        return [2 * number for number in numbers]

    grouped = Grouped(double)
    with ThreadPoolExecutor(32) as pool:
        assert list(pool.map(grouped, range(5000))) == [2 * number for number in range(5000)]


def test_a_wrong_number_of_answers_is_an_error_not_a_hang() -> None:
    with pytest.raises(ValueError, match="shorter"):
        Grouped[int, int](lambda numbers: [])(1)
