"""The PostgreSQL schema. PostgreSQL holds the truth; `shared.database` contains every transition."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Text,
    UniqueConstraint,
    Uuid,
    false,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from shared.database.batch_status import BatchStatus
from tuwen.datasets import DatasetStatus, ShardStatus
from tuwen.jobs import Kind, Status


def _one_of(column: str, values: type[StrEnum]) -> str:
    return f"{column} IN ({', '.join(repr(value.value) for value in values)})"


UNFINISHED = "status IN ('queued', 'running')"
MOVING = "status IN ('planning', 'running', 'exporting')"


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        datetime: DateTime(timezone=True),
        dict[str, Any]: JSONB,
        list[Any]: JSONB,
    }


class JobRow(Base):
    """A job: its request, its state, its lease and its outcome."""

    __tablename__ = "jobs"

    # identity
    id: Mapped[UUID] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    kind: Mapped[str]
    model: Mapped[str]
    priority: Mapped[int]
    request: Mapped[dict[str, Any]]

    # state; `epoch` is the fencing token: each claim increments it, and a finish must name it
    status: Mapped[str] = mapped_column(server_default=Status.QUEUED.value)
    epoch: Mapped[int] = mapped_column(server_default="0")
    attempts: Mapped[int] = mapped_column(server_default="0")
    max_attempts: Mapped[int]
    crashes: Mapped[int] = mapped_column(server_default="0")
    losses: Mapped[int] = mapped_column(server_default="0")
    """Workers that died while they had the job, but not in their running batch; these cost it nothing."""

    # dispatch: the job must not run before `available_at`, and is published again after `dispatch_due_at`
    available_at: Mapped[datetime] = mapped_column(server_default=func.now())
    dispatch_due_at: Mapped[datetime | None]
    deadline_at: Mapped[datetime]
    deadline: Mapped[float]
    """Seconds from submission to `deadline_at`; a retry by the owner gives the job the same time again."""

    # lease; `worker` stays when the job is over, to show which worker ran it
    worker: Mapped[str | None]
    lease_until: Mapped[datetime | None]
    cancel_requested_at: Mapped[datetime | None]

    # outcome
    webhook: Mapped[str | None]
    result: Mapped[dict[str, Any] | None]
    result_key: Mapped[str | None]
    error_code: Mapped[str | None]
    error_detail: Mapped[str | None]
    error_retryable: Mapped[bool | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    key_id: Mapped[UUID | None]
    """The API key that submitted it, whose secret signs its webhook."""
    stored_bytes: Mapped[int | None] = mapped_column(BigInteger)
    """Bytes of the pictures in its result, which count as stored by the tenant."""
    trace: Mapped[str | None]
    """W3C `traceparent` of the request that submitted the job, when requests are traced."""

    __table_args__ = (
        CheckConstraint(_one_of("kind", Kind), "kind"),
        CheckConstraint(_one_of("status", Status), "status"),
        CheckConstraint("priority BETWEEN 0 AND 9", "priority"),
        CheckConstraint("(status = 'running') = (lease_until IS NOT NULL AND worker IS NOT NULL)", "running_has_lease"),
        CheckConstraint(f"({UNFINISHED}) = (finished_at IS NULL)", "terminal_is_finished"),
        CheckConstraint("status <> 'succeeded' OR result IS NOT NULL", "succeeded_has_result"),
        CheckConstraint("status NOT IN ('failed', 'quarantined') OR error_code IS NOT NULL", "failed_has_error"),
        # Small partial indexes on unfinished rows. `lease_until` is in none of them, so a heartbeat stays a
        # heap-only (HOT) update.
        Index("ix_jobs_queued", "dispatch_due_at", postgresql_where=text("status = 'queued'")),
        Index("ix_jobs_running", "worker", postgresql_where=text("status = 'running'")),
        Index("ix_jobs_unfinished", "tenant", postgresql_where=text(UNFINISHED)),
        Index("ix_jobs_waiting", "kind", "created_at", postgresql_where=text("status = 'queued'")),
        Index("ix_jobs_listing", "tenant", "id"),
        Index("ix_jobs_result_key", "result_key", postgresql_where=text("result_key IS NOT NULL")),
        # A generate job may keep more images than `result_key` names.
        Index(
            "ix_jobs_candidates",
            text("(result -> 'candidates')"),
            postgresql_using="gin",
            postgresql_where=text("result -> 'candidates' <> '[]'::jsonb"),
        ),
        {"postgresql_with": {"fillfactor": "80"}},
    )


class IdempotencyRow(Base):
    """An `Idempotency-Key`: the ids of what was made under it, and the hash of what was asked for."""

    __tablename__ = "idempotency_keys"

    tenant: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    body_sha256: Mapped[str]
    job_ids: Mapped[list[Any]]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now(), index=True)


class ApiKeyRow(Base):
    """An API key, by the hash of its text."""

    __tablename__ = "api_keys"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    name: Mapped[str]
    tenant: Mapped[str]
    sha256: Mapped[str] = mapped_column(unique=True)
    quota: Mapped[int]
    dataset_roots: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default="{}")
    """Folders and `s3://` prefixes that its data sets may lie in; empty means none."""
    # Null where the installation's defaults hold.
    max_stored_bytes: Mapped[int | None] = mapped_column(BigInteger)
    max_datasets: Mapped[int | None]
    max_batches: Mapped[int | None]
    webhook_secret: Mapped[str | None]
    """Signs the webhooks of its jobs; null for keys of early releases, which the installation's secret signs for."""
    old_webhook_secret: Mapped[str | None]
    """The secret before this one; null where that was the installation's."""
    old_webhook_secret_until: Mapped[datetime | None]
    """Until then the old secret signs too."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    revoked_at: Mapped[datetime | None]


class TenantUsageRow(Base):
    """What a tenant has stored; triggers of migration 0011 keep it."""

    __tablename__ = "tenant_usage"

    tenant: Mapped[str] = mapped_column(primary_key=True)
    stored_bytes: Mapped[int] = mapped_column(BigInteger, server_default="0")


class SecretRow(Base):
    """A secret that the processes of the installation share, by its name."""

    __tablename__ = "secrets"

    name: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[bytes]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class FileRow(Base):
    """An uploaded image. The same bytes uploaded by two tenants are two rows and two objects."""

    __tablename__ = "files"

    tenant: Mapped[str] = mapped_column(primary_key=True)
    sha256: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(index=True)
    media_type: Mapped[str]
    width: Mapped[int]
    height: Mapped[int]
    size: Mapped[int]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class DocumentRow(Base):
    """A file other than an image: the input or an output of a batch."""

    __tablename__ = "documents"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    key: Mapped[str] = mapped_column(index=True)
    filename: Mapped[str]
    purpose: Mapped[str]
    size: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (Index("ix_documents_listing", "tenant", "id"),)


class BatchRow(Base):
    """A file of requests that are processed in the background; its lines become jobs a few at a time."""

    __tablename__ = "batches"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    quota: Mapped[int | None]
    max_stored_bytes: Mapped[int | None] = mapped_column(BigInteger)
    endpoint: Mapped[str]
    input_id: Mapped[UUID]
    completion_window: Mapped[str]
    labels: Mapped[dict[str, Any]]
    """The client's `metadata`."""
    base_url: Mapped[str]
    """URL at which the client reached the API, for URLs in answers."""

    status: Mapped[str] = mapped_column(server_default=BatchStatus.VALIDATING.value)
    epoch: Mapped[int] = mapped_column(server_default="0")
    due_at: Mapped[datetime | None] = mapped_column(server_default=func.now())
    """Time at which the next step is due; null when the batch is over."""
    problems: Mapped[list[Any]] = mapped_column(server_default="[]")

    # progress: how much of the input became jobs, and how many parts of the output are written
    position: Mapped[int] = mapped_column(BigInteger, server_default="0")
    line: Mapped[int] = mapped_column(server_default="0")
    parts: Mapped[int] = mapped_column(server_default="0")
    part_at: Mapped[datetime] = mapped_column(server_default=func.now())
    total: Mapped[int] = mapped_column(server_default="0")
    completed: Mapped[int] = mapped_column(server_default="0")
    failed: Mapped[int] = mapped_column(server_default="0")
    output_id: Mapped[UUID | None]
    errors_id: Mapped[UUID | None]

    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    in_progress_at: Mapped[datetime | None]
    cancelling_at: Mapped[datetime | None]
    finalizing_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    expires_at: Mapped[datetime]

    __table_args__ = (
        CheckConstraint(_one_of("status", BatchStatus), "status"),
        CheckConstraint("(due_at IS NULL) = (finished_at IS NOT NULL)", "seen_to_until_finished"),
        Index("ix_batches_listing", "tenant", "id"),
        Index("ix_batches_unfinished", "tenant", postgresql_where=text("finished_at IS NULL")),
        Index("ix_batches_due", "due_at", postgresql_where=text("due_at IS NOT NULL")),
    )


