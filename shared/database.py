"""Every state transition of a job, each one guarded statement.

    queued ──claim──▶ running ──finish──▶ succeeded | failed | cancelled
      ▲                  │
      └───give back──────┴──▶ failed | cancelled | expired | quarantined

A guard names the status, and for a running job the epoch that its claim was given. So a worker that
was taken for dead changes nothing when it wakes up, and a message delivered twice runs once.
All times are PostgreSQL's: the clocks of hosts are never compared.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal
from uuid import UUID

import psycopg
from sqlalchemy import (
    ColumnElement,
    Connection,
    CursorResult,
    Select,
    create_engine,
    delete,
    event,
    func,
    insert,
    make_url,
    select,
    text,
    update,
)
from sqlalchemy import exc as sqlalchemy_errors
from sqlalchemy.dialects.postgresql import insert as upsert
from uuid_utils.compat import uuid7

from shared.errors import Conflict, DatabaseUnavailable, IdempotencyMismatch, InvalidRequest, NotFound, QuotaExceeded
from shared.jobs import Job, JobError, JobRequest, JobResult, Kind, Status
from shared.settings import Settings
from shared.tables import ApiKeyRow, FileRow, IdempotencyRow, JobRow, WebhookRow, WorkerRow

Tenant = str
_TENANT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", re.ASCII)

HOUSEKEEPING_LOCK = 0x7475_7765_6E01
"""Advisory lock of the housekeeper that acts."""


@dataclass(frozen=True, slots=True)
class Dispatch:
    """What a message needs: which job, to which queue, how urgent."""

    id: UUID
    kind: Kind
    priority: int


@dataclass(frozen=True, slots=True)
class Claim:
    """A job that this worker runs until it finishes it, gives it back, or loses its lease."""

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
    """Seconds from the moment it might have run to the claim."""


@dataclass(frozen=True, slots=True)
class Finish:
    """A running job is over: with a result, or with an error that no further attempt would mend."""

    id: UUID
    epoch: int
    result: JobResult | None = None
    result_key: str | None = None
    error: JobError | None = None

    @property
    def status(self) -> Status:
        return Status.SUCCEEDED if self.error is None else Status.FAILED


@dataclass(frozen=True, slots=True)
class GiveBack:
    """A running job was not done. What becomes of it is decided in one place, `_SETTLE`.

    `released` (the worker stops) costs nothing; `retry` costs an attempt; `crash` also counts as one
    of the crashes that end in quarantine; `cancelled` means the worker stopped it on request.
    """

    id: UUID
    epoch: int
    reason: Literal["released", "retry", "crash", "cancelled"]
    error: JobError | None = None


@dataclass(frozen=True, slots=True)
class Submission:
    """Job ids in the order of the requests, and whether an `Idempotency-Key` had made them before."""

    ids: list[UUID]
    replayed: bool
    dispatches: list[Dispatch] = field(default_factory=list)
    """What is left to publish, now that it is committed."""
    jobs: list[Job] = field(default_factory=list)
    """As they are in the database, unless replayed: then they are further on, and have to be looked up."""


@dataclass(frozen=True, slots=True)
class Renewal:
    """What a heartbeat learnt: jobs to stop on request, and jobs that are no longer this worker's."""

    cancelled: frozenset[UUID]
    lost: frozenset[UUID]


@dataclass(frozen=True, slots=True)
class QueueState:
    """One kind's queue as PostgreSQL has it."""

    kind: Kind
    queued: int
    ready: int
    """Those queued that may run now; the others wait out a backoff."""
    running: int
    oldest_age: float
    """Seconds the oldest job that may run has waited; 0 when none waits."""


