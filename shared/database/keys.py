"""API keys, of which only hashes are kept."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import SecretStr
from sqlalchemy import ColumnElement, Select, func, insert, select, update
from uuid_utils.compat import uuid7

from shared.database.connections import Connections, seconds
from shared.database.tables import ApiKeyRow
from tuwen.errors import Forbidden, InvalidRequest, NotFound
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
    max_stored_bytes: int | None
    """None, as in the next two: the installation's default."""
    max_datasets: int | None
    max_batches: int | None
    """Unfinished data sets, and batches, that it may have at once."""
    signs_webhooks: bool
    """Whether it has a webhook secret of its own."""
    dataset_roots: tuple[str, ...]
    """Folders and `s3://` prefixes that its data sets may lie in."""
    created_at: datetime
    revoked_at: datetime | None


class Keys:
    """API keys; only their hashes are stored."""

    def __init__(self, connections: Connections):
        self._run = connections.run
        self._fetch = connections.fetch

    def add(
        self,
        *,
        name: str,
        tenant: Tenant,
        sha256: str,
        quota: int,
        dataset_roots: Sequence[str] = (),
        webhook_secret: SecretStr | None = None,
        **bounds: int | None,
    ) -> UUID:
        """Add a key.

        Args:
            dataset_roots: places that its data sets may lie in.
            webhook_secret: signs the webhooks of its jobs; without it, the installation's secret does.
            bounds: `max_stored_bytes`, `max_datasets`, `max_batches`; the installation's defaults hold for those
                that are left out or None.

        Raises:
            InvalidRequest: the tenant cannot be the name of a folder in the object storage.
        """
        if not _TENANT.fullmatch(tenant):
            raise InvalidRequest(
                f"A tenant's name has 1 to 64 letters, digits, '_', '-' and '.'; {tenant!r} does not fit.",
                field="tenant",
            )
        id = uuid7()
        secret = webhook_secret and webhook_secret.get_secret_value()
        new = insert(ApiKeyRow).values(id=id, name=name, tenant=tenant, sha256=sha256, quota=quota, **bounds)
        self._run(new.values(dataset_roots=list(dataset_roots), webhook_secret=secret))
        return id

    def find(self, sha256: str) -> ApiKey | None:
        """The active key with this hash."""
        key = _KEYS.where(ApiKeyRow.sha256 == sha256, ApiKeyRow.revoked_at.is_(None))
        return next(iter(self._fetch(ApiKey, key)), None)

    def active(self, sha256s: Collection[str]) -> set[str]:
        """Those of these hashes that belong to active keys."""
        found = select(ApiKeyRow.sha256).where(ApiKeyRow.sha256.in_(sha256s), ApiKeyRow.revoked_at.is_(None))
        return {row.sha256 for row in self._run(found)}

    def require_active(self, tenant: Tenant, id: UUID | None) -> None:
        """Require that this key of the tenant is active, or any of its keys where `id` is None. Raises Forbidden."""
        active = select(ApiKeyRow.id).where(ApiKeyRow.tenant == tenant, ApiKeyRow.revoked_at.is_(None))
        if not self._run((active if id is None else active.where(ApiKeyRow.id == id)).limit(1)):
            raise Forbidden("The API key for which this URL was made has been revoked.")

    def all(self) -> list[ApiKey]:
        """All keys, revoked ones too, the oldest first."""
        return self._fetch(ApiKey, _KEYS.order_by(ApiKeyRow.created_at))

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
        self._change(id, revoked_at=func.now())

    def limit(self, id: UUID, **bounds: int | None) -> None:
        """Change bounds of an active key: `quota`, and those of `add`; None is the installation's default.

        Raises:
            NotFound: there is no active key with this id.
        """
        self._change(id, **bounds)

    def rotate_webhook_secret(self, id: UUID, secret: SecretStr, overlap: float) -> None:
        """Give an active key another webhook secret; for `overlap` seconds the one before signs too.

        Raises:
            NotFound: there is no active key with this id.
        """
        self._change(
            id,
            webhook_secret=secret.get_secret_value(),
            old_webhook_secret=ApiKeyRow.webhook_secret,
            old_webhook_secret_until=func.now() + seconds(overlap),
        )

    def _change(self, id: UUID, **values: ColumnElement[Any] | object) -> None:
        found = update(ApiKeyRow).where(ApiKeyRow.id == id, ApiKeyRow.revoked_at.is_(None))
        if not self._run(found.values(**values).returning(ApiKeyRow.id)):
            raise NotFound(f"There is no active key {id}.")


_KEYS: Select[Any] = select(ApiKeyRow.__table__, ApiKeyRow.webhook_secret.is_not(None).label("signs_webhooks"))