class BatchLineRow(Base):
    """A line of a batch whose job is not over, or whose answer is not written yet."""

    __tablename__ = "batch_lines"

    batch_id: Mapped[UUID] = mapped_column(ForeignKey("batches.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    custom_id: Mapped[str]
    job_id: Mapped[UUID]
    response_format: Mapped[str | None]


WEBHOOK_HOST = "COALESCE(lower(substring(url, '//([^/?#]*)')), '')"
"""SQL for the host that a webhook goes to, with the port where the URL names one; an index contains it."""


class WebhookRow(Base):
    """A pending delivery of a webhook, written in the transaction that finished the job."""

    __tablename__ = "webhooks"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    job_id: Mapped[UUID] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    url: Mapped[str]
    attempts: Mapped[int] = mapped_column(server_default="0")
    due_at: Mapped[datetime | None] = mapped_column(server_default=func.now())
    owed_at: Mapped[datetime] = mapped_column(server_default=func.now())
    """When its job ended, or when its delivery was ordered again."""
    delivered_at: Mapped[datetime | None]
    error: Mapped[str | None]

    __table_args__ = (
        UniqueConstraint("job_id"),
        Index("ix_webhooks_due", "due_at", postgresql_where=text("due_at IS NOT NULL")),
        Index("ix_webhooks_host", text(WEBHOOK_HOST), "due_at", postgresql_where=text("due_at IS NOT NULL")),
        Index("ix_webhooks_undelivered", "owed_at", postgresql_where=text("delivered_at IS NULL")),
    )


class ClockRow(Base):
    """The one row that says how far times were shifted, because PostgreSQL's clock was set to another time."""

    __tablename__ = "clock"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    shifted: Mapped[float] = mapped_column(server_default="0")
    """Seconds, of all jumps together."""

    __table_args__ = (CheckConstraint("id = 1", name="one_row"),)


class WorkerRow(Base):
    """A worker as it last reported itself; the row is deleted when it stops cleanly, and becomes stale when it dies."""

    __tablename__ = "workers"

    name: Mapped[str] = mapped_column(primary_key=True)
    device: Mapped[str]
    models: Mapped[dict[str, Any]]
    """Kind → {"model": name, "revision": weights}."""
    state: Mapped[str]
    started_at: Mapped[datetime] = mapped_column(server_default=func.now())
    seen_at: Mapped[datetime] = mapped_column(server_default=func.now())


class RunningBatchRow(Base):
    """The jobs that one process of a worker runs now: what it dies of is among them. It stays when the worker dies."""

    __tablename__ = "running_batches"

    run: Mapped[UUID] = mapped_column(primary_key=True)
    """One start of a worker: another one may take its name before anybody has seen that it died."""
    worker: Mapped[str]
    jobs: Mapped[list[Any]] = mapped_column(ARRAY(Uuid), server_default="{}")
    epochs: Mapped[list[Any]] = mapped_column(ARRAY(Integer), server_default="{}")
    """Of each of the jobs, the epoch of its claim."""
    told_at: Mapped[datetime] = mapped_column(server_default=func.now())


class DatasetRow(Base):
    """A data set: one run of bulk annotation. While it is planned or exported, a housekeeper holds a lease on it."""

    __tablename__ = "datasets"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    key_id: Mapped[UUID | None]
    """API key that submitted it, or exported or retried it last: its roots bound all places of the data set."""
    request: Mapped[dict[str, Any]]
    destination: Mapped[str | None]
    """Place to export to; null for a dry run."""
    kinds: Mapped[str]
    """Models that the shards need, joined by `+`."""
    priority: Mapped[int]

    status: Mapped[str] = mapped_column(server_default=DatasetStatus.PLANNING.value)
    paused_at: Mapped[datetime | None]
    epoch: Mapped[int] = mapped_column(server_default="0")
    attempts: Mapped[int] = mapped_column(server_default="0")
    available_at: Mapped[datetime] = mapped_column(server_default=func.now())
    worker: Mapped[str | None]
    lease_until: Mapped[datetime | None]

    estimate: Mapped[dict[str, Any] | None]
    error_code: Mapped[str | None]
    error_detail: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    started_at: Mapped[datetime | None]
    planned_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]

    __table_args__ = (
        CheckConstraint(_one_of("status", DatasetStatus), "status"),
        CheckConstraint("priority BETWEEN 0 AND 9", "priority"),
        CheckConstraint("(lease_until IS NULL) = (worker IS NULL)", "lease_has_worker"),
        CheckConstraint("lease_until IS NULL OR status IN ('planning', 'exporting')", "leased_for_a_reason"),
        CheckConstraint(f"({MOVING}) = (finished_at IS NULL)", "terminal_is_finished"),
        CheckConstraint("status <> 'failed' OR error_code IS NOT NULL", "failed_has_error"),
        # Two runs into the same destination would overwrite each other.
        Index("uq_datasets_destination", "destination", unique=True, postgresql_where=text(MOVING)),
        Index("ix_datasets_moving", "tenant", postgresql_where=text(MOVING)),
        Index("ix_datasets_listing", "tenant", "id"),
    )


class DatasetPlaceRow(Base):
    """A place that a tenant's data sets have read from or written to."""

    __tablename__ = "dataset_places"

    place: Mapped[str] = mapped_column(primary_key=True)
    """Real path or `s3://BUCKET/PREFIX`, in its normal form."""
    role: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str] = mapped_column(primary_key=True)
    dataset_id: Mapped[UUID]
    """The latest data set there; it may be deleted by now."""
    noted_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (
        CheckConstraint("role IN ('source', 'destination')", "role"),
        Index("uq_dataset_places_destination", "place", unique=True, postgresql_where=text("role = 'destination'")),
    )


