"""One line of a batch: from its JSON to a job, and from the job that is over to the line of the answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, Field

from api.http.auth import Caller
from api.http.bodies import parse
from api.openai import chat, images
from api.openai.errors import body, of_job, status
from api.producer.resources import Resources
from api.producer.submission import admit
from shared.settings import Settings
from tuwen.errors import Conflict, InvalidRequest, TuwenError, Unavailable
from tuwen.jobs import Job, JobRequest, Status, Word

ENDPOINTS = ("/v1/images/generations", "/v1/chat/completions")
PRIORITY = 0
"""A batch fills what room people leave."""


class BatchLine(BaseModel):
    custom_id: Word = Field(min_length=1, max_length=512)
    method: Literal["POST"]
    url: str
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Wish:
    """What a line asks for."""

    number: int
    custom_id: str
    job: JobRequest
    response_format: str | None


def read(line: bytes, endpoint: str) -> BatchLine:
    """The envelope of a line; what is asked for in `body` is looked at when its turn comes.

    Raises:
        InvalidRequest: it is none, or for another endpoint than the batch.
    """
    found = parse(BatchLine, line)
    if found.url != endpoint:
        raise InvalidRequest(f"The url is not {endpoint}, for which the batch was made.", field="url")
    return found


def wish(settings: Settings, number: int, line: BatchLine, deadline: float) -> Wish:
    """The job that line `number` asks for, to be done within `deadline` seconds, as yet unseen by `admitted`.

    Raises:
        InvalidRequest: what is wrong with it.
    """
    asked = json.dumps(line.body).encode()
    images_wanted = line.url == ENDPOINTS[0]
    request = parse(images.ImagesRequest, asked) if images_wanted else parse(chat.ChatRequest, asked)
    if request.stream:
        raise InvalidRequest("Nothing is streamed into a file; leave stream out.", field="stream")
    job = request.job(settings, PRIORITY).model_copy(update={"deadline": deadline})
    form = request.response_format if isinstance(request, images.ImagesRequest) else None
    return Wish(number, line.custom_id, job, form)


def admitted(resources: Resources, caller: Caller, wishes: Sequence[Wish]) -> tuple[list[Wish], list[bytes]]:
    """The wishes that can be jobs, their images kept as files, and the lines that answer the others.

    Raises:
        StorageUnavailable, DatabaseUnavailable
    """
    try:
        jobs = admit(resources, caller, [wish.job for wish in wishes], [""] * len(wishes))
        return [replace(wish, job=job) for wish, job in zip(wishes, jobs, strict=True)], []
    except Unavailable:
        raise
    except TuwenError as error:
        if len(wishes) == 1:
            return [], [refused(wishes[0].custom_id, error)]
    # One of them is to blame, and must not cost the others their turn.
    each = [admitted(resources, caller, [wish]) for wish in wishes]
    return [wish for good, _ in each for wish in good], [line for _, bad in each for line in bad]


def answered(resources: Resources, base_url: str, endpoint: str, custom_id: str, form: str | None, job: Job) -> bytes:
    """The line of a job that has succeeded. Raises StorageUnavailable."""
    made = images.answer(resources, base_url, form, job) if endpoint == ENDPOINTS[0] else chat.answer(job)
    return _line(job.id, custom_id, {"status_code": 200, "request_id": str(job.id), "body": made})


def failed(custom_id: str, job: Job) -> bytes:
    """The line of a job that is over without a result."""
    error = of_job(job)
    if job.status is Status.EXPIRED:
        return called_off(custom_id, "batch_expired", "The batch expired before this request was done.", job.id)
    if isinstance(error, Conflict):
        return called_off(custom_id, "batch_cancelled", "The request was cancelled.", job.id)
    return refused(custom_id, error, job.id)


def refused(custom_id: str, error: TuwenError, job_id: UUID | None = None) -> bytes:
    """The line of a request that could not be, or that failed."""
    response = {"status_code": status(error), "request_id": str(job_id or ""), "body": {"error": body(error)}}
    return _line(job_id, custom_id, response)


def called_off(custom_id: str, code: str, message: str, job_id: UUID | None = None) -> bytes:
    """The line of a request that was not done."""
    return _line(job_id, custom_id, None, {"code": code, "message": message})


def _line(
    job_id: UUID | None, custom_id: str, response: dict[str, Any] | None, error: dict[str, str] | None = None
) -> bytes:
    id = f"batch_req_{job_id.hex if job_id else custom_id}"
    line = {"id": id, "custom_id": custom_id, "response": response, "error": error}
    return json.dumps(line, ensure_ascii=False).encode() + b"\n"
