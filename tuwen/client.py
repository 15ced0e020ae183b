"""The Python client.

    with Client("http://127.0.0.1:8000") as client:
        job = client.wait(client.generate("一只黑色的猫在草地上跳跃").id)
        Path("cat.png").write_bytes(client.result_bytes(job))

Errors of the API are raised as the class of `tuwen.errors` that the API raised. When a connection breaks or a server
says that it is unavailable, the client tries again if a repetition cannot do anything twice; for submissions the client
ensures that itself, with an `Idempotency-Key`.
"""

from __future__ import annotations

import builtins
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import httpx
from pydantic import ValidationError

from tuwen.dataset_client import DatasetClient
from tuwen.errors import TuwenError, Unauthorized, Unavailable, by_code
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
from tuwen.messages import Accepted, Batch, File, JobPage, Models, ModelState, Problem
from tuwen.version import __version__

JOBS_PER_REQUEST = 1000
"""Jobs that `submit_many` puts into one request: the most that a server takes by default."""
_PAUSES = (0.1, 0.4, 1.5, 3.0)
"""Seconds between attempts."""
_LONGEST_PAUSE = 10.0
_LONG_POLL = 25.0
_STREAM_SILENCE = 60.0
"""Seconds without even a comment after which an event stream counts as broken; the API sends a comment every 15."""
_STREAM_PATIENCE = 60.0
"""Seconds for which a broken stream is reopened: the job continues meanwhile, and an API that restarts comes back."""

Image = bytes | Path | ImageSource | str
"""An image file's bytes, its path, or, as a string, its URL."""


