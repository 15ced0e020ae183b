"""Uploaded images, each tenant's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select, text

from shared.database.connections import Connections
from shared.database.idempotency import Once, reserve
from shared.database.tables import FileRow
from shared.database.usage import storage_full
from tuwen.errors import NotFound
from tuwen.jobs import Tenant

# The first part locks the tenant's counter until the end of the statement, also when it stays as it is; so no two
# uploads of a tenant pass the bound together. The update of a known file changes nothing, but without it the statement
# would not return the row. A trigger counts what was added.
_ADD = text("""
    WITH usage AS (
        INSERT INTO tenant_usage AS u (tenant) VALUES (CAST(:tenant AS text))
        ON CONFLICT (tenant) DO UPDATE SET stored_bytes = u.stored_bytes
        RETURNING stored_bytes
    ), added AS (
        INSERT INTO files (tenant, sha256, key, media_type, width, height, size)
        SELECT CAST(:tenant AS text), CAST(:sha256 AS text), CAST(:key AS text), CAST(:media_type AS text),
            CAST(:width AS int), CAST(:height AS int), CAST(:size AS int)
        FROM usage
        WHERE CAST(:most AS bigint) IS NULL OR usage.stored_bytes + CAST(:size AS bigint) <= CAST(:most AS bigint)
            OR EXISTS (SELECT FROM files WHERE tenant = CAST(:tenant AS text) AND sha256 = CAST(:sha256 AS text))
        ON CONFLICT (tenant, sha256) DO UPDATE SET key = EXCLUDED.key
        RETURNING created_at
    )
    SELECT usage.stored_bytes, added.created_at FROM usage LEFT JOIN added ON true
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
        self._connections = connections
        self._run = connections.run
        self._fetch = connections.fetch

    def add(
        self,
        *,
        tenant: Tenant,
        sha256: str,
        key: str,
        media_type: str,
        width: int,
        height: int,
        size: int,
        most: int | None = None,
        once: Once | None = None,
    ) -> datetime:
        """Add a file and return when it was first uploaded. Idempotent: the same bytes again are the same file.

        Args:
            most: bytes that the tenant may have stored; exact under concurrency.

        Raises:
            IdempotencyMismatch: something else was asked for under the key of `once`.
            StorageQuotaExceeded
        """
        values = {"sha256": sha256, "key": key, "media_type": media_type, "width": width, "height": height}
        with self._connections.transaction() as connection:
            if once is not None:
                reserve(connection, tenant, once, [sha256])  # what was made under it before are these bytes
            [row] = connection.execute(_ADD, {"tenant": tenant, "size": size, "most": most, **values}).all()
            if row.created_at is None:
                raise storage_full(row.stored_bytes, most or 0, size)
        created_at: datetime = row.created_at
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
        """The subset of these files that the tenant has."""
        found = select(FileRow.sha256).where(FileRow.tenant == tenant, FileRow.sha256.in_(sha256s))
        return {row.sha256 for row in self._run(found)}
