"""Files other than images: the requests of a batch and their answers, as OpenAI's `files` shows them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from hashlib import sha256
from typing import IO, Literal
from uuid import UUID

from pydantic import BaseModel, Field
from starlette.responses import Response
from uuid_utils.compat import uuid7

from api.http.auth import Caller
from api.producer.contents import serve
from api.producer.once import once
from api.producer.resources import Resources
from shared.database.batches import NewDocument, StoredDocument
from shared.openai.documents import MEDIA_TYPE, key_of
from tuwen.errors import Conflict, InvalidRequest, NotFound, StorageQuotaExceeded

PREFIX = "file-"
_CHUNK = 2**20


class Document(BaseModel):
    """A file as OpenAI's clients read it."""

    id: str = Field(examples=["file-019a0c0de"])
    object: Literal["file"] = "file"
    bytes: int
    created_at: int = Field(description="Unix time")
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"


class DocumentPage(BaseModel):
    """A page of documents."""

    object: Literal["list"] = "list"
    data: list[Document]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Deleted(BaseModel):
    """Confirmation that a document was deleted."""

    id: str
    object: Literal["file"] = "file"
    deleted: bool = True


def document_id(text: str) -> UUID:
    """Parse the id of a document. Raises NotFound: text that cannot be an id is answered like an unknown id."""
    try:
        return UUID(hex=text.removeprefix(PREFIX)) if text.startswith(PREFIX) else _no_document()
    except ValueError:
        return _no_document()


def _no_document() -> UUID:
    raise NotFound("There is no file with this id.")


def to_document(stored: StoredDocument) -> Document:
    """Show a stored document as OpenAI's clients read it."""
    return Document(
        id=f"{PREFIX}{stored.id.hex}",
        bytes=stored.size,
        created_at=int(stored.created_at.timestamp()),
        filename=stored.filename,
        purpose=stored.purpose,
    )


def keep(
    resources: Resources, caller: Caller, body: IO[bytes], filename: str, purpose: str, idempotency_key: str | None
) -> Document:
    """Store an uploaded file; its content is checked when a batch uses it.

    Raises:
        InvalidRequest: the file is empty, its purpose is not supported, or its key was used with another file.
        Conflict: the file that was uploaded under its key was deleted.
        StorageQuotaExceeded
        StorageUnavailable, DatabaseUnavailable
    """
    if purpose != "batch":
        raise InvalidRequest(
            "purpose must be `batch` for a JSON Lines file, or `vision` for an image.", field="purpose"
        )
    id = uuid7()
    key = key_of(id, caller.tenant)
    most = caller.bounds.stored_bytes
    resources.database.usage.require_room(caller.tenant, most, body.seek(0, os.SEEK_END))
    asked = once(idempotency_key, "document", filename, purpose, _sha256(body) if idempotency_key is not None else "")
    body.seek(0)
    # The object is written first: a row must never name a missing object.
    size = resources.store.put_stream(key, _chunks(body), MEDIA_TYPE)
    if not size:
        resources.store.delete(key)
        raise InvalidRequest("The file is empty.", field="file")
    new = NewDocument(id, key, filename, purpose, size)
    try:
        stored = resources.database.documents.add(new, caller.tenant, most, asked)
    except (Conflict, InvalidRequest, StorageQuotaExceeded):
        resources.store.delete(key)
        raise
    if stored.id != id:
        resources.store.delete(key)  # it was uploaded before
    return to_document(stored)


def _sha256(body: IO[bytes]) -> str:
    body.seek(0)
    digest = sha256()
    for chunk in _chunks(body):
        digest.update(chunk)
    return digest.hexdigest()


def _chunks(body: IO[bytes]) -> Iterator[bytes]:
    while chunk := body.read(_CHUNK):
        yield chunk


def content(resources: Resources, document: StoredDocument, headers: Mapping[str, str]) -> Response:
    """Answer with the bytes of a document, which never change, or redirect to them."""
    return serve(resources, document.key, MEDIA_TYPE, document.id.hex, headers)


def page(
    resources: Resources, caller: Caller, *, purpose: str | None, after: str | None, limit: int, newest_first: bool
) -> DocumentPage:
    """A page of the files of batches. Raises NotFound when `after` is not an id."""
    found = resources.database.documents.page(
        caller.tenant,
        purpose=purpose,
        after=document_id(after) if after else None,
        limit=limit + 1,
        newest_first=newest_first,
    )
    data = [to_document(stored) for stored in found[:limit]]
    return DocumentPage(
        data=data,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
        has_more=len(found) > limit,
    )


def remove(resources: Resources, caller: Caller, id: str) -> Deleted:
    """Raises NotFound."""
    resources.store.delete(resources.database.documents.remove(document_id(id), caller.tenant))
    return Deleted(id=id)
