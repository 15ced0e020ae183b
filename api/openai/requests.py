"""Requests that are answered when their job is done, and the cancellation of jobs that no request waits for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import UUID

from anyio import CancelScope
from anyio.to_thread import run_sync
from fastapi import Request
from pydantic import BaseModel

from api.http.auth import Caller
from api.http.headers import RATE_LIMIT, documented
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

LIMITED: dict[int | str, dict[str, Any]] = {200: {"headers": documented(*RATE_LIMIT)}}
"""`responses` of a route that submits jobs."""


@dataclass(frozen=True, slots=True)
class Started:
    """The job of a request, and header fields of its answer."""

    job: Job
    headers: dict[str, str]
    kept: bool
    """Whether the job goes on without this request, which may be repeated with its `Idempotency-Key`."""


async def start(
    resources: Resources, caller: Caller, job: JobRequest, size: int, idempotency_key: str | None, asked: BaseModel
) -> Started:
    """Submit the job of a request `asked` whose body had `size` bytes. Raises as `submit` does."""
    limiter = resources.heavy if size > HEAVY else None
    words = f"{type(asked).__name__} {asked.model_dump_json()}"
    call = partial(submit, resources, caller, [job], idempotency_key, asked=words)
    submitted = await run_sync(call, limiter=limiter)
    return Started(submitted.jobs[0], submitted.headers, kept=idempotency_key is not None)


async def wait_until_done(request: Request, resources: Resources, caller: Caller, started: Started) -> Job:
    """Wait until the job has succeeded, and return it.

    Raises:
        TuwenError: the job ended without a result, for this reason.
        Unavailable: the job took too long, and was cancelled.
    """
    async with cancel_if_abandoned(resources, caller, started):
        job = await wait_until_over(request, resources, started.job.id, caller.tenant, PATIENCE)
        if not job.status.terminal:
            raise Unavailable(
                f"The request was not finished within {PATIENCE:g} s; submit long work with POST /v1/jobs."
            )
    if job.status is not Status.SUCCEEDED:
        raise error_of_job(job)
    return job


async def follow_or_cancel(
    resources: Resources, caller: Caller, started: Started
) -> AsyncIterator[Job | Progress | None]:
    """Yield the progress of a job, None when nothing happens for a while, and at last the job that is over.

    The job is cancelled when the caller stops before that, unless the request has a key to come back with."""
    async with cancel_if_abandoned(resources, caller, started):
        async for news in follow(resources, started.job.id, caller.tenant):
            if not isinstance(news, Job) or news.status.terminal:
                yield news


@asynccontextmanager
async def cancel_if_abandoned(resources: Resources, caller: Caller, started: Started) -> AsyncIterator[None]:
    """Cancel the job when the block is left before the job is over, since nobody will fetch the result. With an
    `Idempotency-Key` the client may: the request is repeated, and finds the job."""
    try:
        yield
    except BaseException:
        if not started.kept:
            with CancelScope(shield=True):
                await run_sync(_cancel, resources, caller, started.job.id)
        raise


def _cancel(resources: Resources, caller: Caller, job_id: UUID) -> None:
    try:
        status = resources.database.jobs.cancel(job_id, caller.tenant)
    except (Conflict, Unavailable):
        return  # the job is over, or it will expire
    resources.outbox.announce_cancel(job_id, resources.database.jobs.get(job_id, caller.tenant).kind, status)
