"""Waiting until a job is over, and following it until then."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from uuid import UUID

from anyio.to_thread import run_sync
from fastapi import Request

from api.producer.events import Watch
from api.producer.resources import Resources
from tuwen.errors import DatabaseUnavailable, NotFound
from tuwen.jobs import Job, Progress, Status, Tenant

QUIET = 15.0
"""Seconds after which a quiet stream sends a comment, to show that it is alive."""


async def wait_until_over(request: Request, resources: Resources, job_id: UUID, tenant: Tenant, timeout: float) -> Job:
    """Wait until a job is over, for `timeout` seconds at most or until the client disconnects, and return the job."""
    ended = asyncio.create_task(wait_for_end(resources, job_id, tenant, timeout))
    gone = asyncio.create_task(_wait_for_disconnect(request))
    try:
        await asyncio.wait({ended, gone}, return_when=asyncio.FIRST_COMPLETED)
        return await ended if ended.done() else await run_sync(resources.database.jobs.get, job_id, tenant)
    finally:
        for task in (ended, gone):
            task.cancel()
        await asyncio.gather(ended, gone, return_exceptions=True)


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def wait_for_end(resources: Resources, job_id: UUID, tenant: Tenant, timeout: float) -> Job:
    """Wait until a job is over, for `timeout` seconds at most, and return the job."""
    deadline = time.monotonic() + timeout
    async with resources.events.watch(job_id) as changes:
        while True:
            time_is_up = time.monotonic() >= deadline
            job = await run_sync(resources.database.jobs.get, job_id, tenant)
            changes.note(job.status)
            if job.status.terminal or time_is_up:
                return job
            await _wait_for_word_of_end(changes, deadline)


async def _wait_for_word_of_end(changes: Watch, deadline: float) -> None:
    """Wait for an event that says that the job is over, until `deadline` at most."""
    while (left := deadline - time.monotonic()) > 0:
        change = await changes.next(left)
        if isinstance(change, Status):
            changes.note(change)
            if change.terminal:
                return


async def follow(resources: Resources, job_id: UUID, tenant: Tenant) -> AsyncIterator[Job | Progress | None]:
    """Yield the job at first and whenever its state may have changed, its progress in between, and None when quiet.

    The last item is the job that is over, unless the job is deleted meanwhile.
    """
    async with resources.events.watch(job_id) as changes:
        while True:
            try:
                job = await run_sync(resources.database.jobs.get, job_id, tenant)
            except NotFound:
                return  # who asks again is told so
            except DatabaseUnavailable:
                yield None
                await asyncio.sleep(1)
                continue
            changes.note(job.status)
            yield job
            if job.status.terminal:
                return
            while not isinstance(change := await changes.next(QUIET), Status):
                yield change
