"""The goal of the project for outages: a day's worth of them in some minutes, one upon the other."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from tests.chaos.deeds import Chaos, console
from tests.chaos.work import Work

OUTAGE = 120.0
"""Seconds that the storage is away, twice."""


@dataclass(frozen=True)
class Goal:
    """How much work, in how much time, and how often a worker is killed meanwhile."""

    jobs: int = 10_000
    seconds: float = 900.0
    kill_every: float = 2.0


def pursue(goal: Goal, chaos: Chaos, work: Work) -> None:
    """Submit the jobs and do all deeds, spread over the time; workers are killed until every job is over."""
    over = threading.Event()
    with ThreadPoolExecutor(thread_name_prefix="chaos") as threads:
        others = [threads.submit(each, chaos, goal, over) for each in (_kill_workers, _supervise)]
        try:
            client = threads.submit(_submit, work, goal)
            _follow_schedule(goal, chaos, threads)
            client.result()
            console.print(f"{time.strftime('%H:%M:%S')} all deeds are done, the last jobs remain")
            chaos.await_repairing(lambda: work.unfinished == 0, "the end of all jobs", patience=3600)
        finally:
            over.set()
        for other in others:
            other.result()


def _kill_workers(chaos: Chaos, goal: Goal, over: threading.Event) -> None:
    while not over.wait(goal.kill_every):
        chaos.kill_worker()


def _supervise(chaos: Chaos, _: Goal, over: threading.Event) -> None:
    while not over.wait(0.5):
        chaos.repair()


def _submit(work: Work, goal: Goal) -> None:
    """Submit all jobs at an even rate; those that PostgreSQL could not take are submitted later."""
    began = time.monotonic()
    submitted = 0
    while submitted < goal.jobs:
        due = min(goal.jobs, 1 + int(goal.jobs * (time.monotonic() - began) / goal.seconds))
        if due > submitted:
            submitted += work.submit(min(due - submitted, 200))
        time.sleep(0.5)


def _schedule(goal: Goal, chaos: Chaos) -> list[tuple[float, str, Callable[[], None]]]:
    """(part of the time, what, deed) in order."""
    outage = min(OUTAGE, goal.seconds / 6)
    deeds: list[tuple[float, str, Callable[[], None]]] = [
        *((part, "killed Valkey", chaos.restart_valkey) for part in (0.05, 0.27, 0.45, 0.68, 0.85)),
        (0.55, "wiped Valkey", chaos.wipe_valkey),
        *((part, "killed PostgreSQL", chaos.restart_postgres) for part in (0.15, 0.5, 0.8)),
        *(
            (part, f"took the storage away for {outage:.0f} s", lambda: chaos.take_storage_away(outage))
            for part in (0.2, 0.6)
        ),
        *((part, "killed a housekeeper", chaos.kill_housekeeper) for part in (0.1, 0.4, 0.7)),
        *((part, "submitted a job that kills its workers", chaos.submit_poison) for part in (0.12, 0.42, 0.75)),
    ]
    if chaos.receiver:
        hanging = 3 * outage / 2
        deeds.append((0.08, f"a receiver hangs for {hanging:.0f} s", lambda: chaos.hang_receiver(hanging)))
    if chaos.clock:
        deeds += [(part, "set PostgreSQL's clock by an hour", chaos.set_clock) for part in (0.35, 0.78)]
    if chaos.disk:
        deeds.append((0.9, "filled the disk for 20 s", lambda: chaos.fill_disk(min(20.0, outage))))
    return sorted(deeds, key=lambda deed: deed[0])


def _follow_schedule(goal: Goal, chaos: Chaos, threads: ThreadPoolExecutor) -> None:
    began = time.monotonic()
    under_way: list[Future[None]] = []
    for part, name, deed in _schedule(goal, chaos):
        time.sleep(max(0.0, began + part * goal.seconds - time.monotonic()))
        under_way.append(threads.submit(chaos.do, name, deed))
    for each in under_way:
        each.result()
