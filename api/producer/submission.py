"""Submission, from the bytes of a request to committed jobs: all checks that are made before a job exists."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

from api.http.auth import Caller
from api.producer.resources import Resources
from shared.queue import queue_name
from shared.telemetry import tracing
from tuwen.errors import InvalidRequest
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
        QuotaExceeded, DatabaseUnavailable, StorageUnavailable
    """
    if idempotency_key is not None:
        _require_sendable(idempotency_key)
    paths = [f"jobs.{index}." if in_batch else "" for index in range(len(requests))]
    admitted = resources.admission.admit(requests, caller.tenant, paths)
    with tracing.submission_span([queue_name(request.input.kind) for request in admitted]) as trace:
        submission = resources.database.jobs.submit(
            admitted,
            tenant=caller.tenant,
            quota=caller.quota,
            idempotency_key=idempotency_key,
            body_sha256=_body_hash(admitted) if idempotency_key is not None else "",
            trace=trace,
        )
        if len(submission.ids) == 1:
            tracing.note_message(submission.ids[0])
    if submission.dispatches:
        resources.outbox.publish(submission.dispatches)
    if submission.replayed:
        return resources.database.jobs.get_many(submission.ids, caller.tenant)
    return submission.jobs


def _body_hash(requests: Sequence[JobRequest]) -> str:
    """Hash what was asked for and not how it was written: white space, order and omitted defaults do not matter."""
    return sha256(b"\n".join(request.model_dump_json().encode() for request in requests)).hexdigest()


def _require_sendable(key: str) -> None:
    if not (0 < len(key) <= _LONGEST_KEY and key.isascii() and key.isprintable()):
        raise InvalidRequest(
            f"Idempotency-Key must be 1 to {_LONGEST_KEY} printable ASCII characters.", field="Idempotency-Key"
        )
