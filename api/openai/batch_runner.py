"""Works off batches: their lines become jobs a few at a time, and what comes of them becomes files.

Every API process has a thread for this. Each step takes the batch for a while, does a bounded piece, and writes in one
transaction how far it came, fenced by the epoch under which it was taken; so a process that dies in the middle of a
step has done nothing, and another goes on. At no time are more than `WINDOW` lines of a batch jobs that are not over,
and no more than a part of its input or output is in memory.

Answers are written in parts, `batches/<id>/output-00007.jsonl`, that are put together at the end.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from hashlib import blake2b
from typing import Any
from uuid import UUID

from uuid_utils.compat import uuid7

from api.http.auth import Caller
from api.openai.batch_lines import Wish, admitted, answered, called_off, failed, read, refused, wish
from api.openai.documents import MEDIA_TYPE, key_of
from api.producer.resources import Resources
from shared.database.batches import Line, NewDocument
from shared.openai.batches import BatchStatus
from tuwen.errors import Conflict, InvalidRequest, NotFound, QuotaExceeded, TuwenError, Unavailable
from tuwen.jobs import Job, Status

log = logging.getLogger(__name__)

MOST_LINES = 50_000
WINDOW = 1000
"""Lines of a batch that are jobs at a time: more than any worker takes in hand, and few enough to stop quickly."""
CHUNK = 100
"""Lines that become jobs in one transaction."""
PART_LINES = 200
PART_BYTES = 16 * 2**20
PART_AGE = 5.0
"""Seconds after which a part is written although it is small, so that a client sees the counts move."""
LEASE = 120.0
PAUSE = 0.5
_IDLE = 1.0
_BLOCK = 2**20
_MOST_PROBLEMS = 20


class BatchRunner:
    def __init__(self, resources: Resources):
        self._resources = resources
        self._database = resources.database
        self._store = resources.store
        self._wake = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="batches", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """There is a batch to see to."""
        self._wake.set()

    def close(self) -> None:
        """Let the step under way come to its end."""
        self._closing = True
        self._wake.set()
        self._thread.join(10)

    def _run(self) -> None:
        while not self._closing:
            try:
                batch = self._database.batches.take(LEASE)
            except Unavailable as error:
                log.debug("no look at the batches: %s", error)
                batch = None
            if batch is not None:
                self._see_to(batch)
            else:
                self._wake.wait(_IDLE)
                self._wake.clear()

    def _see_to(self, batch: Any) -> None:
        try:
            self._step(batch)
        except Conflict as error:
            log.debug("batch %s: %s", batch.id, error)
        except Unavailable as error:
            log.warning("batch %s is tried again when its lease ends: %s", batch.id, error)
        except Exception:
            log.exception("batch %s: a step failed; it is tried again when its lease ends", batch.id)

    def _step(self, batch: Any) -> None:
        match BatchStatus(batch.status):
            case BatchStatus.VALIDATING:
                self._validate(batch)
            case BatchStatus.IN_PROGRESS:
                self._advance(batch)
            case BatchStatus.CANCELLING:
                self._stop(batch)
            case BatchStatus.FINALIZING:
                self._finalize(batch)

    # ── the input ─────────────────────────────────────────────────────────────────────────────────

    def _validate(self, batch: Any) -> None:
        """Read the whole input once, so that a mistake in its last line is told before the first is worked on."""
        problems: list[dict[str, Any]] = []
        known: set[bytes] = set()
        total = 0
        for number, line in enumerate(self._lines(batch), 1):
            if not line.strip():
                continue
            total += 1
            try:
                custom_id = read(line, batch.endpoint).custom_id
                # What stands for an id is as short for a long one: the set is bounded by the number of lines.
                digest = blake2b(custom_id.encode(), digest_size=16).digest()
                if digest in known:
                    raise InvalidRequest("The custom_id is that of an earlier line.", field="custom_id")
                known.add(digest)
                if total > MOST_LINES:
                    raise InvalidRequest(f"A batch has at most {MOST_LINES:,} lines.")
            except InvalidRequest as error:
                problems.append({"code": "invalid_line", "line": number, "message": error.detail, "param": error.field})
            if len(problems) == _MOST_PROBLEMS or total > MOST_LINES:
                break
        if not total:
            problems.append({"code": "empty_file", "line": None, "message": "There are no requests.", "param": None})
        if problems:
            self._database.batches.fail(batch.id, batch.epoch, problems)
        else:
            self._database.batches.begin(batch.id, batch.epoch, total)

    def _lines(self, batch: Any) -> Iterator[bytes]:
        """All lines of the input; none where it was deleted."""
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

    def _next_lines(self, batch: Any) -> tuple[list[bytes], int]:
        """At most `CHUNK` lines from where the batch stands, and the byte after them; none at the end."""
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
                # With a small quota, more would never be accepted together.
                taken = whole[: min(CHUNK, max(1, batch.quota or CHUNK))]
                # Beyond the end when the last line lacks its own: nothing is read from there.
                return taken, batch.position + sum(len(line) + 1 for line in taken)
            size *= 2  # not even one line fits

    # ── a batch in progress ───────────────────────────────────────────────────────────────────────

    def _advance(self, batch: Any) -> None:
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

    def _submit(self, batch: Any, lines: Sequence[bytes], position: int) -> None:
        """Make jobs of `lines`; those that cannot be jobs are answered at once."""
        wishes, errors = self._wishes(batch, lines)
        if wishes:
            wishes, more = admitted(self._resources, Caller(batch.tenant, batch.quota), wishes)
            errors += more
        self._put_part(batch, "errors", errors)
        done = {"position": position, "line": batch.line + len(lines), "refused": len(errors)}
        if not wishes:
            self._database.batches.advance(batch.id, batch.epoch, **done)
            return

        def note(connection: Any, ids: list[UUID]) -> None:
            jobs = [
                Line(wish.number, wish.custom_id, id, wish.response_format)
                for wish, id in zip(wishes, ids, strict=True)
            ]
            self._database.batches.advance(batch.id, batch.epoch, jobs, **done, connection=connection)

        try:
            submission = self._database.jobs.submit(
                [wish.job for wish in wishes], tenant=batch.tenant, quota=batch.quota, together_with=note
            )
        except QuotaExceeded:
            # Not before some of what is unfinished is finished.
            self._database.batches.put_off(batch.id, batch.epoch, PAUSE)
            return
        self._resources.outbox.publish(submission.dispatches)

    def _wishes(self, batch: Any, lines: Sequence[bytes]) -> tuple[list[Wish], list[bytes]]:
        """What the lines ask for, and the answers to those that ask for nothing that can be, or too late."""
        wishes: list[Wish] = []
        errors: list[bytes] = []
        for number, text in enumerate(lines, batch.line + 1):
            if not text.strip():
                continue
            line = read(text, batch.endpoint)
            if batch.time_left <= 0:
                errors.append(called_off(line.custom_id, "batch_expired", "The batch expired before this request."))
                continue
            try:
                wishes.append(wish(self._resources.settings, number, line, batch.time_left))
            except TuwenError as error:
                errors.append(refused(line.custom_id, error))
        return wishes, errors

    def _gather(self, batch: Any, finished: Sequence[Line]) -> None:
        """Write the answers of lines that are over, as many as fit into a part."""
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
        self._database.batches.gathered(batch.id, batch.epoch, numbers, **counts)

    def _answer(self, batch: Any, line: Line, job: Job) -> tuple[bytes, bool]:
        if job.status is not Status.SUCCEEDED:
            return failed(line.custom_id, job), False
        make = partial(answered, self._resources, batch.base_url, batch.endpoint)
        try:
            return make(line.custom_id, line.response_format, job), True
        except NotFound as error:
            return refused(line.custom_id, error, job.id), False

    def _stop(self, batch: Any) -> None:
        """It was cancelled: what is not over is called off, and what is over is written."""
        if finished := self._database.batches.finished_lines(batch.id, PART_LINES):
            self._gather(batch, finished)
            return
        under_way = self._database.batches.jobs_under_way(batch.id)
        if not under_way:
            self._finalize(batch)
            return
        for job in self._database.jobs.get_many(under_way, batch.tenant):
            if job.status.terminal or job.cancel_requested:
                continue
            try:
                status = self._database.jobs.cancel(job.id, batch.tenant)
            except Conflict:
                continue  # over meanwhile
            self._resources.outbox.cancelled(job.id, job.kind, status)
        self._database.batches.put_off(batch.id, batch.epoch, PAUSE)

    # ── the output ────────────────────────────────────────────────────────────────────────────────

    def _put_part(self, batch: Any, name: str, lines: Sequence[bytes]) -> None:
        """Before the transaction that counts it: a step done again writes the same part again."""
        if lines:
            self._store.put(f"batches/{batch.id.hex}/{name}-{batch.parts:05}.jsonl", b"".join(lines), MEDIA_TYPE)

    def _finalize(self, batch: Any) -> None:
        self._database.batches.finalize(batch.id, batch.epoch)
        folder = f"batches/{batch.id.hex}"
        # A part that no transaction counted was written again under the same name, or belongs to nobody.
        parts = sorted(stored.key for stored in self._store.list(folder))
        documents = [self._put_together(batch, name, parts) for name in ("output", "errors")]
        if batch.cancelling_at is not None:
            status = BatchStatus.CANCELLED
        else:
            status = BatchStatus.EXPIRED if batch.time_left <= 0 else BatchStatus.COMPLETED
        self._database.batches.finish(batch.id, batch.epoch, batch.tenant, status, *documents)
        for key in parts:
            self._store.delete(key)

    def _put_together(self, batch: Any, name: str, parts: Sequence[str]) -> NewDocument | None:
        wanted = [key for key in parts if f"/{name}-" in key and int(key[-11:-6]) < batch.parts]
        if not wanted:
            return None
        id = uuid7()
        key = key_of(id, batch.tenant)
        chunks = (chunk for part in wanted for chunk in self._store.stream(part))
        size = self._store.put_stream(key, chunks, MEDIA_TYPE)
        return NewDocument(id, key, f"batch_{batch.id.hex}_{name}.jsonl", "batch_output", size)
