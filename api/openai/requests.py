"""Requests that are answered when their job is done, and the cancellation of jobs that no request waits for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

from anyio import CancelScope
from anyio.to_thread import run_sync
from fastapi import Request

from api.http.auth import Caller
from api.producer.job_waiting import follow, wait_until_over
from api.producer.resources import Resources
from api.producer.submission import submit
from shared.openai.errors import error_of_job
from tuwen.errors import Conflict, Unavailable
from tuwen.jobs import Job, JobRequest, Progress, Status

PATIENCE = 600.0
"""Seconds after which a request is abandoned, as in OpenAI's own clients."""
HEAVY = 64 * 1024
"""Bodies larger than this contain images; only a few of them are handled at a time."""


async def start(resources: Resources, caller: Caller, job: JobRequest, size: int) -> Job:
    """Submit the job of a request whose body had `size` bytes. Raises as `submit` does."""
    limiter = resources.heavy if size > HEAVY else None
    [started] = await run_sync(submit, resources, caller, [job], None, limiter=limiter)
    return started


async def wait_until_done(request: Request, resources: Resources, caller: Caller, job: Job) -> Job:
    """Wait until the job has succeeded, and return it.

    Raises:
        TuwenError: the job ended without a result, for this reason.
        Unavailable: the job took too long, and was cancelled.
    """
    async with cancel_if_abandoned(resources, caller, job.id):
        job = await wait_until_over(request, resources, job.id, caller.tenant, PATIENCE)
        if not job.status.terminal:
            raise Unavailable(
                f"The request was not finished within {PATIENCE:g} s; submit long work with POST /v1/jobs."
            )
    if job.status is not Status.SUCCEEDED:
        raise error_of_job(job)
    return job


async def follow_or_cancel(resources: Resources, caller: Caller, job: Job) -> AsyncIterator[Job | Progress | None]:
    """Yield the progress of a job, None when nothing happens for a while, and at last the job that is over.

    The job is cancelled when the caller stops before that."""
    async with cancel_if_abandoned(resources, caller, job.id):
        async for news in follow(resources, job.id, caller.tenant):
            if not isinstance(news, Job) or news.status.terminal:
                yield news


@asynccontextmanager
async def cancel_if_abandoned(resources: Resources, caller: Caller, job_id: UUID) -> AsyncIterator[None]:
    """Cancel the job when the block is left before the job is over, since nobody will fetch the result."""
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
        return  # the job is over, or it will expire
    resources.outbox.announce_cancel(job_id, resources.database.jobs.get(job_id, caller.tenant).kind, status)
