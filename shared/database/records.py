"""What PostgreSQL keeps beside jobs: API keys, uploaded files, live workers, webhooks owed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import delete, func, insert, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert
from uuid_utils.compat import uuid7

from shared.database.connections import Connections, seconds
from shared.database.tables import ApiKeyRow, FileRow, WebhookRow, WorkerRow
from shared.settings import Settings
from tuwen.errors import InvalidRequest, NotFound
from tuwen.jobs import Kind, Tenant

_TENANT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", re.ASCII)

# The wait before attempt n + 1 is 5·4ⁿ seconds, at most an hour.
_TAKE_WEBHOOKS = text("""
    WITH due AS MATERIALIZED (
        SELECT webhooks.id FROM webhooks JOIN jobs ON jobs.id = webhooks.job_id
        -- What is tried again has nothing to tell until it ends again.
        WHERE due_at <= now() AND jobs.finished_at IS NOT NULL
        ORDER BY due_at LIMIT :most FOR UPDATE OF webhooks SKIP LOCKED
    )
    UPDATE webhooks SET
        attempts = webhooks.attempts + 1,
        due_at = now() + LEAST(3600, 5 * 4 ^ webhooks.attempts) * interval '1 second'
    FROM due, jobs
    WHERE webhooks.id = due.id AND jobs.id = webhooks.job_id
    RETURNING webhooks.id, webhooks.url, webhooks.attempts, webhooks.job_id, jobs.tenant, jobs.status,
        jobs.finished_at
""")


class Keys:
    """API keys; only their hashes are kept."""

    def __init__(self, connections: Connections):
        self._run = connections.run

    def add(self, *, name: str, tenant: Tenant, sha256: str, quota: int) -> UUID:
        """Raises InvalidRequest for a tenant that cannot name a folder of the object storage."""
        if not _TENANT.fullmatch(tenant):
            raise InvalidRequest(
                f"A tenant is named by 1 to 64 letters, digits, '_', '-' and '.', not {tenant!r}.", field="tenant"
            )
        id = uuid7()
        self._run(insert(ApiKeyRow).values(id=id, name=name, tenant=tenant, sha256=sha256, quota=quota))
        return id

    def find(self, sha256: str) -> Any | None:
        """The unrevoked key with this hash: a row of id, name, tenant, sha256, quota."""
        key = select(ApiKeyRow.__table__).where(ApiKeyRow.sha256 == sha256, ApiKeyRow.revoked_at.is_(None))
        return next(iter(self._run(key)), None)

    def all(self) -> list[Any]:
        return self._run(select(ApiKeyRow.__table__).order_by(ApiKeyRow.created_at))

    def revoke(self, id: UUID) -> None:
        """Raises NotFound when there is no such unrevoked key."""
        found = update(ApiKeyRow).where(ApiKeyRow.id == id, ApiKeyRow.revoked_at.is_(None))
        if not self._run(found.values(revoked_at=func.now()).returning(ApiKeyRow.id)):
            raise NotFound(f"There is no active key {id}.")


class Files:
    """Uploaded images, each tenant's own."""

    def __init__(self, connections: Connections):
        self._run = connections.run

    def add(
        self, *, tenant: Tenant, sha256: str, key: str, media_type: str, width: int, height: int, size: int
    ) -> datetime:
        """Idempotent: the same bytes again are the same file. When they came first."""
        new = upsert(FileRow).values(
            tenant=tenant, sha256=sha256, key=key, media_type=media_type, width=width, height=height, size=size
        )
        # An update that changes nothing, since only what is written is returned.
        same = new.on_conflict_do_update(index_elements=[FileRow.tenant, FileRow.sha256], set_={"key": key})
        created_at: datetime = self._run(same.returning(FileRow.created_at))[0].created_at
        return created_at

    def get(self, sha256: str, tenant: Tenant) -> Any:
        """A row of all columns. Raises NotFound also for another tenant's file."""
        rows = self._run(select(FileRow.__table__).where(FileRow.tenant == tenant, FileRow.sha256 == sha256))
        if not rows:
            raise NotFound(f"There is no file {sha256}; upload it first with POST /v1/files.")
        return rows[0]

    def known(self, sha256s: Sequence[str], tenant: Tenant) -> set[str]:
        """Those of these files that the tenant has."""
        found = select(FileRow.sha256).where(FileRow.tenant == tenant, FileRow.sha256.in_(sha256s))
        return {row.sha256 for row in self._run(found)}


class Workers:
    """What workers say of themselves."""

    def __init__(self, connections: Connections, settings: Settings):
        self._run = connections.run
        self._lease = settings.lease

    def register(self, worker: str, device: str, models: Mapping[Kind, Mapping[str, Any]]) -> None:
        """A worker is warm and takes jobs; whatever ran under its name before is over.

        Of each kind: `model` and `revision` of its default model, and `all` its models' revisions by name.
        """
        said = {"device": device, "models": {kind.value: dict(model) for kind, model in models.items()}}
        self._run(
            upsert(WorkerRow)
            .values(name=worker, state="ready", **said)
            .on_conflict_do_update(
                index_elements=[WorkerRow.name],
                set_={"state": "ready", "started_at": func.now(), "seen_at": func.now(), **said},
            )
        )

    def unregister(self, worker: str) -> None:
        self._run(delete(WorkerRow).where(WorkerRow.name == worker))

    def alive(self) -> list[Any]:
        """Rows of `workers` that were heard of within the lease, with all columns."""
        alive = WorkerRow.seen_at > func.now() - seconds(self._lease)
        return self._run(select(WorkerRow.__table__).where(alive).order_by(WorkerRow.name))

    def seen(self, worker: str) -> None:
        """It has just been heard of."""
        self._run(update(WorkerRow).where(WorkerRow.name == worker).values(seen_at=func.now()), relaxed=True)

    def forget(self) -> None:
        """Drop workers that died without saying so, an hour after they were last heard of."""
        self._run(delete(WorkerRow).where(WorkerRow.seen_at < func.now() - seconds(3600)))


class Webhooks:
    """Deliveries owed: written by the transitions that end jobs, settled here."""

    def __init__(self, connections: Connections):
        self._run = connections.run

    def take(self, most: int) -> list[Any]:
        """Deliveries that are due: rows of id, url, attempts, job_id, tenant, status, finished_at.

        Taking one puts it off by its backoff, so that a housekeeper that dies delivers it again.
        """
        return self._run(_TAKE_WEBHOOKS, {"most": most})

    def delivered(self, id: UUID) -> None:
        delivered = update(WebhookRow).where(WebhookRow.id == id)
        self._run(delivered.values(delivered_at=func.now(), due_at=None, error=None))

    def failed(self, id: UUID, error: str, *, give_up: bool) -> None:
        """Note why; the next try is already planned unless `give_up`."""
        tried = update(WebhookRow).where(WebhookRow.id == id)
        self._run(tried.values(error=error, due_at=None) if give_up else tried.values(error=error))
