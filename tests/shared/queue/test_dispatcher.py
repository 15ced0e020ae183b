"""Celery's sender of events keeps what comes in while it sends, and what failed."""

from __future__ import annotations

from typing import Any

from celery import Celery

from shared.queue.dispatcher import EventDispatcher, Events


class Producer:
    """Takes events as Redis would; while it does, `meanwhile` happens."""

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.meanwhile: Any = lambda: None
        self.down = False

    def publish(self, body: Any, **_: Any) -> None:
        self.meanwhile()
        if self.down:
            raise ConnectionError("Redis is down")
        self.taken += [event["type"] for event in (body if isinstance(body, list) else [body])]


def dispatcher(producer: Producer) -> Any:
    app = Celery(events=Events)
    sender = app.events.Dispatcher(
        enabled=False, buffer_group=["task"], buffer_while_offline=True, on_send_buffered=lambda: None
    )
    assert isinstance(sender, EventDispatcher)
    sender.producer, sender.enabled = producer, True
    return sender


def test_events_sent_during_a_flush_are_kept() -> None:
    producer = Producer()
    sender = dispatcher(producer)
    sender.send("task-received")
    producer.meanwhile = lambda: sender.send("task-started")
    sender.flush()
    producer.meanwhile = lambda: None
    sender.flush()
    assert producer.taken == ["task-received", "task-started"]


def test_events_that_fail_twice_are_kept_in_order() -> None:
    producer = Producer()
    sender = dispatcher(producer)
    producer.down = True
    for event in ("task-received", "task-started", "worker-heartbeat"):
        sender.send(event)
        sender.flush()
    sender.flush()
    producer.down = False
    sender.flush()
    assert sorted(producer.taken) == ["task-received", "task-started", "worker-heartbeat"]
    sender.flush()
    assert len(producer.taken) == 3


def test_each_kind_of_buffer_can_be_flushed_alone() -> None:
    producer = Producer()
    sender = dispatcher(producer)
    sender.send("task-received")
    sender.flush(groups=False)
    assert producer.taken == []
    sender.flush(errors=False)
    assert producer.taken == ["task-received"]
