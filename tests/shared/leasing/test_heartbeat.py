"""The heartbeat of a worker's jobs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from uuid import UUID

import pytest
import redis

from shared.database import Database
from shared.database.shards import Renewal
from shared.leasing.cancels import CancelListener
from shared.leasing.heartbeat import Heartbeat
from shared.queue import CANCEL_CHANNEL, JobQueue
from shared.settings import Settings
from tests.support.waiting import eventually
from tuwen.jobs import JobRequest
from workers.jobs.leases import Lease

TENANT = "t"


@pytest.fixture
def client(settings: Settings) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(settings.redis_url) as client:
        yield client


@pytest.fixture
def heartbeat(settings: Settings, database: Database, client: redis.Redis) -> Iterator[Heartbeat[Lease]]:
    """Beats once an hour, but for those who ask it to."""

    def renew(held: Mapping[UUID, Lease]) -> Renewal:
        return database.jobs.renew({id: lease.epoch for id, lease in held.items()}, "w@test")

    heartbeat = Heartbeat(renew, 3600.0, "heartbeat")
    cancels = CancelListener(settings, heartbeat.beat_for)
    heartbeat.start()
    cancels.start()
    eventually(lambda: client.pubsub_numsub(CANCEL_CHANNEL)[0][1])
    yield heartbeat
    cancels.close()
    heartbeat.close()


def running(database: Database, heartbeat: Heartbeat[Lease]) -> tuple[UUID, Future[None]]:
    """A job that runs under a lease, and the work that would be stopped."""
    request = JobRequest.model_validate({"input": {"kind": "generate", "prompt": "猫"}})
    [id] = database.jobs.submit([request], tenant=TENANT).ids
    work: Future[None] = Future()
    lease = Lease(database.jobs.claim([id], "w@test")[id])
    lease.watch(work)
    heartbeat.hold(lease)
    return id, work


def test_a_cancel_need_not_wait_for_the_next_beat(
    client: redis.Redis, heartbeat: Heartbeat[Lease], database: Database, settings: Settings
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