# What becomes of a running job that was not done, `v.reason` saying why. Crash backoff doubles with
# each crash, retry backoff with each attempt; both end at five minutes.
_SETTLE = """
    UPDATE jobs SET
        status = v.next,
        attempts = jobs.attempts - (v.reason = 'released')::int,
        crashes = jobs.crashes + (v.reason = 'crash')::int,
        available_at = CASE WHEN v.next = 'queued' THEN now() + v.backoff ELSE jobs.available_at END,
        dispatch_due_at = CASE WHEN v.next = 'queued' THEN now() + v.backoff END,
        finished_at = CASE WHEN v.next <> 'queued' THEN now() END,
        worker = NULL,
        lease_until = NULL,
        error_code = COALESCE(v.error_code, jobs.error_code),
        error_detail = COALESCE(v.error_detail, jobs.error_detail),
        error_retryable = COALESCE(v.error_retryable, jobs.error_retryable)
    FROM (
        SELECT given.*,
            CASE
                WHEN given.reason = 'cancelled' OR j.cancel_requested_at IS NOT NULL THEN 'cancelled'
                WHEN j.deadline_at <= now() THEN 'expired'
                WHEN given.reason = 'crash' AND j.crashes + 1 >= :max_crashes THEN 'quarantined'
                WHEN given.reason <> 'released' AND j.attempts >= j.max_attempts THEN 'failed'
                ELSE 'queued'
            END AS next,
            CASE given.reason
                WHEN 'released' THEN interval '0'
                WHEN 'crash' THEN LEAST(300, :backoff * 2 ^ j.crashes) * interval '1 second'
                ELSE LEAST(300, :backoff * 2 ^ (j.attempts - 1)) * interval '1 second'
            END AS backoff
        FROM ({given}) AS given JOIN jobs AS j USING (id)
    ) AS v
    WHERE jobs.id = v.id AND jobs.epoch = v.epoch AND jobs.status = 'running'
    RETURNING jobs.id, jobs.status, jobs.webhook
"""

# The webhook owed is written by the statement that ends the job: neither without the other.
_OWE_WEBHOOKS = """
    owed AS (
        INSERT INTO webhooks (id, job_id, url)
        SELECT uuidv7(), id, webhook FROM done WHERE webhook IS NOT NULL AND status NOT IN ('queued', 'running')
        ON CONFLICT (job_id) DO UPDATE SET due_at = now(), attempts = 0, delivered_at = NULL, error = NULL
    )
"""


def _ending(statement: str) -> str:
    """`statement` (returning id, status, webhook) together with the webhooks that it makes due."""
    return f"WITH done AS ({statement}), {_OWE_WEBHOOKS} SELECT id, status FROM done"  # noqa: S608 (constants)


# One statement for any number of jobs.
_SUBMIT = text("""
    WITH accepted AS (
        INSERT INTO jobs (
            id, kind, model, priority, request, max_attempts, webhook, tenant, dispatch_due_at, deadline_at
        )
        SELECT new.id, kind, model, priority, request, max_attempts, webhook, :tenant,
            now() + :redispatch_after * interval '1 second', now() + deadline * interval '1 second'
        FROM unnest(
            CAST(:ids AS uuid[]), CAST(:kinds AS text[]), CAST(:models AS text[]), CAST(:priorities AS int[]),
            CAST(:inputs AS jsonb[]), CAST(:max_attempts AS int[]), CAST(:webhooks AS text[]),
            CAST(:deadlines AS float8[])
        ) AS new (id, kind, model, priority, request, max_attempts, webhook, deadline)
        RETURNING created_at
    ) SELECT min(created_at) FROM accepted
""")

_CLAIM = text("""
    WITH wanted AS (
        SELECT id FROM jobs
        WHERE id = ANY(:ids) AND status = 'queued' AND available_at <= now() AND deadline_at > now()
        FOR UPDATE SKIP LOCKED
    )
    UPDATE jobs SET
        status = 'running', epoch = epoch + 1, attempts = attempts + 1, worker = :worker,
        lease_until = now() + :lease * interval '1 second', started_at = now(), dispatch_due_at = NULL
    FROM wanted WHERE jobs.id = wanted.id
    RETURNING jobs.id, epoch, tenant, kind, model, priority, request, attempts, crashes,
        EXTRACT(EPOCH FROM now() - available_at)::float8 AS waited
""")

_RENEW = text("""
    UPDATE jobs SET lease_until = now() + :lease * interval '1 second'
    FROM unnest(CAST(:ids AS uuid[]), CAST(:epochs AS int[])) AS held (id, epoch)
    WHERE jobs.id = held.id AND jobs.epoch = held.epoch AND status = 'running'
    RETURNING jobs.id, cancel_requested_at IS NOT NULL AS cancelled
""")

