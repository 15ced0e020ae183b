"""The heartbeat of a worker's jobs."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from uuid import UUID

import pytest
import redis

from shared.database import Database
from shared.leasing.heartbeat import Heartbeat
from shared.queue import CANCEL_CHANNEL, JobQueue
from shared.settings import Settings
from tests.support.api_server import eventually
from tuwen.jobs import JobRequest

TENANT = "t"


@pytest.fixture
def client(settings: Settings) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(settings.redis_url) as client:
        yield client


@pytest.fixture
def heartbeat(settings: Settings, database: Database, client: redis.Redis) -> Iterator[Heartbeat]:
    """Beats once an hour, but for those who ask it to."""
    slow = settings.model_copy(update={"heartbeat": 3600.0})
    heartbeat = Heartbeat(slow, database, "w@test", on_beat=lambda: None)
    heartbeat.start()
    eventually(lambda: client.pubsub_numsub(CANCEL_CHANNEL)[0][1])
    yield heartbeat
    heartbeat.close()


def running(database: Database, heartbeat: Heartbeat) -> tuple[UUID, Future[None]]:
    """A job that runs under a lease, and the work that would be stopped."""
    request = JobRequest.model_validate({"input": {"kind": "generate", "prompt": "猫"}})
    [id] = database.jobs.submit([request], tenant=TENANT).ids
    work: Future[None] = Future()
    heartbeat.hold(database.jobs.claim([id], "w@test")[id]).watch(work)
    return id, work


def test_a_cancel_need_not_wait_for_the_next_beat(
    client: redis.Redis, heartbeat: Heartbeat, database: Database, settings: Settings
) -> None:
    cancelled, work = running(database, heartbeat)
    _, other = running(database, heartbeat)
    for garbage in (b"", b"\xff\xfe", b"no id", str(cancelled).encode() + b"\0"):
        client.publish(CANCEL_CHANNEL, garbage)
    database.jobs.cancel(cancelled, TENANT)
    queue = JobQueue(settings)
    queue.request_cancel(cancelled)
    eventually(work.cancelled)
    assert not other.cancelled()
    queue.close()
