"""Start-up of the housekeeper: Celery's beat, the queues that it and the API fill, data sets, and batches."""

from __future__ import annotations

import logging
import platform
import threading
import time

from celery import Celery, beat, signals

from shared.queue import HOUSEKEEPING_QUEUE, celery_app, remote_control
from shared.queue.consumer import celery_consumer
from shared.settings import Settings
from shared.telemetry import logs, tracing
from workers.datasets.housekeeping import DatasetKeeper
from workers.housekeeper import housekeeping
from workers.housekeeper.batches import BatchRunner
from workers.housekeeper.beat import MonotonicScheduler
from workers.housekeeper.housekeeping import Housekeeper

log = logging.getLogger(__name__)

WEBHOOK_GRACE = 2.0
"""Seconds that webhooks on their way get at the end: what is cut off is delivered again, and receivers may hang."""


def run_housekeeper(settings: Settings) -> int:
    """Run beat and the housekeeping queue until SIGTERM or SIGINT. Returns the exit status."""
    tracing.start("tuwen-housekeeper")
    app = celery_app(settings)
    datasets = DatasetKeeper(settings, app)
    batches = BatchRunner(settings)
    housekeeper = Housekeeper(settings, app, datasets)
    housekeeping.define(app, housekeeper, settings.housekeeping_interval)
    remote_control.install(housekeeper.revoker.revoke)
    signals.worker_shutting_down.connect(lambda **_: housekeeper.stop(), weak=False)
    signals.worker_shutting_down.connect(lambda **_: batches.stop(), weak=False)
    # A thread, not the process that Celery's --beat forks: that one would outlive a housekeeper that is killed.
    threading.Thread(target=_beat, args=(app,), name="beat", daemon=True).start()
    hostname = f"housekeeper@{platform.node()}"
    logs.name_worker(hostname)
    consumer = celery_consumer(app, hostname, queues=[HOUSEKEEPING_QUEUE], threads=4)
    datasets.start()
    batches.start()
    try:
        consumer.start()
    finally:
        # Both end side by side, within one grace.
        batches.stop()
        deadline = time.monotonic() + settings.shutdown_grace
        datasets.stop(settings.shutdown_grace)
        batches.close(max(0.0, deadline - time.monotonic()))
        housekeeper.close(max(0.0, min(WEBHOOK_GRACE, deadline - time.monotonic())))
        tracing.stop()
    return consumer.exitcode or 0


def _beat(app: Celery) -> None:
    """Run Celery's beat forever, its schedule in memory: no time needs to outlive a restart."""
    while True:
        try:
            beat.Service(app, max_interval=1, scheduler_cls=MonotonicScheduler).start()
        except Exception:
            log.exception("beat stopped; starting it again")
            time.sleep(1)
