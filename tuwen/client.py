"""The Python clients: one that blocks, and one to await, with the same methods.

    with Client("http://127.0.0.1:8000") as client:
        job = client.wait(client.generate("一只黑色的猫在草地上跳跃").id)
        Path("cat.png").write_bytes(client.result_bytes(job))

    async with AsyncClient("http://127.0.0.1:8000") as client:
        job = await client.generate("一只黑色的猫在草地上跳跃")
        async for job in client.iter_events(job.id):
            print(job.status, job.progress)

What the API refuses is raised as the same class of `tuwen.errors` that the API raised. A connection that breaks, or a
server that says it is unavailable, is tried again when trying again cannot do anything twice; for submissions the
client sees to that itself, with an `Idempotency-Key`.

Each operation is written once, as a coroutine in `JobOperations` and `tuwen.dataset_client`; `Client` runs it to its
end (`tuwen.blocking`).
"""

from __future__ import annotations

import builtins
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import UUID

import httpx

from tuwen.blocking import Blocking, blocking, complete, iterating
from tuwen.dataset_client import AsyncDatasetClient, DatasetClient
from tuwen.exchange import AwaitingTransport, BlockingTransport, Exchange, http_options, once
from tuwen.jobs import (
    DescribeInput,
    GenerateInput,
    ImageSource,
    Job,
    JobInput,
    JobRequest,
    Kind,
    Language,
    MatchInput,
    Progress,
    RecognizeInput,
    Status,
    Style,
)
from tuwen.messages import Accepted, Batch, File, JobPage, Models, ModelState

JOBS_PER_REQUEST = 1000
"""How many jobs `submit_many` puts into one request; what a server takes unless it is configured otherwise."""
_LONG_POLL = 25.0
_UNASKED_POLL = 0.2
"""Seconds between two looks at a job where the server did not wait as it was asked to."""

Image = bytes | Path | ImageSource | str
"""An image file's bytes, its path, or, as a string, its URL."""


