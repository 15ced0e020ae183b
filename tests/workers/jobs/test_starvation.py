"""Several real workers under a stream of urgent jobs that never ends: the others get their turns."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

from shared.fairness import PATIENCE
from shared.settings import Settings
from tests.support.system import System, running_system
from tuwen.jobs import Job, Kind

QUEUED = 200
"""Urgent jobs that wait at any time: more than the workers do in the seconds between two looks."""


@contextmanager
def urgent_stream(system: System) -> Iterator[list[UUID]]:
    """Keep `QUEUED` jobs of the highest priority waiting within the block; yields the ids of all so far."""
    ids: list[UUID] = []
    over = threading.Event()

    def feed() -> None:
        while not over.wait(0.1):
            waiting = system.database.jobs.queues()[Kind.GENERATE].queued
            if waiting < QUEUED:
                ids.extend(system.submit(*["urgent"] * (QUEUED - waiting), priority=9))

    ids.extend(system.submit(*["urgent"] * QUEUED, priority=9))
    feeder = threading.Thread(target=feed)
    feeder.start()
    try:
        yield ids
    finally:
        over.set()
        feeder.join()


def left_waiting(job: Job, others: list[Job]) -> int:
    """How many of the others came before this one started, and started after it."""
    assert job.started_at
    return sum(
        other.created_at < job.started_at and (other.started_at is None or other.started_at > job.started_at)
        for other in others
    )


def done_before(job: Job, others: list[Job]) -> int:
    """How many of the others the job's worker started before it, or together with it."""
    assert job.started_at
    mine = [other.started_at for other in others if other.worker == job.worker]
    return sum(started is not None and started <= job.started_at for started in mine)


def test_no_job_starves_behind_urgent_ones_even_when_redis_is_wiped(settings: Settings, tmp_path: Path) -> None:
    slow = {"generate": "import:tests.support.fakes:SlowGenerator", "kinds": (Kind.GENERATE,), "concurrency": 2}
    with running_system(settings, tmp_path, **slow) as system:
        for name in ("w1", "w2", "w3"):
            system.worker(name)
        system.housekeeper()
        with urgent_stream(system) as stream:
            system.wait_until_running(stream, 6)
            patient = system.submit(*["patient"] * 4, priority=0)
            system.wait_until(lambda: any(status.terminal for status in system.statuses(patient)), "the first turn")
            system.queue.redis.flushall()
            jobs = system.wait_until_finished(patient)
            others = system.jobs(list(stream))
        assert {job.attempts for job in jobs} == {1}
        for worker in {job.worker for job in jobs}:
            turns = sorted((job for job in jobs if job.worker == worker), key=lambda job: str(job.started_at))
            for number, job in enumerate(turns):
                assert left_waiting(job, others) > 0, "it had its turn, and not because the urgent ones were over"
                assert done_before(job, others) >= number * PATIENCE, "urgent jobs go first"
