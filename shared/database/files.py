"""Uploaded images, each tenant's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select, text
from sqlalchemy.dialects.postgresql import insert as upsert

from shared.database.connections import Connections
from shared.database.tables import FileRow
from tuwen.errors import NotFound
from tuwen.jobs import Tenant

# Only once a minute, so that a picture that many jobs name is not written for each of them. Locked in order; one that
# is being deleted is waited for, and is then not known any more.
_USE = text("""
    WITH used AS MATERIALIZED (
        SELECT sha256 FROM files
        WHERE tenant = :tenant AND sha256 = ANY(:sha256s) AND used_at < now() - interval '1 minute'
        ORDER BY sha256 FOR UPDATE
    )
    UPDATE files SET used_at = now() FROM used WHERE tenant = :tenant AND files.sha256 = used.sha256
""")


@dataclass(frozen=True, slots=True)
class StoredFile:
    """An uploaded image."""

    tenant: Tenant
    sha256: str
    key: str
    """Key of its object in the storage."""
    media_type: str
    width: int
    height: int
    """Both in pixels."""
    size: int
    """Bytes."""
    created_at: datetime


class Files:
    """Uploaded images; each tenant sees its own."""

    def __init__(self, connections: Connections):
        self._run = connections.run
        self._fetch = connections.fetch

    def add(
        self, *, tenant: Tenant, sha256: str, key: str, media_type: str, width: int, height: int, size: int
    ) -> datetime:
        """Add a file and return when it was first uploaded. Idempotent: the same bytes again are the same file."""
        new = upsert(FileRow).values(
            tenant=tenant, sha256=sha256, key=key, media_type=media_type, width=width, height=height, size=size
        )
        same = new.on_conflict_do_update(index_elements=[FileRow.tenant, FileRow.sha256], set_={"used_at": func.now()})
        created_at: datetime = self._run(same.returning(FileRow.created_at))[0].created_at
        return created_at

    def get(self, sha256: str, tenant: Tenant) -> StoredFile:
        """The file with these bytes. Raises NotFound, also for another tenant's file."""
        rows = self._fetch(
            StoredFile, select(FileRow.__table__).where(FileRow.tenant == tenant, FileRow.sha256 == sha256)
        )
        if not rows:
            raise NotFound(f"There is no file {sha256}; upload it first with POST /v1/files.")
        return rows[0]

    def known(self, sha256s: Sequence[str], tenant: Tenant) -> set[str]:
        """The subset of these files that the tenant has; each counts as used now, and is not deleted for its age."""
        self._run(_USE, {"tenant": tenant, "sha256s": list(sha256s)})
        found = select(FileRow.sha256).where(FileRow.tenant == tenant, FileRow.sha256.in_(sha256s))
        return {row.sha256 for row in self._run(found)}
