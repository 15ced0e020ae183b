"""The work on one shard in a worker: claim → read its plan → annotate → store the results → finish.

The shard's row and its results hold all that is known of it. The worker that claims it after a death, a pause or a
failure keeps what has a result and does the rest, so an image is in the results once, whatever happened.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Literal
from uuid import UUID

from celery import Celery

from shared.database import Database
from shared.database.shards import Renewal, ShardClaim, ShardProgress
from shared.database.workers import ServedModel
from shared.leasing.consumer import POLL, LeasedConsumer, TaskConsumer
from shared.leasing.endings import INTERNAL, Stopped
from shared.leasing.heartbeat import Heartbeat, Held
from shared.leasing.patience import retry_outages
from shared.objects.datasets import AtRisk, Line, Planned, read_plan, read_results, results_key, write_results
from shared.objects.gate import StorageGate
from shared.objects.storage import ObjectStore
from shared.queue import SHARD_TASK, JobQueue, shard_kinds, shards_queue
from shared.queue.events import DONE, Outcome, retried
from shared.settings import Settings
from tuwen.annotations import Annotation
from tuwen.datasets import ShardStatus
from tuwen.errors import (
    EngineStartFailed,
    Forbidden,
    NotFound,
    PathForbidden,
    QueueUnavailable,
    StorageUnavailable,
    TuwenError,
    Unavailable,
)
from tuwen.jobs import JobError, Kind
from workers.datasets.access import open_allowed
from workers.datasets.annotating import Annotating, AnnotationContext
from workers.datasets.sources import HeldAs, Source, SourceImage
from workers.inference.batcher import Batcher

log = logging.getLogger(__name__)


CHECKPOINT = 30.0
"""Seconds between two times that results are stored: the most work that a dead worker loses."""

PROGRESS_INTERVAL = 2.0
"""Seconds between two beats at most: they carry the progress that people watch."""

CAREFUL_GROUPS = (32, 8, 1)
"""Most images under way after one, two, and more crashes of a shard's worker."""

STRIKES = 2
"""Deaths of a worker while an image was under way alone, after which the image is held to be the cause."""


