"""Every state transition of a job, each as one guarded statement; `job_statements` draws the state machine.

A guard checks the status, and for a running job the epoch of its claim. So a worker that was presumed
dead changes nothing when it wakes up, and a message delivered twice runs once.
Statements for many jobs name them in the order of their ids, so that no two wait for each other's rows.
All times are PostgreSQL's: the clocks of hosts are never compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import Connection, Row, Select, func, select, text, update
from uuid_utils.compat import uuid7

from shared.database import job_lists
from shared.database import job_statements as transitions
from shared.database.connections import Connections, seconds
from shared.database.idempotency import Once, reserve
from shared.database.shards import Renewal, renewal
from shared.database.tables import JobRow
from shared.database.workers import Workers
from shared.fairness import PATIENCE
from shared.settings import Settings
from shared.telemetry.tracing import Parent
from tuwen.errors import Conflict, NotFound, QuotaExceeded
from tuwen.jobs import GenerateResult, Job, JobError, JobRequest, JobResult, Kind, Status, Tenant

SUSPICIOUS_LOSSES = 3
"""Workers that may die with a job in their hands, but in no batch, before it is run apart from all others."""

MOST_LOSSES = 10
"""Workers that may die so before the job is to blame for the next one: it is as likely as in the running batch."""


@dataclass(frozen=True, slots=True)
class Dispatch:
    """The content of a job's message: which job, for which queue, at which priority."""

    id: UUID
    kind: Kind
    priority: int


@dataclass(frozen=True, slots=True)
class JobClaim:
    """A job that a worker runs until it finishes it, gives it back, or loses the lease."""

    id: UUID
    epoch: int
    tenant: Tenant
    kind: Kind
    model: str
    priority: int
    request: dict[str, Any]
    attempts: int
    crashes: int
    waited: float
    """Seconds from the moment the job could have run to the claim."""
    trace: str | None = None
    """`traceparent` of the request that submitted the job."""
    tracestate: str | None = None
    losses: int = 0
    """Workers that died while they had the job, but not in their running batch."""

    @property
    def is_suspect(self) -> bool:
        """Whether the job may be what took a worker or an engine down."""
        return self.crashes > 0 or self.losses >= SUSPICIOUS_LOSSES


@dataclass(frozen=True, slots=True)
class Finish:
    """The end of a running job: a result, or an error that no further attempt would fix."""

    id: UUID
    epoch: int
    result: JobResult | None = None
    result_key: str | None = None
    error: JobError | None = None

    @property
    def stored_bytes(self) -> int | None:
        """Bytes of the pictures that the result keeps; None when it keeps none, or an early release told no sizes."""
        if not isinstance(self.result, GenerateResult):
            return None
        images = [self.result.image, *(candidate.image for candidate in self.result.candidates)]
        sizes = {image.key: image.size for image in images if image is not None}
        return sum(size for size in sizes.values() if size is not None) or None

    @property
    def status(self) -> Status:
        return Status.SUCCEEDED if self.error is None else Status.FAILED


@dataclass(frozen=True, slots=True)
class GiveBack:
    """A running job that was not finished. The statement `_SETTLE` alone decides what happens to it.

    `released` (the worker stops) costs nothing; `retry` costs an attempt; `crash` also counts towards the
    crashes that end in quarantine; `cancelled` means that the worker stopped the job on request.
    """

    id: UUID
    epoch: int
    reason: Literal["released", "retry", "crash", "cancelled"]
    error: JobError | None = None


@dataclass(frozen=True, slots=True)
class Submission:
    """Job ids in the order of the requests, and whether the `Idempotency-Key` had already made them."""

    ids: list[UUID]
    replayed: bool
    dispatches: list[Dispatch] = field(default_factory=list)
    """Messages to publish, now that the jobs are committed."""
    jobs: list[Job] = field(default_factory=list)
    """The jobs as they are in the database; of a replay, whose jobs may have progressed, they have to be read."""
    left: int | None = None
    """Jobs that the tenant may submit besides, by its quota; None where it was not counted."""


@dataclass(frozen=True, slots=True)
class QueueState:
    """The queue of one kind, as PostgreSQL has it."""

    kind: Kind
    queued: int
    ready: int
    """Queued jobs that may run now; the others wait for their backoff to end."""
    running: int
    oldest_age: float
    """Seconds that the oldest job that may run has waited; 0 when none waits."""


