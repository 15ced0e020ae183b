"""Submission, from the bytes of a request to committed jobs: all checks that are made before a job exists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from api.http.auth import Caller
from api.http.rate_limits import quota_headers
from api.producer.once import once, require_sendable
from api.producer.resources import Resources
from shared.telemetry import tracing
from tuwen.jobs import Job, JobRequest


@dataclass(frozen=True, slots=True)
class Submitted:
    """The jobs in the order of the requests, and what the caller's quota leaves."""

    jobs: list[Job]
    headers: dict[str, str]
    """`RateLimit` fields, for callers with a quota."""


def submit(
    resources: Resources,
    caller: Caller,
    requests: Sequence[JobRequest],
    idempotency_key: str | None,
    *,
    in_batch: bool = False,
    asked: str | None = None,
) -> Submitted:
    """Check `requests`, make jobs of all or none of them, and publish these. A known key returns the jobs it made
    before.

    Args:
        asked: what must be the same under the same key, where that is more than the requests.

    Raises:
        InvalidRequest: a request is invalid; the error may be of a subclass, and names the field.
        NotFound: the caller has no such file; the error names the field.
        QuotaExceeded, StorageQuotaExceeded, DatabaseUnavailable, StorageUnavailable
    """
    if idempotency_key is not None:
        require_sendable(idempotency_key)
    paths = [f"jobs.{index}." if in_batch else "" for index in range(len(requests))]
    admitted = resources.admission.admit(
        requests, caller.tenant, paths, most_stored=caller.bounds.stored_bytes, signed=caller.signs_webhooks
    )
    known = once(idempotency_key, asked) if asked is not None else None
    body_sha256 = known.request_sha256 if known else _body_hash(admitted) if idempotency_key is not None else ""
    with tracing.submission_span(len(admitted)) as trace:
        submission = resources.database.jobs.submit(
            admitted,
            tenant=caller.tenant,
            quota=caller.quota,
            idempotency_key=idempotency_key,
            body_sha256=body_sha256,
            trace=trace,
            key_id=caller.key_id,
        )
    if submission.dispatches:
        resources.outbox.publish(submission.dispatches)
    jobs = resources.database.jobs.get_many(submission.ids, caller.tenant) if submission.replayed else submission.jobs
    return Submitted(jobs, quota_headers(caller.quota, submission.left))


def _body_hash(requests: Sequence[JobRequest]) -> str:
    """Hash what was asked for and not how it was written: white space, order and omitted defaults do not matter."""
    return sha256(b"\n".join(request.model_dump_json().encode() for request in requests)).hexdigest()