class ShardRunner:
    """Runs shards in threads of its own, beside the jobs of a worker."""

    def __init__(
        self, settings: Settings, app: Celery, worker: str, batcher: Batcher, *, on_broken: Callable[[], None]
    ):
        """`on_broken` is called when the engine cannot be started any more, or storage refuses this worker for good."""
        self._settings = settings
        self._worker = worker
        self._batcher = batcher
        self._on_broken = on_broken
        self._models: Mapping[Kind, ServedModel] = {}
        self._database = Database(settings, pool_size=settings.shards_at_once)
        self._queue = JobQueue(settings)
        self._store = ObjectStore.open(settings)
        self._storage = StorageGate(self._store.check, on_refused=on_broken)
        self._stopping = threading.Event()
        self._sources = _OpenSources(settings)
        queues = [shards_queue(kinds) for kinds in shard_kinds(settings.kinds)]
        threads = settings.shards_at_once if queues else 0
        self._consumer = LeasedConsumer(
            lambda do: TaskConsumer(settings, app, worker, SHARD_TASK, queues, do, threads=threads),
            Heartbeat(self._renew, min(settings.heartbeat, PROGRESS_INTERVAL), "shard-heartbeat"),
            claim=self._claim,
            do=self._run_to_end,
        )
        self.run = self._consumer.run

    def start(self, models: Mapping[Kind, ServedModel]) -> None:
        """Take shards, now that the worker is warm with these models."""
        self._models = models
        self._consumer.start()

    def stop(self, timeout: float) -> None:
        """Give back what runs, its results so far stored, within `timeout` seconds."""
        self._stopping.set()
        self._consumer.stop(timeout)

    def close(self) -> None:
        """Release what is held; call it after the last shard."""
        self._sources.close()
        self._storage.close()
        self._queue.close()
        self._database.close()

    def _renew(self, held: Mapping[UUID, ShardRun]) -> Renewal:
        return self._database.shards.renew({id: (shard.epoch, shard.progress) for id, shard in held.items()})

    def _claim(self, shard_id: object, priority: object) -> ShardRun | Outcome | None:
        """The shard, if it may run here; its end if somebody cancelled it meanwhile.

        Raises:
            DatabaseUnavailable: the housekeeper will see to the shard.
        """
        if not isinstance(shard_id, str) or not isinstance(priority, int):
            raise TypeError("a message for a shard names it and its priority")
        id = UUID(shard_id)
        while not self._storage.wait(POLL):
            if self._stopping.is_set():
                return None  # the housekeeper publishes it again
        claim = retry_outages(lambda: self._database.shards.claim(id, priority, self._worker), self._settings.lease)
        if claim is None:
            return Outcome(ShardStatus.CANCELLED) if self._database.shards.cancelled(id) else None
        return ShardRun(self._settings, self._database, self._store, self._storage, claim)

    def _run_to_end(self, shard: ShardRun) -> Outcome | None:
        """Do the work; whatever happens, the outcome says so."""
        claim = shard.claim
        context = AnnotationContext(self._settings, self._batcher, self._models, self._worker)
        try:
            with self._sources.use(claim, self._database.dataset_places.key_roots(claim.dataset_id)) as source:
                shard.annotate(context, source)
            return self._finish(shard)
        except (Forbidden, PathForbidden) as error:
            return self._stop_data_set(shard, error)
        except (Stopped, EngineStartFailed) as error:
            if isinstance(error, EngineStartFailed):
                # Not this shard's fault: another worker, or this one after its restart, can do it.
                log.critical("the engine does not start any more: %s", error)
                self._on_broken()
            return self._give_back(shard, None)
        except Unavailable as error:
            if shard.stopped:
                return self._give_back(shard, None)
            if isinstance(error, StorageUnavailable):
                self._storage.is_outage(error)  # otherwise it is the source that is away
            log.warning("shard %s is put off: %s", claim.id, error)
            return self._give_back(shard, JobError(code=error.code, detail=str(error), retryable=True), outage=True)
        except TuwenError as error:
            return self._give_back(shard, JobError(code=error.code, detail=str(error), retryable=True))
        except Exception:
            log.exception("shard %s failed unexpectedly", claim.id)
            return self._give_back(shard, INTERNAL)

    def _stop_data_set(self, shard: ShardRun, error: TuwenError) -> Outcome | None:
        """End the whole data set, because its key may not use its source any more: no attempt would change that."""
        log.warning("data set %s is stopped: %s", shard.claim.dataset_id, error)
        reason = JobError(code=error.code, detail=str(error))
        retry_outages(lambda: self._database.datasets.stop(shard.claim.dataset_id, reason), self._settings.lease)
        return self._give_back(shard, reason)

    def _finish(self, shard: ShardRun) -> Outcome | None:
        claim = shard.claim
        key = shard.store_at_last()
        if not retry_outages(lambda: self._database.shards.finish(claim, key, shard.progress), self._settings.lease):
            return None  # another worker has it by now
        if claim.results_key not in (None, key):
            with suppress(StorageUnavailable):  # it is collected as an orphan
                self._store.delete(claim.results_key)
        for id in retry_outages(lambda: self._database.datasets.complete(claim.dataset_id), self._settings.lease):
            try:
                self._queue.publish_datasets([id])
            except QueueUnavailable as error:
                log.warning("the housekeeper will find out that %s is complete: %s", id, error)
        return DONE

    def _give_back(self, shard: ShardRun, error: JobError | None, *, outage: bool = False) -> Outcome | None:
        reason: Literal["released", "retry", "outage"] = "outage" if outage else "retry" if error else "released"
        try:
            shard.checkpoint()
        except TuwenError as again:
            log.warning("shard %s is given back without its results so far: %s", shard.claim.id, again)
        status = retry_outages(
            lambda: self._database.shards.give_back(shard.claim, reason, error),
            self._settings.lease,
        )
        if status is ShardStatus.FAILED:
            retry_outages(lambda: self._database.datasets.complete(shard.claim.dataset_id), self._settings.lease)
            return Outcome.of(status, error)
        if status is ShardStatus.CANCELLED:
            return Outcome(status)
        return None if status is None else retried(error.detail if error else "released")