_FINISH = text(
    _ending("""
    UPDATE jobs SET
        status = f.status, result = f.result, result_key = f.result_key, finished_at = now(), worker = NULL,
        lease_until = NULL, error_code = f.error_code, error_detail = f.error_detail, error_retryable = f.retryable
    FROM unnest(
        CAST(:ids AS uuid[]), CAST(:epochs AS int[]), CAST(:statuses AS text[]), CAST(:results AS jsonb[]),
        CAST(:result_keys AS text[]), CAST(:codes AS text[]), CAST(:details AS text[]), CAST(:retryables AS bool[])
    ) AS f (id, epoch, status, result, result_key, error_code, error_detail, retryable)
    WHERE jobs.id = f.id AND jobs.epoch = f.epoch AND jobs.status = 'running'
    RETURNING jobs.id, jobs.status, jobs.webhook
""")
)

_GIVE_BACK = text(
    _ending(
        _SETTLE.format(
            given="""
    SELECT * FROM unnest(
        CAST(:ids AS uuid[]), CAST(:epochs AS int[]), CAST(:reasons AS text[]),
        CAST(:codes AS text[]), CAST(:details AS text[]), CAST(:retryables AS bool[])
    ) AS g (id, epoch, reason, error_code, error_detail, error_retryable)
"""
        )
    )
)

# Repeats the guard: between the scan and the update the job may have been finished by its worker.
_RESCUE = text(
    _ending(
        _SETTLE.format(
            given="""
    SELECT id, epoch, 'crash' AS reason, 'worker_lost' AS error_code,
        'The worker ' || worker || ' stopped answering while it ran this job.' AS error_detail, true AS error_retryable
    FROM jobs WHERE status = 'running' AND (lease_until < now() OR deadline_at <= now())
    LIMIT 1000
"""
        )
    )
)

_EXPIRE_QUEUED = text(
    _ending("""
    UPDATE jobs SET status = 'expired', finished_at = now(), dispatch_due_at = NULL
    WHERE status = 'queued' AND deadline_at <= now()
    RETURNING id, status, webhook
""")
)

_CANCEL = text(
    _ending("""
    UPDATE jobs SET
        cancel_requested_at = COALESCE(cancel_requested_at, now()),
        status = CASE status WHEN 'queued' THEN 'cancelled' ELSE status END,
        finished_at = CASE status WHEN 'queued' THEN now() END,
        dispatch_due_at = NULL
    WHERE id = :id AND tenant = :tenant AND status IN ('queued', 'running')
    RETURNING id, status, webhook
""")
)

# The oldest first: with a queue that is served in order, a row that is due while younger ones already
# run is the one whose message was lost. In a CTE, because PostgreSQL may run a subselect in a WHERE more
# than once, and with SKIP LOCKED each time it would lock other rows.
_TAKE_DUE = text("""
    WITH due AS MATERIALIZED (
        SELECT id FROM jobs
        WHERE status = 'queued' AND dispatch_due_at <= now() AND kind = :kind
        ORDER BY priority DESC, dispatch_due_at LIMIT :most
        FOR UPDATE SKIP LOCKED
    )
    UPDATE jobs SET dispatch_due_at = now() + :again * interval '1 second'
    FROM due WHERE jobs.id = due.id AND status = 'queued'
    RETURNING jobs.id, kind, priority
""")

# The wait before attempt n + 1 is 5·4ⁿ seconds, at most an hour.
_TAKE_WEBHOOKS = text("""
    WITH due AS MATERIALIZED (
        SELECT id FROM webhooks WHERE due_at <= now() ORDER BY due_at LIMIT :most FOR UPDATE SKIP LOCKED
    )
    UPDATE webhooks SET
        attempts = webhooks.attempts + 1,
        due_at = now() + LEAST(3600, 5 * 4 ^ webhooks.attempts) * interval '1 second'
    FROM due, jobs
    WHERE webhooks.id = due.id AND jobs.id = webhooks.job_id AND jobs.finished_at IS NOT NULL
    RETURNING webhooks.id, webhooks.url, webhooks.attempts, webhooks.job_id, jobs.tenant, jobs.status,
        jobs.finished_at
""")

