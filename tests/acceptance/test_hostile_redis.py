"""What somebody who can write to Redis can do, and what not: docs/threat_model.md says it, and this tries it.

The attacker has the URL of Redis and nothing else. A worker and a housekeeper are real processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from uuid import UUID

import httpx
import pytest
import redis
from celery import Celery

from shared.database import Database
from shared.queue.names import event_channel, queue_name
from shared.settings import Settings
from tests.support.api_server import serving
from tests.support.system import System, running_system
from tests.support.waiting import PATIENT, eventually
from tuwen.errors import NotFound
from tuwen.jobs import JobRequest, Kind, Status


@pytest.fixture(scope="module")
def system(module_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """With a worker, which the last test may end."""
    with running_system(module_settings, tmp_path_factory.mktemp("system")) as system:
        system.worker()
        yield system


class Attacker:
    """Has Redis."""

    def __init__(self, url: str):
        self.redis = redis.Redis.from_url(url)
        self.celery = Celery("attacker", broker=url)

    def publish(self, job: UUID, event: str) -> int:
        return int(self.redis.publish(event_channel(job), event))

    def send(self, job: UUID, priority: int = 0) -> None:
        """Send a message that names a job, as the API does."""
        queue = queue_name(Kind.GENERATE)
        self.celery.send_task(queue, args=[str(job)], task_id=str(job), queue=queue, priority=priority)

    def close(self) -> None:
        self.redis.close()
        self.celery.close()


@pytest.fixture
def attacker(redis_url: str) -> Iterator[Attacker]:
    attacker = Attacker(redis_url)
    yield attacker
    attacker.close()


@pytest.fixture
def attacker_of_workers(system: System) -> Iterator[Attacker]:
    attacker = Attacker(system.settings.redis_url)
    yield attacker
    attacker.close()


def test_events_change_what_watchers_see_of_progress_and_never_a_state(
    settings: Settings, attacker: Attacker, database: Database
) -> None:
    request = JobRequest.model_validate({"input": {"kind": "generate", "prompt": "a cat"}})
    [id] = database.jobs.submit([request], tenant="local").ids  # no worker: it stays queued
    with serving(settings) as url, httpx.Client(base_url=url, timeout=PATIENT) as api:
        with api.stream("GET", f"/v1/jobs/{id}/events") as answer:
            lines = answer.iter_lines()
            assert next(lines) == "event: state"
            eventually(lambda: attacker.publish(id, '{"progress": {"step": 1, "steps": 2}}'))
            assert "event: progress" in lines  # forged, and told: progress is only ever hearsay
            for event in ('{"status": "succeeded"}', '{"status": "cancelled"}', "rubbish", '{"progress": 7}'):
                attacker.publish(id, event)
            attacker.publish(id, '{"progress": {"step": 2, "steps": 2}}')
            for line in lines:  # the states that were claimed were looked up, and are not so
                assert "succeeded" not in line
                if line == "event: progress":
                    break
        assert api.get(f"/v1/jobs/{id}").json()["status"] == "queued"


def test_a_message_runs_no_job_that_postgres_does_not_have_waiting(
    system: System, attacker_of_workers: Attacker
) -> None:
    [done] = system.submit("a cat")
    [job] = system.wait_until_finished([done])
    cancelled, other = system.submit("sleep 60", "a dog")
    system.database.jobs.cancel(cancelled, "local")
    for _ in range(3):
        attacker_of_workers.send(done)
        attacker_of_workers.send(cancelled)
    system.wait_until_finished([other, *system.submit("a bird")])  # sent last, so the others were looked at
    again, still = system.jobs([done, cancelled])
    assert (again.attempts, again.result, again.finished_at) == (1, job.result, job.finished_at)
    assert still.result is None
    assert still.attempts <= 1  # it may have been claimed before it was cancelled, and not again


def test_a_message_changes_neither_what_a_job_asks_for_nor_whose_it_is(
    system: System, attacker_of_workers: Attacker
) -> None:
    """A message holds an id and no more."""
    [id] = system.submit("a cat")
    attacker_of_workers.send(id, priority=9)
    [job] = system.wait_until_finished([id])
    assert job.input["prompt"] == "a cat"
    with pytest.raises(NotFound):
        system.database.jobs.get(id, "another")


def test_remote_control_of_celery_costs_no_job(system: System, attacker_of_workers: Attacker) -> None:
    """What Celery's own tools may do, somebody who reaches Redis may do too: at worst workers stop."""
    ids = system.submit(*["sleep 0.2"] * 20)
    system.wait_until_running(ids)
    attacker_of_workers.celery.control.cancel_consumer(queue_name(Kind.GENERATE))
    attacker_of_workers.celery.control.pool_shrink(1000)
    attacker_of_workers.celery.control.shutdown()
    system.housekeeper()
    system.worker("another")
    assert {job.status for job in system.wait_until_finished(ids)} == {Status.SUCCEEDED}
