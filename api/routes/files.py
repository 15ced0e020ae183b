"""Images that clients upload or send inside a request, and images that they fetch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from tempfile import SpooledTemporaryFile
from typing import IO, Annotated, Literal

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Path, Query, Request
from starlette.datastructures import UploadFile
from starlette.responses import RedirectResponse, Response, StreamingResponse

from api.http.auth import Caller, CallerDep
from api.http.reference import problems
from api.openai import documents
from api.producer.resources import Resources, ResourcesDep
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
    responses=problems(401, 403, 413, 422),
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
async def upload(request: Request, caller: CallerDep, resources: ResourcesDep) -> Response:
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
                document = await run_sync(
                    documents.keep, resources, caller, part.file, part.filename or "batch.jsonl", str(purpose)
                )
                return _created_response(document)
            file = await run_sync(_keep_file, resources, caller, part.file, limit, limiter=resources.heavy)
    else:
        # Kept on disk while it arrives, so that slow uploads do not pile up in memory.
        with SpooledTemporaryFile(max_size=_IN_MEMORY) as body:
            async for chunk in request.stream():
                body.write(chunk)
                if body.tell() > limit:
                    raise _too_large(limit)
            file = await run_sync(_keep_file, resources, caller, body, limit, limiter=resources.heavy)
    return _created_response(file)


def _created_response(file: File | documents.Document) -> Response:
    return Response(file.model_dump_json(), 201, {"Location": f"/v1/files/{file.id}"}, "application/json")


@router.get(
    "", response_model=documents.DocumentPage, summary="List the files of batches", responses=problems(401, 404, 422)
)
async def list_files(
    caller: CallerDep,
    resources: ResourcesDep,
    purpose: Annotated[str | None, Query(description="`batch` or `batch_output`")] = None,
    after: Annotated[str | None, Query(description="id of the last file of the previous page")] = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
    order: Literal["asc", "desc"] = "desc",
) -> documents.DocumentPage:
    """Images are not listed: the uploader of an image knows its id, the SHA-256 of its bytes."""

    def look() -> documents.DocumentPage:
        newest_first = order == "desc"
        return documents.page(resources, caller, purpose=purpose, after=after, limit=limit, newest_first=newest_first)

    return await run_sync(look)


@router.get("/{file_id}", response_model=File | documents.Document, summary="Show a file", responses=problems(401, 404))
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
    responses=problems(401, 404, 409),
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
    responses={200: {"content": {"image/*": {}}}, 307: {"description": "address of the bytes"}, **problems(401, 404)},
)
async def content(request: Request, caller: CallerDep, file_id: FileId, resources: ResourcesDep) -> Response:
    """The bytes, or a redirect to them where the object storage gives presigned URLs."""
    if file_id.startswith(documents.PREFIX):
        id = documents.document_id(file_id)
        document = await run_sync(resources.database.documents.get, id, caller.tenant)
        return await run_sync(documents.content, resources, document)
    row = await run_sync(resources.database.files.get, file_id, caller.tenant)
    return await run_sync(serve, resources, row.key, row.media_type, row.sha256, request.headers)


def _keep_file(resources: Resources, caller: Caller, body: IO[bytes], limit: int) -> File:
    body.seek(0)
    data = body.read(limit + 1)
    if len(data) > limit:
        raise _too_large(limit)
    return resources.admission.keep(data, caller.tenant, caller.bounds.stored_bytes)


def _too_large(limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"The image is larger than {limit} bytes.")


def serve(resources: Resources, key: str, media_type: str, digest: str, headers: Mapping[str, str]) -> Response:
    """Answer with the bytes of an object whose key never gets other content, or redirect to them."""
    url = resources.store.url(key, resources.settings.result_url_ttl)
    if url is not None:
        # Everybody who has the address can use it, so no cache on the way may store it.
        return RedirectResponse(url, 307, {"Cache-Control": "private, no-store"})
    caching = {"ETag": f'"{digest}"', "Cache-Control": "private, max-age=31536000, immutable"}
    if _unchanged(headers.get("if-none-match", ""), caching["ETag"]):
        return Response(status_code=304, headers=caching)
    chunks = resources.store.stream(key)
    # However a browser interprets these bytes, it runs no script in them.
    caching["Content-Security-Policy"] = "default-src 'none'; sandbox"
    return StreamingResponse(chunks, headers=caching, media_type=media_type)


def _unchanged(if_none_match: str, etag: str) -> bool:
    known = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return etag in known or known == ["*"]
