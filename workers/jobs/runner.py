"""What happens to jobs in a worker: claim → prepare → batch → store → settle.

No job has a thread of its own. Those that arrive together are claimed with one statement, those that share a batch
are settled with one, and what waits, for a forward pass or a slow web server, waits as a future or in a pool.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, cast
from uuid import UUID

from pydantic import TypeAdapter

from shared.database import Claim, Database, Finish, GiveBack
from shared.database.shards import Renewal
from shared.database.workers import ServedModel
from shared.intake.fetch import Fetcher
from shared.intake.images import pixels
from shared.leasing.cancels import CancelListener
from shared.leasing.endings import INTERNAL
from shared.leasing.grouping import Grouped
from shared.leasing.heartbeat import Heartbeat
from shared.leasing.patience import patiently
from shared.objects.storage import ObjectStore, file_key
from shared.queue import JobQueue
from shared.queue.tasks import Ticket
from shared.settings import Settings
from shared.telemetry import tracing
from shared.telemetry.metrics import Recorder
from tuwen.engine import DescribeItem, GenerateItem, Item, MatchItem, Output, Picture, Pixels, RecognizeItem
from tuwen.errors import (
    EngineCrashed,
    EngineHung,
    EngineStartFailed,
    TuwenError,
)
from tuwen.jobs import (
    DescribeInput,
    GenerateInput,
    ImageSource,
    JobError,
    JobInput,
    JobResult,
    Kind,
    MatchInput,
    RecognizeInput,
    Status,
)
from workers.inference.batcher import Batcher, Released
from workers.jobs.correspondence import Drawn, Sketch, describe, draw
from workers.jobs.leases import Lease
from workers.jobs.pairs import report
from workers.jobs.pictures import stored
from workers.jobs.stages import Stages, play
from workers.jobs.watchers import Watchers

log = logging.getLogger(__name__)

Ending = Finish | GiveBack
Work = Item | Stages[Any]
"""One engine call, or several that build on each other."""

_INPUT: TypeAdapter[JobInput] = TypeAdapter(JobInput)

KEPT_TOGETHER = 4
"""Pictures that one thread encodes and stores: few, so that a distant storage is asked for many at a time, and more
than one, because handing over costs as much as encoding a small one."""


@dataclass(eq=False, slots=True)
class _Run:
    """A claimed job on its way through this worker."""

    ticket: Ticket
    claim: Claim
    lease: Lease
    began: float
    trace: tracing.AnyTrace


class Runner:
    """Runs the jobs of one worker; at most `at_once` are in its hands."""

    def __init__(
        self,
        settings: Settings,
        worker: str,
        batcher: Batcher,
        at_once: int,
        *,
        on_broken: Callable[[], None],
        recorder: Recorder,
    ):
        """`on_broken` is called when the engine cannot be started any more: this worker is of no further use."""
        self._settings = settings
        self._worker = worker
        self._batcher = batcher
        self._on_broken = on_broken
        self._recorder = recorder
        self._database = Database(settings)
        self._queue = JobQueue(settings)
        self._store = ObjectStore.open(settings)
        self._fetcher = Fetcher(settings)
        self._heartbeat = Heartbeat(
            self._renew,
            settings.heartbeat,
            "heartbeat",
            beats_idle=True,
            on_beat=lambda: recorder.flush(self._queue.redis),
        )
        self._cancels = CancelListener(settings, self._heartbeat.beat_for)
        self._watchers = Watchers(self._queue)
        self._arrivals = Grouped(self._claim_all, "claims")
        self._drawings = Grouped(self._keep_all, "drawings")
        self._endings = Grouped(self._settle_all, "endings")
        # For what waits or computes outside Python: downloads, decoding, encoding, storing.
        self._hands = ThreadPoolExecutor(at_once, "hands")
        self._at_once = at_once
        self._places = threading.Semaphore(at_once)
        self._stopping = threading.Event()

    def check(self) -> None:
        """Whether jobs could run here at all, asked before minutes go into loading models.

        Raises:
            DatabaseUnavailable, StorageUnavailable: they could not.
        """
        self._database.check()
        self._store.check()

    def start(self, device: str, models: Mapping[Kind, ServedModel]) -> None:
        """The worker is warm: take part."""
        self._database.workers.register(self._worker, device, models)
        self._heartbeat.start()
        self._cancels.start()

    def take(self, ticket: Ticket) -> None:
        """Run the ticket's job, if it may run. Returns at once."""
        self._arrivals.add(ticket)

    def stop(self, grace: float) -> None:
        """Let the running batch finish, for at most `grace` seconds; everything that waits goes back to the queue.

        Once it has been called, it does nothing more.
        """
        if self._stopping.is_set():
            return
        self._stopping.set()
        self._batcher.stop(grace)
        # Every future is done: what is left is to store and to settle, or a download at its worst.
        deadline = time.monotonic() + self._settings.fetch_timeout + self._settings.lease
        for _ in range(self._at_once):
            self._places.acquire(timeout=max(0.0, deadline - time.monotonic()))

    def close(self) -> None:
        """After the last job."""
        self._hands.shutdown(wait=False, cancel_futures=True)
        self._arrivals.close()
        self._drawings.close()
        self._endings.close()
        self._cancels.close()
        self._heartbeat.close()
        self._watchers.close()
        try:
            self._recorder.flush(self._queue.redis)
            self._database.workers.unregister(self._worker)
        except TuwenError as error:
            log.warning("not signed off: %s", error)
        self._queue.close()
        self._database.close()

    def _renew(self, held: Mapping[UUID, Lease]) -> Renewal:
        return self._database.jobs.renew({id: lease.epoch for id, lease in held.items()}, self._worker)

    # ── claiming ──────────────────────────────────────────────────────────────────────────────────

    def _claim_all(self, tickets: Sequence[Ticket]) -> None:
        """Start these jobs as places become free; in the thread of the arrivals."""
        while tickets and (count := self._free_places(len(tickets))):
            some, tickets = tickets[:count], tickets[count:]
            try:
                self._start(some)
            except Exception:
                # The housekeeper publishes them again.
                log.exception("%d jobs could not be claimed", count)
                for ticket in some:
                    ticket.dropped(None)
        if tickets:
            self._database.jobs.dispatch_now([ticket.job_id for ticket in tickets])

    def _free_places(self, most: int) -> int:
        """Wait for one free place; take up to `most` of those there are, none when the worker stops."""
        while not self._places.acquire(timeout=1.0):
            if self._stopping.is_set():
                return 0
        count = 1
        while count < most and self._places.acquire(blocking=False):
            count += 1
        if not self._stopping.is_set():
            return count
        self._places.release(count)
        return 0

    def _start(self, tickets: Sequence[Ticket]) -> None:
        """Claim these jobs, and set those going that are this worker's now."""
        asked = time.time_ns()
        try:
            ids = [ticket.job_id for ticket in tickets]
            claims = patiently(lambda: self._database.jobs.claim(ids, self._worker), self._settings.lease)
        except Exception:
            self._places.release(len(tickets))
            raise
        refused = []
        for ticket in tickets:
            # A doubled message may be in one group with its twin: the claim is for one of the two.
            if (claim := claims.pop(ticket.job_id, None)) is not None:
                self._go(ticket, claim, asked)
            else:
                refused.append(ticket)
        if refused:
            self._places.release(len(refused))
            self._drop(refused)

    def _go(self, ticket: Ticket, claim: Claim, asked: int) -> None:
        ticket.started()
        self._watchers.started(claim.id)
        about = {"tuwen.job": str(claim.id), "tuwen.worker": self._worker, "tuwen.attempt": claim.attempts}
        trace = tracing.job(claim.kind.value, claim.trace, waited=claim.waited, asked=asked, attributes=about)
        lease = Lease(claim)
        self._heartbeat.hold(lease)
        run = _Run(ticket, claim, lease, time.monotonic(), trace)
        if claim.kind is Kind.GENERATE:
            self._begin(run)
        else:
            self._hands.submit(self._begin, run)

    def _drop(self, tickets: Sequence[Ticket]) -> None:
        """Messages for jobs that may not run: duplicates, or they ended while they waited."""
        statuses = self._database.jobs.statuses([ticket.job_id for ticket in tickets])
        for ticket in tickets:
            ticket.dropped(statuses.get(ticket.job_id))

    # ── one job ───────────────────────────────────────────────────────────────────────────────────

    def _begin(self, run: _Run) -> None:
        claim = run.claim
        run.trace.stage("prepare")
        try:
            work = self._prepare(claim)
            run.trace.stage("batch")
            submit = partial(self._submit, claim)
            future: Future[Any] = play(work, submit) if isinstance(work, Generator) else submit(work)
        except BaseException as error:  # noqa: BLE001 (becomes the job's ending, whatever it is)
            self._end(run, self._ending_of(claim, error))
            return
        run.lease.watch(future)
        future.add_done_callback(partial(self._answered, run, work))

    def _submit(self, claim: Claim, item: Item, number: int = 0) -> Future[Output]:
        return self._batcher.submit(
            item,
            priority=claim.priority,
            # It may be the one that killed a process: let it not take neighbours with it.
            alone=claim.crashes > 0,
            on_progress=partial(self._watchers.progressed, claim.id, number),
            watched=partial(self._watchers.follow, claim.id),
        )

    def _answered(self, run: _Run, work: Work, future: Future[Any]) -> None:
        """In the batcher's thread, or whose cancelled the job: what takes time is passed on."""
        claim = run.claim
        if future.cancelled():
            self._end(run, GiveBack(claim.id, claim.epoch, "cancelled"))
        elif (error := future.exception()) is not None:
            self._end(run, self._ending_of(claim, error))
        elif isinstance(output := future.result(), Picture) and isinstance(work, GenerateItem):
            self._drawings.add((run, Drawn((Sketch(work.seed, output, None),))))
        elif isinstance(output, Drawn):
            self._drawings.add((run, output))
        else:
            self._end(run, Finish(claim.id, claim.epoch, result=cast("JobResult", output)))

    def _keep_all(self, drawings: Sequence[tuple[_Run, Drawn]]) -> None:
        for first in range(0, len(drawings), KEPT_TOGETHER):
            self._hands.submit(self._keep, drawings[first : first + KEPT_TOGETHER])

    def _keep(self, drawings: Sequence[tuple[_Run, Drawn]]) -> None:
        """Store what was drawn, in one of the hands."""
        for run, drawn in drawings:
            claim = run.claim
            run.trace.stage("store")
            try:
                result = stored(self._store, drawn)
                ending: Ending = Finish(claim.id, claim.epoch, result=result, result_key=result.image.key)
            except BaseException as error:  # noqa: BLE001 (becomes the job's ending, whatever it is)
                ending = self._ending_of(claim, error)
            self._end(run, ending)

    def _end(self, run: _Run, ending: Ending) -> None:
        run.trace.stage("finish")
        self._endings.add((run, ending))

    def _ending_of(self, claim: Claim, error: BaseException) -> Ending:
        """What becomes of a job that did not come to a result."""
        match error:
            case Released():
                return GiveBack(claim.id, claim.epoch, "released")
            case EngineStartFailed():
                # Not this job's fault: another worker, or this one after its restart, can do it.
                log.critical("the engine does not start any more: %s", error)
                self._on_broken()
                return GiveBack(claim.id, claim.epoch, "released")
            case EngineCrashed() | EngineHung():
                return GiveBack(claim.id, claim.epoch, "crash", _job_error(error))
            case TuwenError(retryable=True):
                return GiveBack(claim.id, claim.epoch, "retry", _job_error(error))
            case TuwenError():
                return Finish(claim.id, claim.epoch, error=_job_error(error))
            case _:
                log.error("job %s failed in a way nobody foresaw", claim.id, exc_info=error)
                return GiveBack(claim.id, claim.epoch, "retry", INTERNAL)

    def _prepare(self, claim: Claim) -> Work:
        match _INPUT.validate_python(claim.request):
            case GenerateInput() as wanted:
                item = GenerateItem(
                    prompt=wanted.prompt,
                    negative_prompt=wanted.negative_prompt,
                    # From the id, so that a job that runs twice makes the same picture.
                    seed=claim.id.int % 2**63 if wanted.seed is None else wanted.seed,
                    width=wanted.width,
                    height=wanted.height,
                    steps=wanted.steps,
                    guidance=wanted.guidance,
                    model=claim.model,
                    previews=wanted.previews,
                )
                return item if wanted.candidates == 1 and wanted.min_score is None else draw(item, wanted)
            case DescribeInput() as wanted:
                picture = self._pixels(wanted.image, claim)
                written = DescribeItem(
                    picture, wanted.language, wanted.style, wanted.max_tokens, wanted.prompt, model=claim.model
                )
                return written if wanted.rerank == 1 else describe(written, wanted.rerank)
            case RecognizeInput() as wanted:
                return RecognizeItem(self._pixels(wanted.image, claim), claim.model)
            case MatchInput() as wanted:
                pair = MatchItem(self._pixels(wanted.image, claim), wanted.text, claim.model)
                return report(pair) if wanted.report else pair

    def _pixels(self, source: ImageSource, claim: Claim) -> Pixels:
        if source.url is not None:
            data = self._fetcher.get(source.url)
        elif source.file_id is not None:
            data = self._store.get(file_key(claim.tenant, source.file_id))
        else:
            raise ValueError("base64 images are stored as files before the job is written")
        return pixels(data, self._settings)

    # ── settling ──────────────────────────────────────────────────────────────────────────────────

    def _settle_all(self, ended: Sequence[tuple[_Run, Ending]]) -> None:
        """Write how these jobs ended, in the thread of the endings."""
        try:
            # However long PostgreSQL is away: nobody can take them over until then, and the epoch tells who did.
            statuses = patiently(lambda: self._written([ending for _, ending in ended]), math.inf)
        except Exception:
            if len(ended) == 1:
                # Its lease runs out, and the housekeeper decides.
                log.exception("how job %s ended could not be written", ended[0][0].claim.id)
                statuses = {}
            else:
                # One of them may be what PostgreSQL cannot take: that must not cost the others their work.
                for one in ended:
                    self._settle_all([one])
                return
        for run, ending in ended:
            self._heartbeat.release(run.lease)
            self._places.release()
            self._tell(run, statuses.get(run.claim.id), ending.error)

    def _written(self, endings: Sequence[Ending]) -> dict[UUID, Status]:
        """Write the endings; the states of those that were still this worker's to end."""
        statuses: dict[UUID, Status] = {}
        if finished := [ending for ending in endings if isinstance(ending, Finish)]:
            statuses |= self._database.jobs.finish(finished)
        if given_back := [ending for ending in endings if isinstance(ending, GiveBack)]:
            statuses |= self._database.jobs.give_back(given_back)
        return statuses

    def _tell(self, run: _Run, status: Status | None, error: JobError | None) -> None:
        """Those who watch; without a status somebody else has the job by now."""
        run.trace.end(status.value if status else "lost", error.detail if error else None)
        self._watchers.ended(run.claim.id, status)
        if status is None:
            run.ticket.dropped(None)
            return
        self._recorder.finished(run.claim.kind, status, wait=run.claim.waited, run=time.monotonic() - run.began)
        run.ticket.ended(status, error)


def _job_error(error: TuwenError) -> JobError:
    return JobError(code=error.code, detail=str(error), retryable=error.retryable)
