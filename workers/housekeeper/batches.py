"""Processes batches: their lines become jobs a few at a time, and the results become files.

Every housekeeper has a thread for this. Each step takes a lease on the batch, does a bounded amount of work, and
commits its progress in one transaction, fenced by the epoch of the lease; so a housekeeper that dies in the middle of a
step has changed nothing, and another one continues. When PostgreSQL or the storage is away, the step is repeated after
the lease. At most `WINDOW` lines of a batch are unfinished jobs at any time, and only a part of its input or output is
in memory.

Answers are written in parts, `batches/<id>/output-00007.jsonl`, which are joined at the end.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from hashlib import blake2b
from typing import Any
from uuid import UUID

from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy import Connection
from uuid_utils.compat import uuid7

from shared.database import Database, Dispatch
from shared.database.batch_status import BatchStatus
from shared.database.batches import BatchClaim, Line, NewDocument
from shared.database.shards import Renewal
from shared.intake.admission import Admission
from shared.leasing.heartbeat import Heartbeat, Held
from shared.objects.signed_urls import ResultUrls, UrlSigner
from shared.objects.storage import ObjectStore
from shared.openai.batch_lines import (
    LineRequest,
    answer_line,
    failure_line,
    line_request,
    parse_line,
    refusal_line,
    skipped_line,
)
from shared.openai.documents import MEDIA_TYPE, key_of
from shared.queue import BATCHES_LIST, JobQueue, connect
from shared.settings import Settings
from shared.telemetry.metrics import JOBS_FINISHED, Recorder
from tuwen.errors import (
    Conflict,
    InvalidRequest,
    NotFound,
    QueueUnavailable,
    QuotaExceeded,
    TuwenError,
    Unavailable,
)
from tuwen.jobs import Job, Status, Tenant

log = logging.getLogger(__name__)

MOST_LINES = 50_000
WINDOW = 1000
"""Lines of a batch that are jobs at the same time: more than any worker claims, and few enough to stop quickly."""
CHUNK = 100
"""Lines that become jobs in one transaction."""
PART_LINES = 200
PART_BYTES = 16 * 2**20
PART_AGE = 5.0
"""Seconds after which even a small part is written, so that a client sees the counts change."""
PAUSE = 0.5
_IDLE = 1.0
_BLOCK = 2**20
_MOST_PROBLEMS = 20


class _Step(Held[BatchClaim]):
    """A batch while a step of it is done here."""

    def stop(self) -> None:
        """Do nothing: the step is bounded, and what it writes under a lost lease is refused."""


class BatchRunner:
    """A thread of the housekeeper. Any number of them may run: each step is done by who has taken the batch."""

    def __init__(self, settings: Settings):
        self._settings = settings
        self._database = Database(settings, pool_size=2)
        self._queue = JobQueue(settings)
        self._store = ObjectStore.open(settings)
        self._admission = Admission(settings, self._database, self._store)
        self._signer = UrlSigner(settings, self._database)
        self._recorder = Recorder()
        self._heartbeat = Heartbeat(self._renew, settings.heartbeat, "batch-heartbeat")
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="batches", daemon=True)

    def start(self) -> None:
        self._heartbeat.start()
        self._thread.start()

    def stop(self) -> None:
        """Begin no further step; the one under way comes to its end."""
        self._stopping.set()

    def close(self, timeout: float) -> None:
        """Stop, and wait for the step under way for at most `timeout` seconds. What is cut off is done again later."""
        self.stop()
        self._thread.join(timeout)
        self._heartbeat.close()
        if not self._thread.is_alive():
            self._queue.close()
            self._database.close()

    def _renew(self, held: Mapping[UUID, _Step]) -> Renewal:
        return self._database.batches.renew({id: step.epoch for id, step in held.items()}, self._settings.lease)

    def _run(self) -> None:
        with connect(self._settings) as redis:
            while not self._stopping.is_set():
                try:
                    batch = self._database.batches.take(self._settings.lease)
                except Unavailable as error:
                    log.debug("cannot look for due batches: %s", error)
                    batch = None
                except Exception:
                    log.exception("the batches could not be looked at")
                    batch = None
                if batch is not None:
                    self._see_to(batch)
                else:
                    self._await_batch(redis)

    def _await_batch(self, redis: Redis) -> None:
        """Wait until the API says that a batch is due, but only for a moment: others may come due by themselves."""
        try:
            redis.blpop([BATCHES_LIST], timeout=_IDLE)
        except (RedisError, OSError):
            self._stopping.wait(_IDLE)

    def _see_to(self, batch: BatchClaim) -> None:
        try:
            with self._heartbeat.holding(_Step(batch)):
                self._step(batch)
        except Conflict as error:
            log.debug("batch %s: %s", batch.id, error)
        except Unavailable as error:
            log.warning("batch %s is tried again when its lease ends: %s", batch.id, error)
        except Exception:
            log.exception("batch %s: a step failed; it is tried again when its lease ends", batch.id)

    def _step(self, batch: BatchClaim) -> None:
        match batch.status:
            case BatchStatus.VALIDATING:
                self._validate(batch)
            case BatchStatus.IN_PROGRESS:
                self._advance(batch)
            case BatchStatus.CANCELLING:
                self._stop(batch)
            case BatchStatus.FINALIZING:
                self._finalize(batch)

    # ── the input ─────────────────────────────────────────────────────────────────────────────────

    def _validate(self, batch: BatchClaim) -> None:
        """Read the whole input once, so that a mistake in its last line is reported before any line becomes a job."""
        problems: list[dict[str, Any]] = []
        known: set[bytes] = set()
        total = 0
        for number, line in enumerate(self._lines(batch), 1):
            if not line.strip():
                continue
            total += 1
            try:
                custom_id = parse_line(line, batch.endpoint).custom_id
                # Long ids are stored as short digests, so the size of the set depends only on the number of lines.
                digest = blake2b(custom_id.encode(), digest_size=16).digest()
                if digest in known:
                    raise InvalidRequest(
                        "An earlier line has the same custom_id; give each line its own.", field="custom_id"
                    )
                known.add(digest)
                if total > MOST_LINES:
                    raise InvalidRequest(
                        f"The file has more than {MOST_LINES:,} lines, the most that a batch may have."
                    )
            except InvalidRequest as error:
                problems.append({"code": "invalid_line", "line": number, "message": error.detail, "param": error.field})
            if len(problems) == _MOST_PROBLEMS or total > MOST_LINES:
                break
        if not total:
            problems.append({"code": "empty_file", "line": None, "message": "The file has no requests.", "param": None})
        if problems:
            self._database.batches.fail(batch.id, batch.epoch, problems)
        else:
            self._database.batches.begin(batch.id, batch.epoch, total)

    def _lines(self, batch: BatchClaim) -> Iterator[bytes]:
        """All lines of the input; empty when the input was deleted."""
        rest = b""
        try:
            chunks = self._store.stream(key_of(batch.input_id, batch.tenant))
        except NotFound:
            return
        for chunk in chunks:
            *lines, rest = (rest + chunk).split(b"\n")
            yield from lines
        if rest:
            yield rest

    def _next_lines(self, batch: BatchClaim) -> tuple[list[bytes], int]:
        """The next `CHUNK` lines of the batch at most, and the position of the byte after them; empty at the end."""
        key, size = key_of(batch.input_id, batch.tenant), _BLOCK
        while True:
            try:
                block = self._store.read(key, batch.position, size)
            except NotFound:
                return [], batch.position
            *whole, rest = block.split(b"\n")
            at_end = len(block) < size
            if at_end and rest:
                whole.append(rest)
            if whole or at_end:
                # With a small quota, more lines would never be accepted together.
                taken = whole[: min(CHUNK, max(1, batch.quota or CHUNK))]
                # Lies beyond the end of the file when the last line has no newline; nothing is read from there.
                return taken, batch.position + sum(len(line) + 1 for line in taken)
            size *= 2  # not even one line fits

    # ── a batch in progress ───────────────────────────────────────────────────────────────────────

    def _advance(self, batch: BatchClaim) -> None:
        under_way = len(self._database.batches.jobs_under_way(batch.id))
        finished = self._database.batches.finished_lines(batch.id, PART_LINES)
        if finished and (len(finished) == PART_LINES or batch.since_part > PART_AGE):
            self._gather(batch, finished)
            return
        lines, position = self._next_lines(batch) if under_way <= WINDOW - CHUNK else ([], batch.position)
        if lines:
            self._submit(batch, lines, position)
        elif finished and len(finished) == under_way:
            self._gather(batch, finished)
        elif under_way:
            self._database.batches.put_off(batch.id, batch.epoch, PAUSE)
        else:
            self._finalize(batch)

    def _submit(self, batch: BatchClaim, lines: Sequence[bytes], position: int) -> None:
        """Make jobs of `lines`; those that cannot be jobs are answered at once."""
        requests, errors = self._line_requests(batch, lines)
        if requests:
            requests, more = self._admit(requests, batch)
            errors += more
        self._put_part(batch, "errors", errors)
        advance = partial(
            self._database.batches.advance,
            batch.id,
            batch.epoch,
            position=position,
            line=batch.line + len(lines),
            refused=len(errors),
        )
        if not requests:
            advance()
            return

        def note(connection: Connection, ids: list[UUID]) -> None:
            jobs = [
                Line(request.number, request.custom_id, id, request.response_format)
                for request, id in zip(requests, ids, strict=True)
            ]
            advance(jobs, connection=connection)

        try:
            submission = self._database.jobs.submit(
                [request.job for request in requests], tenant=batch.tenant, quota=batch.quota, together_with=note
            )
        except QuotaExceeded:
            # The quota is used up: try again when some of the unfinished jobs are over.
            self._database.batches.put_off(batch.id, batch.epoch, PAUSE)
            return
        self._publish(submission.dispatches)

    def _publish(self, dispatches: Sequence[Dispatch]) -> None:
        """Hand jobs that are committed to the workers."""
        try:
            # Celery tries for seconds to connect to a Redis that is gone; this says so at once.
            self._queue.check()
            self._queue.publish(dispatches)
        except QueueUnavailable as error:
            log.warning("%d jobs wait for a round of the housekeeper: %s", len(dispatches), error)
            self._database.jobs.dispatch_now([dispatch.id for dispatch in dispatches])

    def _line_requests(self, batch: BatchClaim, lines: Sequence[bytes]) -> tuple[list[LineRequest], list[bytes]]:
        """What the lines ask for, and the answers to those that ask for nothing that can be, or too late."""
        requests: list[LineRequest] = []
        errors: list[bytes] = []
        for number, text in enumerate(lines, batch.line + 1):
            if not text.strip():
                continue
            line = parse_line(text, batch.endpoint)
            if batch.time_left <= 0:
                errors.append(skipped_line(line.custom_id, "batch_expired", "The batch expired before this request."))
                continue
            try:
                requests.append(line_request(self._settings, number, line, batch.time_left))
            except TuwenError as error:
                errors.append(refusal_line(line.custom_id, error))
        return requests, errors

    def _admit(self, requests: Sequence[LineRequest], batch: BatchClaim) -> tuple[list[LineRequest], list[bytes]]:
        """The requests that can be jobs, their images kept as files, and the lines that answer the others."""
        try:
            wanted = [request.job for request in requests]
            jobs = self._admission.admit(wanted, batch.tenant, most_stored=batch.max_stored_bytes)
            return [replace(request, job=job) for request, job in zip(requests, jobs, strict=True)], []
        except Unavailable:
            raise
        except TuwenError as error:
            if len(requests) == 1:
                return [], [refusal_line(requests[0].custom_id, error)]
        # One of them is to blame, and must not cost the others their turn.
        each = [self._admit([request], batch) for request in requests]
        return [request for good, _ in each for request in good], [line for _, bad in each for line in bad]

    def _gather(self, batch: BatchClaim, finished: Sequence[Line]) -> None:
        """Write the answers of finished lines, as many as fit into a part."""
        jobs = self._database.jobs.get_many([line.job_id for line in finished], batch.tenant)
        output: list[bytes] = []
        errors: list[bytes] = []
        size = 0
        for line, job in zip(finished, jobs, strict=True):
            answer, succeeded = self._answer(batch, line, job)
            (output if succeeded else errors).append(answer)
            size += len(answer)
            if size > PART_BYTES:
                break
        self._put_part(batch, "output", output)
        self._put_part(batch, "errors", errors)
        numbers = [line.number for line in finished[: len(output) + len(errors)]]
        counts = {"completed": len(output), "failed": len(errors)}
        self._database.batches.mark_answered(batch.id, batch.epoch, numbers, **counts)

    def _answer(self, batch: BatchClaim, line: Line, job: Job) -> tuple[bytes, bool]:
        if job.status is not Status.SUCCEEDED:
            return failure_line(line.custom_id, job), False
        try:
            urls = ResultUrls(self._signer, batch.base_url)
            answer = answer_line(
                self._settings, self._store, urls, batch.endpoint, line.custom_id, line.response_format, job
            )
        except NotFound as error:
            return refusal_line(line.custom_id, error, job.id), False
        return answer, True

    def _stop(self, batch: BatchClaim) -> None:
        """Stop a cancelled batch: cancel the jobs that are not over, and write the answers of those that are."""
        if finished := self._database.batches.finished_lines(batch.id, PART_LINES):
            self._gather(batch, finished)
            return
        under_way = self._database.batches.jobs_under_way(batch.id)
        if not under_way:
            self._finalize(batch)
            return
        self._cancel(self._database.jobs.get_many(under_way, batch.tenant), batch.tenant)
        self._database.batches.put_off(batch.id, batch.epoch, PAUSE)

    def _cancel(self, jobs: Sequence[Job], tenant: Tenant) -> None:
        over: list[UUID] = []
        running: list[UUID] = []
        for job in jobs:
            if job.status.terminal or job.cancel_requested:
                continue
            try:
                status = self._database.jobs.cancel(job.id, tenant)
            except Conflict:
                continue  # over meanwhile
            if status is Status.CANCELLED:
                self._recorder.count(JOBS_FINISHED, job.kind, status)
                over.append(job.id)
            else:
                running.append(job.id)
        self._queue.announce((id, {"status": Status.CANCELLED.value}) for id in over)
        self._recorder.flush(self._queue.redis)
        try:
            for id in running:
                self._queue.request_cancel(id)
        except QueueUnavailable as error:
            log.warning("%d cancels wait for a heartbeat: %s", len(running), error)

    # ── the output ────────────────────────────────────────────────────────────────────────────────

    def _put_part(self, batch: BatchClaim, name: str, lines: Sequence[bytes]) -> None:
        """Write a part, before the transaction that counts it: a step that is repeated writes the same part again."""
        if lines:
            self._store.put(f"batches/{batch.id.hex}/{name}-{batch.parts:05}.jsonl", b"".join(lines), MEDIA_TYPE)

    def _finalize(self, batch: BatchClaim) -> None:
        self._database.batches.finalize(batch.id, batch.epoch)
        folder = f"batches/{batch.id.hex}"
        # A part that no transaction counted was either written again under the same name or is an orphan.
        parts = sorted(stored.key for stored in self._store.list(folder))
        documents = [self._put_together(batch, name, parts) for name in ("output", "errors")]
        if batch.cancelling_at is not None:
            status = BatchStatus.CANCELLED
        else:
            status = BatchStatus.EXPIRED if batch.time_left <= 0 else BatchStatus.COMPLETED
        self._database.batches.finish(batch.id, batch.epoch, batch.tenant, status, *documents)
        for key in parts:
            self._store.delete(key)

    def _put_together(self, batch: BatchClaim, name: str, parts: Sequence[str]) -> NewDocument | None:
        wanted = [key for key in parts if f"/{name}-" in key and int(key[-11:-6]) < batch.parts]
        if not wanted:
            return None
        id = uuid7()
        key = key_of(id, batch.tenant)
        chunks = (chunk for part in wanted for chunk in self._store.stream(part))
        size = self._store.put_stream(key, chunks, MEDIA_TYPE)
        return NewDocument(id, key, f"batch_{batch.id.hex}_{name}.jsonl", "batch_output", size)