@dataclass(frozen=True, slots=True)
class WaitingJobs:
    """Jobs of one kind and priority that may run now and do not."""

    kind: Kind
    priority: int
    jobs: int
    oldest_age: float
    """Seconds that the oldest of them has been allowed to run."""


@dataclass(frozen=True, slots=True)
class JobOutline:
    """A job of any tenant, as monitoring shows it."""

    id: UUID
    kind: Kind
    status: Status
    worker: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    error_code: str | None
    error_detail: str | None


class Jobs:
    """Jobs from submission to their end. Thread-safe."""

    def __init__(self, connections: Connections, workers: Workers, settings: Settings):
        self._connections = connections
        self._run = connections.run
        self._workers = workers
        self._settings = settings

    # ── submission ────────────────────────────────────────────────────────────────────────────────

    def submit(
        self,
        requests: Sequence[JobRequest],
        *,
        tenant: Tenant,
        quota: int | None = None,
        idempotency_key: str | None = None,
        body_sha256: str = "",
        trace: Parent | None = None,
        key_id: UUID | None = None,
        together_with: Callable[[Connection, list[UUID]], None] | None = None,
    ) -> Submission:
        """Insert all or none of the jobs. The caller publishes `dispatches` after this has returned.

        Args:
            trace: the span of their submission, when it is traced.
            key_id: API key of the request that submits them.
            together_with: called with the connection and the ids, to write rows in the same transaction.

        Raises:
            IdempotencyMismatch: the key was used with another body.
            QuotaExceeded: the tenant would have more than `quota` unfinished jobs.
        """
        ids, left = [uuid7() for _ in requests], None
        with self._connections.transaction() as connection:
            if idempotency_key is not None:
                once = Once(idempotency_key, body_sha256)
                before = reserve(connection, tenant, once, [str(id) for id in ids])
                if before is not None:
                    return Submission([UUID(id) for id in before], replayed=True)
            if quota is not None:
                left = self._check_quota(connection, tenant, quota, len(ids))
            columns = self._submitted_columns(requests)
            traced = {"trace": trace and trace.traceparent, "tracestate": trace and trace.tracestate}
            values = {"ids": ids, "tenant": tenant, **traced, "key_id": key_id, **columns}
            accepted_at = connection.execute(transitions.SUBMIT, values).scalar_one()
            if together_with is not None:
                together_with(connection, ids)
        dispatches = [
            Dispatch(id, request.input.kind, request.priority) for id, request in zip(ids, requests, strict=True)
        ]
        return Submission(ids, False, dispatches, _accepted_jobs(ids, requests, columns, accepted_at), left)

    def _submitted_columns(self, requests: Sequence[JobRequest]) -> dict[str, Any]:
        kinds = [request.input.kind for request in requests]
        return {
            "kinds": [kind.value for kind in kinds],
            "models": [
                request.model or self._settings.model_for(kind) for request, kind in zip(requests, kinds, strict=True)
            ],
            "priorities": [request.priority for request in requests],
            "inputs": [request.input.model_dump_json(exclude_none=True) for request in requests],
            "max_attempts": [request.max_attempts or self._settings.max_attempts for request in requests],
            "webhooks": [request.webhook for request in requests],
            "deadlines": [request.deadline or self._settings.job_deadline for request in requests],
            "redispatch_after": self._settings.redispatch_after,
        }

    @staticmethod
    def _check_quota(connection: Connection, tenant: Tenant, quota: int, more: int) -> int:
        """Check the quota exactly under concurrency: submissions of one tenant take turns from here to their commit.

        Returns how many jobs the tenant may have beside those and the `more` that are submitted now.
        """
        connection.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(tenant, 0))))
        counted = select(JobRow.id).where(JobRow.tenant == tenant, JobRow.status.in_(["queued", "running"]))
        unfinished = connection.execute(
            select(func.count()).select_from(counted.limit(quota + 1).subquery())
        ).scalar_one()
        if unfinished + more > quota:
            error = QuotaExceeded(
                f"This key may have {quota} unfinished jobs at once and has {unfinished}; wait for some to finish.",
                retry_after=5,
            )
            error.quota, error.left = quota, max(0, quota - unfinished)
            raise error
        return quota - unfinished - more

    def dispatch_now(self, ids: Sequence[UUID]) -> None:
        """Have the housekeeper publish these jobs in its next round, because publishing them failed."""
        self._run(
            update(JobRow)
            .where(JobRow.id.in_(ids), JobRow.status == Status.QUEUED.value)
            .values(dispatch_due_at=func.now())
        )

    # ── the worker's side ─────────────────────────────────────────────────────────────────────────

    def claim(self, ids: Sequence[UUID], worker: str) -> dict[UUID, JobClaim]:
        """Claim these jobs for the worker. A job that is missing from the answer must not run.

        Waits for the disk: a claim that PostgreSQL forgot would be followed by another with the same epoch, and
        the fence would let both in.
        """
        rows = self._run(transitions.CLAIM, {"ids": list(ids), "worker": worker, "lease": self._settings.lease})
        return {row.id: JobClaim(**{**row._mapping, "kind": Kind(row.kind)}) for row in rows}

    def renew(self, held: Mapping[UUID, int], worker: str) -> Renewal:
        """One heartbeat: renew the leases of `held` (id → epoch), and note that the worker lives."""
        ids = sorted(held)
        rows = self._run(
            transitions.RENEW,
            {"ids": ids, "epochs": [held[id] for id in ids], "lease": self._settings.lease},
            relaxed=True,
        )
        self._workers.mark_seen(worker)
        return renewal(held, rows)

    def finish(self, jobs: Sequence[Finish]) -> dict[UUID, Status]:
        """End these jobs. A job that is missing from the answer was no longer the worker's."""
        jobs = sorted(jobs, key=lambda job: job.id)
        rows = self._run(
            transitions.FINISH,
            {
                "ids": [job.id for job in jobs],
                "epochs": [job.epoch for job in jobs],
                "statuses": [job.status.value for job in jobs],
                "results": [job.result.model_dump_json() if job.result else None for job in jobs],
                "result_keys": [job.result_key for job in jobs],
                "stored": [job.stored_bytes for job in jobs],
                **_error_columns([job.error for job in jobs]),
            },
        )
        return {row.id: Status(row.status) for row in rows}

    def give_back(self, jobs: Sequence[GiveBack]) -> dict[UUID, Status]:
        """Settle jobs that were not finished. A job that is missing from the answer was no longer the worker's."""
        jobs = sorted(jobs, key=lambda job: job.id)
        rows = self._run(
            transitions.GIVE_BACK,
            {
                "ids": [job.id for job in jobs],
                "epochs": [job.epoch for job in jobs],
                "reasons": [job.reason for job in jobs],
                **_error_columns([job.error for job in jobs]),
                **self._settling,
            },
        )
        return {row.id: Status(row.status) for row in rows}

    @property
    def _settling(self) -> dict[str, float]:
        return {"max_crashes": self._settings.max_crashes, "backoff": self._settings.retry_backoff}

    # ── the client's side ─────────────────────────────────────────────────────────────────────────

    def get(self, id: UUID, tenant: Tenant) -> Job:
        """The job with this id. Raises NotFound, also for another tenant's job."""
        return self.get_many([id], tenant)[0]

    def find_many(self, ids: Sequence[UUID], tenant: Tenant) -> dict[UUID, Job]:
        """Those of these jobs that the tenant has; the others were deleted, or never were."""
        rows = self._run(_JOBS.where(JobRow.id.in_(ids), JobRow.tenant == tenant))
        return {row.id: _job(row) for row in rows}

    def owner(self, id: UUID) -> Tenant:
        """The tenant of a job, for who proves in another way that he may see it. Raises NotFound."""
        rows = self._run(select(JobRow.tenant).where(JobRow.id == id))
        if not rows:
            raise NotFound(f"There is no job {id}.")
        return str(rows[0].tenant)

    def get_many(self, ids: Sequence[UUID], tenant: Tenant) -> list[Job]:
        """The jobs with these ids, in the given order. Raises NotFound when one is missing."""
        found = self.find_many(ids, tenant)
        for id in ids:
            if id not in found:
                raise NotFound(f"There is no job {id}.")
        return [found[id] for id in ids]

    def statuses(self, ids: Sequence[UUID]) -> dict[UUID, Status]:
        """States of those of these jobs that exist, of any tenant."""
        rows = self._run(select(JobRow.id, JobRow.status).where(JobRow.id.in_(ids)))
        return {row.id: Status(row.status) for row in rows}

    def kinds(self, ids: Sequence[UUID]) -> dict[UUID, Kind]:
        """Kinds of those of these jobs that exist, of any tenant."""
        rows = self._run(select(JobRow.id, JobRow.kind).where(JobRow.id.in_(ids)))
        return {row.id: Kind(row.kind) for row in rows}

    def page(
        self,
        tenant: Tenant,
        *,
        statuses: Sequence[Status] = (),
        kinds: Sequence[Kind] = (),
        before: UUID | None = None,
        limit: int = 50,
    ) -> list[Job]:
        """A page of jobs, newest first; `before` is the last id of the previous page."""
        query = job_lists.page(tenant, statuses, kinds, before, limit)
        return [_job(row) for row in self._run(query)]

    def cancel(self, id: UUID, tenant: Tenant) -> Status:
        """Cancel a job: a queued job ends at once; a running job is flagged for its worker and stays running until
        then.

        Raises:
            NotFound: the tenant has no such job.
            Conflict: the job is already over.
        """
        status = self.cancel_many([id], tenant).get(id)
        if status is None:
            job = self.get(id, tenant)
            raise Conflict(f"Job {id} is already {job.status}; only a queued or running job can be cancelled.")
        return status

    def cancel_many(self, ids: Sequence[UUID], tenant: Tenant) -> dict[UUID, Status]:
        """Cancel those of these jobs that are the tenant's and not over; they are as `cancel` leaves them."""
        rows = self._run(transitions.CANCEL, {"ids": sorted(ids), "tenant": tenant})
        return {row.id: Status(row.status) for row in rows}

    def revoke(self, id: UUID) -> tuple[Kind, Status] | None:
        """Cancel anybody's job, on an operator's word; returns its kind and its state now, `cancelled` or `running`.

        None when there is no such job, or it is already over.
        """
        rows = self._run(transitions.REVOKE, {"ids": [id]})
        if not rows:
            return None
        [job] = self._run(select(JobRow.kind).where(JobRow.id == id))
        return Kind(job.kind), Status(rows[0].status)

    def retry(self, id: UUID, tenant: Tenant, *, quota: int | None = None) -> Dispatch:
        """Queue a job again, as `retry_once` does without a key; its message to publish."""
        return self.retry_once(id, tenant, quota=quota).dispatches[0]

    def retry_once(self, id: UUID, tenant: Tenant, *, quota: int | None = None, once: Once | None = None) -> Submission:
        """Queue a job that ended without a result again, with new attempts and as much time as it had at first.

        The submission that is returned has no jobs: other processes may have changed this one by now.

        Raises:
            IdempotencyMismatch: something else was asked for under the key of `once`.
            NotFound: the tenant has no such job.
            Conflict: the job has succeeded, or is not over yet.
            QuotaExceeded: the tenant would have more than `quota` unfinished jobs.
        """
        again = (
            update(JobRow)
            .where(
                JobRow.id == id,
                JobRow.tenant == tenant,
                JobRow.status.in_([s.value for s in Status if s.terminal and s is not Status.SUCCEEDED]),
            )
            .values(
                status=Status.QUEUED.value,
                attempts=0,
                crashes=0,
                losses=0,
                available_at=func.now(),
                dispatch_due_at=func.now() + seconds(self._settings.redispatch_after),
                deadline_at=func.now() + seconds(JobRow.deadline),
                worker=None,
                started_at=None,
                finished_at=None,
                cancel_requested_at=None,
                error_code=None,
                error_detail=None,
                error_retryable=None,
            )
            .returning(JobRow.id, JobRow.kind, JobRow.priority)
        )
        left = None
        with self._connections.transaction() as connection:
            if once is not None and reserve(connection, tenant, once, [str(id)]) is not None:
                return Submission([id], replayed=True)
            if quota is not None:
                left = self._check_quota(connection, tenant, quota, 1)
            row = connection.execute(again).first()
            if row is None:
                connection.rollback()  # the key, too
        if row is None:
            job = self.get(id, tenant)
            raise Conflict(f"Job {id} is {job.status}; only a job that ended without a result can be retried.")
        return Submission([id], False, [Dispatch(row.id, Kind(row.kind), row.priority)], left=left)

    # ── housekeeping ──────────────────────────────────────────────────────────────────────────────

    def rescue(self, now: datetime | None = None) -> dict[UUID, Status]:
        """Take back running jobs whose lease or deadline has passed, by the time `now` that was checked, if given."""
        values = {**self._settling, "most_losses": MOST_LOSSES, "now": now}
        return {row.id: Status(row.status) for row in self._run(transitions.RESCUE, values)}

    def expire_queued(self, now: datetime | None = None) -> list[UUID]:
        """End queued jobs past their deadline; `now` as in `rescue`."""
        return [row.id for row in self._run(transitions.EXPIRE_QUEUED, {"now": now})]

    def take_due(self, kind: Kind, most: int) -> list[Dispatch]:
        """Take up to `most` queued jobs whose message is overdue; they count as published from now on."""
        longest = math.ceil(most / (PATIENCE + 1))
        values = {"kind": kind.value, "longest": longest, "urgent": most - longest}
        rows = self._run(transitions.TAKE_DUE, {**values, "again": self._settings.redispatch_after})
        return [Dispatch(row.id, kind, row.priority) for row in rows]

    def mark_all_due(self) -> int:
        """Mark every queued job as due, because Redis lost its messages. Returns how many."""
        waiting = update(JobRow).where(JobRow.status == Status.QUEUED.value)
        return len(
            self._run(
                waiting.values(dispatch_due_at=func.greatest(func.now(), JobRow.available_at)).returning(JobRow.id)
            )
        )

    def outlines(self, ids: Sequence[UUID], *, newest: int) -> list[JobOutline]:
        """Those of these jobs and of the `newest` jobs that have not changed for some seconds, of any tenant."""
        return self._connections.fetch(JobOutline, transitions.OUTLINES, {"ids": list(ids), "newest": newest})

    def queues(self) -> dict[Kind, QueueState]:
        """Depth and age of every kind's queue."""
        states = {kind: QueueState(kind, 0, 0, 0, 0.0) for kind in Kind}
        for row in self._run(transitions.QUEUES):
            states[Kind(row.kind)] = QueueState(Kind(row.kind), row.queued, row.ready, row.running, row.oldest_age)
        return states

    def waiting(self) -> list[WaitingJobs]:
        """Who waits, by kind and priority, the longest first."""
        return self._connections.fetch(WaitingJobs, transitions.WAITING)

    def unreferenced(self, keys: Sequence[str]) -> list[str]:
        """Those of these object keys that no file, document or job names."""
        rows = self._run(
            text("""
                SELECT key FROM unnest(CAST(:keys AS text[])) AS k (key)
                WHERE NOT EXISTS (SELECT FROM files WHERE files.key = k.key)
                AND NOT EXISTS (SELECT FROM documents WHERE documents.key = k.key)
                AND NOT EXISTS (SELECT FROM jobs WHERE jobs.result_key = k.key)
                AND NOT EXISTS (
                    SELECT FROM jobs
                    WHERE result -> 'candidates' <> '[]'::jsonb
                    AND result -> 'candidates' @> jsonb_build_array(
                        jsonb_build_object('image', jsonb_build_object('key', k.key))
                    )
                )
            """),
            {"keys": list(keys)},
        )
        return [row.key for row in rows]


