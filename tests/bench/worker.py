"""How much of an engine's speed is left when its work comes through the queue."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, text

from shared.database.connections import driver_url
from shared.intake.images import encode_png
from shared.objects.storage import ObjectStore, file_key
from shared.settings import Settings
from tests.bench.figures import Figure
from tests.bench.peers import measure
from tests.support.scenes import EXAMPLE
from tests.support.system import TENANT, System
from tuwen.jobs import JobRequest, Kind
from workers.lab.world.render import render

NULL = "import:tests.support.fakes:NullGenerator"
WAITING = "import:tests.support.fakes:SlowGenerator"
EXAMPLE_SIDE = 64
"""Pixels of the picture that is described."""


def throughput(settings: Settings, folder: Path) -> list[Figure]:
    """Through the whole worker with an engine that does nothing, against Celery tasks that do nothing."""
    noop = measure(settings, "noop", 3000)
    jobs = rate(settings.model_copy(update={"generate": NULL}), folder, Kind.GENERATE, 3000)
    return [Figure("worker, null engine", jobs, "jobs/s", "Celery no-op tasks", noop, "≥ 0.5")]


def saturation(settings: Settings, folder: Path) -> list[Figure]:
    """Single jobs by the thousand, all waiting, against the same engine called with whole batches."""
    figures = []
    for kind in (Kind.GENERATE, Kind.DESCRIBE):
        model = settings.model_for(kind)
        bare, jobs = measure_between_peers(
            partial(measure, settings, "engine", kind, model, settings.device, 1000),
            partial(rate, settings, folder, kind, 2000),
        )
        figures.append(Figure(f"{kind}, built in", jobs, "jobs/s", "bare engine", bare, "≥ 0.7"))
    bare = measure(settings, "engine", Kind.GENERATE, WAITING, settings.device, 160)
    jobs = rate(settings.model_copy(update={"generate": WAITING}), folder, Kind.GENERATE, 1000)
    figures.append(Figure("generate, 0.2 s a batch of 16", jobs, "jobs/s", "bare engine", bare, "≥ 0.95"))
    return figures


def measure_between_peers(peer: Callable[[], float], system: Callable[[], float]) -> tuple[float, float]:
    """The peer's rate, the mean of before and after, and the system's: the speed of a shared machine drifts."""
    before, rate, after = peer(), system(), peer()
    return (before + after) / 2, rate


def rate(settings: Settings, folder: Path, kind: Kind, jobs: int, models: Sequence[str | None] = (None,)) -> float:
    """Jobs per second from the first claim to the last result, all waiting when the worker comes.

    The jobs name the `models` in turn. All have to succeed.
    """
    settings = settings.model_copy(update={"kinds": (kind,)})
    settings = Settings(**settings.model_dump(exclude_unset=True))
    system = System(settings, folder)
    try:
        wanted = _input(kind, settings)
        each = [JobRequest.model_validate({"input": wanted, "model": model}) for model in models]
        submission = system.database.jobs.submit([each[i % len(each)] for i in range(jobs)], tenant=TENANT)
        system.queue.publish(submission.dispatches)
        system.worker(f"bench-{kind}-{jobs}")
        # Counting is cheap; to look at a thousand jobs ten times a second would be measured, too.
        system.wait_until(lambda: _unfinished(system) == 0, "an empty queue", patience=600)
        finished = system.jobs(submission.ids)
    finally:
        system.close()
    if failed := [job for job in finished if job.error is not None]:
        raise RuntimeError(f"{len(failed)} of {jobs} jobs failed: {failed[0].error}")
    engine = create_engine(driver_url(settings.database_url))
    query = "SELECT EXTRACT(EPOCH FROM max(finished_at) - min(started_at))::float8 FROM jobs WHERE id = ANY(:ids)"
    with engine.connect() as connection:
        [seconds] = connection.execute(text(query), {"ids": submission.ids}).one()
    engine.dispose()
    return jobs / seconds


def _unfinished(system: System) -> int:
    return sum(state.queued + state.running for state in system.database.jobs.queues().values())


def _input(kind: Kind, settings: Settings) -> dict[str, Any]:
    if kind is Kind.GENERATE:
        return {"kind": kind, "prompt": "一只黑色的猫在草地上跳跃"}
    # The very picture, language and style of the engine's example, which the bare engine is given.
    data = encode_png(render(EXAMPLE, EXAMPLE_SIDE))
    digest = sha256(data).hexdigest()
    ObjectStore.open(settings).put(file_key(TENANT, digest), data, "image/png")
    return {"kind": kind, "image": {"file_id": digest}, "language": "zh", "style": "detailed"}
