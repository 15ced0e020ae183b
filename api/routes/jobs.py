"""Jobs over HTTP: submit, show, watch, cancel, retry, and fetch the image."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Annotated
from uuid import UUID

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Header, Path, Query, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.responses import Response

from api.http.auth import CallerDep
from api.http.headers import RATE_LIMIT, documented
from api.http.pagination import link_header
from api.http.rate_limits import quota_headers
from api.http.reference import json_body, problems
from api.http.streams import EVENTS, StreamingRoute
from api.producer.contents import contents, serve
from api.producer.job_waiting import follow, wait_until_over
from api.producer.links import ReaderDep, ResultUrlsDep
from api.producer.once import IdempotencyKey, once
from api.producer.resources import Resources, ResourcesDep
from api.producer.submission import Submitted, submit
from shared.intake.validation import parse
from shared.objects.signed_urls import ResultUrls
from tuwen.errors import Conflict, InvalidRequest, NotFound
from tuwen.jobs import GenerateResult, Job, JobRequest, Kind, Progress, Status, StoredImage
from tuwen.messages import Accepted, Batch, JobPage

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=StreamingRoute)

_HEAVY = 64 * 1024
"""Bodies larger than this contain images or very many jobs; only a few of them are handled at a time."""
_LARGEST_PAGE = 200
_SECONDS = re.compile(r"\d{1,9}(\.\d{1,9})?", re.ASCII)
"""`wait=N`. The RFC has whole seconds only, but a client's last wait before its own deadline may be a fraction."""


async def _job_id(job_id: Annotated[str, Path(json_schema_extra={"format": "uuid"})]) -> UUID:
    try:
        id = UUID(job_id)
    except ValueError:
        id = None
    # Text that cannot be an id is answered like an unknown id.
    if id is None or str(id) != job_id.lower():
        raise NotFound("There is no job with this id.")
    return id


JobId = Annotated[UUID, Depends(_job_id)]
"""Comes after the caller in every signature, so that a caller without a key does not learn what an id looks like."""


async def _watched_job_id(caller: CallerDep, job_id: JobId, resources: ResourcesDep) -> UUID:
    await run_sync(resources.database.jobs.get, job_id, caller.tenant)
    return job_id


WatchedJobId = Annotated[UUID, Depends(_watched_job_id)]
"""The id of a job that exists: once a stream has begun, 404 can no longer be answered."""
Prefer = Annotated[
    str | None,
    Header(description="`wait=N` waits up to N seconds for the job to be over", examples=["wait=30"]),
]

_PROMPTS = {
    "generate": {
        "summary": "An image from a Chinese prompt",
        "value": {"input": {"kind": "generate", "prompt": "一只黑色的猫在草地上跳跃"}},
    },
    "generate, in English": {
        "summary": "An image from an English prompt, always the same one",
        "value": {"input": {"kind": "generate", "prompt": "a black cat jumping on the grass", "seed": 7}},
    },
    "describe": {
        "summary": "A Chinese caption for an image on the web",
        "value": {
            "input": {"kind": "describe", "image": {"url": "https://example.com/cat.jpg"}, "language": "zh"},
            "webhook": "https://example.com/hooks/tuwen",
        },
    },
    "recognize": {
        "summary": "Objects, attributes and actions in an uploaded image",
        "value": {"input": {"kind": "recognize", "image": {"file_id": "0" * 64}}, "priority": 9},
    },
    "match": {
        "summary": "How well a text fits an image",
        "value": {"input": {"kind": "match", "image": {"file_id": "0" * 64}, "text": "一只猫"}},
    },
}

_SUBMITTED = documented("Location", "Preference-Applied", *RATE_LIMIT)


@router.post(
    "",
    status_code=202,
    response_model=Job,
    summary="Submit a job",
    openapi_extra=json_body(JobRequest, _PROMPTS),
    responses={
        200: {"model": Job, "description": "The job is over already", "headers": _SUBMITTED},
        202: {"headers": _SUBMITTED},
        **problems(401, 403, 413, 422, 429, 503),
    },
)
async def submit_job(
    request: Request,
    caller: CallerDep,
    resources: ResourcesDep,
    urls: ResultUrlsDep,
    idempotency_key: IdempotencyKey = None,
    prefer: Prefer = None,
) -> Response:
    """The job is stored when this request is answered, whatever happens to any process or server after that."""
    body = await request.body()

    def accept() -> Submitted:
        return submit(resources, caller, [parse(JobRequest, body)], idempotency_key)

    submitted = await run_sync(accept, limiter=resources.heavy if len(body) > _HEAVY else None)
    [job] = submitted.jobs
    wait = _preferred_wait(prefer, resources)
    if wait and not job.status.terminal:
        job = await wait_until_over(request, resources, job.id, caller.tenant, wait)
    headers = {"Location": f"/v1/jobs/{job.id}", **submitted.headers}
    return _answer(job, urls, 200 if job.status.terminal else 202, wait, headers)