_QUEUES = text("""
    SELECT kind,
        count(*) FILTER (WHERE status = 'queued') AS queued,
        count(*) FILTER (WHERE status = 'queued' AND available_at <= now()) AS ready,
        count(*) FILTER (WHERE status = 'running') AS running,
        GREATEST(0, COALESCE(EXTRACT(EPOCH FROM now() - min(available_at) FILTER (
            WHERE status = 'queued' AND available_at <= now())), 0))::float8 AS oldest_age
    FROM jobs WHERE status IN ('queued', 'running') GROUP BY kind
""")

# For monitoring, which hears of most changes by itself: what is younger may still be on its way there.
_OUTLINES = text("""
    WITH wanted AS (
        SELECT unnest(CAST(:ids AS uuid[])) AS id
        UNION (SELECT id FROM jobs ORDER BY id DESC LIMIT :newest)
    )
    SELECT id, kind, status, worker, created_at, started_at, finished_at, error_code, error_detail
    FROM jobs JOIN wanted USING (id)
    WHERE GREATEST(created_at, started_at, finished_at) < now() - interval '5 seconds'
""")


@contextmanager
def translated() -> Iterator[None]:
    """Foreign errors become ours here and nowhere else; a broken statement stays a bug."""
    try:
        yield
    except (sqlalchemy_errors.OperationalError, sqlalchemy_errors.InterfaceError) as error:
        raise DatabaseUnavailable("PostgreSQL does not answer; try again.", retry_after=2) from error
    except sqlalchemy_errors.TimeoutError as error:
        raise DatabaseUnavailable("All connections to PostgreSQL are busy; try again.", retry_after=1) from error
    except sqlalchemy_errors.DBAPIError as error:
        # A server that is going down answers with SQLSTATE class 57P, which psycopg files elsewhere.
        if error.connection_invalidated or isinstance(error.orig, psycopg.OperationalError):
            raise DatabaseUnavailable("PostgreSQL is restarting; try again.", retry_after=2) from error
        raise


def driver_url(url: str) -> str:
    """`postgresql://…` as people write it, with the driver that this project uses."""
    return make_url(url).set(drivername="postgresql+psycopg").render_as_string(hide_password=False)


