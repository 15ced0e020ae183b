"""Threads that take shards from a real queue, and what Flower is told of them."""

from __future__ import annotations

import json
import pickle
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any
from uuid import UUID, uuid4

import pytest
import redis
from celery.events.state import State
from redis.exceptions import RedisError

from shared.database import Database
from shared.database.shards import ShardDispatch
from shared.leasing.consumer import TaskConsumer
from shared.objects.storage import ObjectStore
from shared.queue import PREVIEWS_LIST, SHARD_TASK, JobQueue, celery_app, priority_keys, shard_kinds, shards_queue
from shared.queue.events import DONE, Outcome, failed, retried
from shared.settings import Settings
from tests.support.waiting import PATIENT, eventually
from tuwen.errors import DatabaseUnavailable
from tuwen.jobs import Status
from workers.datasets.previews import Previews

KINDS = "describe+match"


@pytest.fixture
def queue(settings: Settings) -> Iterator[JobQueue]:
    queue = JobQueue(settings)
    yield queue
    queue.close()


@pytest.fixture
def flower(settings: Settings) -> State:
    """What Flower would know: Celery's own state, fed by the events that really come."""
    app = celery_app(settings)
    state = app.events.State()

    def listen() -> None:
        # Its Redis goes away before it does.
        with suppress(RedisError, OSError), app.connection_for_read() as connection:
            receiver = app.events.Receiver(connection, handlers={"*": state.event})
            for _ in receiver.itercapture(limit=None, timeout=None, wakeup=False):
                pass

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()

    def heard() -> bool:
        dispatcher.send("test-heard")
        return state.event_count > 0

    # Redis keeps no event for who subscribes later.
    with app.events.default_dispatcher() as dispatcher:
        eventually(heard)
    return state


class Taken:
    """What a consumer took, in its order; does what the test says."""

    def __init__(self, settings: Settings, *, threads: int = 1):
        self.arguments: list[tuple[Any, ...]] = []
        self.outcome: Callable[[], Outcome | None] = lambda: DONE
        self.gate = threading.Event()
        self.gate.set()
        queues = [shards_queue(kinds) for kinds in shard_kinds(settings.kinds)]
        app = celery_app(settings)
        self.consumer = TaskConsumer(settings, app, "w@test", SHARD_TASK, queues, self._do, threads=threads)

    def _do(self, begin: Callable[[], None], *arguments: Any) -> Outcome | None:
        self.arguments.append(arguments)
        if self.outcome() is not None:
            begin()
        self.gate.wait(PATIENT)
        return self.outcome()


@pytest.fixture
def taken(settings: Settings) -> Iterator[Taken]:
    taken = Taken(settings)
    yield taken
    taken.gate.set()
    taken.consumer.stop()
    taken.consumer.join(PATIENT)


def publish(queue: JobQueue, *priorities: int) -> list[UUID]:
    shards = [ShardDispatch(uuid4(), KINDS, priority) for priority in priorities]
    queue.publish_shards(shards)
    return [shard.id for shard in shards]


def test_the_most_urgent_first_and_none_prefetched(queue: JobQueue, taken: Taken) -> None:
    slow, urgent, other = publish(queue, 1, 9, 1)
    assert queue.shard_depth()[KINDS] == 3
    taken.gate.clear()
    taken.consumer.start()
    eventually(lambda: len(taken.arguments) == 1)
    assert queue.shard_depth()[KINDS] == 2, "what waits, another worker could take"
    taken.gate.set()
    eventually(lambda: len(taken.arguments) == 3)
    assert taken.arguments == [(str(urgent), 9), (str(slow), 1), (str(other), 1)]


@pytest.mark.parametrize(
    ("outcome", "state"),
    [
        (lambda: DONE, "SUCCESS"),
        (lambda: failed("boom"), "FAILURE"),
        (lambda: retried("paused"), "RETRY"),
        (lambda: Outcome(Status.CANCELLED), "REVOKED"),
    ],
)
def test_flower_sees_each_shard_under_its_own_id(
    queue: JobQueue, taken: Taken, flower: State, outcome: Callable[[], Outcome], state: str
) -> None:
    taken.outcome = outcome
    taken.gate.clear()
    taken.consumer.start()
    [id] = publish(queue, 5)
    eventually(lambda: str(id) in flower.tasks and flower.tasks[str(id)].state == "STARTED")
    task = flower.tasks[str(id)]
    assert (task.name, task.worker.hostname) == (SHARD_TASK, "w@test")
    taken.gate.set()
    eventually(lambda: flower.tasks[str(id)].state == state)


def test_a_doubled_message_is_no_end(queue: JobQueue, taken: Taken, flower: State) -> None:
    taken.outcome = lambda: None
    taken.consumer.start()
    [id] = publish(queue, 5)
    eventually(lambda: len(taken.arguments) == 1)
    taken.outcome = lambda: DONE
    [other] = publish(queue, 5)
    eventually(lambda: str(other) in flower.tasks and flower.tasks[str(other)].state == "SUCCESS")
    assert flower.tasks[str(id)].state == "PENDING"


def test_what_is_raised_ends_no_thread(queue: JobQueue, taken: Taken, flower: State) -> None:
    def broken() -> Outcome:
        raise ZeroDivisionError("nobody foresaw it")

    def away() -> Outcome:
        raise DatabaseUnavailable("PostgreSQL does not answer")

    taken.consumer.start()
    for outcome in (broken, away):
        taken.outcome = outcome
        publish(queue, 5)
        eventually(lambda: queue.shard_depth()[KINDS] == 0)
    taken.outcome = lambda: DONE
    [id] = publish(queue, 5)
    eventually(lambda: str(id) in flower.tasks and flower.tasks[str(id)].state == "SUCCESS")


def test_garbage_is_dropped(queue: JobQueue, taken: Taken, settings: Settings) -> None:
    [key, *_] = priority_keys([shards_queue(KINDS)])
    headers = {"id": str(uuid4())}
    with redis.Redis.from_url(settings.redis_url) as client:
        client.lpush(key, b"garbage", b"{}", b"[]", b"\xff\xfe", b"[" * 100_000, pickle.dumps({"x": 1}))
        for id in ("no id", 7, None, [], {}):
            client.lpush(key, json.dumps({"headers": {"id": id}, "body": body([[], {}, {}])}))
        for wrong in (7, None, "", "bm8ganNvbg==", "ä", body({}), body([]), body(5), body(["text"]), body([5, {}, {}])):
            client.lpush(key, json.dumps({"headers": headers, "body": wrong}))
        client.lpush(key, json.dumps({"headers": "none", "body": body([[], {}, {}])}), json.dumps({"headers": headers}))
    taken.consumer.start()
    [id] = publish(queue, 5)
    eventually(lambda: taken.arguments == [(str(id), 5)])


def test_garbage_among_the_wishes_for_previews(
    queue: JobQueue, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[UUID, list[int]]] = []
    previews = Previews(settings, Database(settings), ObjectStore.open(settings))
    monkeypatch.setattr(previews, "make", lambda id, images: made.append((id, images)))
    id = uuid4()
    with redis.Redis.from_url(settings.redis_url) as client:
        client.rpush(PREVIEWS_LIST, b"\xff\xfe", b"{", b"[" * 100_000, b"[]", b'["no id", []]', b"[7, [7]]", b"null")
        client.rpush(PREVIEWS_LIST, json.dumps([str(id), [3]]))
    previews.start()
    eventually(lambda: made == [(id, [3])])
    previews.stop()


def body(value: object) -> str:
    return b64encode(json.dumps(value).encode()).decode()
