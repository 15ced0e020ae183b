"""The housekeeper: every few seconds it repairs what was lost and does what is due.

Any number of housekeepers may run. Each round takes a lock in PostgreSQL, so one of them acts; and each
thing it does is a guarded statement, so a round that is cut off or done twice does no harm. Webhooks, deletion and
collecting need no lock: each delivery and row is taken by one process, and removing twice does no harm.
"""

from __future__ import annotations

import logging
import platform
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from uuid import UUID

from celery import Celery
from kombu.exceptions import KombuError
from redis.exceptions import RedisError

from shared.database import Database
from shared.intake.fetch import Fetcher
from shared.leasing.revoking import Revoker
from shared.objects import mark
from shared.objects.mark import StorageMark
from shared.objects.storage import ObjectStore
from shared.queue import (
    COLLECTION_TASK,
    HOUSEKEEPING_QUEUE,
    HOUSEKEEPING_TASK,
    MARK_TASK,
    RETENTION_TASK,
    WEBHOOKS_TASK,
    JobQueue,
)
from shared.queue.events import Outcome
from shared.settings import Settings
from shared.telemetry import tracing
from shared.telemetry.metrics import JOBS_FINISHED, Recorder
from tuwen.datasets import ShardStatus
from tuwen.errors import DatabaseUnavailable, QueueUnavailable, Unavailable
from tuwen.jobs import Kind, Status
from workers.datasets.housekeeping import DatasetKeeper
from workers.housekeeper.clock import ClockWatch
from workers.housekeeper.collection import Collector
from workers.housekeeper.retention import Retention
from workers.housekeeper.webhooks import WebhookSender

log = logging.getLogger(__name__)

DISPATCH_LIMIT = 5000
"""Messages published in one round and kind; a wiped Redis is refilled over several rounds."""

LOST = "WorkerLost('the worker stopped answering')"
"""What Flower shows as the exception of a job whose worker is gone."""


