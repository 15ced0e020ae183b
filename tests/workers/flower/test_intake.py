"""Flower's end while its event loop has more to do than it can."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from workers.flower.intake import EventIntake

EVENTS = 100_000


@pytest.fixture
def signals() -> Iterator[None]:
    """What the process did before at the signals that a test takes over."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("signals")
def test_a_request_to_stop_does_not_wait_for_events_that_have_arrived() -> None:
    loop = asyncio.new_event_loop()
    handled: list[dict[str, Any]] = []

    def index(event: dict[str, Any]) -> None:
        handled.append(event)
        time.sleep(0.002)  # as long as Flower takes for one
        if len(handled) == 100:
            os.kill(os.getpid(), signal.SIGTERM)

    intake = EventIntake(loop, index)
    intake.stop_on_signals(loop.stop)

    def listen() -> None:
        for number in range(EVENTS):
            intake.receive({"uuid": number})

    listener = threading.Thread(target=listen)
    listener.start()
    listener.join()
    began = time.monotonic()
    loop.run_forever()
    assert time.monotonic() - began < EVENTS * 0.002 / 2
    assert [event["uuid"] for event in handled] == list(range(100)), "in their order, until then"
    intake.receive({"uuid": "later"})
    loop.close()