class ShardRun(Held[ShardClaim]):
    """One claimed shard while it runs here: its plan, and a line of results for each image that has one."""

    def __init__(
        self, settings: Settings, database: Database, store: ObjectStore, storage: StorageGate, claim: ShardClaim
    ):
        super().__init__(claim)
        self._storage = storage
        self._settings = settings
        self._database = database
        self._store = store
        self._key = results_key(claim.dataset_id, claim.number, claim.epoch)
        self._lines: list[Line] = []
        self._before: list[Line] = []
        self._progress = ShardProgress()
        self._stored = time.monotonic()
        self._annotating: Annotating | None = None
        self._stopped = False
        self._guard = threading.Lock()

    @property
    def progress(self) -> ShardProgress:
        """Numbers of images so far; read by the heartbeat's thread."""
        return self._progress

    def stop(self) -> None:
        """Make `annotate` raise Stopped soon. Any thread may call this."""
        with self._guard:
            self._stopped = True
            annotating = self._annotating
        if annotating is not None:
            annotating.stop()

    @property
    def stopped(self) -> bool:
        """Whether somebody asked for the end of this run."""
        return self._stopped

    def annotate(self, context: AnnotationContext, source: Source) -> None:
        """Annotate every image of the plan that has no result.

        Raises:
            Stopped: it was stopped before the end.
            EngineStartFailed, StorageUnavailable, NotFound
        """
        plan = read_plan(self._store, self.claim.plan_key)
        self._take_over(plan)
        annotating = Annotating(
            context, self.claim.request, source.read, self._record_end, remote=_is_remote(self.claim, plan)
        )
        with self._guard:
            self._annotating = annotating
            if self._stopped:
                annotating.stop()
        try:
            self._annotate(annotating, plan)
        finally:
            annotating.close()

    def store(self) -> str:
        """Write all results in one object. Returns its key."""
        write_results(self._store, self._key, self._lines)
        return self._key

    def store_at_last(self) -> str:
        """Write all results however long storage is away, unless the run is stopped. Returns their key."""
        return self._storage.retry(self.store, lambda: not self._stopped)

    def checkpoint(self) -> None:
        """Store the results so far, so that another worker can continue."""
        if self._lines and not self._database.shards.checkpoint(self.claim, self.store()):
            self.stop()  # another worker has it by now
        self._stored = time.monotonic()

    def _take_over(self, plan: Sequence[Planned]) -> None:
        """Keep what earlier attempts have done, and what the plan already knew."""
        try:
            lines = read_results(self._store, self.claim.results_key, len(plan))
        except NotFound:
            log.warning("the results so far of shard %s are gone; it starts from the beginning", self.id)
            lines = [None] * len(plan)
        self._before = lines
        self._lines = [None] * len(plan)
        for index, (planned, line) in enumerate(zip(plan, lines, strict=True)):
            annotation = _find_annotation(planned, line, again=self.claim.again)
            if annotation is not None:
                self._record_end(index, annotation)
        kept = self._progress
        self._progress = replace(kept, kept=kept.done + kept.failed)

    def _record_end(self, index: int, annotation: Annotation) -> None:
        self._lines[index] = annotation.model_dump_json(exclude_defaults=True).encode()
        now = self._progress
        # Replaced as a whole, since the heartbeat reads it from its own thread.
        tokens = sum(caption.tokens or 0 for caption in (*annotation.captions, *annotation.others))
        self._progress = ShardProgress(
            done=now.done + (annotation.error is None),
            dropped=now.dropped + (annotation.error is None and annotation.drop is not None),
            failed=now.failed + (annotation.error is not None),
            final=now.final + (annotation.error is not None and not annotation.error.retryable),
            kept=now.kept,
            tokens=now.tokens + tokens,
        )

    def _annotate(self, annotating: Annotating, plan: Sequence[Planned]) -> None:
        todo = [
            (index, SourceImage.from_fields(planned.image), self._begin_annotation(index, planned))
            for index, planned in enumerate(plan)
            if self._lines[index] is None and planned.image is not None
        ]
        if not self.claim.crashes:
            annotating.run(todo, tick=self._tick)
            return
        # Its worker died before. In ever smaller groups, each noted down before it begins, so that an image which
        # kills each worker that looks at it is found, and the others get their results.
        size = CAREFUL_GROUPS[min(self.claim.crashes, len(CAREFUL_GROUPS)) - 1]
        for start in range(0, len(todo), size):
            group = todo[start : start + size]
            for index, _, _ in group:
                self._lines[index] = AtRisk(alone=size == 1, strikes=self._strikes(index))
            self._storage.retry(self.checkpoint, lambda: not self._stopped)
            for index, _, _ in group:
                self._lines[index] = None
            annotating.run(group, alone=size == 1, tick=self._tick)

    def _begin_annotation(self, index: int, planned: Planned) -> Annotation:
        blank = planned.blank_annotation().model_copy(update={"attempts": 0})
        line = self._before[index]
        if not isinstance(line, bytes):
            return blank
        return blank.model_copy(update={"attempts": Annotation.model_validate_json(line).attempts})

    def _strikes(self, index: int) -> int:
        return _strikes(self._before[index])

    def _tick(self) -> None:
        if time.monotonic() - self._stored <= CHECKPOINT:
            return
        try:
            self.checkpoint()
        except Unavailable as error:
            # The results stay in memory; the work goes on, and the next time may be better.
            log.warning("the results so far of shard %s are not stored yet: %s", self.id, error)
            if isinstance(error, StorageUnavailable):
                self._storage.report(error)
            self._stored = time.monotonic()