class Client:
    """Client of the HTTP API. Thread-safe; a `with` block closes its connections."""

    def __init__(self, base_url: str, api_key: str | None = None, timeout: float = 30.0):
        """`timeout` bounds, in seconds, how long a server may be silent.

        Raises:
            Unauthorized: `api_key` has characters that no API key has.
        """
        headers = {"User-Agent": f"tuwen/{__version__}"}
        if api_key is not None:
            if not (api_key.isascii() and api_key.isprintable()):
                raise Unauthorized("This API key is not valid.")
            headers["Authorization"] = f"Bearer {api_key}"
        # A proxy from the environment cannot reach this machine itself.
        local = urlsplit(base_url).hostname in ("localhost", "127.0.0.1", "::1")
        self._timeout = timeout
        self._http = httpx.Client(base_url=base_url, headers=headers, timeout=timeout, trust_env=not local)
        self.datasets = DatasetClient(self._send, self._events)

    @property
    def base_url(self) -> str:
        """URL of the API."""
        return str(self._http.base_url)

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    # ── submission ────────────────────────────────────────────────────────────────────────────────

    def submit(self, request: JobRequest, *, idempotency_key: str | None = None, wait: float = 0) -> Job:
        """Submit a job; with `wait` (seconds) the server answers with the finished job if it ends in time.

        Raises:
            InvalidRequest, QuotaExceeded, Unauthorized, Unavailable
        """
        response = self._send(
            "POST",
            "/v1/jobs",
            content=request.model_dump_json(exclude_none=True),
            headers=_submission_headers(idempotency_key) | _prefer(wait),
            timeout=self._timeout + wait,
        )
        return Job.model_validate_json(response.content)

    def submit_many(self, requests: Sequence[JobRequest]) -> list[Job]:
        """Submit jobs, `JOBS_PER_REQUEST` at a time; each group is accepted as a whole or not at all."""
        jobs = []
        for start in range(0, len(requests), JOBS_PER_REQUEST):
            group = Batch(jobs=list(requests[start : start + JOBS_PER_REQUEST]))
            body = group.model_dump_json(exclude_none=True)
            response = self._send("POST", "/v1/jobs/batch", content=body, headers=_submission_headers(None))
            jobs += Accepted.model_validate_json(response.content).jobs
        return jobs

    def generate(self, prompt: str, **options: Any) -> Job:
        """Generate an image from a prompt; `options` are the other fields of `GenerateInput`."""
        return self._ask(GenerateInput(prompt=prompt, **options))

    def describe(self, image: Image, *, language: Language = "en", style: Style = "short", **options: Any) -> Job:
        """Describe an image in words; `options` are the other fields of `DescribeInput`."""
        return self._ask(DescribeInput(image=self.source(image), language=language, style=style, **options))

    def recognize(self, image: Image) -> Job:
        """Name the objects in an image, with their attributes and actions."""
        return self._ask(RecognizeInput(image=self.source(image)))

    def match(self, image: Image, text: str, *, report: bool = False) -> Job:
        """Measure how well a text fits an image; with `report`, also which statements of the text the image shows."""
        return self._ask(MatchInput(image=self.source(image), text=text, report=report))

    def _ask(self, input: JobInput) -> Job:  # noqa: A002 - the field's name
        return self.submit(JobRequest(input=input))

    # ── images ────────────────────────────────────────────────────────────────────────────────────

    def upload(self, image: bytes | Path) -> File:
        """Upload an image that jobs can name; uploading the same bytes again gives the same file.

        Raises:
            ImageRejected, PayloadTooLarge
        """
        data = image.read_bytes() if isinstance(image, Path) else image
        headers = {"Content-Type": "application/octet-stream"}
        return File.model_validate_json(self._send("POST", "/v1/files", content=data, headers=headers).content)

    def source(self, image: Image) -> ImageSource:
        """How a job names the image: a URL stays a URL; bytes and local files are uploaded."""
        if isinstance(image, ImageSource):
            return image
        if isinstance(image, str):
            return ImageSource(url=image)
        return ImageSource(file_id=self.upload(image).id)

    def result_bytes(self, job: Job, *, candidate: int | None = None) -> bytes:
        """Fetch the image file that a job made, or that of one of the candidates that it kept.

        Raises:
            Conflict: the job has no image, or none yet.
            NotFound: the job kept no such candidate.
        """
        wanted = {} if candidate is None else {"candidate": candidate}
        return self._send("GET", f"/v1/jobs/{job.id}/image", params=wanted, follow_redirects=True).content

    # ── jobs ──────────────────────────────────────────────────────────────────────────────────────

    def get(self, id: UUID) -> Job:
        """Raises NotFound."""
        return Job.model_validate_json(self._send("GET", f"/v1/jobs/{id}").content)

    def iter_jobs(self, *, status: Status | None = None, kind: Kind | None = None) -> Iterator[Job]:
        """All jobs, newest first, fetched page by page."""
        wanted = (
            {"limit": "200"} | ({"status": status.value} if status else {}) | ({"kind": kind.value} if kind else {})
        )
        cursor: str | None = None
        while True:
            response = self._send("GET", "/v1/jobs", params=wanted | ({"cursor": cursor} if cursor else {}))
            page = JobPage.model_validate_json(response.content)
            yield from page.jobs
            cursor = page.next
            if cursor is None:
                return

    def cancel(self, id: UUID) -> Job:
        """Cancel a job; a running job ends when its worker notices.

        Raises:
            Conflict: the job is already over.
        """
        return Job.model_validate_json(self._send("POST", f"/v1/jobs/{id}/cancel", repeatable=False).content)

    def retry(self, id: UUID) -> Job:
        """Queue a job that ended without a result again.

        Raises:
            Conflict: the job succeeded, or is not over.
            QuotaExceeded
        """
        return Job.model_validate_json(self._send("POST", f"/v1/jobs/{id}/retry", repeatable=False).content)

    def wait(self, id: UUID, timeout: float | None = None) -> Job:
        """Wait until a job is over, however it ended, and return it.

        Raises:
            TimeoutError: the job is not over after `timeout` seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            patience = _LONG_POLL if deadline is None else max(0.0, min(_LONG_POLL, deadline - time.monotonic()))
            response = self._send("GET", f"/v1/jobs/{id}", headers=_prefer(patience), timeout=self._timeout + patience)
            job = Job.model_validate_json(response.content)
            if job.status.terminal:
                return job
            if "preference-applied" not in response.headers:
                time.sleep(0.2)
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(f"job {id} is still {job.status} after {timeout:g} s")

    def iter_events(self, id: UUID) -> Iterator[Job]:
        """Yield the job as it is now, and again after each change of state or progress, until it is over.

        A stream that breaks is reopened; raises Unavailable when that does not succeed within a minute.
        """
        job: Job | None = None
        attempt, give_up = 0, time.monotonic() + _STREAM_PATIENCE
        while job is None or not job.status.terminal:
            try:
                for name, data in self._events(f"/v1/jobs/{id}/events"):
                    attempt, give_up = 0, time.monotonic() + _STREAM_PATIENCE
                    following = _next_job(job, name, data)
                    if following is not None and following != job:
                        job = following
                        yield job
            except Unavailable:
                if time.monotonic() > give_up:
                    raise
            if job is None or not job.status.terminal:
                time.sleep(_PAUSES[min(attempt, len(_PAUSES) - 1)])
                attempt += 1

    def models(self) -> list[ModelState]:
        """The model of each kind, and whether a worker has it loaded."""
        return Models.model_validate_json(self._send("GET", "/v1/models").content).models

    # ── transport ─────────────────────────────────────────────────────────────────────────────────

    def _send(self, method: str, path: str, *, repeatable: bool = True, **options: Any) -> httpx.Response:
        """Send a request and return a successful answer. `repeatable`: sending it twice has the same effect as once."""
        for pause in (*_PAUSES, None):
            try:
                return self._send_once(method, path, **options)
            except Unavailable as error:
                never_arrived = isinstance(error.__cause__, httpx.ConnectError)
                if pause is None or not (repeatable or never_arrived):
                    raise
                time.sleep(min(max(pause, error.retry_after or 0), _LONGEST_PAUSE))
        raise AssertionError("the last attempt returns or raises")

    def _send_once(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, **options)
        except httpx.TransportError as error:
            raise Unavailable(f"{self._http.base_url} does not answer: {error}") from error
        if response.is_error:
            raise _error(response)
        return response

    def _events(self, path: str) -> Iterator[tuple[str, str]]:
        """Name and data of each server-sent event (WHATWG HTML, section 9.2)."""
        timeout = httpx.Timeout(self._timeout, read=_STREAM_SILENCE)
        try:
            with self._http.stream("GET", path, timeout=timeout) as response:
                if response.is_error:
                    response.read()
                    raise _error(response)
                name = data = ""
                for line in _lines(response.iter_bytes()):
                    field, _, value = line.partition(": ")
                    if field == "event":
                        name = value
                    elif field == "data":
                        data = value
                    elif not line and data:
                        yield name, data
                        name = data = ""
        except httpx.TransportError as error:
            raise Unavailable(f"{self._http.base_url} does not answer: {error}") from error

    # Defined last, because from here on the name `list` means this method and not the type.
    def list(self, *, status: Status | None = None, kind: Kind | None = None, limit: int = 50) -> builtins.list[Job]:
        """The newest jobs, at most `limit`."""
        return [*islice(self.iter_jobs(status=status, kind=kind), limit)]


def _lines(chunks: Iterator[bytes]) -> Iterator[str]:
    """Split at LF only: text in JSON may contain other characters that Unicode counts as line ends."""
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.decode()


def _next_job(job: Job | None, event: str, data: str) -> Job | None:
    if event == "state":
        return Job.model_validate_json(data)
    if event == "progress" and job is not None:
        return job.model_copy(update={"progress": Progress.model_validate_json(data)})
    return None


def _submission_headers(idempotency_key: str | None) -> dict[str, str]:
    return {"Content-Type": "application/json", "Idempotency-Key": idempotency_key or str(uuid4())}


def _prefer(wait: float) -> dict[str, str]:
    return {"Prefer": f"wait={wait:.3f}"} if wait > 0 else {}


def _error(response: httpx.Response) -> TuwenError:
    """The error that the API raised, from its problem details."""
    retry_after = response.headers.get("retry-after", "")
    seconds = float(retry_after) if retry_after.isdigit() else None
    try:
        problem = Problem.model_validate_json(response.content)
    except ValidationError:
        # The answer is not from the API but from a proxy or another server.
        kind = Unavailable if response.status_code in (502, 503, 504) else TuwenError
        return kind(f"{response.url} answers {response.status_code} {response.reason_phrase}", retry_after=seconds)
    field = problem.errors[0].field if problem.errors else None
    kind = by_code().get(problem.code, TuwenError)
    return kind(problem.detail, field=field, retry_after=seconds)
