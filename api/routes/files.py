"""Images that clients upload or send inside a request, and images that they fetch."""

from __future__ import annotations

import re
from functools import partial
from hashlib import sha256
from tempfile import SpooledTemporaryFile
from typing import IO, Annotated, Literal

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Path, Query, Request
from starlette.datastructures import UploadFile
from starlette.responses import Response

from api.http.auth import Caller, CallerDep
from api.http.headers import documented
from api.http.pagination import link_header
from api.openai import documents
from api.openai.errors import openai_problems
from api.producer.contents import contents, serve
from api.producer.links import BaseUrlDep
from api.producer.once import IdempotencyKey, once
from api.producer.resources import Resources, ResourcesDep
from shared.openai.documents import MEDIA_TYPE
from tuwen.errors import Conflict, InvalidRequest, NotFound, PayloadTooLarge
from tuwen.messages import File

router = APIRouter(prefix="/v1/files", tags=["files"])

_IN_MEMORY = 2**20
_FILE_ID = re.compile(r"[0-9a-f]{64}", re.ASCII)


async def _file_id(
    file_id: Annotated[str, Path(description="id that the upload returned", json_schema_extra={"maxLength": 64})],
) -> str:
    # Text that cannot be an id is answered like an unknown id.
    if not (_FILE_ID.fullmatch(file_id) or file_id.startswith(documents.PREFIX)):
        raise NotFound("There is no file with this id; upload it first with POST /v1/files.")
    return file_id


FileId = Annotated[str, Depends(_file_id)]
"""Id of an image, or with OpenAI's prefix that of a document."""


@router.post(
    "",
    status_code=201,
    response_model=File | documents.Document,
    summary="Upload an image, or the requests of a batch",
    responses={201: {"headers": documented("Location")}, **openai_problems(400, 401, 403, 409, 413)},
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "required": ["file"],
                        "properties": {
                            "file": {"type": "string", "format": "binary"},
                            "purpose": {"type": "string", "enum": ["vision", "batch"], "default": "vision"},
                        },
                    }
                },
                "image/*": {"schema": {"type": "string", "format": "binary"}},
                "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            },
        }
    },
)
async def upload(
    request: Request, caller: CallerDep, resources: ResourcesDep, idempotency_key: IdempotencyKey = None
) -> Response:
    """Send the file as the body itself, or as the field `file` of a form. Uploading an image again gives the same file.

    A form may state its `purpose`: `vision` for an image, or `batch` for a JSON Lines file for `POST /v1/batches`."""
    limit = resources.settings.max_image_bytes
    if request.headers.get("content-type", "").startswith("multipart/form-data"):
        async with request.form(max_files=1, max_fields=8) as form:
            part = form.get("file")
            if not isinstance(part, UploadFile):
                raise InvalidRequest("The form has no file in the field `file`.", field="file")
            purpose = form.get("purpose", "vision")
            if purpose != "vision":
                name = part.filename or "batch.jsonl"
                document = await run_sync(
                    documents.keep, resources, caller, part.file, name, str(purpose), idempotency_key
                )
                return _created_response(document)
            keep = partial(_keep_file, resources, caller, part.file, limit, idempotency_key)
            file = await run_sync(keep, limiter=resources.heavy)
    else:
        # Kept on disk while it arrives, so that slow uploads do not pile up in memory.
        with SpooledTemporaryFile(max_size=_IN_MEMORY) as body:
            async for chunk in request.stream():
                body.write(chunk)
                if body.tell() > limit:
                    raise _too_large(limit)
            keep = partial(_keep_file, resources, caller, body, limit, idempotency_key)
            file = await run_sync(keep, limiter=resources.heavy)
    return _created_response(file)


def _created_response(file: File | documents.Document) -> Response:
    return Response(file.model_dump_json(), 201, {"Location": f"/v1/files/{file.id}"}, "application/json")


@router.get(
    "",
    response_model=documents.DocumentPage,
    summary="List the files of batches",
    responses={200: {"headers": documented("Link")}, **openai_problems(400, 401, 404)},
)
async def list_files(
    request: Request,
    response: Response,
    caller: CallerDep,
    resources: ResourcesDep,
    base_url: BaseUrlDep,
    purpose: Annotated[str | None, Query(description="`batch` or `batch_output`")] = None,
    after: Annotated[str | None, Query(description="id of the last file of the previous page")] = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
    order: Literal["asc", "desc"] = "desc",
) -> documents.DocumentPage:
    """Images are not listed: the uploader of an image knows its id, the SHA-256 of its bytes."""

    def look() -> documents.DocumentPage:
        newest_first = order == "desc"
        return documents.page(resources, caller, purpose=purpose, after=after, limit=limit, newest_first=newest_first)

    page = await run_sync(look)
    response.headers.update(link_header(request, base_url, next={"after": page.last_id} if page.has_more else None))
    return page


@router.get(
    "/{file_id}",
    response_model=File | documents.Document,
    summary="Show a file",
    responses=openai_problems(401, 404),
)
async def show(caller: CallerDep, file_id: FileId, resources: ResourcesDep) -> File | documents.Document:
    """An id is that of an uploaded image, or of a file of a batch."""
    if file_id.startswith(documents.PREFIX):
        id = documents.document_id(file_id)
        return documents.to_document(await run_sync(resources.database.documents.get, id, caller.tenant))
    row = await run_sync(resources.database.files.get, file_id, caller.tenant)
    return File(
        id=row.sha256,
        media_type=row.media_type,
        width=row.width,
        height=row.height,
        size=row.size,
        created_at=int(row.created_at.timestamp()),
    )


@router.delete(
    "/{file_id}",
    response_model=documents.Deleted,
    summary="Delete a file of a batch",
    responses=openai_problems(401, 404, 409),
)
async def delete(caller: CallerDep, file_id: FileId, resources: ResourcesDep) -> documents.Deleted:
    """Only files of batches can be deleted; images stay, because jobs name them."""
    if not file_id.startswith(documents.PREFIX):
        raise Conflict("Images are kept for the jobs that name them; only the files of batches can be deleted.")
    return await run_sync(documents.remove, resources, caller, file_id)


@router.get(
    "/{file_id}/content",
    summary="Download a file",
    response_class=Response,
    responses={**contents("image/*", MEDIA_TYPE), **openai_problems(401, 404, 416)},
)
async def content(request: Request, caller: CallerDep, file_id: FileId, resources: ResourcesDep) -> Response:
    """The bytes, or a redirect to them where the object storage gives presigned URLs."""
    if file_id.startswith(documents.PREFIX):
        id = documents.document_id(file_id)
        document = await run_sync(resources.database.documents.get, id, caller.tenant)
        return await run_sync(documents.content, resources, document, request.headers)
    row = await run_sync(resources.database.files.get, file_id, caller.tenant)
    return await run_sync(serve, resources, row.key, row.media_type, row.sha256, request.headers)


def _keep_file(resources: Resources, caller: Caller, body: IO[bytes], limit: int, idempotency_key: str | None) -> File:
    body.seek(0)
    data = body.read(limit + 1)
    if len(data) > limit:
        raise _too_large(limit)
    asked = once(idempotency_key, "file", sha256(data).hexdigest())
    return resources.admission.keep(data, caller.tenant, caller.bounds.stored_bytes, asked)


def _too_large(limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"The image is larger than {limit} bytes.")
