"""The work on jobs in a worker: claim → prepare → batch → store → settle.

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
from uuid_utils.compat import uuid7

from shared.database import Database, Finish, GiveBack, JobClaim
from shared.database.shards import Renewal
from shared.database.workers import ServedModel
from shared.intake.fetch import Fetcher
from shared.intake.images import pixels
from shared.leasing.cancels import CancelListener
from shared.leasing.endings import INTERNAL
from shared.leasing.grouping import GroupQueue
from shared.leasing.heartbeat import Heartbeat
from shared.leasing.patience import retry_outages
from shared.leasing.revoking import Revoker
from shared.objects.gate import StorageGate
from shared.objects.storage import ObjectStore, StorageRefused, file_key
from shared.queue import JobQueue, queue_name
from shared.queue.tasks import JobMessage
from shared.settings import Settings
from shared.telemetry import job_trace, logs
from shared.telemetry.metrics import Recorder
from shared.telemetry.tracing import Parent
from tuwen.engine import DescribeItem, GenerateItem, Item, MatchItem, Output, Picture, RecognizeItem
from tuwen.errors import (
    DatabaseUnavailable,
    EngineCrashed,
    EngineHung,
    EngineStartFailed,
    FetchFailed,
    StorageUnavailable,
    TuwenError,
    Unavailable,
)
from tuwen.jobs import (
    DescribeInput,
    GenerateInput,
    JobError,
    JobInput,
    JobResult,
    Kind,
    MatchInput,
    RecognizeInput,
    Status,
)
from workers.inference.batcher import Batcher, Released
from workers.jobs.correspondence import GeneratedImage, GeneratedImages, describe, generate
from workers.jobs.leases import Lease
from workers.jobs.pairs import report
from workers.jobs.pictures import store_images
from workers.jobs.stages import Stages, run_stages
from workers.jobs.watchers import Watchers

log = logging.getLogger(__name__)

Ending = Finish | GiveBack
EngineWork = Item | Stages[Any]
"""One engine call, or several that build on each other."""

_INPUT: TypeAdapter[JobInput] = TypeAdapter(JobInput)

DRAWN_SEEDS = 2**53
"""Seeds that are drawn stay below this: JavaScript, and with it many a client, reads larger numbers inexactly."""

STORED_TOGETHER = 4
"""Pictures that one thread encodes and stores: few, so that a distant storage is asked for many at a time, and more
than one, because handing over costs as much as encoding a small one."""


@dataclass(eq=False, slots=True)
class _JobRun:
    """A claimed job on its way through this worker."""

    message: JobMessage
    claim: JobClaim
    lease: Lease
    began: float
    trace: job_trace.AnyTrace


class Runner:
    """Runs the jobs of one worker, at most `at_once` at a time."""

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
        """`on_broken` is called when this worker is of no further use: its engine cannot be started any more, or
        storage refuses it for good."""
        self._settings = settings
        self._worker = worker
        self._start_id = uuid7()
        self._batcher = batcher
        self._on_broken = on_broken
        self._recorder = recorder
        self._database = Database(settings)
        self._queue = JobQueue(settings)
        self.revoker = Revoker(self._database, self._queue)
        self._store = ObjectStore.open(settings)
        self._storage = StorageGate(self._store.check, on_refused=on_broken)
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
        self._arrivals = GroupQueue(self._claim_all, "claims")
        self._generated = GroupQueue(self._store_all, "generated")
        self._endings = GroupQueue(self._settle_all, "endings")
        self._suspects = GroupQueue(self._run_suspects, "suspects")
        # For what waits or computes outside Python: downloads, decoding, encoding, storing.
        self._pool = ThreadPoolExecutor(at_once, "jobs")
        self._at_once = at_once
        self._places = threading.Semaphore(at_once)
        self._stopping = threading.Event()

    def check(self) -> None:
        """Check that jobs can run here, before loading the models takes minutes.

        Raises:
            DatabaseUnavailable, StorageUnavailable: they cannot.
        """
        self._database.check()
        self._store.check()

    def start(self, device: str, models: Mapping[Kind, ServedModel]) -> None:
        """Register this worker, whose models are warm, and start its heartbeat."""
        self._database.workers.register(self._worker, device, models)
        self._database.workers.tell_running(self._start_id, self._worker, {})
        self._heartbeat.start()
        self._cancels.start()

    def take(self, message: JobMessage) -> None:
        """Run the message's job, if it may run. Returns at once."""
        self._arrivals.add(message)

    def stop(self, grace: float) -> None:
        """Let the running batch finish, for at most `grace` seconds; everything that waits goes back to the queue.

        A second call does nothing.
        """
        if self._stopping.is_set():
            return
        self._stopping.set()
        self._batcher.stop(grace)
        # Every future is done: what is left is to store and to settle, or at worst to wait for a download.
        deadline = time.monotonic() + self._settings.fetch_timeout + self._settings.lease
        for _ in range(self._at_once):
            self._places.acquire(timeout=max(0.0, deadline - time.monotonic()))

    def close(self) -> None:
        """Release what the runner holds; call it after the last job."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._arrivals.close()
        self._suspects.close()
        self._generated.close()
        self._endings.close()
        self._cancels.close()
        self._heartbeat.close()
        self._watchers.close()
        self._storage.close()
        try:
            self._recorder.flush(self._queue.redis)
            self._database.workers.unregister(self._worker)
        except TuwenError as error:
            log.warning("this worker could not be unregistered: %s", error)
        self._queue.close()
        self._database.close()

    def _renew(self, held: Mapping[UUID, Lease]) -> Renewal:
        return self._database.jobs.renew({id: lease.epoch for id, lease in held.items()}, self._worker)

    # ── claiming ──────────────────────────────────────────────────────────────────────────────────

    def _claim_all(self, messages: Sequence[JobMessage]) -> None:
        """Start these jobs as places become free. Runs in the thread of the arrivals."""
        while messages and (count := self._acquire_places(len(messages))):
            some, messages = messages[:count], messages[count:]
            try:
                self._start(some)
            except Exception:
                # The housekeeper publishes them again.
                log.exception("%d jobs could not be claimed", count)
                for message in some:
                    message.drop(None)
        if messages:
            self._database.jobs.dispatch_now([message.job_id for message in messages])

    def _acquire_places(self, most: int) -> int:
        """Wait for storage and a free place, then take up to `most`. Returns how many; 0 when the worker stops."""
        while not self._acquire_place():
            if self._stopping.is_set():
                return 0
        count = 1
        while count < most and self._places.acquire(blocking=False):
            count += 1
        if not self._stopping.is_set():
            return count
        self._places.release(count)
        return 0

    def _acquire_place(self) -> bool:
        """Wait for a moment for a free place, while storage works: what is claimed without it could not end."""
        if not self._storage.wait(1.0) or not self._places.acquire(timeout=1.0):
            return False
        if self._storage.is_open:
            return True
        self._places.release()  # storage went away while this waited
        return False

    def _start(self, messages: Sequence[JobMessage]) -> None:
        """Claim these jobs, and start those that this worker got."""
        asked = time.time_ns()
        try:
            ids = [message.job_id for message in messages]
            claims = retry_outages(lambda: self._database.jobs.claim(ids, self._worker), self._settings.lease)
        except Exception:
            self._places.release(len(messages))
            raise
        refused = []
        for message in messages:
            # A group may hold a duplicate message: the claim counts for one of the two.
            if (claim := claims.pop(message.job_id, None)) is not None:
                self._launch(message, claim, asked)
            else:
                refused.append(message)
        if refused:
            self._places.release(len(refused))
            self._drop(refused)

    def _launch(self, message: JobMessage, claim: JobClaim, asked: int) -> None:
        message.start()
        self._watchers.tell_start(claim.id)
        trace = job_trace.start_job(
            queue_name(claim.kind),
            claim.id,
            Parent.of(claim.trace, claim.tracestate),
            waited=claim.waited,
            asked=asked,
            worker=self._worker,
            model=claim.model,
            attempt=claim.attempts,
        )
        lease = Lease(claim)
        self._heartbeat.hold(lease)
        run = _JobRun(message, claim, lease, time.monotonic(), trace)
        if claim.kind is Kind.GENERATE:
            self._begin(run)
        else:
            self._pool.submit(self._begin, run)

    def _drop(self, messages: Sequence[JobMessage]) -> None:
        """Drop messages of jobs that may not run: duplicates, or jobs that ended while they waited."""
        statuses = self._database.jobs.statuses([message.job_id for message in messages])
        for message in messages:
            message.drop(statuses.get(message.job_id))

    # ── one job ───────────────────────────────────────────────────────────────────────────────────

    def _begin(self, run: _JobRun) -> None:
        claim = run.claim
        run.trace.stage("prepare")
        try:
            wanted = _INPUT.validate_python(claim.request)
            data = self._read_image(wanted, claim)
        except BaseException as error:  # noqa: BLE001 (becomes the job's ending, whatever it is)
            self._end(run, self._ending_of(claim, error))
            return
        if claim.is_suspect:
            self._suspects.add((run, wanted, data))
        else:
            self._ask(run, wanted, data)

    def _ask(self, run: _JobRun, wanted: JobInput, data: bytes) -> Future[Any] | None:
        """Ask the engine; None when that was not possible, and the job has ended."""
        claim = run.claim
        try:
            work = self._prepare(wanted, data, claim)
            run.trace.stage("batch")
            submit = partial(self._submit, run, wanted)
            future: Future[Any] = run_stages(work, submit) if isinstance(work, Generator) else submit(work)
        except BaseException as error:  # noqa: BLE001 (becomes the job's ending, whatever it is)
            self._end(run, self._ending_of(claim, error))
            return None
        run.lease.watch(future)
        future.add_done_callback(partial(self._handle_answer, run, work))
        return future

    def _run_suspects(self, group: Sequence[tuple[_JobRun, JobInput, bytes]]) -> None:
        """Run jobs that may take this worker down, one after the other and nothing beside them, in their own thread."""
        for run, wanted, data in group:
            # From here on the worker has told that it runs this job alone: decoding its image may kill, too.
            with self._batcher.run_apart((run.claim.id, run.claim.epoch)):
                if (future := self._ask(run, wanted, data)) is not None:
                    _await_end(future)

    def tell_running(self, owners: Sequence[Any]) -> None:
        """Make known which claims (id, epoch) the batches hold that are about to run."""
        try:
            self._database.workers.tell_running(self._start_id, self._worker, dict(owners))
        except DatabaseUnavailable as error:
            # The batch runs all the same. Should it kill this worker, nobody is charged, and the next one tells.
            log.debug("PostgreSQL was not told what runs: %s", error)

    def _submit(self, run: _JobRun, wanted: JobInput, item: Item, number: int = 0) -> Future[Output]:
        claim = run.claim
        # The first item of a stage stands for all in a trace, as it does for watchers.
        traced = isinstance(run.trace, job_trace.JobTrace) and number == 0
        return self._batcher.submit(
            item,
            priority=claim.priority,
            # It may be the one that killed a process: it must not take others with it.
            apart=claim.is_suspect,
            owner=(claim.id, claim.epoch),
            on_begin=partial(_trace_batch, run.trace, wanted, item, claim) if traced else None,
            on_progress=partial(self._watchers.tell_progress, claim.id, number),
            watched=partial(self._watchers.is_followed, claim.id),
        )

    def _handle_answer(self, run: _JobRun, work: EngineWork, future: Future[Any]) -> None:
        """Pass the answer on, quickly: this runs in the batcher's thread, or the one that cancelled the job."""
        claim = run.claim
        if not future.cancelled() and future.exception() is None:
            run.trace.answered(future.result())
        if future.cancelled():
            self._end(run, GiveBack(claim.id, claim.epoch, "cancelled"))
        elif (error := future.exception()) is not None:
            self._end(run, self._ending_of(claim, error))
        elif isinstance(output := future.result(), Picture) and isinstance(work, GenerateItem):
            self._generated.add((run, GeneratedImages((GeneratedImage(work.seed, output, None),))))
        elif isinstance(output, GeneratedImages):
            self._generated.add((run, output))
        else:
            self._end(run, Finish(claim.id, claim.epoch, result=cast("JobResult", output)))

    def _store_all(self, group: Sequence[tuple[_JobRun, GeneratedImages]]) -> None:
        for first in range(0, len(group), STORED_TOGETHER):
            self._pool.submit(self._store_group, group[first : first + STORED_TOGETHER])

    def _store_group(self, group: Sequence[tuple[_JobRun, GeneratedImages]]) -> None:
        """Store what was generated, in a thread of the pool."""
        for run, generated in group:
            claim = run.claim
            run.trace.stage("store")
            try:
                # However long storage is away: the lease is renewed meanwhile.
                result = self._storage.retry(partial(store_images, self._store, generated), partial(self._wants, run))
                ending: Ending = Finish(claim.id, claim.epoch, result=result, result_key=result.image.key)
            except StorageUnavailable as error:
                ending = self._ending_without_storage(run, error)
            except BaseException as error:  # noqa: BLE001 (becomes the job's ending, whatever it is)
                ending = self._ending_of(claim, error)
            self._end(run, ending)

    def _wants(self, run: _JobRun) -> bool:
        return not (run.lease.stopped or self._stopping.is_set())

    def _ending_without_storage(self, run: _JobRun, error: StorageUnavailable) -> Ending:
        """Return how a job ends whose result cannot be stored."""
        claim = run.claim
        if run.lease.stopped:
            return GiveBack(claim.id, claim.epoch, "cancelled")
        if self._stopping.is_set():
            return GiveBack(claim.id, claim.epoch, "released")
        return GiveBack(claim.id, claim.epoch, "retry", _job_error(error))

    def _end(self, run: _JobRun, ending: Ending) -> None:
        if ending.error is not None:
            run.trace.fail(ending.error.code, ending.error.detail)
        run.trace.stage("finish")
        self._endings.add((run, ending))

    def _ending_of(self, claim: JobClaim, error: BaseException) -> Ending:
        """Return how a job ends that has no result."""
        match error:
            case Released() | Unavailable():
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
                log.error(
                    "job %s failed unexpectedly", claim.id, exc_info=error, extra=logs.of_job(claim.id, claim.trace)
                )
                return GiveBack(claim.id, claim.epoch, "retry", INTERNAL)

    def _prepare(self, wanted: JobInput, data: bytes, claim: JobClaim) -> EngineWork:
        """What the engine is to do; `data` is the encoded image, empty where there is none."""
        match wanted:
            case GenerateInput():
                item = GenerateItem(
                    prompt=wanted.prompt,
                    negative_prompt=wanted.negative_prompt,
                    # From the id, so that a job that runs twice makes the same picture.
                    seed=claim.id.int % DRAWN_SEEDS if wanted.seed is None else wanted.seed,
                    width=wanted.width,
                    height=wanted.height,
                    steps=wanted.steps,
                    guidance=wanted.guidance,
                    model=claim.model,
                    previews=wanted.previews,
                )
                return item if wanted.candidates == 1 and wanted.min_score is None else generate(item, wanted)
            case DescribeInput():
                picture = pixels(data, self._settings)
                written = DescribeItem(
                    picture, wanted.language, wanted.style, wanted.max_tokens, wanted.prompt, model=claim.model
                )
                return written if wanted.rerank == 1 else describe(written, wanted.rerank)
            case RecognizeInput():
                return RecognizeItem(pixels(data, self._settings), claim.model)
            case MatchInput():
                pair = MatchItem(pixels(data, self._settings), wanted.text, claim.model)
                return report(pair) if wanted.report else pair

    def _read_image(self, wanted: JobInput, claim: JobClaim) -> bytes:
        """Read the encoded image that the job is about; empty where there is none."""
        if isinstance(wanted, GenerateInput):
            return b""
        source = wanted.image
        if source.url is not None:
            return self._fetcher.get(source.url)
        if source.file_id is not None:
            return self._read_file(file_key(claim.tenant, source.file_id))
        raise ValueError("base64 images are stored as files before the job is written")

    def _read_file(self, key: str) -> bytes:
        """Read an uploaded file.

        Raises:
            StorageUnavailable: storage is away; the job is not to blame.
            FetchFailed: storage works, and this file cannot be read.
            NotFound
        """
        try:
            return self._store.get(key)
        except StorageUnavailable as error:
            if not self._storage.is_outage(error) and (self._store.is_folder or isinstance(error, StorageRefused)):
                raise FetchFailed(f"The stored image cannot be read: {error}") from error
            # A service may answer one request and not the next.
            self._storage.report(error)
            raise

    # ── settling ──────────────────────────────────────────────────────────────────────────────────

    def _settle_all(self, ended: Sequence[tuple[_JobRun, Ending]]) -> None:
        """Write how these jobs ended, in the thread of the endings."""
        try:
            # However long PostgreSQL is away: nobody can take the jobs over meanwhile, and the epoch tells who did.
            statuses = retry_outages(lambda: self._write([ending for _, ending in ended]), math.inf)
        except Exception:
            if len(ended) == 1:
                # Its lease runs out, and the housekeeper decides.
                [(run, _)] = ended
                about = logs.of_job(run.claim.id, run.claim.trace)
                log.exception("how job %s ended could not be written", run.claim.id, extra=about)
                statuses = {}
            else:
                # PostgreSQL may reject one of them: the others must not lose their work.
                for one in ended:
                    self._settle_all([one])
                return
        for run, ending in ended:
            self._heartbeat.release(run.lease)
            self._places.release()
            self._report(run, statuses.get(run.claim.id), ending.error)

    def _write(self, endings: Sequence[Ending]) -> dict[UUID, Status]:
        """Write the endings. Returns the states of those jobs that were still this worker's."""
        statuses: dict[UUID, Status] = {}
        if finished := [ending for ending in endings if isinstance(ending, Finish)]:
            statuses |= self._database.jobs.finish(finished)
        if given_back := [ending for ending in endings if isinstance(ending, GiveBack)]:
            statuses |= self._database.jobs.give_back(given_back)
        return statuses

    def _report(self, run: _JobRun, status: Status | None, error: JobError | None) -> None:
        """Tell watchers and Celery; without a status, another worker has the job by now."""
        run.trace.end(status.value if status else "lost", error.code if error else None, error.detail if error else "")
        self._watchers.tell_end(run.claim.id, status)
        if error:
            about = logs.of_job(run.claim.id, run.claim.trace)
            log.info("job %s is %s: %s", run.claim.id, status.value if status else "lost", error.detail, extra=about)
        if status is None:
            run.message.drop(None)
            return
        self._recorder.record_end(run.claim.kind, status, wait=run.claim.waited, run=time.monotonic() - run.began)
        run.message.end(status, error)


def _trace_batch(trace: job_trace.AnyTrace, wanted: JobInput, item: Item, claim: JobClaim, batch_size: int) -> None:
    """Begin the stage of a trace in which an engine runs `item`; a later stage of the job may be of another kind."""
    own = item.kind is claim.kind
    asked = {"seed": getattr(wanted, "seed", None), "max_tokens": getattr(item, "max_tokens", None)} if own else {}
    trace.run(item.kind, item.model or (claim.model if own else item.kind.value), batch_size, asked)


def _await_end(future: Future[Any]) -> None:
    """Wait until a future has an answer or is cancelled; `concurrent.futures.wait` would not see the latter."""
    over = threading.Event()
    future.add_done_callback(lambda _: over.set())
    over.wait()


def _job_error(error: TuwenError) -> JobError:
    return JobError(code=error.code, detail=str(error), retryable=error.retryable)
