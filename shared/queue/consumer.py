"""Celery's own consumer, as worker and housekeeper run it."""

from __future__ import annotations

import warnings

from celery import Celery, signals
from celery.apps.worker import Worker
from celery.exceptions import SecurityWarning


def celery_consumer(app: Celery, hostname: str, *, queues: list[str], threads: int) -> Worker:
    """A consumer of `queues` with `threads` threads; `start()` returns when it was asked to stop."""
    signals.setup_logging.connect(_keep_our_logging)
    # Celery warns root of pickles from the wire, and we accept none.
    warnings.filterwarnings("ignore", category=SecurityWarning)
    worker: Worker = app.Worker(
        hostname=hostname,
        quiet=True,
        pool="threads",
        concurrency=threads,
        queues=queues,
        task_events=True,
        # Workers have nothing to tell each other.
        without_gossip=True,
        without_mingle=True,
    )
    return worker


def _keep_our_logging(**_: object) -> None:
    """Celery configures logging unless somebody listens to this signal."""