class JobOperations:
    """What both clients can do with jobs, files and models, as coroutines."""

    def __init__(self, exchange: Exchange):
        self._exchange = exchange

    @property
    def base_url(self) -> str:
        """Address of the API."""
        return self._exchange.transport.base_url

    async def close(self) -> None:
        """Close the connections."""
        await self._exchange.transport.close()

    # ── submission ────────────────────────────────────────────────────────────────────────────────

    async def submit(self, request: JobRequest, *, idempotency_key: str | None = None, wait: float = 0) -> Job:
        """Submit a job; with `wait` (seconds) the server answers with the finished job if it ends in time.

        Raises:
            InvalidRequest, QuotaExceeded, Unauthorized, Unavailable
        """
        response = await self._exchange.send(
            "POST",
            "/v1/jobs",
            content=request.model_dump_json(exclude_none=True),
            headers=_submission_headers(idempotency_key) | _prefer(wait),
            timeout=self._exchange.timeout + wait,
        )
        return Job.model_validate_json(response.content)

    async def submit_many(self, requests: Sequence[JobRequest]) -> builtins.list[Job]:
        """Submit jobs, `JOBS_PER_REQUEST` at a time; each group is accepted as a whole or not at all."""
        jobs = []
        for start in range(0, len(requests), JOBS_PER_REQUEST):
            group = Batch(jobs=[*requests[start : start + JOBS_PER_REQUEST]])
            body = group.model_dump_json(exclude_none=True)
            headers = _submission_headers(None)
            response = await self._exchange.send("POST", "/v1/jobs/batch", content=body, headers=headers)
            jobs += Accepted.model_validate_json(response.content).jobs
        return jobs

    async def generate(self, /, prompt: str, **options: Any) -> Job:
        """Generate an image from a prompt; `options` are the other fields of `GenerateInput`."""
        return await self._ask(GenerateInput(prompt=prompt, **options))

    async def describe(
        self, /, image: Image, *, language: Language = "en", style: Style = "short", **options: Any
    ) -> Job:
        """Have an image put into words; `options` are the other fields of `DescribeInput`."""
        source = await self.source(image)
        return await self._ask(DescribeInput(image=source, language=language, style=style, **options))

    async def recognize(self, image: Image) -> Job:
        """Name the objects in an image, with their attributes and actions."""
        return await self._ask(RecognizeInput(image=await self.source(image)))

    async def match(self, image: Image, text: str, *, report: bool = False) -> Job:
        """Measure how well a text fits an image; with `report`, also which statements of the text the image shows."""
        return await self._ask(MatchInput(image=await self.source(image), text=text, report=report))

    async def _ask(self, input: JobInput) -> Job:  # noqa: A002 - the field's name
        return await self.submit(JobRequest(input=input))

    # ── images ────────────────────────────────────────────────────────────────────────────────────

    async def upload(self, image: bytes | Path) -> File:
        """Upload an image that jobs can name; uploading the same bytes again gives the same file.

        Raises:
            ImageRejected, PayloadTooLarge
        """
        data = await self._exchange.transport.read(image) if isinstance(image, Path) else image
        headers = {"Content-Type": "application/octet-stream"}
        response = await self._exchange.send("POST", "/v1/files", content=data, headers=headers)
        return File.model_validate_json(response.content)

    async def source(self, image: Image) -> ImageSource:
        """How a job names the image: a URL stays a URL; bytes and local files are uploaded."""
        if isinstance(image, ImageSource):
            return image
        if isinstance(image, str):
            return ImageSource(url=image)
        return ImageSource(file_id=(await self.upload(image)).id)

    async def result_bytes(self, job: Job, *, candidate: int | None = None) -> bytes:
        """Fetch the image file that a job made, or that of one of the candidates that it kept.

        Raises:
            Conflict: the job has no image, or none yet.
            NotFound: the job kept no such candidate.
        """
        wanted = {} if candidate is None else {"candidate": candidate}
        path = f"/v1/jobs/{job.id}/image"
        return (await self._exchange.send("GET", path, params=wanted, follow_redirects=True)).content

    # ── jobs ──────────────────────────────────────────────────────────────────────────────────────

    async def get(self, id: UUID) -> Job:
        """Raises NotFound."""
        return await self._job("GET", f"/v1/jobs/{id}")

    async def iter_jobs(self, *, status: Status | None = None, kind: Kind | None = None) -> AsyncGenerator[Job, None]:
        """All jobs, newest first, fetched page by page."""
        wanted = (
            {"limit": "200"} | ({"status": status.value} if status else {}) | ({"kind": kind.value} if kind else {})
        )
        cursor: str | None = None
        while True:
            parameters = wanted | ({"cursor": cursor} if cursor else {})
            response = await self._exchange.send("GET", "/v1/jobs", params=parameters)
            page = JobPage.model_validate_json(response.content)
            for job in page.jobs:
                yield job
            cursor = page.next
            if cursor is None:
                return

    async def cancel(self, id: UUID) -> Job:
        """Cancel a job; a running job ends when its worker notices.

        Raises:
            Conflict: the job is already over.
        """
        return await self._job("POST", f"/v1/jobs/{id}/cancel", repeatable=False)

    async def retry(self, id: UUID) -> Job:
        """Queue a job that ended without a result again.

        Raises:
            Conflict: the job succeeded, or is not over.
            QuotaExceeded
        """
        return await self._job("POST", f"/v1/jobs/{id}/retry", headers=once())

    async def wait(self, id: UUID, timeout: float | None = None) -> Job:
        """Wait until a job is over, however it ended, and return it.

        Raises:
            TimeoutError: the job is not over after `timeout` seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            patience = _LONG_POLL if deadline is None else max(0.0, min(_LONG_POLL, deadline - time.monotonic()))
            headers, silence = _prefer(patience), self._exchange.timeout + patience
            response = await self._exchange.send("GET", f"/v1/jobs/{id}", headers=headers, timeout=silence)
            job = Job.model_validate_json(response.content)
            if job.status.terminal:
                return job
            if "preference-applied" not in response.headers:
                await self._exchange.transport.sleep(_UNASKED_POLL)
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(f"job {id} is still {job.status} after {timeout:g} s")

    async def iter_events(self, id: UUID) -> AsyncGenerator[Job, None]:
        """Yield the job as it is now, and again after each change of state or progress, until it is over.

        A stream that breaks is reopened; raises Unavailable when that does not succeed within a minute.
        """
        job: Job | None = None
        async with aclosing(self._exchange.follow(f"/v1/jobs/{id}/events")) as events:
            async for name, data in events:
                following = _next_job(job, name, data)
                if following is not None and following != job:
                    job = following
                    yield job
                if job is not None and job.status.terminal:
                    return

    async def models(self) -> builtins.list[ModelState]:
        """The model of each kind, and whether a worker has it loaded."""
        return Models.model_validate_json((await self._exchange.send("GET", "/v1/models")).content).models

    async def _job(self, method: str, path: str, **options: Any) -> Job:
        return Job.model_validate_json((await self._exchange.send(method, path, **options)).content)

    # Last, because from here on the name means this and no longer the type.
    async def list(
        self, *, status: Status | None = None, kind: Kind | None = None, limit: int = 50
    ) -> builtins.list[Job]:
        """The newest jobs, at most `limit`."""
        newest: builtins.list[Job] = []
        async with aclosing(self.iter_jobs(status=status, kind=kind)) as jobs:
            while len(newest) < limit and (job := await anext(jobs, None)):
                newest.append(job)
        return newest


class AsyncClient(JobOperations):
    """A client for asyncio. Usable in an `async with` block, which closes its connections.

    Leaving an `async for` over `iter_events` early leaves its stream open until Python finds the iterator unused:
    where that matters, use `async with contextlib.aclosing(client.iter_events(id)) as events`. Cancelling the task
    that waits for one closes it at once.
    """

    def __init__(self, base_url: str, api_key: str | None = None, timeout: float = 30.0):
        """`timeout` bounds, in seconds, how long a server may be silent.

        Raises:
            Unauthorized: no API key looks like this one.
        """
        http = httpx.AsyncClient(**http_options(base_url, api_key, timeout))
        super().__init__(Exchange(AwaitingTransport(http), timeout))
        self.datasets = AsyncDatasetClient(self._exchange)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        await self.close()


class Client(Blocking[JobOperations]):
    """A client whose methods block; thread-safe. Usable in a `with` block, which closes its connections."""

    def __init__(self, base_url: str, api_key: str | None = None, timeout: float = 30.0):
        """`timeout` bounds, in seconds, how long a server may be silent.

        Raises:
            Unauthorized: no API key looks like this one.
        """
        exchange = Exchange(BlockingTransport(httpx.Client(**http_options(base_url, api_key, timeout))), timeout)
        super().__init__(JobOperations(exchange))
        self.datasets = DatasetClient(AsyncDatasetClient(exchange))

    @property
    def base_url(self) -> str:
        """Address of the API."""
        return self._operations.base_url

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        complete(self._operations.close())

    close = blocking(JobOperations.close)
    submit = blocking(JobOperations.submit)
    submit_many = blocking(JobOperations.submit_many)
    generate = blocking(JobOperations.generate)
    describe = blocking(JobOperations.describe)
    recognize = blocking(JobOperations.recognize)
    match = blocking(JobOperations.match)
    upload = blocking(JobOperations.upload)
    source = blocking(JobOperations.source)
    result_bytes = blocking(JobOperations.result_bytes)
    get = blocking(JobOperations.get)
    list = blocking(JobOperations.list)
    iter_jobs = iterating(JobOperations.iter_jobs)
    cancel = blocking(JobOperations.cancel)
    retry = blocking(JobOperations.retry)
    wait = blocking(JobOperations.wait)
    iter_events = iterating(JobOperations.iter_events)
    models = blocking(JobOperations.models)


def _next_job(job: Job | None, event: str, data: str) -> Job | None:
    if event == "state":
        return Job.model_validate_json(data)
    if event == "progress" and job is not None:
        return job.model_copy(update={"progress": Progress.model_validate_json(data)})
    return None


def _submission_headers(idempotency_key: str | None) -> dict[str, str]:
    key = {"Idempotency-Key": idempotency_key} if idempotency_key else once()
    return {"Content-Type": "application/json", **key}


def _prefer(wait: float) -> dict[str, str]:
    return {"Prefer": f"wait={wait:.3f}"} if wait > 0 else {}
