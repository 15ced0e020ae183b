"""Requests that wait until a job is over, or follow it until then."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from uuid import UUID

from anyio.to_thread import run_sync
from fastapi import Request

from api.producer.events import Watch
from api.producer.resources import Resources
from tuwen.errors import DatabaseUnavailable
from tuwen.jobs import Job, Progress, Status, Tenant

QUIET = 15.0
"""Seconds after which a stream says that it is still there."""


async def until_over(request: Request, resources: Resources, job_id: UUID, tenant: Tenant, timeout: float) -> Job:
    """The job when it is over, or as it is when time is up or the client has gone."""
    ended = asyncio.create_task(over(resources, job_id, tenant, timeout))
    gone = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({ended, gone}, return_when=asyncio.FIRST_COMPLETED)
        return await ended if ended.done() else await run_sync(resources.database.jobs.get, job_id, tenant)
    finally:
        for task in (ended, gone):
            task.cancel()
        await asyncio.gather(ended, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def over(resources: Resources, job_id: UUID, tenant: Tenant, timeout: float) -> Job:
    """The job when it is over, or as it is after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    async with resources.events.watch(job_id) as changes:
        while True:
            time_is_up = time.monotonic() >= deadline
            job = await run_sync(resources.database.jobs.get, job_id, tenant)
            changes.saw(job.status)
            if job.status.terminal or time_is_up:
                return job
            await _until_said_to_be_over(changes, deadline)


async def _until_said_to_be_over(changes: Watch, deadline: float) -> None:
    """Wait for news that the job is over, or until time is up."""
    while (left := deadline - time.monotonic()) > 0:
        change = await changes.next(left)
        if isinstance(change, Status):
            changes.saw(change)
            if change.terminal:
                return


async def follow(resources: Resources, job_id: UUID, tenant: Tenant) -> AsyncIterator[Job | Progress | None]:
    """The job as it is and whenever its state may have changed, progress in between, and None when all is quiet.

    Ends with the job that is over.
    """
    async with resources.events.watch(job_id) as changes:
        while True:
            try:
                job = await run_sync(resources.database.jobs.get, job_id, tenant)
            except DatabaseUnavailable:
                yield None
                await asyncio.sleep(1)
                continue
            changes.saw(job.status)
            yield job
            if job.status.terminal:
                return
            while not isinstance(change := await changes.next(QUIET), Status):
                yield change