def _error_columns(errors: Sequence[JobError | None]) -> dict[str, list[Any]]:
    return {
        "codes": [error and error.code for error in errors],
        "details": [error and error.detail for error in errors],
        "retryables": [error and error.retryable for error in errors],
    }


_JOBS: Select[Any] = select(JobRow.__table__)


def _accepted_jobs(
    ids: Sequence[UUID], requests: Sequence[JobRequest], columns: Mapping[str, Any], accepted_at: datetime
) -> list[Job]:
    """The jobs as the rows just inserted have them, without reading these."""
    return [
        Job(
            id=id,
            kind=request.input.kind,
            model=model,
            status=Status.QUEUED,
            priority=request.priority,
            input=request.input.model_dump(mode="json", exclude_none=True),
            attempts=0,
            max_attempts=max_attempts,
            created_at=accepted_at,
            available_at=accepted_at,
            deadline_at=accepted_at + timedelta(seconds=deadline),
        )
        for id, request, model, max_attempts, deadline in zip(
            ids, requests, columns["models"], columns["max_attempts"], columns["deadlines"], strict=True
        )
    ]


def _job(row: Row[Any]) -> Job:
    error = row.error_code and JobError(
        code=row.error_code, detail=row.error_detail or "", retryable=bool(row.error_retryable)
    )
    return Job.model_validate(
        {
            "id": row.id,
            "kind": row.kind,
            "model": row.model,
            "status": row.status,
            "priority": row.priority,
            "input": row.request,
            "attempts": row.attempts,
            "max_attempts": row.max_attempts,
            "worker": row.worker,
            "result": row.result,
            "error": error,
            "cancel_requested": row.cancel_requested_at is not None,
            "created_at": row.created_at,
            "available_at": row.available_at,
            "started_at": row.started_at,
            "finished_at": row.finished_at,
            "deadline_at": row.deadline_at,
        }
    )
