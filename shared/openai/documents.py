"""Places in the object storage of the files of batches."""

from __future__ import annotations

from uuid import UUID

from tuwen.jobs import Tenant

MEDIA_TYPE = "application/jsonl"


def key_of(id: UUID, tenant: Tenant) -> str:
    """Key of the object in storage that holds a document."""
    """The storage key of a file that is no image."""
    return f"documents/{tenant}/{id.hex}.jsonl"
