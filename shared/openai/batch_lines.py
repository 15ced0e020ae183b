"""Lines of a batch: each becomes a job, and the finished job becomes a line of the output."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, Field

from shared.intake.validation import parse
from shared.objects.signed_urls import ResultUrls
from shared.objects.storage import ObjectStore
from shared.openai import chat, images
from shared.openai.errors import body, error_of_job, status
from shared.settings import Settings
from tuwen.errors import Conflict, InvalidRequest, TuwenError
from tuwen.jobs import Job, JobRequest, Status, Word

ENDPOINTS = ("/v1/images/generations", "/v1/chat/completions")
PRIORITY = 0
"""Batches have the lowest priority: they use the capacity that interactive jobs leave."""


class BatchLine(BaseModel):
    """The envelope of a request in a batch's input."""

    """The envelope of a request in a batch's input."""

    custom_id: Word = Field(min_length=1, max_length=512)
    method: Literal["POST"]
    url: str
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class LineRequest:
    """What a line asks for."""

    number: int
    custom_id: str
    job: JobRequest
    response_format: str | None


def parse_line(line: bytes, endpoint: str) -> BatchLine:
    """Parse the envelope of a line; its `body` is checked later, when the line becomes a job.

    Raises:
        InvalidRequest: the line has no valid envelope, or is for another endpoint than the batch.
    """
    found = parse(BatchLine, line)
    if found.url != endpoint:
        raise InvalidRequest(f"The url must be {endpoint}, the endpoint of this batch.", field="url")
    return found


def line_request(settings: Settings, number: int, line: BatchLine, deadline: float) -> LineRequest:
    """The job that line `number` asks for, to be done within `deadline` seconds, not yet admitted.

    Raises:
        InvalidRequest: the body is not valid; the error names the field.
    """
    asked = json.dumps(line.body).encode()
    images_wanted = line.url == ENDPOINTS[0]
    request = parse(images.ImagesRequest, asked) if images_wanted else parse(chat.ChatRequest, asked)
    if request.stream:
        raise InvalidRequest("A batch cannot stream its answers; leave stream out.", field="stream")
    job = request.job(settings, PRIORITY).model_copy(update={"deadline": deadline})
    form = request.response_format if isinstance(request, images.ImagesRequest) else None
    return LineRequest(number, line.custom_id, job, form)


def answer_line(
    settings: Settings, store: ObjectStore, urls: ResultUrls, endpoint: str, custom_id: str, form: str | None, job: Job
) -> bytes:
    """The line of a job that has succeeded. Raises NotFound, StorageUnavailable."""
    made = images.answer(settings, store, urls, form, job) if endpoint == ENDPOINTS[0] else chat.answer(job)
    return _line(job.id, custom_id, {"status_code": 200, "request_id": str(job.id), "body": made})


def failure_line(custom_id: str, job: Job) -> bytes:
    """The line of a job that is over without a result."""
    error = error_of_job(job)
    if job.status is Status.EXPIRED:
        return skipped_line(custom_id, "batch_expired", "The batch expired before this request was done.", job.id)
    if isinstance(error, Conflict):
        return skipped_line(custom_id, "batch_cancelled", "The request was cancelled.", job.id)
    return refusal_line(custom_id, error, job.id)


def refusal_line(custom_id: str, error: TuwenError, job_id: UUID | None = None) -> bytes:
    """The line of a request that could not be, or that failed."""
    response = {"status_code": status(error), "request_id": str(job_id or ""), "body": {"error": body(error)}}
    return _line(job_id, custom_id, response)


def skipped_line(custom_id: str, code: str, message: str, job_id: UUID | None = None) -> bytes:
    """The line of a request that was not done."""
    return _line(job_id, custom_id, None, {"code": code, "message": message})


def _line(
    job_id: UUID | None, custom_id: str, response: dict[str, Any] | None, error: dict[str, str] | None = None
) -> bytes:
    id = f"batch_req_{job_id.hex if job_id else custom_id}"
    line = {"id": id, "custom_id": custom_id, "response": response, "error": error}
    return json.dumps(line, ensure_ascii=False).encode() + b"\n"
