"""`/v1/batches`: files of requests, which a housekeeper processes in the background as bulk jobs."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from anyio.to_thread import run_sync
from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse, Response
from uuid_utils.compat import uuid7

from api.http.auth import CallerDep
from api.http.headers import documented
from api.http.pagination import link_header
from api.http.reference import json_body
from api.openai.documents import PREFIX, document_id
from api.openai.errors import RESPONSES
from api.producer.links import BaseUrlDep
from api.producer.once import IdempotencyKey, once
from api.producer.resources import ResourcesDep
from shared.database.batch_status import BatchStatus
from shared.database.batches import StoredBatch
from shared.intake.validation import parse
from tuwen.errors import InvalidRequest, NotFound
from tuwen.jobs import Word

router = APIRouter(prefix="/v1/batches", tags=["openai"], responses=RESPONSES)

_DAY = 86_400.0
_PREFIX = "batch_"


class BatchRequest(BaseModel):
    """A request to start a batch."""

    model_config = ConfigDict(extra="forbid")

    input_file_id: str = Field(
        description="id of a file uploaded with the purpose `batch`", examples=["file-019a0c0de"]
    )
    endpoint: Literal["/v1/images/generations", "/v1/chat/completions"]
    completion_window: Literal["24h"]
    metadata: (
        Annotated[
            dict[Annotated[Word, Field(max_length=64)], Annotated[Word, Field(max_length=512)]], Field(max_length=16)
        ]
        | None
    ) = None


class RequestCounts(BaseModel):
    """Number of requests in a batch, by their outcome."""

    total: int
    completed: int
    failed: int


class LineProblem(BaseModel):
    """Why a line of the input is invalid."""

    code: str
    line: int | None
    message: str
    param: str | None


class LineProblems(BaseModel):
    """The problems of an invalid input."""

    object: Literal["list"] = "list"
    data: list[LineProblem]


class ShownBatch(BaseModel):
    """A batch as OpenAI's clients read it; times are Unix times."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    errors: LineProblems | None
    input_file_id: str
    completion_window: str
    status: BatchStatus
    output_file_id: str | None = Field(
        description="file with the answers of the requests that succeeded, once the batch is over"
    )
    error_file_id: str | None = Field(description="file with the answers of the requests that did not succeed")
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    metadata: dict[str, str] | None


class BatchPage(BaseModel):
    """A page of batches, newest first."""

    object: Literal["list"] = "list"
    data: list[ShownBatch]
    first_id: str | None
    last_id: str | None
    has_more: bool


@router.post(
    "",
    response_model=ShownBatch,
    summary="Start a batch (OpenAI)",
    openapi_extra=json_body(
        BatchRequest,
        {
            "captions": {
                "value": {
                    "input_file_id": "file-019a0c0de",
                    "endpoint": "/v1/chat/completions",
                    "completion_window": "24h",
                }
            }
        },
    ),
)
async def create(
    request: Request,
    caller: CallerDep,
    resources: ResourcesDep,
    base_url: BaseUrlDep,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Each line of the input file is `{"custom_id", "method": "POST", "url", "body"}`; it may have 50,000 lines."""
    asked = parse(BatchRequest, await request.body())
    key = once(idempotency_key, "batch", asked.model_dump_json())

    def add() -> StoredBatch:
        try:
            document = resources.database.documents.get(document_id(asked.input_file_id), caller.tenant)
        except NotFound as error:
            raise InvalidRequest("There is no file with this id; upload it first.", field="input_file_id") from error
        if document.purpose != "batch":
            raise InvalidRequest(
                "The file was not uploaded with the purpose batch; upload it again with purpose=batch.",
                field="input_file_id",
            )
        return resources.database.batches.add(
            {
                "id": uuid7(),
                "tenant": caller.tenant,
                "quota": caller.quota,
                "max_stored_bytes": caller.bounds.stored_bytes,
                "endpoint": asked.endpoint,
                "input_id": document.id,
                "completion_window": asked.completion_window,
                "labels": asked.metadata or {},
                "base_url": base_url,
            },
            _DAY,
            caller.bounds.batches,
            key,
        )

    stored = await run_sync(add)
    resources.outbox.call_for_batches()
    return _answer(_to_batch(stored))


@router.get(
    "", response_model=BatchPage, summary="List batches (OpenAI)", responses={200: {"headers": documented("Link")}}
)
async def list_batches(
    request: Request,
    caller: CallerDep,
    resources: ResourcesDep,
    base_url: BaseUrlDep,
    after: Annotated[str | None, Query(description="id of the last batch of the previous page")] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> Response:
    """Newest first."""
    before = _batch_id(after) if after else None
    found = await run_sync(lambda: resources.database.batches.page(caller.tenant, after=before, limit=limit + 1))
    data = [_to_batch(stored) for stored in found[:limit]]
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    page = BatchPage(data=data, first_id=first, last_id=last, has_more=len(found) > limit)
    return _answer(page, link_header(request, base_url, next={"after": last} if page.has_more else None))


@router.get("/{batch_id}", response_model=ShownBatch, summary="Show a batch (OpenAI)")
async def show(caller: CallerDep, batch_id: str, resources: ResourcesDep) -> Response:
    return _answer(_to_batch(await run_sync(resources.database.batches.get, _batch_id(batch_id), caller.tenant)))


@router.post("/{batch_id}/cancel", response_model=ShownBatch, summary="Cancel a batch (OpenAI)")
async def cancel(caller: CallerDep, batch_id: str, resources: ResourcesDep) -> Response:
    """The answers of requests that are finished by then are still written to the batch's files."""
    stored = await run_sync(resources.database.batches.cancel, _batch_id(batch_id), caller.tenant)
    resources.outbox.call_for_batches()
    return _answer(_to_batch(stored))


def _batch_id(text: str) -> UUID:
    try:
        return UUID(hex=text.removeprefix(_PREFIX))
    except ValueError:
        # Text that cannot be an id is answered like an unknown id.
        raise NotFound("There is no batch with this id.") from None


def _answer(model: BaseModel, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse(model.model_dump(mode="json"), headers={"Cache-Control": "no-store", **(headers or {})})


def _to_batch(stored: StoredBatch) -> ShownBatch:
    ended = {
        f"{status.value}_at": _unix(stored.finished_at) if stored.status == status.value else None
        for status in (BatchStatus.COMPLETED, BatchStatus.FAILED, BatchStatus.EXPIRED, BatchStatus.CANCELLED)
    }
    values = {
        "id": f"{_PREFIX}{stored.id.hex}",
        "endpoint": stored.endpoint,
        "errors": {"data": stored.problems} if stored.problems else None,
        "input_file_id": f"{PREFIX}{stored.input_id.hex}",
        "completion_window": stored.completion_window,
        "status": stored.status,
        "output_file_id": stored.output_id and f"{PREFIX}{stored.output_id.hex}",
        "error_file_id": stored.errors_id and f"{PREFIX}{stored.errors_id.hex}",
        "created_at": _unix(stored.created_at),
        "in_progress_at": _unix(stored.in_progress_at),
        "expires_at": _unix(stored.expires_at),
        "finalizing_at": _unix(stored.finalizing_at),
        "cancelling_at": _unix(stored.cancelling_at),
        "request_counts": {"total": stored.total, "completed": stored.completed, "failed": stored.failed},
        "metadata": stored.labels or None,
    }
    return ShownBatch.model_validate({**values, **ended})


def _unix(time: datetime | None) -> int | None:
    return None if time is None else int(time.timestamp())
