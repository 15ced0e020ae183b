"""Batches in PostgreSQL: their files, their progress, and the lines that are being processed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Insert, delete, func, insert, select, text, update

from shared.database.batch_status import BatchStatus
from shared.database.connections import Connections, rows_as, seconds
from shared.database.idempotency import Once, deleted, run_once
from shared.database.shards import Renewal, renewal
from shared.database.tables import BatchLineRow, BatchRow, DocumentRow, JobRow
from shared.database.usage import require_batch_place, storage_full
from tuwen.errors import Conflict, NotFound
from tuwen.jobs import Tenant

_TAKE = text("""
    WITH due AS MATERIALIZED (
        SELECT id FROM batches WHERE due_at <= now() ORDER BY due_at LIMIT 1 FOR UPDATE SKIP LOCKED
    )
    UPDATE batches SET epoch = epoch + 1, due_at = now() + :lease * interval '1 second'
    FROM due WHERE batches.id = due.id
    RETURNING batches.*, EXTRACT(EPOCH FROM now() - part_at)::float8 AS since_part,
        EXTRACT(EPOCH FROM expires_at - now())::float8 AS time_left
""")


_LOCK_USAGE = text("""
    INSERT INTO tenant_usage AS u (tenant) VALUES (:tenant)
    ON CONFLICT (tenant) DO UPDATE SET stored_bytes = u.stored_bytes
    RETURNING stored_bytes
""")


_RENEW = text("""
    UPDATE batches SET due_at = now() + :lease * interval '1 second'
    FROM unnest(CAST(:ids AS uuid[]), CAST(:epochs AS int[])) AS held (id, epoch)
    WHERE batches.id = held.id AND batches.epoch = held.epoch
    RETURNING batches.id, false AS cancelled
""")


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a batch that became a job."""

    number: int
    custom_id: str
    job_id: UUID
    response_format: str | None = None


@dataclass(frozen=True, slots=True)
class NewDocument:
    """A document to be inserted; its object is already stored."""

    id: UUID
    key: str
    filename: str
    purpose: str
    size: int


@dataclass(frozen=True, slots=True)
class StoredDocument:
    """A file that is no image, as it is kept."""

    id: UUID
    tenant: Tenant
    key: str
    """Key of its object in the storage."""
    filename: str
    purpose: str
    size: int
    """Bytes."""
    created_at: datetime


@dataclass(frozen=True, slots=True)
class StoredBatch:
    """A batch as its owner sees it."""

    id: UUID
    tenant: Tenant
    endpoint: str
    input_id: UUID
    completion_window: str
    labels: Mapping[str, Any]
    """What the client calls `metadata`."""
    status: BatchStatus
    problems: Sequence[Mapping[str, Any]]
    """What is wrong with its input, as the API tells it."""
    total: int
    completed: int
    failed: int
    """These three count lines."""
    output_id: UUID | None
    errors_id: UUID | None
    created_at: datetime
    in_progress_at: datetime | None
    cancelling_at: datetime | None
    finalizing_at: datetime | None
    finished_at: datetime | None
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class BatchClaim:
    """A batch that this process sees to until it has done a step, or loses its lease."""

    id: UUID
    epoch: int
    tenant: Tenant
    quota: int | None
    """Unfinished jobs that the tenant may have at once."""
    max_stored_bytes: int | None
    """Bytes that the tenant may have stored."""
    endpoint: str
    input_id: UUID
    base_url: str
    """Address under which the client reached the API, for addresses in answers."""
    status: BatchStatus
    position: int
    """Bytes of the input that have become jobs."""
    line: int
    """Lines of the input that have become jobs."""
    parts: int
    """Parts of the output that are written."""
    cancelling_at: datetime | None
    since_part: float
    """Seconds since the last part was written."""
    time_left: float
    """Seconds until the batch expires; negative once it has."""


