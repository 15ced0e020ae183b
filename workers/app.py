"""Start-up of the worker: models first, then Celery's consumer, and the end in the other order.

`celery -A workers.app …` finds here the application that Celery's own commands use, with the environment's settings.
"""

from __future__ import annotations

import gc
import logging
import platform
import sys
from functools import cache
from typing import Any, NoReturn

from celery import Celery, bootsteps
from celery.apps.worker import Worker
from celery.exceptions import CeleryCommandException
from celery.worker import state

from shared.database.workers import ServedModel
from shared.queue import celery_app, queue_name, remote_control, tasks
from shared.queue.consumer import celery_consumer
from shared.settings import Settings
from shared.telemetry import logs, tracing
from shared.telemetry.metrics import Recorder
from workers.datasets.shards import ShardRunner
from workers.inference.batcher import Batcher
from workers.inference.cores import engine_processes, engine_threads
from workers.inference.policy import Policy
from workers.inference.process import EngineProcess
from workers.jobs.runner import Runner

log = logging.getLogger(__name__)

SWITCH_INTERVAL = 0.0005
"""Seconds after which a thread that computes lets another go on; Python's default is ten times that. A worker's
threads mostly wait for PostgreSQL, Redis and the engine, and each answer then waits for its turn: measured on two
cores, a third more jobs a second."""

EX_USAGE = 64

EXIT_BROKEN = 1
"""Exit status of a worker whose engine does not start any more; a supervisor starts it again."""


def run_worker(settings: Settings, name: str | None = None) -> int:
    """Warm the models, then take jobs until SIGTERM or SIGINT. Returns the exit status.

    `name` distinguishes workers on one host and device; it defaults to the device.

    Raises:
        EngineStartFailed: a model cannot be loaded or fails on its example.
        DatabaseUnavailable, StorageUnavailable: they cannot be reached.
        ConfigurationError: the object storage cannot be used, or traces are wanted and cannot be made.
    """
    sys.setswitchinterval(SWITCH_INTERVAL)
    tracing.start("tuwen-worker")
    hostname = f"{name or settings.device.replace(':', '-')}@{platform.node()}"
    logs.name_worker(hostname)
    engines = _build_engines(settings)
    recorder = Recorder()
    batcher = Batcher(engines, on_batch=recorder.record_batch, on_running=lambda claims: runner.tell_running(claims))
    # While each engine works on one batch, the same number of jobs is prepared for the next.
    at_once = settings.concurrency * len(engines)
    runner = Runner(settings, hostname, batcher, at_once, on_broken=_stop_consuming, recorder=recorder)
    app = celery_app(settings)
    tasks.define(app, runner.take)
    remote_control.install(runner.revoker.revoke)
    shards = ShardRunner(settings, app, hostname, batcher, on_broken=_stop_consuming)
    app.steps["worker"].add(_build_last_jobs_step(runner, shards, settings.shutdown_grace))
    try:
        runner.check()
        batcher.start()
        models = {
            kind: ServedModel(next(iter(models)), next(iter(models.values())), models)
            for kind, models in engines[0].revisions.items()
        }
        runner.start(engines[0].device_name or settings.device, models)
        shards.start(models)
        # Only now: a message prefetched while models load would wait here although another worker is free.
        consumer = celery_consumer(app, hostname, queues=[queue_name(kind) for kind in settings.kinds], threads=at_once)
        log.info("worker %s is warm on %s", hostname, engines[0].device_name)
        _spare_the_garbage_collector()
        consumer.start()
        return consumer.exitcode or 0
    finally:
        shards.stop(0)
        runner.stop(0)
        shards.close()
        runner.close()
        tracing.stop()


def __getattr__(name: str) -> Celery:
    """Make `app` when Celery's command line looks for it: the worker itself needs no application at import."""
    if name == "app":
        return _command_line_app()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@cache
def _command_line_app() -> Celery:
    app = celery_app(Settings())
    # A worker of Celery's would take messages off the queues and could do nothing with them.
    app.Worker = app.Beat = _refuse_to_start
    return app


def _refuse_to_start(**_: object) -> NoReturn:
    raise CeleryCommandException(
        "Celery's own worker and beat cannot run Tuwen's jobs. Start a worker, which loads its models first, with "
        "`tuwen worker` (in a container: python -m workers worker), and a housekeeper with `tuwen housekeeper`.",
        exit_code=EX_USAGE,
    )


def _build_engines(settings: Settings) -> list[EngineProcess]:
    processes = engine_processes(settings)
    return [
        EngineProcess(
            {kind: getattr(settings, kind.value) for kind in settings.kinds},
            settings.device,
            start_timeout=settings.engine_start_timeout,
            batch_timeout=settings.batch_timeout,
            policy=Policy(settings.unpinned, settings.memory_budget, settings.safety),
            threads=engine_threads(settings, processes),
        )
        for _ in range(processes)
    ]


def _spare_the_garbage_collector() -> None:
    """Exclude what start-up made, which lives as long as the process, from every later garbage collection."""
    gc.collect()
    gc.freeze()


def _build_last_jobs_step(runner: Runner, shards: ShardRunner, grace: float) -> type[bootsteps.StartStopStep]:
    """Make the step of Celery's shutdown in which jobs end: no message arrives any more, and events can be sent."""

    class LastJobs(bootsteps.StartStopStep):
        requires: Any = ("celery.worker.components:Pool",)

        def start(self, worker: Worker) -> None: ...

        def stop(self, worker: Worker) -> None:  # noqa: ARG002 (Celery's signature)
            # Shards give back what they have in the batcher first, so that jobs get the whole grace period.
            shards.stop(grace)
            runner.stop(grace)

    return LastJobs


def _stop_consuming() -> None:
    """Warm shutdown from any thread; Celery's consumer looks at this flag once a second."""
    state.should_stop = EXIT_BROKEN  # type: ignore[assignment]  # untyped there, first None