class Database:
    """Connections to PostgreSQL and every transition. Thread-safe; make one per process.

    Raises:
        DatabaseUnavailable: from every method, when PostgreSQL cannot be reached.
    """

    def __init__(self, settings: Settings, *, pool_size: int = 8):
        self._settings = settings
        # Autocommit: a transition is one statement, so BEGIN and COMMIT would be two idle round trips.
        self._engine = create_engine(
            driver_url(settings.database_url),
            isolation_level="AUTOCOMMIT",
            pool_size=pool_size,
            max_overflow=pool_size,
            pool_timeout=10,
            pool_pre_ping=True,
            connect_args={"connect_timeout": 3, "application_name": "tuwen", "tcp_user_timeout": 10_000},
        )
        # Losing a claim or a heartbeat only repeats work, so they need not wait for the disk.
        self._relaxed = create_engine(
            driver_url(settings.database_url),
            isolation_level="AUTOCOMMIT",
            pool_size=2,
            max_overflow=2,
            pool_timeout=10,
            pool_pre_ping=True,
            connect_args={"connect_timeout": 3, "application_name": "tuwen", "tcp_user_timeout": 10_000},
        )

        @event.listens_for(self._relaxed, "connect")
        def _do_not_wait_for_the_disk(connection: psycopg.Connection[Any], _record: object) -> None:
            connection.autocommit = True
            connection.execute("SET synchronous_commit = off")

    def close(self) -> None:
        self._engine.dispose()
        self._relaxed.dispose()

    @contextmanager
    def _connection(self, *, relaxed: bool = False) -> Iterator[Connection]:
        with translated(), (self._relaxed if relaxed else self._engine).connect() as connection:
            yield connection

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        with translated(), self._engine.connect() as connection:
            transactional = connection.execution_options(isolation_level="READ COMMITTED")
            with transactional.begin():
                yield transactional

    def _run(self, statement: Any, values: Mapping[str, Any] | None = None, *, relaxed: bool = False) -> list[Any]:
        """Execute one statement and fetch what it returns."""
        with self._connection(relaxed=relaxed) as connection:
            result: CursorResult[Any] = connection.execute(statement, values or {})
            return list(result.all()) if result.returns_rows else []

    def check(self) -> None:
        """Readiness: PostgreSQL answers and the schema is there."""
        self._run(select(JobRow.id).limit(1))

    # ── submission ────────────────────────────────────────────────────────────────────────────────

    def submit(
        self,
        requests: Sequence[JobRequest],
        *,
        tenant: Tenant,
        quota: int | None = None,
        idempotency_key: str | None = None,
        body_sha256: str = "",
    ) -> Submission:
        """Insert jobs, all or none. The caller publishes `dispatches` after this has returned.

        Raises:
            IdempotencyMismatch: the key was used with another body.
            QuotaExceeded: the tenant would have more than `quota` unfinished jobs.
        """
        ids = [uuid7() for _ in requests]
        with self._transaction() as connection:
            if idempotency_key is not None:
                before = self._remember(connection, tenant, idempotency_key, body_sha256, ids)
                if before is not None:
                    return Submission(before, replayed=True)
            if quota is not None:
                self._check_quota(connection, tenant, quota, len(ids))
            columns = self._submitted_columns(requests)
            accepted_at = connection.execute(_SUBMIT, {"ids": ids, "tenant": tenant, **columns}).scalar_one()
        dispatches = [
            Dispatch(id, request.input.kind, request.priority) for id, request in zip(ids, requests, strict=True)
        ]
        return Submission(ids, False, dispatches, _accepted_jobs(ids, requests, columns, accepted_at))

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
    def _remember(
        connection: Connection, tenant: Tenant, key: str, body_sha256: str, ids: list[UUID]
    ) -> list[UUID] | None:
        """Take the key for these jobs, or return the jobs it already made.

        The insert waits for a concurrent one of the same key to commit or roll back.
        """
        taken = connection.execute(
            upsert(IdempotencyRow)
            .values(tenant=tenant, key=key, body_sha256=body_sha256, job_ids=[str(id) for id in ids])
            .on_conflict_do_nothing()
            .returning(IdempotencyRow.key)
        ).first()
        if taken is not None:
            return None
        before = connection.execute(
            select(IdempotencyRow.body_sha256, IdempotencyRow.job_ids).where(
                IdempotencyRow.tenant == tenant, IdempotencyRow.key == key
            )
        ).one()
        if before.body_sha256 != body_sha256:
            raise IdempotencyMismatch(
                "This Idempotency-Key was used with another request body; use a new key for a new request.",
                field="Idempotency-Key",
            )
        return [UUID(id) for id in before.job_ids]

    @staticmethod
    def _check_quota(connection: Connection, tenant: Tenant, quota: int, more: int) -> None:
        """Exact under concurrency: submissions of one tenant take turns from here to their commit."""
        connection.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(tenant, 0))))
        counted = select(JobRow.id).where(JobRow.tenant == tenant, JobRow.status.in_(["queued", "running"]))
        unfinished = connection.execute(
            select(func.count()).select_from(counted.limit(quota + 1).subquery())
        ).scalar_one()
        if unfinished + more > quota:
            raise QuotaExceeded(
                f"This key may have {quota} unfinished jobs at once and has {unfinished}; wait for some to finish.",
                retry_after=5,
            )

    def dispatch_now(self, ids: Sequence[UUID]) -> None:
        """Publishing these failed: let the housekeeper do it at its next round."""
        self._run(
            update(JobRow)
            .where(JobRow.id.in_(ids), JobRow.status == Status.QUEUED.value)
            .values(dispatch_due_at=func.now())
        )

    # ── the worker's side ─────────────────────────────────────────────────────────────────────────

    def claim(self, ids: Sequence[UUID], worker: str) -> dict[UUID, Claim]:
        """Make these jobs this worker's. An id that is missing from the answer is not to be run."""
        rows = self._run(_CLAIM, {"ids": list(ids), "worker": worker, "lease": self._settings.lease}, relaxed=True)
        return {row.id: Claim(**{**row._mapping, "kind": Kind(row.kind)}) for row in rows}

    def renew(self, held: Mapping[UUID, int], worker: str) -> Renewal:
        """One heartbeat: renew the leases of `held` (id → epoch), and say that the worker lives."""
        rows = self._run(
            _RENEW,
            {"ids": list(held), "epochs": list(held.values()), "lease": self._settings.lease},
            relaxed=True,
        )
        self._run(update(WorkerRow).where(WorkerRow.name == worker).values(seen_at=func.now()), relaxed=True)
        return Renewal(
            cancelled=frozenset(row.id for row in rows if row.cancelled),
            lost=frozenset(held) - {row.id for row in rows},
        )

    def finish(self, jobs: Sequence[Finish]) -> dict[UUID, Status]:
        """End these jobs. An id that is missing from the answer was no longer this worker's."""
        rows = self._run(
            _FINISH,
            {
                "ids": [job.id for job in jobs],
                "epochs": [job.epoch for job in jobs],
                "statuses": [job.status.value for job in jobs],
                "results": [job.result.model_dump_json() if job.result else None for job in jobs],
                "result_keys": [job.result_key for job in jobs],
                **_error_columns([job.error for job in jobs]),
            },
        )
        return {row.id: Status(row.status) for row in rows}

    def give_back(self, jobs: Sequence[GiveBack]) -> dict[UUID, Status]:
        """Settle jobs that were not done. An id missing from the answer was no longer this worker's."""
        rows = self._run(
            _GIVE_BACK,
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

    def register(self, worker: str, device: str, models: Mapping[Kind, Mapping[str, str]]) -> None:
        """A worker is warm and takes jobs; whatever ran under its name before is over."""
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

    def workers(self) -> list[Any]:
        """Rows of `workers` that were heard of within the lease, with all columns."""
        alive = WorkerRow.seen_at > func.now() - _seconds(self._settings.lease)
        return self._run(select(WorkerRow.__table__).where(alive).order_by(WorkerRow.name))

    # ── the client's side ─────────────────────────────────────────────────────────────────────────

    def job(self, id: UUID, tenant: Tenant) -> Job:
        """Raises NotFound also for another tenant's job."""
        return self.jobs_by_id([id], tenant)[0]

    def jobs_by_id(self, ids: Sequence[UUID], tenant: Tenant) -> list[Job]:
        """These jobs, in the order asked for. Raises NotFound when one is missing."""
        rows = self._run(_JOBS.where(JobRow.id.in_(ids), JobRow.tenant == tenant))
        found = {row.id: _job(row) for row in rows}
        for id in ids:
            if id not in found:
                raise NotFound(f"There is no job {id}.")
        return [found[id] for id in ids]

    def statuses(self, ids: Sequence[UUID]) -> dict[UUID, Status]:
        """States of those of these jobs that exist, whoever's they are."""
        rows = self._run(select(JobRow.id, JobRow.status).where(JobRow.id.in_(ids)))
        return {row.id: Status(row.status) for row in rows}

    def jobs(
        self,
        tenant: Tenant,
        *,
        statuses: Sequence[Status] = (),
        kinds: Sequence[Kind] = (),
        before: UUID | None = None,
        limit: int = 50,
    ) -> list[Job]:
        """Newest first; `before` is the last id of the page before."""
        query = _JOBS.where(JobRow.tenant == tenant).order_by(JobRow.id.desc()).limit(limit)
        if statuses:
            query = query.where(JobRow.status.in_([status.value for status in statuses]))
        if kinds:
            query = query.where(JobRow.kind.in_([kind.value for kind in kinds]))
        if before is not None:
            query = query.where(JobRow.id < before)
        return [_job(row) for row in self._run(query)]

    def cancel(self, id: UUID, tenant: Tenant) -> Status:
        """A queued job ends at once; a running one is flagged for its worker (status stays running).

        Raises:
            NotFound: no such job of this tenant.
            Conflict: it is already over.
        """
        rows = self._run(_CANCEL, {"id": id, "tenant": tenant})
        if not rows:
            job = self.job(id, tenant)
            raise Conflict(f"Job {id} is already {job.status}; only a queued or running job can be cancelled.")
        return Status(rows[0].status)

    def retry(self, id: UUID, tenant: Tenant) -> Dispatch:
        """Queue a job that ended without a result once more, with fresh attempts and deadline.

        Raises:
            NotFound: no such job of this tenant.
            Conflict: it has succeeded, or is not over yet.
        """
        rows = self._run(
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
                available_at=func.now(),
                dispatch_due_at=func.now() + _seconds(self._settings.redispatch_after),
                deadline_at=func.now() + _seconds(self._settings.job_deadline),
                started_at=None,
                finished_at=None,
                cancel_requested_at=None,
                error_code=None,
                error_detail=None,
                error_retryable=None,
            )
            .returning(JobRow.id, JobRow.kind, JobRow.priority)
        )
        if not rows:
            job = self.job(id, tenant)
            raise Conflict(f"Job {id} is {job.status}; only a job that ended without a result can be retried.")
        return Dispatch(rows[0].id, Kind(rows[0].kind), rows[0].priority)

    # ── housekeeping ──────────────────────────────────────────────────────────────────────────────

    @contextmanager
    def leading(self) -> Iterator[bool]:
        """Whether this process is the one housekeeper that acts, until the block ends or it dies."""
        with self._transaction() as connection:
            yield connection.execute(select(func.pg_try_advisory_xact_lock(HOUSEKEEPING_LOCK))).scalar_one()

    def rescue(self) -> dict[UUID, Status]:
        """Take back running jobs whose lease or deadline has passed."""
        return {row.id: Status(row.status) for row in self._run(_RESCUE, self._settling)}

    def expire_queued(self) -> list[UUID]:
        """End queued jobs past their deadline."""
        return [row.id for row in self._run(_EXPIRE_QUEUED)]

    def take_due(self, kind: Kind, most: int) -> list[Dispatch]:
        """Up to `most` queued jobs whose message is overdue; they count as published from here on."""
        rows = self._run(_TAKE_DUE, {"kind": kind.value, "most": most, "again": self._settings.redispatch_after})
        return [Dispatch(row.id, kind, row.priority) for row in rows]

    def all_due(self) -> int:
        """Redis lost its messages: every queued job is due. Returns how many."""
        waiting = update(JobRow).where(JobRow.status == Status.QUEUED.value)
        return len(
            self._run(
                waiting.values(dispatch_due_at=func.greatest(func.now(), JobRow.available_at)).returning(JobRow.id)
            )
        )

    def outlines(self, ids: Sequence[UUID], *, newest: int) -> list[Any]:
        """Of these jobs and of the `newest`, those that changed no more for some seconds, whoever's they are.

        Rows of id, kind, status, worker, created_at, started_at, finished_at, error_code, error_detail.
        """
        return self._run(_OUTLINES, {"ids": list(ids), "newest": newest})

    def queues(self) -> dict[Kind, QueueState]:
        """Depth and age of every kind's queue."""
        states = {kind: QueueState(kind, 0, 0, 0, 0.0) for kind in Kind}
        for row in self._run(_QUEUES):
            states[Kind(row.kind)] = QueueState(Kind(row.kind), row.queued, row.ready, row.running, row.oldest_age)
        return states

    def forget_workers(self) -> None:
        """Drop workers that died without saying so, an hour after they were last heard of."""
        self._run(delete(WorkerRow).where(WorkerRow.seen_at < func.now() - _seconds(3600)))

    def forget_idempotency_keys(self) -> None:
        """A key is remembered for a day, as clients of other services expect."""
        self._run(delete(IdempotencyRow).where(IdempotencyRow.created_at < func.now() - _seconds(86_400)))

    # ── webhooks ──────────────────────────────────────────────────────────────────────────────────

    def take_webhooks(self, most: int) -> list[Any]:
        """Deliveries that are due: rows of id, url, attempts, job_id, tenant, status, finished_at.

        Taking one puts it off by its backoff, so that a housekeeper that dies delivers it again.
        """
        return self._run(_TAKE_WEBHOOKS, {"most": most})

    def webhook_delivered(self, id: UUID) -> None:
        delivered = update(WebhookRow).where(WebhookRow.id == id)
        self._run(delivered.values(delivered_at=func.now(), due_at=None, error=None))

    def webhook_failed(self, id: UUID, error: str, *, give_up: bool) -> None:
        """Note why; the next try is already planned unless `give_up`."""
        failed = update(WebhookRow).where(WebhookRow.id == id)
        self._run(failed.values(error=error, due_at=None) if give_up else failed.values(error=error))

    # ── keys and files ────────────────────────────────────────────────────────────────────────────

    def add_api_key(self, *, name: str, tenant: Tenant, sha256: str, quota: int) -> UUID:
        """Raises InvalidRequest for a tenant that cannot name a folder of the object storage."""
        if not _TENANT.fullmatch(tenant):
            raise InvalidRequest(
                f"A tenant is named by 1 to 64 letters, digits, '_', '-' and '.', not {tenant!r}.", field="tenant"
            )
        id = uuid7()
        self._run(insert(ApiKeyRow).values(id=id, name=name, tenant=tenant, sha256=sha256, quota=quota))
        return id

    def api_key(self, sha256: str) -> Any | None:
        """The unrevoked key with this hash: a row of id, name, tenant, sha256, quota."""
        key = select(ApiKeyRow.__table__).where(ApiKeyRow.sha256 == sha256, ApiKeyRow.revoked_at.is_(None))
        return next(iter(self._run(key)), None)

    def api_keys(self) -> list[Any]:
        return self._run(select(ApiKeyRow.__table__).order_by(ApiKeyRow.created_at))

    def revoke_api_key(self, id: UUID) -> None:
        """Raises NotFound when there is no such unrevoked key."""
        found = update(ApiKeyRow).where(ApiKeyRow.id == id, ApiKeyRow.revoked_at.is_(None))
        if not self._run(found.values(revoked_at=func.now()).returning(ApiKeyRow.id)):
            raise NotFound(f"There is no active key {id}.")

    def add_file(
        self, *, tenant: Tenant, sha256: str, key: str, media_type: str, width: int, height: int, size: int
    ) -> None:
        """Idempotent: the same bytes again are the same file."""
        self._run(
            upsert(FileRow)
            .values(tenant=tenant, sha256=sha256, key=key, media_type=media_type, width=width, height=height, size=size)
            .on_conflict_do_nothing()
        )

    def file(self, sha256: str, tenant: Tenant) -> Any:
        """A row of all columns. Raises NotFound also for another tenant's file."""
        rows = self._run(select(FileRow.__table__).where(FileRow.tenant == tenant, FileRow.sha256 == sha256))
        if not rows:
            raise NotFound(f"There is no file {sha256}; upload it first with POST /v1/files.")
        return rows[0]

    def known_files(self, sha256s: Sequence[str], tenant: Tenant) -> set[str]:
        """Those of these files that the tenant has."""
        found = select(FileRow.sha256).where(FileRow.tenant == tenant, FileRow.sha256.in_(sha256s))
        return {row.sha256 for row in self._run(found)}

    def unreferenced(self, keys: Sequence[str]) -> list[str]:
        """Those of these object keys that no file and no job names."""
        rows = self._run(
            text("""
                SELECT key FROM unnest(CAST(:keys AS text[])) AS k (key)
                WHERE NOT EXISTS (SELECT FROM files WHERE files.key = k.key)
                AND NOT EXISTS (SELECT FROM jobs WHERE jobs.result_key = k.key)
            """),
            {"keys": list(keys)},
        )
        return [row.key for row in rows]


def _seconds(seconds: float) -> ColumnElement[Any]:
    return func.make_interval(0, 0, 0, 0, 0, 0, seconds)


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
    """What a look at the rows just inserted would find, without looking."""
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


def _job(row: Any) -> Job:
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
