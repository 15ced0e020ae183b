"""The transport: what is published, in which order, and what a broken Redis does to it. On Valkey and on Redis."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from uuid import UUID, uuid4

import pytest
import redis

from api.embedded.servers import Valkey
from shared import fairness
from shared.database import Dispatch
from shared.fairness import PATIENCE
from shared.queue import JobQueue, celery_app, event_channel, queue_name
from shared.settings import Settings
from tests.support.system import freeze
from tests.support.waiting import PATIENT
from tuwen.errors import QueueUnavailable
from tuwen.jobs import Kind, Progress


@pytest.fixture
def settings_here(broker_url: str) -> Settings:
    return Settings(redis_url=broker_url)


@pytest.fixture
def queue(settings_here: Settings) -> Iterator[JobQueue]:
    queue = JobQueue(settings_here)
    yield queue
    queue.close()


def dispatch(priority: int = 5, kind: Kind = Kind.GENERATE) -> Dispatch:
    return Dispatch(uuid4(), kind, priority)


def received(
    settings: Settings, count: int, *, at_once: int = 0, kinds: Sequence[Kind] = (Kind.GENERATE,)
) -> list[UUID]:
    """Task ids in the order in which a worker gets them that takes `at_once` messages at a time, if it has a limit."""
    ids: list[UUID] = []
    with celery_app(settings).connection_for_read() as connection:
        consumer = connection.Consumer(
            [connection.SimpleQueue(queue_name(kind)).queue for kind in kinds],
            callbacks=[lambda body, message: (ids.append(UUID(message.headers["id"])), message.ack())],
            accept=["json"],
            prefetch_count=at_once,
        )
        with consumer:
            while len(ids) < count:
                connection.drain_events(timeout=PATIENT)
    return ids


def test_a_message_is_the_job_id_and_nothing_else(queue: JobQueue, settings_here: Settings) -> None:
    job = dispatch()
    queue.publish([job])
    with redis.Redis.from_url(settings_here.redis_url) as client:
        message = json.loads(client.lrange("tuwen.generate\x06\x164", 0, -1)[0])
    assert message["headers"]["task"] == "tuwen.generate"
    assert message["headers"]["id"] == str(job.id)
    assert message["content-type"] == "application/json"


def test_the_urgent_first_and_the_older_first_among_equals(queue: JobQueue, settings_here: Settings) -> None:
    jobs = [dispatch(priority) for priority in (0, 5, 5, 9, 3, 9)]
    for job in jobs:
        queue.publish([job])
    expected = [jobs[n].id for n in (3, 5, 1, 2, 4, 0)]
    assert received(settings_here, 6) == expected


def test_the_most_urgent_starve_nobody(
    queue: JobQueue, settings_here: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One message of a level that was passed over follows each `PATIENCE` urgent ones, the oldest of the level first;
    here any level is that has been passed over at all."""
    monkeypatch.setattr(fairness, "STARVED_AFTER", 0.0)
    waiting = [dispatch(0) for _ in range(3)]
    urgent = [dispatch(9) for _ in range(40)]
    for job in [*waiting, *urgent]:
        queue.publish([job])
    order = received(settings_here, 43, at_once=4)
    assert [id for id in order if id in {job.id for job in urgent}] == [job.id for job in urgent]
    places = [order.index(job.id) for job in waiting]
    assert places == [PATIENCE, 2 * PATIENCE + 1, 3 * PATIENCE + 2]


def test_the_kinds_of_a_worker_take_turns_within_a_level(queue: JobQueue, settings_here: Settings) -> None:
    jobs = [dispatch(priority, kind) for priority in (5, 9) for kind in (Kind.GENERATE, Kind.MATCH) for _ in range(20)]
    queue.publish(jobs)
    names = {job.id: (job.priority, job.kind) for job in jobs}
    order = [names[id] for id in received(settings_here, 80, at_once=4, kinds=(Kind.GENERATE, Kind.MATCH))]
    for priority in (9, 5):
        kinds = [kind for level, kind in order if level == priority]
        assert {kinds.index(Kind.GENERATE), kinds.index(Kind.MATCH)} == {0, 4}
        assert {kinds[first] for first in range(0, 40, 8)} != {kinds[first] for first in range(4, 40, 8)}
    assert [level for level, _ in order] == [9] * 40 + [5] * 40


def test_depth_counts_every_priority(queue: JobQueue) -> None:
    queue.publish([dispatch(priority) for priority in range(10)])
    queue.publish([dispatch(kind=Kind.MATCH)])
    assert queue.depth() == {Kind.GENERATE: 10, Kind.DESCRIBE: 0, Kind.RECOGNIZE: 0, Kind.MATCH: 1}


def test_events_and_the_last_progress(queue: JobQueue, settings_here: Settings) -> None:
    job = uuid4()
    assert queue.progress(job) is None
    with redis.Redis.from_url(settings_here.redis_url, decode_responses=True) as client, client.pubsub() as watcher:
        watcher.subscribe(event_channel(job))
        watcher.get_message(timeout=PATIENT)
        told = {"step": 3, "steps": 10, "parts": [{"index": 0, "text": "a cat"}]}
        nobodys = uuid4()
        events = [(job, {"status": "running"}), (nobodys, {"progress": told}), (job, {"progress": told})]
        assert queue.announce(events) == {job}  # of the other one nobody hears
        messages = [watcher.get_message(timeout=PATIENT) for _ in range(2)]
    assert [json.loads(message["data"]) for message in messages if message] == [
        {"status": "running"},
        {"progress": told},
    ]
    assert queue.announce(events) == set()
    assert queue.progress(job) == Progress(step=3, steps=10)


def test_the_generation_names_the_data_and_the_server(
    queue: JobQueue, settings_here: Settings, redis_server: Valkey
) -> None:
    first = queue.generation()
    assert queue.generation() == first
    with redis.Redis.from_url(settings_here.redis_url) as client:
        client.flushdb()
    wiped = queue.generation()
    assert wiped != first
    redis_server.kill()
    redis_server.start()
    assert queue.generation() != wiped


def test_a_redis_that_is_gone_is_said_so_and_comes_back(queue: JobQueue, redis_server: Valkey) -> None:
    queue.publish([dispatch()])
    redis_server.kill()
    for act in (lambda: queue.publish([dispatch()]), queue.depth, queue.generation, queue.check):
        with pytest.raises(QueueUnavailable):
            act()
    queue.announce([(uuid4(), {"status": "running"})])  # best effort: no error
    redis_server.start()
    queue.publish([dispatch()])
    queue.check()


def test_a_frozen_redis_is_given_up_on(queue: JobQueue, redis_server: Valkey) -> None:
    queue.publish([dispatch()])
    with freeze(redis_server.pid):
        started = time.monotonic()
        with pytest.raises(QueueUnavailable):
            queue.publish([dispatch()])
        # Not a figure but the promise: kombu's own defaults hang here for more than 40 s.
        assert time.monotonic() - started < 30