class Housekeeper:
    """The housekeeper's tasks; `define` registers them with Celery."""

    def __init__(self, settings: Settings, app: Celery, datasets: DatasetKeeper):
        self._settings = settings
        self._app = app
        self._datasets = datasets
        self._database = Database(settings, pool_size=4)
        self._queue = JobQueue(settings)
        self.revoker = Revoker(self._database, self._queue)
        self._webhooks = WebhookSender(settings, self._database, Fetcher(settings))
        self._clock = ClockWatch(self._database)
        self._recorder = Recorder()
        self._generation: str | None = None
        self._trusting_from = 0.0
        """Time of the monotonic clock until which an expired lease says nothing about its worker: after an outage or a
        jump of the clock, each needs time for a heartbeat."""
        store = ObjectStore.open(settings)
        self._mark = StorageMark(self._database, store)
        self._collector = Collector(settings, self._database, self._queue, store)
        self._retention = Retention(settings, self._database, store)

    def housekeep(self) -> None:
        """Do one round; do nothing while another housekeeper does one."""
        try:
            with tracing.round_span("housekeep") as done, self._database.lead() as leads:
                if leads:
                    self._mend(done)
        except DatabaseUnavailable:
            # Living workers could not renew their leases either: they get time to do so first.
            self._trusting_from = time.monotonic() + self._settings.lease
            raise
        self._sign()

    def _mend(self, done: Counter[str]) -> None:
        """Do what is due, and count it in `done`."""
        now, jumped = self._clock.look()
        if jumped:
            self._trusting_from = time.monotonic() + self._settings.lease
        if time.monotonic() >= self._trusting_from:
            rescued = self._database.jobs.rescue(now)
            shards = self._datasets.rescue(now)
            done.update(jobs_rescued=len(rescued), shards_rescued=len(shards))
            self._announce(rescued)
            self._tell_flower(shards)
        expired = self._database.jobs.expire_queued(now)
        done.update(jobs_expired=len(expired), clock_jumps=int(jumped))
        self._announce(dict.fromkeys(expired, Status.EXPIRED))
        self._recorder.flush(self._queue.redis)
        self._dispatch(done)
        self._datasets.keep()

    def deliver_webhooks(self) -> None:
        """Deliver the webhooks that are due."""
        self._webhooks.deliver()

    def collect(self) -> None:
        """Remove what nobody can ask for any more: orphaned objects, dead workers."""
        with tracing.round_span("collect") as done:
            self._database.workers.forget()
            # What was stored since a dump is no orphan only because the dump does not name it.
            if self._mark.renew():
                done["objects_collected"] += self._collector.collect()

    def delete_old(self) -> None:
        """Delete what is older than it is to become."""
        self._retention.keep()

    def mark(self) -> None:
        """Renew the mark by which a restored database is told from the one that the storage was used with."""
        self._mark.renew()

    def stop(self) -> None:
        """Stop long work soon, because this process is about to end; another one continues."""
        self._retention.stop()
        self._collector.stop()
        self._webhooks.stop()

    def close(self, grace: float) -> None:
        """Wait `grace` seconds for webhooks that are on their way."""
        self._webhooks.close(grace)

    def _dispatch(self, done: Counter[str]) -> None:
        """Publish queued jobs whose message was lost, or was never sent.

        A deep queue is no loss: this publishes as many as there are jobs beyond the number of messages.
        """
        try:
            generation = self._queue.generation()
            if generation != self._generation:
                # Another Redis, or the same one after a restart or a wipe: what it held may be gone.
                log.info("Redis may have lost its messages: %d queued jobs are due", self._database.jobs.mark_all_due())
                log.info("and %d queued shards", self._datasets.mark_all_due())
                self._generation = generation
            messages = self._queue.depth()
        except QueueUnavailable as error:
            log.warning("no lost message was published again: %s", error)
            return
        for kind, state in self._database.jobs.queues().items():
            lost = state.ready - messages[kind]
            if lost > 0:
                done["jobs_published_again"] += self._publish(kind, min(lost, DISPATCH_LIMIT))

    def _publish(self, kind: Kind, most: int) -> int:
        """Publish jobs again whose message is overdue; returns how many."""
        due = self._database.jobs.take_due(kind, most)
        if not due:
            return 0
        log.info("publishing %d %s jobs again", len(due), kind)
        try:
            self._queue.publish(due)
        except QueueUnavailable:
            self._database.jobs.dispatch_now([job.id for job in due])
            return 0
        return len(due)

    def _sign(self) -> None:
        """Record this round, for the health check."""
        # Housekeepers take turns as Redis hands them out, so one of several may wait for its own.
        lifetime = 12 * self._settings.housekeeping_interval
        try:
            self._queue.sign_housekeeper(platform.node(), lifetime)
        except QueueUnavailable as error:
            log.warning("this round was not recorded for the health check: %s", error)

    def _announce(self, ended: Mapping[UUID, Status]) -> None:
        """Tell watchers and Flower about jobs that no worker could report."""
        if not ended:
            return
        for status, count in sorted(Counter(ended.values()).items()):
            log.info("settled %d jobs without a worker: they are %s now", count, status.value)
        self._queue.announce((id, {"status": status.value}) for id, status in ended.items())
        self._tell_flower(ended)
        self._count({id: status for id, status in ended.items() if status.terminal})

    def _count(self, over: Mapping[UUID, Status]) -> None:
        """Count jobs that are over, as the worker does with those that it ends."""
        if over:
            for id, kind in self._database.jobs.kinds(list(over)).items():
                self._recorder.count(JOBS_FINISHED, kind, over[id])

    def _tell_flower(self, ended: Mapping[UUID, Status | ShardStatus]) -> None:
        if not ended:
            return
        try:
            with self._app.events.default_dispatcher() as dispatcher:
                for id, status in ended.items():
                    outcome = Outcome(status, LOST)
                    dispatcher.send(outcome.event, uuid=str(id), **outcome.details)
        except (KombuError, RedisError, OSError) as error:
            log.warning("events for Flower could not be sent: %s", error)


def define(app: Celery, housekeeper: Housekeeper, interval: float) -> None:
    """Register the housekeeping tasks with `app`, and their times with its beat; `interval` in seconds."""
    every = {
        HOUSEKEEPING_TASK: (housekeeper.housekeep, interval),
        WEBHOOKS_TASK: (housekeeper.deliver_webhooks, interval),
        COLLECTION_TASK: (housekeeper.collect, 3600.0),
        RETENTION_TASK: (housekeeper.delete_old, 60.0),
        MARK_TASK: (housekeeper.mark, mark.INTERVAL),
    }
    for name, (do, _) in every.items():
        # An outage is no failure of the task: the next round comes anyway.
        # Flower shows jobs; the rounds of housekeeping would crowd them out of it.
        app.task(_skip_while_running(_log_outages(do)), name=name, ignore_result=True, send_events=False)
    app.conf.task_send_sent_event = False
    app.conf.beat_schedule = {
        name: {
            "task": name,
            "schedule": seconds,
            # A tick that waited out its interval is stale: the next one does its work.
            "options": {"queue": HOUSEKEEPING_QUEUE, "expires": seconds},
        }
        for name, (_, seconds) in every.items()
    }


def _log_outages(do: Callable[[], None]) -> Callable[[], None]:
    def run() -> None:
        try:
            do()
        except Unavailable as error:
            log.warning("%s was postponed to its next round: %s", do.__name__, error)

    return run


def _skip_while_running(do: Callable[[], None]) -> Callable[[], None]:
    """Skip a run while the previous one goes on. Tasks run in parallel: slow webhooks must not delay the rescue."""
    at_work = threading.Lock()

    def run() -> None:
        if at_work.acquire(blocking=False):
            try:
                do()
            finally:
                at_work.release()

    return run