class Documents:
    """Files other than images; each tenant sees its own."""

    def __init__(self, connections: Connections):
        self._connections = connections
        self._run = connections.run
        self._fetch = connections.fetch

    def add(
        self, document: NewDocument, tenant: Tenant, most: int | None = None, once: Once | None = None
    ) -> StoredDocument:
        """Note a file whose object is stored; the file that was noted before under the same key instead, if any.

        Args:
            most: bytes that the tenant may have stored; exact under concurrency.

        Raises:
            IdempotencyMismatch: something else was asked for under the key of `once`.
            Conflict: what was made under the key was deleted.
            StorageQuotaExceeded
        """

        def require_room(connection: Connection) -> None:
            used = connection.execute(_LOCK_USAGE, {"tenant": tenant}).scalar_one()
            if most is not None and used + document.size > most:
                raise storage_full(used, most, document.size)

        new = _insertion(document, tenant).returning(DocumentRow.__table__)
        outcome = run_once(self._connections, tenant, once, str(document.id), new, require=require_room)
        if not outcome.before:
            return rows_as(StoredDocument, outcome.rows)[0]
        try:
            return self.get(UUID(outcome.before[0]), tenant)
        except NotFound:
            raise deleted("file") from None

    def get(self, id: UUID, tenant: Tenant) -> StoredDocument:
        """Raises NotFound also for another tenant's document."""
        rows = self._fetch(
            StoredDocument, select(DocumentRow.__table__).where(DocumentRow.id == id, DocumentRow.tenant == tenant)
        )
        if not rows:
            raise NotFound("There is no file with this id.")
        return rows[0]

    def page(
        self, tenant: Tenant, *, purpose: str | None, after: UUID | None, limit: int, newest_first: bool
    ) -> list[StoredDocument]:
        """Documents of a tenant, oldest or newest first."""
        query = select(DocumentRow.__table__).where(DocumentRow.tenant == tenant).limit(limit)
        if purpose is not None:
            query = query.where(DocumentRow.purpose == purpose)
        if after is not None:
            query = query.where(DocumentRow.id < after if newest_first else DocumentRow.id > after)
        return self._fetch(StoredDocument, query.order_by(DocumentRow.id.desc() if newest_first else DocumentRow.id))

    def remove(self, id: UUID, tenant: Tenant) -> str:
        """Delete a document's row and return the key of its object, which the caller has to delete.

        Raises:
            NotFound
            Conflict: a batch that is not over reads the document.
        """
        reading = select(BatchRow.id).where(BatchRow.input_id == id, BatchRow.finished_at.is_(None))
        if self._run(reading.where(BatchRow.tenant == tenant).limit(1)):
            raise Conflict("A batch that is not over reads this file; cancel it first.")
        gone = delete(DocumentRow).where(DocumentRow.id == id, DocumentRow.tenant == tenant)
        rows = self._run(gone.returning(DocumentRow.key))
        if not rows:
            raise NotFound("There is no file with this id.")
        return str(rows[0].key)


