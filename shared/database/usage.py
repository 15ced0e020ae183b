"""What tenants use, and the bounds that their keys set to it.

Stored bytes are counted in one row for each tenant, which triggers keep (migration 0011): uploaded images and the files
of batches count from the statement that adds their row until the one that removes it, and the pictures of a job from
its end. No request adds anything up.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pydantic import ByteSize
from sqlalchemy import Connection, func, select, text

from shared.database.connections import Connections
from shared.database.tables import BatchRow, DatasetRow
from tuwen.errors import QuotaExceeded, StorageQuotaExceeded
from tuwen.jobs import Tenant

_USAGE = text("""
    SELECT wanted.tenant,
        COALESCE((SELECT stored_bytes FROM tenant_usage AS u WHERE u.tenant = wanted.tenant), 0) AS stored_bytes,
        (SELECT count(*) FROM jobs WHERE jobs.tenant = wanted.tenant AND status IN ('queued', 'running')) AS jobs,
        (SELECT count(*) FROM datasets AS d
            WHERE d.tenant = wanted.tenant AND status IN ('planning', 'running', 'exporting')) AS datasets,
        (SELECT count(*) FROM batches AS b WHERE b.tenant = wanted.tenant AND finished_at IS NULL) AS batches
    FROM unnest(CAST(:tenants AS text[])) AS wanted (tenant)
""")

_ROOM = text("""
    SELECT COALESCE((SELECT stored_bytes FROM tenant_usage WHERE tenant = :tenant), 0) AS stored_bytes,
        EXISTS (SELECT FROM files WHERE tenant = :tenant AND sha256 = :sha256) AS known
""")


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one key allows its tenant; None means no bound."""

    stored_bytes: int | None = None
    datasets: int | None = None
    """Unfinished data sets at once."""
    batches: int | None = None
    """Unfinished batches at once."""


UNBOUNDED = Bounds()


@dataclass(frozen=True, slots=True)
class TenantUsage:
    """What a tenant uses now."""

    tenant: Tenant
    stored_bytes: int
    jobs: int
    datasets: int
    batches: int
    """These three count what is unfinished."""


class Usage:
    """Looks at what tenants use."""

    def __init__(self, connections: Connections):
        self._run = connections.run
        self._fetch = connections.fetch

    def of(self, tenants: Iterable[Tenant]) -> dict[Tenant, TenantUsage]:
        """What each of these tenants uses."""
        found = self._fetch(TenantUsage, _USAGE, {"tenants": sorted(set(tenants))})
        return {usage.tenant: usage for usage in found}

    def require_room(self, tenant: Tenant, most: int | None, size: int, sha256: str = "") -> None:
        """Look whether `size` more bytes may be stored, before anything is; an image that is stored already needs none.

        Whoever adds the row looks again, since others may add theirs meanwhile.

        Raises:
            StorageQuotaExceeded
        """
        if most is not None:
            [row] = self._run(_ROOM, {"tenant": tenant, "sha256": sha256})
            if not row.known and row.stored_bytes + size > most:
                raise storage_full(row.stored_bytes, most, size)

    def stored_bytes(self, tenant: Tenant) -> int:
        """Bytes that the tenant has stored."""
        [row] = self._run(_ROOM, {"tenant": tenant, "sha256": ""})
        return int(row.stored_bytes)


def storage_full(used: int, most: int, size: int) -> StorageQuotaExceeded:
    """The refusal of `size` bytes to a tenant that has stored `used` of `most`."""
    wanted = f"and this needs {_human(size)} more" if size else "which leaves no room for results"
    return StorageQuotaExceeded(
        f"This key may keep {_human(most)} stored, {_human(used)} are used, {wanted}: "
        "delete what is no longer needed, or have the bound raised with `tuwen keys limit`."
    )


def require_dataset_place(connection: Connection, tenant: Tenant, most: int | None) -> None:
    """Check exactly, until the transaction ends, that the tenant may have one more unfinished data set.

    Raises:
        QuotaExceeded
    """
    if most is not None:
        _take_turns(connection, tenant, 1)
        moving = DatasetRow.status.in_(["planning", "running", "exporting"])
        unfinished = select(func.count()).where(DatasetRow.tenant == tenant, moving)
        _require_fewer(connection.execute(unfinished).scalar_one(), most, "data sets")


def require_batch_place(connection: Connection, tenant: Tenant, most: int | None) -> None:
    """Check exactly, until the transaction ends, that the tenant may have one more unfinished batch.

    Raises:
        QuotaExceeded
    """
    if most is not None:
        _take_turns(connection, tenant, 2)
        unfinished = select(func.count()).where(BatchRow.tenant == tenant, BatchRow.finished_at.is_(None))
        _require_fewer(connection.execute(unfinished).scalar_one(), most, "batches")


def _take_turns(connection: Connection, tenant: Tenant, what: int) -> None:
    """Have those who add the same thing for the same tenant do it one after another."""
    connection.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(tenant, what))))


def _require_fewer(unfinished: int, most: int, what: str) -> None:
    if unfinished >= most:
        raise QuotaExceeded(
            f"This key may have {most} unfinished {what} at once and has {unfinished}; "
            "wait for one to end, cancel one, or have the bound raised with `tuwen keys limit`.",
            retry_after=60,
        )


def _human(count: int) -> str:
    return ByteSize(count).human_readable(separator=" ")
