"""The housekeeper's part in bulk annotation: it plans and exports data sets, and sees to it that shards move."""

from __future__ import annotations

import logging
import platform
import threading
from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from celery import Celery

from shared.database import Database
from shared.database.datasets import DatasetClaim
from shared.database.shards import Renewal
from shared.leasing.consumer import LeasedConsumer, TaskConsumer
from shared.leasing.endings import INTERNAL, Stopped
from shared.leasing.heartbeat import Heartbeat, Held
from shared.leasing.patience import retry_outages
from shared.objects.storage import ObjectStore
from shared.queue import DATASET_TASK, DATASETS_QUEUE, JobQueue
from shared.queue.events import DONE, Outcome, failed, retried
from shared.settings import Settings
from tuwen.datasets import DatasetStatus, ShardStatus
from tuwen.errors import QueueUnavailable, TuwenError, Unavailable
from tuwen.jobs import JobError
from workers.datasets.access import open_allowed
from workers.datasets.estimate import estimate
from workers.datasets.exporting import export
from workers.datasets.planning import DatasetPlanner
from workers.datasets.previews import Previews

log = logging.getLogger(__name__)

AT_ONCE = 2
"""Data sets that one housekeeper plans or exports side by side."""

MESSAGES = 1000
"""Shards of one kind that have a message at a time: the others wait in PostgreSQL, where priorities can change."""

MAX_ATTEMPTS = 10
"""Most attempts at planning or exporting one data set."""


class DatasetRun(Held[DatasetClaim]):
    """One data set while it is planned or exported here."""

    def __init__(self, claim: DatasetClaim):
        super().__init__(claim)
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Make `require_wanted` raise Stopped from now on. Any thread may call this."""
        self._stopped.set()

    def require_wanted(self) -> None:
        """Raise Stopped when the data set was cancelled, or another process has it."""
        if self._stopped.is_set():
            raise Stopped


class DatasetKeeper:
    """Plans and exports in threads of its own, so that no data set holds up the repair of jobs."""

    def __init__(self, settings: Settings, app: Celery):
        self._settings = settings
        self._name = f"housekeeper@{platform.node()}"
        self._database = Database(settings, pool_size=4)
        self._queue = JobQueue(settings)
        self._store = ObjectStore.open(settings)
        self._previews = Previews(settings, self._database, self._store)
        self._consumer = LeasedConsumer(
            lambda do: TaskConsumer(settings, app, self._name, DATASET_TASK, [DATASETS_QUEUE], do, threads=AT_ONCE),
            Heartbeat(self._renew, settings.heartbeat, "dataset-heartbeat"),
            claim=self._claim,
            do=self._run_to_end,
        )
        self.run = self._consumer.run

    def start(self) -> None:
        """Start the threads that plan, export and make previews."""
        self._consumer.start()
        self._previews.start()

    def stop(self, timeout: float) -> None:
        """Give back what is under way within `timeout` seconds, so that another housekeeper can continue."""
        self._previews.stop()
        self._consumer.stop(timeout)

    # ── one data set ──────────────────────────────────────────────────────────────────────────────

    def _renew(self, held: Mapping[UUID, DatasetRun]) -> Renewal:
        return self._database.datasets.renew({id: run.epoch for id, run in held.items()})

    def _claim(self, dataset_id: object) -> DatasetRun | None:
        if not isinstance(dataset_id, str):
            raise TypeError("a message for a data set names it")
        claim = self._database.datasets.take(UUID(dataset_id), self._name)
        return None if claim is None else DatasetRun(claim)

    def _run_to_end(self, run: DatasetRun) -> Outcome:
        """Plan or export the data set, whichever is next."""
        claim = run.claim
        try:
            if claim.status is DatasetStatus.PLANNING:
                self._plan(run)
            elif claim.request.dry_run:
                self._database.datasets.end(claim, estimate=self._estimate(run))
            else:
                export(self._settings, self._database, self._store, claim, run.require_wanted)
                self._database.datasets.end(claim)
            return DONE
        except Stopped:
            self._database.datasets.put_off(claim)
            return retried("stopped")
        except Unavailable as error:
            # Neither the data set nor who asked for it is to blame, however long it lasts.
            log.warning("data set %s is put off: %s", claim.id, error)
            reason = JobError(code=error.code, detail=str(error), retryable=True)
            retry_outages(lambda: self._database.datasets.put_off(claim, reason, outage=True), self._settings.lease)
            return retried(reason.detail)
        except TuwenError as error:
            return self._fail(claim, error.code, str(error), error.retryable)
        except Exception:
            log.exception("data set %s failed unexpectedly", claim.id)
            return self._fail(claim, INTERNAL.code, INTERNAL.detail, retryable=True)

    def _plan(self, run: DatasetRun) -> None:
        claim = run.claim
        DatasetPlanner(self._settings, self._database, self._store, self._queue, claim, run.require_wanted).plan()
        self._database.datasets.mark_planned(claim)
        # All of its shards may be over by now.
        for id in self._database.datasets.complete(claim.id):
            self._publish_datasets([id])

    def _estimate(self, run: DatasetRun) -> dict[str, Any]:
        """Estimate what the data set takes, after a worker has annotated the dry run's sample."""
        claim = run.claim
        needed = {kind.value for kind in claim.request.kinds}
        devices = sum(needed <= set(worker.models) for worker in self._database.workers.alive())
        key_roots = self._database.dataset_places.key_roots(claim.id)
        with open_allowed(claim.request, self._settings, key_roots) as source:
            found = estimate(
                source,
                self._settings,
                claim.request.filters,
                rate=self._database.shards.rate(claim.id),
                devices=devices,
                require_wanted=run.require_wanted,
            )
        return found.model_dump(mode="json")

    def _fail(self, claim: DatasetClaim, code: str, detail: str, retryable: bool) -> Outcome:
        error = JobError(code=code, detail=detail)
        if retryable and claim.attempts < MAX_ATTEMPTS:
            log.warning("data set %s is postponed: %s", claim.id, detail)
            self._database.datasets.put_off(claim, error)
            return retried(detail)
        self._database.datasets.end(claim, error)
        return failed(f"{code}: {detail}")

    # ── each round of the housekeeper that acts ───────────────────────────────────────────────────

    def rescue(self, now: datetime) -> dict[UUID, ShardStatus]:
        """Take back the shards that lost their worker, by PostgreSQL's time `now`."""
        return self._database.shards.rescue(now)

    def keep(self) -> None:
        """Export what is done, publish what is due."""
        self._database.datasets.complete()
        try:
            self._dispatch()
        except QueueUnavailable as error:
            log.warning("no shards were published: %s", error)

    def mark_all_due(self) -> int:
        """Make all queued shards due, because Redis lost its messages. Returns how many there are."""
        return self._database.shards.mark_all_due()

    def _dispatch(self) -> None:
        awaiting = self._database.datasets.awaiting(most=100)
        self._publish_datasets(awaiting[self._queue.dataset_depth() :])
        ready = self._database.shards.ready()
        depth: Mapping[str, int] = self._queue.shard_depth() if ready else {}
        for kinds, count in ready.items():
            missing = min(count, MESSAGES) - depth.get(kinds, 0)
            if missing > 0:
                self._queue.publish_shards(self._database.shards.take_due(kinds, missing))

    def _publish_datasets(self, ids: list[UUID]) -> None:
        if not ids:
            return
        try:
            self._queue.publish_datasets(ids)
        except QueueUnavailable as error:
            log.warning("data sets wait for the next round: %s", error)
