"""A request that is answered only when its job is done, and a job that nobody waits for any more."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

from anyio import CancelScope
from anyio.to_thread import run_sync
from fastapi import Request

from api.http.auth import Caller
from api.openai.errors import of_job
from api.producer.resources import Resources
from api.producer.submission import submit
from api.producer.waiting import follow, until_over
from tuwen.errors import Conflict, Unavailable
from tuwen.jobs import Job, JobRequest, Progress, Status

PATIENCE = 600.0
"""Seconds after which a request is given up, as OpenAI's own clients do."""
HEAVY = 64 * 1024
"""Bodies larger than this hold images: they take turns."""


async def start(resources: Resources, caller: Caller, job: JobRequest, size: int) -> Job:
    """Submit the job of a request whose body had `size` bytes. Raises as `submit` does."""
    limiter = resources.heavy if size > HEAVY else None
    [started] = await run_sync(submit, resources, caller, [job], None, limiter=limiter)
    return started


async def done(request: Request, resources: Resources, caller: Caller, job: Job) -> Job:
    """The job when it has succeeded.

    Raises:
        TuwenError: what became of it instead.
        Unavailable: it took too long, and was called off.
    """
    async with wanted(resources, caller, job.id):
        job = await until_over(request, resources, job.id, caller.tenant, PATIENCE)
        if not job.status.terminal:
            raise Unavailable(f"This was not done within {PATIENCE:g} s; submit long work with POST /v1/jobs.")
    if job.status is not Status.SUCCEEDED:
        raise of_job(job)
    return job


async def until_the_end(resources: Resources, caller: Caller, job: Job) -> AsyncIterator[Job | Progress | None]:
    """The job when it is over; before that its progress, and None now and then, so that the client hears something."""
    async with wanted(resources, caller, job.id):
        async for news in follow(resources, job.id, caller.tenant):
            if not isinstance(news, Job) or news.status.terminal:
                yield news


@asynccontextmanager
async def wanted(resources: Resources, caller: Caller, job_id: UUID) -> AsyncIterator[None]:
    """A block that waits for a job: when it is left early, nobody will fetch the result, and the job is cancelled."""
    try:
        yield
    except BaseException:
        with CancelScope(shield=True):
            await run_sync(_cancel, resources, caller, job_id)
        raise


def _cancel(resources: Resources, caller: Caller, job_id: UUID) -> None:
    try:
        status = resources.database.jobs.cancel(job_id, caller.tenant)
    except (Conflict, Unavailable):
        return  # it is over, or it will expire
    resources.outbox.cancelled(job_id, resources.database.jobs.get(job_id, caller.tenant).kind, status)
