"""What happens to one job in a worker: claim → prepare → batch → store → settle."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar, cast
from uuid import UUID

from pydantic import TypeAdapter

from shared.database import Claim, Database, Finish, GiveBack
from shared.errors import (
    DatabaseUnavailable,
    EngineCrashed,
    EngineHung,
    EngineStartFailed,
    TuwenError,
)
from shared.fetch import Fetcher
from shared.images import Pixels, encode_png, pixels
from shared.jobs import (
    DescribeInput,
    GenerateInput,
    GenerateResult,
    ImageSource,
    JobError,
    JobInput,
    JobResult,
    Kind,
    MatchInput,
    RecognizeInput,
    Status,
    StoredImage,
)
from shared.metrics import Recorder
from shared.queue import JobQueue
from shared.settings import Settings
from shared.storage import ObjectStore, content_key, file_key
from workers.announcements import Announcer
from workers.batcher import Batcher, Cancelled, Released
from workers.engines.base import DescribeItem, GenerateItem, Item, MatchItem, Output, Picture, RecognizeItem
from workers.grouping import Grouped
from workers.leases import Heartbeat, Lease

log = logging.getLogger(__name__)

T = TypeVar("T")
Ending = Finish | GiveBack

_INPUT: TypeAdapter[JobInput] = TypeAdapter(JobInput)

INTERNAL = JobError(
    code="internal_error", detail="Something unforeseen failed; the worker's log says what.", retryable=True
)


class Runner:
    """Runs jobs for the threads of one worker; one batcher and one heartbeat serve them all."""

    def __init__(
        self, settings: Settings, worker: str, batcher: Batcher, *, on_broken: Callable[[], None], recorder: Recorder
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
        self._announcer = Announcer(self._queue)
        self._heartbeat = Heartbeat(settings, self._database, worker, on_beat=lambda: recorder.flush(self._queue.redis))
        self._claim = Grouped(self._claim_all)
        self._settle = Grouped(self._settle_all)
        self._stopping = threading.Event()

    def check(self) -> None:
        """Whether jobs could run here at all, asked before minutes go into loading models.

        Raises:
            DatabaseUnavailable, StorageUnavailable: they could not.
        """
        self._database.check()
        self._store.check()

    def start(self, device: str, models: Mapping[Kind, Mapping[str, str]]) -> None:
        """The worker is warm: take part."""
        self._database.workers.register(self._worker, device, models)
        self._heartbeat.start()

    def stop(self, grace: float) -> None:
        """Let the running batch finish, for at most `grace` seconds; everything that waits goes back to the queue."""
        self._stopping.set()
        self._batcher.stop(grace)

    def close(self) -> None:
        """After the last job."""
        self._heartbeat.close()
        self._announcer.close()
        try:
            self._recorder.flush(self._queue.redis)
            self._database.workers.unregister(self._worker)
        except TuwenError as error:
            log.warning("not signed off: %s", error)
        self._queue.close()
        self._database.close()

    def run(self, job_id: UUID) -> tuple[Status | None, JobError | None]:
        """Run the job if it may run; what became of it, None if it was not this worker's to decide, and why.

        Raises:
            DatabaseUnavailable: PostgreSQL was gone for longer than a job's lease; the housekeeper will see to the job.
        """
        if self._stopping.is_set():
            self._database.dispatch_now([job_id])
            return None, None
        claim = self._patiently(lambda: self._claim(job_id))
        if claim is None:
            return self._not_claimed(job_id), None
        with self._heartbeat.holding(claim) as lease:
            started = time.monotonic()
            ending = self._ending(claim, lease)
            # Still under its lease: a PostgreSQL that restarts now must not make somebody else do it again.
            status = self._patiently(lambda: self._settle(ending))
        if status is not None:
            self._recorder.finished(claim.kind, status, wait=claim.waited, run=time.monotonic() - started)
        return status, ending.error

    def _not_claimed(self, job_id: UUID) -> Status | None:
        """A message for a job that may not run: a duplicate, or it ended while it waited."""
        status = self._database.statuses([job_id]).get(job_id)
        return status if status in (Status.CANCELLED, Status.EXPIRED) else None

    # ── one job ───────────────────────────────────────────────────────────────────────────────────

    def _ending(self, claim: Claim, lease: Lease) -> Ending:
        """Do the work; every way it can end is a value here."""
        try:
            item = self._prepare(claim)
            output = self._batcher.run(
                item,
                priority=claim.priority,
                # It may be the one that killed a process: let it not take neighbours with it.
                alone=claim.crashes > 0,
                on_progress=lambda step, steps: self._announce_progress(claim.id, step, steps),
                cancelled=lease.stopped,
            )
            return self._finish(claim, item, output)
        except Cancelled:
            return GiveBack(claim.id, claim.epoch, "cancelled")
        except Released:
            return GiveBack(claim.id, claim.epoch, "released")
        except EngineStartFailed as error:
            # Not this job's fault: another worker, or this one after its restart, can do it.
            log.critical("the engine does not start any more: %s", error)
            self._on_broken()
            return GiveBack(claim.id, claim.epoch, "released")
        except (EngineCrashed, EngineHung) as error:
            return GiveBack(claim.id, claim.epoch, "crash", _job_error(error))
        except TuwenError as error:
            if error.retryable:
                return GiveBack(claim.id, claim.epoch, "retry", _job_error(error))
            return Finish(claim.id, claim.epoch, error=_job_error(error))
        except Exception:
            log.exception("job %s failed in a way nobody foresaw", claim.id)
            return GiveBack(claim.id, claim.epoch, "retry", INTERNAL)

    def _prepare(self, claim: Claim) -> Item:
        match _INPUT.validate_python(claim.request):
            case GenerateInput() as wanted:
                return GenerateItem(
                    prompt=wanted.prompt,
                    negative_prompt=wanted.negative_prompt,
                    # From the id, so that a job that runs twice makes the same picture.
                    seed=claim.id.int % 2**63 if wanted.seed is None else wanted.seed,
                    width=wanted.width,
                    height=wanted.height,
                    steps=wanted.steps,
                    guidance=wanted.guidance,
                )
            case DescribeInput() as wanted:
                picture = self._pixels(wanted.image, claim)
                return DescribeItem(picture, wanted.language, wanted.style, wanted.max_tokens)
            case RecognizeInput() as wanted:
                return RecognizeItem(self._pixels(wanted.image, claim))
            case MatchInput() as wanted:
                return MatchItem(self._pixels(wanted.image, claim), wanted.text)

    def _pixels(self, source: ImageSource, claim: Claim) -> Pixels:
        if source.url is not None:
            data = self._fetcher.get(source.url)
        elif source.file_id is not None:
            data = self._store.get(file_key(claim.tenant, source.file_id))
        else:
            raise ValueError("base64 images are stored as files before the job is written")
        return pixels(data, self._settings)

    def _finish(self, claim: Claim, item: Item, output: Output) -> Finish:
        if not isinstance(output, Picture) or not isinstance(item, GenerateItem):
            return Finish(claim.id, claim.epoch, result=cast("JobResult", output))
        data = encode_png(output.pixels)
        key = content_key("results", data, ".png")
        self._store.put(key, data, "image/png")
        height, width, _ = output.pixels.shape
        stored = StoredImage(key=key, sha256=key.rpartition("/")[2].removesuffix(".png"), width=width, height=height)
        result: JobResult = GenerateResult(image=stored, seed=item.seed, unknown_words=output.unknown_words)
        return Finish(claim.id, claim.epoch, result=result, result_key=key)

    def _announce_progress(self, job_id: UUID, step: int, steps: int) -> None:
        self._announcer.announce(job_id, {"progress": {"step": step, "steps": steps}})

    # ── many jobs in one statement ────────────────────────────────────────────────────────────────

    def _claim_all(self, ids: Sequence[UUID]) -> list[Claim | None]:
        claims = self._database.claim(ids, self._worker)
        for id in claims:
            self._announcer.announce(id, {"status": Status.RUNNING.value})
        # A doubled message may be in one group with its twin: the claim is for one of the two.
        return [claims.pop(id, None) for id in ids]

    def _settle_all(self, endings: Sequence[Ending]) -> list[Status | None]:
        finished = [ending for ending in endings if isinstance(ending, Finish)]
        given_back = [ending for ending in endings if isinstance(ending, GiveBack)]
        statuses: dict[UUID, Status] = {}
        if finished:
            statuses |= self._database.finish(finished)
        if given_back:
            statuses |= self._database.give_back(given_back)
        for id, status in statuses.items():
            self._announcer.announce(id, {"status": status.value})
        return [statuses.get(ending.id) for ending in endings]

    def _patiently(self, attempt: Callable[[], T]) -> T:
        """A PostgreSQL that restarts is waited for, as long as a lease lasts."""
        give_up = time.monotonic() + self._settings.lease
        while True:
            try:
                return attempt()
            except DatabaseUnavailable:
                if time.monotonic() > give_up:
                    raise
                time.sleep(0.5)


def _job_error(error: TuwenError) -> JobError:
    return JobError(code=error.code, detail=str(error), retryable=error.retryable)
