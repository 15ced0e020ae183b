"""API keys, of which only hashes are kept."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import func, insert, select, update
from uuid_utils.compat import uuid7

from shared.database.connections import Connections
from shared.database.tables import ApiKeyRow
from tuwen.errors import InvalidRequest, NotFound
from tuwen.jobs import Tenant

_TENANT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", re.ASCII)


@dataclass(frozen=True, slots=True)
class ApiKey:
    """An API key, without what it is."""

    id: UUID
    name: str
    tenant: Tenant
    sha256: str
    """SHA-256 of the key, in hexadecimal."""
    quota: int
    """Unfinished jobs that it may have at once."""
    dataset_roots: tuple[str, ...]
    """Folders and `s3://` prefixes that its data sets may lie in."""
    created_at: datetime
    revoked_at: datetime | None


class Keys:
    """API keys; only their hashes are stored."""

    def __init__(self, connections: Connections):
        self._run = connections.run
        self._fetch = connections.fetch

    def add(self, *, name: str, tenant: Tenant, sha256: str, quota: int, dataset_roots: Sequence[str] = ()) -> UUID:
        """Add a key. Raises InvalidRequest when the tenant cannot be the name of a folder in the object storage."""
        if not _TENANT.fullmatch(tenant):
            raise InvalidRequest(
                f"A tenant's name has 1 to 64 letters, digits, '_', '-' and '.'; {tenant!r} does not fit.",
                field="tenant",
            )
        id = uuid7()
        new = insert(ApiKeyRow).values(id=id, name=name, tenant=tenant, sha256=sha256, quota=quota)
        self._run(new.values(dataset_roots=list(dataset_roots)))
        return id

    def find(self, sha256: str) -> ApiKey | None:
        """The active key with this hash."""
        key = select(ApiKeyRow.__table__).where(ApiKeyRow.sha256 == sha256, ApiKeyRow.revoked_at.is_(None))
        return next(iter(self._fetch(ApiKey, key)), None)

    def all(self) -> list[ApiKey]:
        """All keys, revoked ones too, the oldest first."""
        return self._fetch(ApiKey, select(ApiKeyRow.__table__).order_by(ApiKeyRow.created_at))

    def allow_datasets(self, id: UUID, roots: Sequence[str]) -> None:
        """Change the places that the data sets of a key may lie in; a revoked one too, since its data sets go on.

        Raises:
            NotFound: there is no key with this id.
        """
        changed = update(ApiKeyRow).where(ApiKeyRow.id == id).values(dataset_roots=list(roots))
        if not self._run(changed.returning(ApiKeyRow.id)):
            raise NotFound(f"There is no key {id}.")

    def revoke(self, id: UUID) -> None:
        """Revoke a key. Raises NotFound when there is no active key with this id."""
        found = update(ApiKeyRow).where(ApiKeyRow.id == id, ApiKeyRow.revoked_at.is_(None))
        if not self._run(found.values(revoked_at=func.now()).returning(ApiKeyRow.id)):
            raise NotFound(f"There is no active key {id}.")