def _is_remote(claim: ShardClaim, plan: Sequence[Planned]) -> bool:
    first = next((planned.image for planned in plan if planned.image is not None), {})
    return claim.request.source.startswith("s3://") or first.get("held") == HeldAs.URL


def _find_annotation(planned: Planned, line: Line, *, again: bool) -> Annotation | None:
    """Return the annotation that an image already has; None where it is to be annotated now."""
    known = Annotation.model_validate_json(line) if isinstance(line, bytes) else planned.annotation
    if known is not None:
        # A row of the source that is no image stays one.
        return None if again and known.error is not None and planned.image is not None else known
    if _strikes(line) >= STRIKES:
        error = JobError(
            code="worker_lost", detail="A worker died each time it looked at this image alone.", retryable=True
        )
        return planned.blank_annotation().model_copy(update={"error": error, "attempts": STRIKES})
    return None


def _strikes(line: Line) -> int:
    """Count how often a worker died over this image alone, the last time included."""
    return line.strikes + line.alone if isinstance(line, AtRisk) else 0


_Opened = tuple[UUID, tuple[str, ...] | None]
"""A data set, and the roots that its source was opened beneath."""


class _OpenSources:
    """Sources that stay open while shards of them come one after the other."""

    def __init__(self, settings: Settings, most: int = 4):
        self._settings = settings
        self._most = most
        self._open: OrderedDict[_Opened, Source] = OrderedDict()
        self._users: dict[_Opened, int] = {}
        self._guard = threading.Lock()

    @contextmanager
    def use(self, claim: ShardClaim, key_roots: tuple[str, ...] | None) -> Iterator[Source]:
        """Keep the source of the shard's data set open within the block; it is opened anew when its roots change.

        Raises:
            SourceUnusable, StorageUnavailable
            Forbidden: the source lies outside the roots by now.
        """
        opened = (claim.dataset_id, key_roots)
        with self._guard:
            source = self._open.get(opened)
            if source is None:
                source = open_allowed(claim.request, self._settings, key_roots)
                self._open[opened] = source
            self._open.move_to_end(opened)
            self._users[opened] = self._users.get(opened, 0) + 1
        try:
            yield source
        finally:
            with self._guard:
                self._users[opened] -= 1
                for id in [id for id in self._open if not self._users.get(id)][: len(self._open) - self._most]:
                    self._open.pop(id).close()
                    del self._users[id]

    def close(self) -> None:
        with self._guard:
            for source in self._open.values():
                source.close()
            self._open.clear()
