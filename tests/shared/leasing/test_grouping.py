from __future__ import annotations

import threading

import pytest

from shared.leasing.grouping import GroupQueue
from tests.support.waiting import PATIENT


class Gate:
    """Takes one group at a time, each when the test lets it."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.entered = threading.Semaphore(0)
        self.open = threading.Semaphore(0)

    def __call__(self, numbers: list[int]) -> None:
        self.groups.append(numbers)
        self.entered.release()
        assert self.open.acquire(timeout=PATIENT)
        if 13 in numbers:
            raise ValueError("unlucky")

    def busy(self) -> None:
        assert self.entered.acquire(timeout=PATIENT)


def test_a_lone_item_is_done_at_once() -> None:
    gate = Gate()
    GroupQueue(gate, "numbers").add(4)
    gate.busy()
    assert gate.groups == [[4]]


def test_items_gather_in_order_while_a_group_is_at_work() -> None:
    gate = Gate()
    grouped = GroupQueue(gate, "numbers")
    grouped.add(1)
    gate.busy()
    for number in range(2, 7):
        grouped.add(number)
    gate.open.release(2)
    gate.busy()
    assert gate.groups == [[1], [2, 3, 4, 5, 6]]


def test_a_group_that_fails_is_told_and_the_next_one_follows(caplog: pytest.LogCaptureFixture) -> None:
    gate = Gate()
    grouped = GroupQueue(gate, "numbers")
    grouped.add(13)
    gate.busy()
    grouped.add(5)
    gate.open.release(2)
    gate.busy()
    assert gate.groups == [[13], [5]]
    assert "a group of 1 failed in numbers" in caplog.text


def test_closing_does_what_is_left() -> None:
    gate = Gate()
    grouped = GroupQueue(gate, "numbers")
    grouped.add(1)
    gate.busy()
    grouped.add(2)
    gate.open.release(2)
    grouped.close(PATIENT)
    assert gate.groups == [[1], [2]]


def test_beyond_the_most_the_oldest_are_dropped() -> None:
    gate = Gate()
    grouped = GroupQueue(gate, "numbers", most=2)
    grouped.add(0)
    gate.busy()
    for number in (1, 2, 3):
        grouped.add(number)
    gate.open.release(2)
    gate.busy()
    assert gate.groups == [[0], [2, 3]]


def test_nothing_is_lost_between_many_threads() -> None:
    seen: list[int] = []
    grouped = GroupQueue(seen.extend, "numbers")

    def add(start: int) -> None:
        for number in range(start, start + 500):
            grouped.add(number)

    threads = [threading.Thread(target=add, args=(start,)) for start in range(0, 4000, 500)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    grouped.close(PATIENT)
    assert sorted(seen) == list(range(4000))