class Batches:
    """Batches. Each step of a batch is fenced by the epoch of its lease, like the claims of jobs.

    Raises:
        Conflict: from every method that names an epoch, when another process has the batch by now.
    """

    def __init__(self, connections: Connections):
        self._connections = connections
        self._run = connections.run
        self._fetch = connections.fetch

    # ── the client's side ─────────────────────────────────────────────────────────────────────────

    def add(
        self, values: Mapping[str, Any], lifetime: float, most: int | None = None, once: Once | None = None
    ) -> StoredBatch:
        """Insert a batch, which expires after `lifetime` seconds; `values` are columns of its row.

        Returns the batch that was made before under the same key, if any.

        Args:
            most: unfinished batches that the tenant may have at once; exact under concurrency.

        Raises:
            IdempotencyMismatch: something else was asked for under the key of `once`.
            QuotaExceeded
        """
        tenant: Tenant = values["tenant"]

        def require_place(connection: Connection) -> None:
            require_batch_place(connection, tenant, most)

        new = insert(BatchRow).values(expires_at=func.now() + seconds(lifetime), **values).returning(BatchRow.__table__)
        outcome = run_once(self._connections, tenant, once, str(values["id"]), new, require=require_place)
        if outcome.before:
            return self.get(UUID(outcome.before[0]), tenant)
        return rows_as(StoredBatch, outcome.rows)[0]

    def get(self, id: UUID, tenant: Tenant) -> StoredBatch:
        """Raises NotFound also for another tenant's batch."""
        rows = self._fetch(StoredBatch, select(BatchRow.__table__).where(BatchRow.id == id, BatchRow.tenant == tenant))
        if not rows:
            raise NotFound("There is no batch with this id.")
        return rows[0]

    def page(self, tenant: Tenant, *, after: UUID | None, limit: int) -> list[StoredBatch]:
        """Batches of a tenant, the newest first."""
        query = select(BatchRow.__table__).where(BatchRow.tenant == tenant)
        query = query if after is None else query.where(BatchRow.id < after)
        return self._fetch(StoredBatch, query.order_by(BatchRow.id.desc()).limit(limit))

    def cancel(self, id: UUID, tenant: Tenant) -> StoredBatch:
        """Request the cancellation of a batch. Raises NotFound, or Conflict when it is over."""
        wanted = update(BatchRow).where(
            BatchRow.id == id,
            BatchRow.tenant == tenant,
            BatchRow.status.in_([BatchStatus.VALIDATING.value, BatchStatus.IN_PROGRESS.value]),
        )
        values = {"status": BatchStatus.CANCELLING.value, "cancelling_at": func.now(), "due_at": func.now()}
        # The epoch is raised, so that a step in progress does not submit more jobs.
        rows = self._fetch(StoredBatch, wanted.values(epoch=BatchRow.epoch + 1, **values).returning(BatchRow.__table__))
        if rows:
            return rows[0]
        batch = self.get(id, tenant)
        if batch.status is BatchStatus.CANCELLING:
            return batch
        raise Conflict(f"The batch is {batch.status}; only one that is not over can be cancelled.")

    # ── the runner's side ────────────────────────────────────────────────────────────────────────

    def take(self, lease: float) -> BatchClaim | None:
        """Lease a due batch for `lease` seconds; None when none is due."""
        return next(iter(self._fetch(BatchClaim, _TAKE, {"lease": lease})), None)

    def renew(self, held: Mapping[UUID, int], lease: float) -> Renewal:
        """One heartbeat: renew the leases of `held` (id → epoch) for `lease` seconds."""
        ids = sorted(held)
        rows = self._connections.run(
            _RENEW, {"ids": ids, "epochs": [held[id] for id in ids], "lease": lease}, relaxed=True
        )
        return renewal(held, rows)

    def begin(self, id: UUID, epoch: int, total: int) -> None:
        """Start the batch: its input is valid and has `total` requests."""
        values: dict[str, Any] = {"status": BatchStatus.IN_PROGRESS.value, "in_progress_at": func.now(), "total": total}
        self._change(id, epoch, due_at=func.now(), **values)

    def fail(self, id: UUID, epoch: int, problems: Sequence[Mapping[str, Any]]) -> None:
        """End the batch as failed: its input is not valid."""
        values: dict[str, Any] = {"status": BatchStatus.FAILED.value, "problems": [*problems], "due_at": None}
        self._change(id, epoch, finished_at=func.now(), **values)

    def put_off(self, id: UUID, epoch: int, pause: float) -> None:
        """Give the lease back; the batch is due again in `pause` seconds."""
        self._change(id, epoch, due_at=func.now() + seconds(pause))

    def advance(
        self,
        id: UUID,
        epoch: int,
        lines: Sequence[Line] = (),
        *,
        position: int,
        line: int,
        refused: int,
        connection: Connection | None = None,
    ) -> None:
        """Note that the input was read up to byte `position`, after line `line`: `lines` became jobs, and the answers
        of `refused` others are in a part."""
        if connection is None:
            with self._connections.transaction() as own:
                self.advance(id, epoch, lines, position=position, line=line, refused=refused, connection=own)
            return
        values: dict[str, Any] = {"position": position, "line": line, "failed": BatchRow.failed + refused}
        if refused:
            values |= {"parts": BatchRow.parts + 1}
        self._change(id, epoch, connection, due_at=func.now(), **values)
        if lines:
            rows = [
                {
                    "batch_id": id,
                    "number": each.number,
                    "custom_id": each.custom_id,
                    "job_id": each.job_id,
                    "response_format": each.response_format,
                }
                for each in lines
            ]
            connection.execute(insert(BatchLineRow), rows)

    def finished_lines(self, id: UUID, most: int) -> list[Line]:
        """The first lines, at most `most`, whose job is over."""
        over = (
            select(BatchLineRow.number, BatchLineRow.custom_id, BatchLineRow.job_id, BatchLineRow.response_format)
            .join(JobRow, JobRow.id == BatchLineRow.job_id)
            .where(BatchLineRow.batch_id == id, JobRow.finished_at.is_not(None))
        )
        return self._fetch(Line, over.order_by(BatchLineRow.number).limit(most))

    def jobs_under_way(self, id: UUID) -> list[UUID]:
        """Jobs of lines whose answers are not written yet."""
        return [row.job_id for row in self._run(select(BatchLineRow.job_id).where(BatchLineRow.batch_id == id))]

    def mark_answered(self, id: UUID, epoch: int, numbers: Sequence[int], *, completed: int, failed: int) -> None:
        """Note that the answers of these lines are in a part."""
        with self._connections.transaction() as connection:
            self._change(
                id,
                epoch,
                connection,
                completed=BatchRow.completed + completed,
                failed=BatchRow.failed + failed,
                parts=BatchRow.parts + 1,
                part_at=func.now(),
                due_at=func.now(),
            )
            done = (BatchLineRow.batch_id == id) & BatchLineRow.number.in_(numbers)
            connection.execute(delete(BatchLineRow).where(done))

    def finalize(self, id: UUID, epoch: int) -> None:
        """Note that the parts are being joined."""
        self._change(id, epoch, ends_step=False, status=BatchStatus.FINALIZING.value, finalizing_at=func.now())

    def finish(
        self,
        id: UUID,
        epoch: int,
        tenant: Tenant,
        status: BatchStatus,
        output: NewDocument | None,
        errors: NewDocument | None,
    ) -> None:
        """End the batch with these output files."""
        with self._connections.transaction() as connection:
            for document in (output, errors):
                if document is not None:
                    connection.execute(_insertion(document, tenant))
            self._change(
                id,
                epoch,
                connection,
                status=status.value,
                finished_at=func.now(),
                due_at=None,
                output_id=output and output.id,
                errors_id=errors and errors.id,
            )

    def _change(
        self, id: UUID, epoch: int, connection: Connection | None = None, *, ends_step: bool = True, **values: object
    ) -> None:
        if ends_step:
            # The lease ends with the step: a heartbeat that is under way must not put off the next one.
            values["epoch"] = BatchRow.epoch + 1
        change = update(BatchRow).where(BatchRow.id == id, BatchRow.epoch == epoch).values(**values)
        change = change.returning(BatchRow.id)
        rows = self._run(change) if connection is None else connection.execute(change).all()
        if not rows:
            raise Conflict("Another process works on this batch by now.")


def _insertion(document: NewDocument, tenant: Tenant) -> Insert:
    return insert(DocumentRow).values(
        id=document.id,
        tenant=tenant,
        key=document.key,
        filename=document.filename,
        purpose=document.purpose,
        size=document.size,
    )
