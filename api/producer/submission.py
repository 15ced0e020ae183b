"""Submission, from the bytes of a request to committed jobs: all checks that are made before a job exists."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from uuid import UUID

from api.http.auth import Caller
from api.producer.resources import Resources
from shared.telemetry import tracing
from tuwen.errors import Conflict, InvalidRequest
from tuwen.jobs import Job, JobRequest

_LONGEST_KEY = 255


def submit(
    resources: Resources,
    caller: Caller,
    requests: Sequence[JobRequest],
    idempotency_key: str | None,
    *,
    in_batch: bool = False,
) -> list[Job]:
    """Check `requests`, make jobs of all or none of them, and publish these. A known key returns the jobs it made
    before.

    Raises:
        InvalidRequest: a request is invalid; the error may be of a subclass, and names the field.
        NotFound: the caller has no such file; the error names the field.
        Conflict: the key made a job that was deleted.
        QuotaExceeded, DatabaseUnavailable, StorageUnavailable
    """
    if idempotency_key is not None:
        _require_sendable(idempotency_key)
    paths = [f"jobs.{index}." if in_batch else "" for index in range(len(requests))]
    admitted = resources.admission.admit(requests, caller.tenant, paths)
    with tracing.submission_span(len(admitted)) as trace:
        submission = resources.database.jobs.submit(
            admitted,
            tenant=caller.tenant,
            quota=caller.quota,
            idempotency_key=idempotency_key,
            body_sha256=_body_hash(admitted) if idempotency_key is not None else "",
            trace=trace,
        )
    if submission.dispatches:
        resources.outbox.publish(submission.dispatches)
    if submission.replayed:
        return _made_before(resources, caller, submission.ids)
    return submission.jobs


def _made_before(resources: Resources, caller: Caller, ids: Sequence[UUID]) -> list[Job]:
    found = resources.database.jobs.find_many(ids, caller.tenant)
    for id in ids:
        if id not in found:
            raise Conflict(
                f"This Idempotency-Key made job {id}, which was deleted; use a new key to have it made again.",
                field="Idempotency-Key",
            )
    return [found[id] for id in ids]


def _body_hash(requests: Sequence[JobRequest]) -> str:
    """Hash what was asked for and not how it was written: white space, order and omitted defaults do not matter."""
    return sha256(b"\n".join(request.model_dump_json().encode() for request in requests)).hexdigest()


def _require_sendable(key: str) -> None:
    if not (0 < len(key) <= _LONGEST_KEY and key.isascii() and key.isprintable()):
        raise InvalidRequest(
            f"Idempotency-Key must be 1 to {_LONGEST_KEY} printable ASCII characters.", field="Idempotency-Key"
        )