class ShardRow(Base):
    """Some hundred images of a data set. The object `plan_key` has the plan, and `results_key` the results."""

    __tablename__ = "shards"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    dataset_id: Mapped[UUID] = mapped_column(ForeignKey("datasets.id", ondelete="CASCADE"))
    number: Mapped[int]
    images: Mapped[int]
    plan_key: Mapped[str]
    results_key: Mapped[str | None]
    again: Mapped[bool] = mapped_column(server_default=false())
    """Whether the images that failed in those results are to be tried again."""

    status: Mapped[str] = mapped_column(server_default=ShardStatus.QUEUED.value)
    epoch: Mapped[int] = mapped_column(server_default="0")
    attempts: Mapped[int] = mapped_column(server_default="0")
    crashes: Mapped[int] = mapped_column(server_default="0")
    available_at: Mapped[datetime] = mapped_column(server_default=func.now())
    dispatch_due_at: Mapped[datetime | None]
    worker: Mapped[str | None]
    lease_until: Mapped[datetime | None]

    # progress as of the last heartbeat; `kept` of these images are from an earlier attempt
    done: Mapped[int] = mapped_column(server_default="0")
    dropped: Mapped[int] = mapped_column(server_default="0")
    """Those of `done` that a filter dropped."""
    failed: Mapped[int] = mapped_column(server_default="0")
    final: Mapped[int] = mapped_column(server_default="0")
    """Those of `failed` that fail again as long as the source is as it is."""
    kept: Mapped[int] = mapped_column(server_default="0")
    tokens: Mapped[int] = mapped_column(BigInteger, server_default="0")

    error_code: Mapped[str | None]
    error_detail: Mapped[str | None]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]

    __table_args__ = (
        CheckConstraint(_one_of("status", ShardStatus), "status"),
        CheckConstraint("(status = 'running') = (lease_until IS NOT NULL AND worker IS NOT NULL)", "running_has_lease"),
        CheckConstraint(f"({UNFINISHED}) = (finished_at IS NULL)", "terminal_is_finished"),
        CheckConstraint("status <> 'done' OR results_key IS NOT NULL", "done_has_results"),
        CheckConstraint("status <> 'failed' OR error_code IS NOT NULL", "failed_has_error"),
        UniqueConstraint("dataset_id", "number"),
        Index("ix_shards_queued", "dataset_id", "dispatch_due_at", postgresql_where=text("status = 'queued'")),
        Index("ix_shards_running", "worker", postgresql_where=text("status = 'running'")),
        Index("ix_shards_finished", "finished_at", postgresql_where=text("finished_at IS NOT NULL")),
        {"postgresql_with": {"fillfactor": "80"}},
    )


class ReviewRow(Base):
    """A person's review of one image of a data set; the newest one counts, and older ones stay."""

    __tablename__ = "reviews"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    dataset_id: Mapped[UUID] = mapped_column(ForeignKey("datasets.id", ondelete="CASCADE"))
    image: Mapped[int] = mapped_column(BigInteger)
    """Position of the image in the data set."""
    verdict: Mapped[str | None]
    text: Mapped[str | None]
    language: Mapped[str | None]
    author: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (
        CheckConstraint("verdict IN ('accepted', 'rejected')", "verdict"),
        CheckConstraint("text IS NOT NULL OR verdict IS NOT NULL", "says_something"),
        Index("ix_reviews_image", "dataset_id", "image"),
    )
