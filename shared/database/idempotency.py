"""`Idempotency-Key`: what was made under a key is made once, whoever asks again and however often.

A key belongs to a tenant and is kept for a day. It is reserved in the same transaction that makes what was asked for,
so there is neither a key without its effect nor an effect without its key. A second request with the key waits for the
first one to commit or roll back, and is then told what the first one made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Executable, Row, delete, func, select
from sqlalchemy.dialects.postgresql import insert as upsert

from shared.database.connections import Connections, seconds
from shared.database.tables import IdempotencyRow
from tuwen.errors import Conflict, IdempotencyMismatch
from tuwen.jobs import Tenant

LIFETIME = 86_400.0
"""Seconds for which a key is kept, as clients of other services expect."""


@dataclass(frozen=True, slots=True)
class Once:
    """A client's key, and the hash of what is asked for under it."""

    key: str
    request_sha256: str


def reserve(connection: Connection, tenant: Tenant, once: Once, made: Sequence[str]) -> list[str] | None:
    """Reserve the key for what this transaction makes, or return the ids of what was made under it before.

    Raises:
        IdempotencyMismatch: something else was asked for under the key.
    """
    taken = connection.execute(
        upsert(IdempotencyRow)
        .values(tenant=tenant, key=once.key, body_sha256=once.request_sha256, job_ids=[*made])
        .on_conflict_do_nothing()
        .returning(IdempotencyRow.key)
    ).first()
    if taken is not None:
        return None
    before = connection.execute(
        select(IdempotencyRow.body_sha256, IdempotencyRow.job_ids).where(_is(tenant, once))
    ).one()
    if before.body_sha256 != once.request_sha256:
        raise IdempotencyMismatch(
            "This Idempotency-Key was used with another request; use a new key for a new request.",
            field="Idempotency-Key",
        )
    return list(before.job_ids)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a statement returned, or what was made under the same key before."""

    rows: list[Row[Any]]
    before: list[str] | None = None


def run_once(
    connections: Connections,
    tenant: Tenant,
    once: Once | None,
    made: str,
    statement: Executable,
    values: Mapping[str, object] | None = None,
    *,
    require: Callable[[Connection], None] | None = None,
) -> Outcome:
    """Execute one statement, under a key if there is one. A statement that returns no row did nothing: the key stays
    free.

    Args:
        require: called in the same transaction before the statement, unless it was executed before under the key; what
            it raises leaves the key free.

    Raises:
        IdempotencyMismatch: something else was asked for under the key.
    """
    if once is None and require is None:
        return Outcome(connections.run(statement, values))
    with connections.transaction() as connection:
        before = reserve(connection, tenant, once, [made]) if once is not None else None
        if before is not None:
            return Outcome([], before)
        if require is not None:
            require(connection)
        rows = list(connection.execute(statement, values or {}).all())
        if once is not None and not rows:
            connection.execute(delete(IdempotencyRow).where(_is(tenant, once)))
    return Outcome(rows)


def deleted(what: str) -> Conflict:
    """The error of a request whose key made something that was deleted since: making it again is not what was asked."""
    return Conflict(
        f"This Idempotency-Key made a {what} that was deleted since; use a new key to make another.",
        field="Idempotency-Key",
    )


def forget(connections: Connections) -> None:
    """Delete the keys that are older than `LIFETIME`."""
    connections.run(delete(IdempotencyRow).where(IdempotencyRow.created_at < func.now() - seconds(LIFETIME)))


def _is(tenant: Tenant, once: Once) -> Any:
    return (IdempotencyRow.tenant == tenant) & (IdempotencyRow.key == once.key)
