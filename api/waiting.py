"""Requests that wait until a job is over."""

from __future__ import annotations

import asyncio
import time
from uuid import UUID

from anyio.to_thread import run_sync
from fastapi import Request

from api.events import Watch
from api.resources import Resources
from shared.jobs import Job, Status, Tenant


async def until_over(request: Request, resources: Resources, job_id: UUID, tenant: Tenant, timeout: float) -> Job:
    """The job when it is over, or as it is when time is up or the client has gone."""
    ended = asyncio.create_task(over(resources, job_id, tenant, timeout))
    gone = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({ended, gone}, return_when=asyncio.FIRST_COMPLETED)
        return await ended if ended.done() else await run_sync(resources.database.job, job_id, tenant)
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
            job = await run_sync(resources.database.job, job_id, tenant)
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