@router.post(
    "/batch",
    status_code=202,
    response_model=Accepted,
    summary="Submit many jobs",
    openapi_extra=json_body(
        Batch, {"two": {"value": {"jobs": [_PROMPTS["generate"]["value"], _PROMPTS["recognize"]["value"]]}}}
    ),
    responses={202: {"headers": documented(*RATE_LIMIT)}, **problems(401, 403, 413, 422, 429, 503)},
)
async def submit_batch(
    request: Request,
    caller: CallerDep,
    resources: ResourcesDep,
    urls: ResultUrlsDep,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Either all jobs are accepted, or none."""
    body = await request.body()

    def accept() -> Submitted:
        jobs = parse(Batch, body).jobs
        if len(jobs) > resources.settings.max_jobs_per_request:
            most = resources.settings.max_jobs_per_request
            raise InvalidRequest(f"At most {most} jobs fit in one request.", field="jobs")
        return submit(resources, caller, jobs, idempotency_key, in_batch=True)

    submitted = await run_sync(accept, limiter=resources.heavy if len(body) > _HEAVY else None)
    shown = Accepted(jobs=[_with_links(job, urls) for job in submitted.jobs])
    return Response(shown.model_dump_json(), 202, submitted.headers, "application/json")


@router.get(
    "",
    response_model=JobPage,
    summary="List jobs",
    responses={200: {"headers": documented("Link")}, **problems(401, 422)},
)
async def list_jobs(
    request: Request,
    caller: CallerDep,
    resources: ResourcesDep,
    urls: ResultUrlsDep,
    status: Annotated[list[Status], Query(description="only jobs in these states")] = [],  # noqa: B006
    kind: Annotated[list[Kind], Query(description="only jobs of these kinds")] = [],  # noqa: B006
    cursor: Annotated[UUID | None, Query(description="`next` of the previous page")] = None,
    limit: Annotated[int, Query(ge=1, le=_LARGEST_PAGE)] = 50,
) -> Response:
    """Newest first."""

    def look() -> list[Job]:
        # One more than asked for tells whether there is a next page.
        return resources.database.jobs.page(caller.tenant, statuses=status, kinds=kind, before=cursor, limit=limit + 1)

    found = await run_sync(look)
    page = found[:limit]
    progress = await resources.events.progress(job.id for job in page if job.status is Status.RUNNING)
    shown = [_with_links(job, urls, progress.get(job.id)) for job in page]
    following = str(page[-1].id) if len(found) > limit else None
    links = link_header(request, urls.base_url, next={"cursor": following} if following else None)
    return Response(JobPage(jobs=shown, next=following).model_dump_json(), 200, links, "application/json")


@router.get("/{job_id}", response_model=Job, summary="Show a job", responses=problems(401, 404))
async def show(
    request: Request,
    caller: CallerDep,
    job_id: JobId,
    resources: ResourcesDep,
    urls: ResultUrlsDep,
    prefer: Prefer = None,
) -> Response:
    wait = _preferred_wait(prefer, resources)
    if wait:
        job = await wait_until_over(request, resources, job_id, caller.tenant, wait)
    else:
        job = await run_sync(resources.database.jobs.get, job_id, caller.tenant)
    progress = await resources.events.progress([job.id]) if job.status is Status.RUNNING else {}
    return _answer(_with_links(job, urls, progress.get(job.id)), urls, 200, wait)


@router.post("/{job_id}/cancel", response_model=Job, summary="Cancel a job", responses=problems(401, 404, 409))
async def cancel(caller: CallerDep, job_id: JobId, resources: ResourcesDep, urls: ResultUrlsDep) -> Response:
    """A queued job ends at once; a running job as soon as its worker notices, usually at the next step."""

    def request_cancel() -> Job:
        status = resources.database.jobs.cancel(job_id, caller.tenant)
        job = resources.database.jobs.get(job_id, caller.tenant)
        resources.outbox.announce_cancel(job_id, job.kind, status)
        return job

    return _answer(await run_sync(request_cancel), urls)


@router.post(
    "/{job_id}/retry",
    status_code=202,
    response_model=Job,
    summary="Retry a job",
    responses={202: {"headers": documented(*RATE_LIMIT)}, **problems(401, 404, 409, 422, 429)},
)
async def retry(
    caller: CallerDep,
    job_id: JobId,
    resources: ResourcesDep,
    urls: ResultUrlsDep,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Queue a job that ended without a result again, with new attempts and as much time as it had at first."""

    key = once(idempotency_key, "retry", str(job_id))

    def queue_again() -> tuple[Job, dict[str, str]]:
        again = resources.database.jobs.retry_once(job_id, caller.tenant, quota=caller.quota, once=key)
        job = resources.database.jobs.get(job_id, caller.tenant)
        if again.dispatches:
            resources.outbox.publish(again.dispatches)  # after the read, which could otherwise find any state
        return job, quota_headers(caller.quota, again.left)

    job, headers = await run_sync(queue_again)
    return _answer(job, urls, 202, headers=headers)


@router.get(
    "/{job_id}/events",
    response_class=EventSourceResponse,
    summary="Watch a job",
    responses=EVENTS | problems(401, 404),
)
async def watch(
    caller: CallerDep, job_id: WatchedJobId, resources: ResourcesDep, urls: ResultUrlsDep
) -> AsyncIterator[ServerSentEvent]:
    """Server-sent events: `state` with the whole job, at first and then whenever its state changes, and `progress` with
    `{"step", "steps"}` while it runs. The stream ends after the state in which the job is over.

    A progress may also have `parts`: `{"index", "text"}` for each text that is being written and, with `previews` in
    the input, `{"index", "preview"}` for each picture that is being drawn. Parts that have not changed are left out,
    and some models report none."""
    shown: tuple[Status, int, bool] | None = None
    async for news in follow(resources, job_id, caller.tenant):
        if isinstance(news, Job):
            state = (news.status, news.attempts, news.cancel_requested)
            if state != shown:
                shown = state
                progress = await resources.events.progress([job_id]) if news.status is Status.RUNNING else {}
                yield ServerSentEvent(event="state", data=_with_links(news, urls, progress.get(job_id)))
        elif news is not None:
            yield ServerSentEvent(event="progress", data=news)


@router.get(
    "/{job_id}/image",
    response_class=Response,
    summary="Fetch the generated image",
    responses={**contents("image/png"), **problems(401, 403, 404, 409, 410, 416)},
)
async def image(
    request: Request,
    reader: ReaderDep,
    job_id: JobId,
    resources: ResourcesDep,
    candidate: Annotated[
        int | None, Query(ge=0, description="index in the result's `candidates`, from 0; without it, the image itself")
    ] = None,
) -> Response:
    """The URL that a job's `result_url` is needs no API key; it holds for a limited time."""

    def fetch() -> Response:
        tenant = reader.tenant(resources, lambda: resources.database.jobs.owner(job_id))
        stored = _stored_image(resources.database.jobs.get(job_id, tenant), candidate)
        return serve(resources, stored.key, stored.media_type, stored.sha256, request.headers)

    return await run_sync(fetch)


def _stored_image(job: Job, candidate: int | None) -> StoredImage:
    if job.kind is not Kind.GENERATE:
        raise NotFound(f"Job {job.id} makes no image.")
    if not isinstance(job.result, GenerateResult):
        raise Conflict(f"Job {job.id} is {job.status} and has no image.")
    if candidate is None:
        return job.result.image
    candidates = job.result.candidates
    image = candidates[candidate].image if candidate < len(candidates) else None
    if image is None:
        raise NotFound(
            f"Job {job.id} kept no candidate {candidate}; submit jobs with `keep`: `all` to keep every candidate."
        )
    return image


# ── how a job is shown ────────────────────────────────────────────────────────────────────────────────


def _with_links(job: Job, urls: ResultUrls, progress: Progress | None = None) -> Job:
    has_image = isinstance(job.result, GenerateResult)
    return job.model_copy(update={"progress": progress, "result_url": urls.image(job.id) if has_image else None})


def _answer(
    job: Job, urls: ResultUrls, status: int = 200, waited: float = 0, headers: dict[str, str] | None = None
) -> Response:
    applied = {"Preference-Applied": f"wait={waited:g}"} if waited else {}
    # Not answered through FastAPI's response model, which would validate a model that is already valid.
    return Response(
        _with_links(job, urls, job.progress).model_dump_json(),
        status,
        {"Cache-Control": "no-store", **applied, **(headers or {})},
        "application/json",
    )


# ── waiting and watching ──────────────────────────────────────────────────────────────────────────────


def _preferred_wait(prefer: str | None, resources: Resources) -> float:
    """Seconds of `Prefer: wait=N` (RFC 7240), at most `max_wait`; a preference that cannot be parsed is ignored."""
    for preference in (prefer or "").split(","):
        name, _, value = preference.partition("=")
        seconds = value.partition(";")[0].strip().strip('"')
        if name.strip().lower() == "wait" and _SECONDS.fullmatch(seconds):
            return min(float(seconds), resources.settings.max_wait)
    return 0.0
