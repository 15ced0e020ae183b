"""What a job costs each process in CPU time, and what it leaves behind: the figures of docs/sizing.md.

CPU seconds are counted, not seconds of the clock, so that other programs on the machine matter little.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import psycopg
import redis

from shared.intake.images import encode_png
from shared.settings import Settings
from tests.bench.figures import Figure
from tests.bench.producer import BODY, api, load
from tests.bench.worker import NULL
from tests.support.system import System
from tuwen.jobs import Kind

SINGLE = (8, 250)
"""Clients, and requests of each."""
MANY = (10, 200)
"""Requests, and jobs in each."""
IDLE = 20.0
"""Seconds over which an idle system is watched."""


def family_seconds(process: psutil.Process) -> float:
    """CPU seconds of a process and of all its descendants, those that have ended included."""
    total = 0.0
    for each in [process, *process.children(recursive=True)]:
        try:
            times = each.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def own_seconds(process: psutil.Process) -> float:
    """CPU seconds of a process without its children."""
    times = process.cpu_times()
    return times.user + times.system


@dataclass
class Plant:
    """Everything that runs, and how to read its meters."""

    settings: Settings
    system: System
    url: str
    meters: dict[str, Callable[[], float]]
    memory: dict[str, psutil.Process]
    postgres: psycopg.Connection[Any]

    def read(self) -> dict[str, float]:
        """CPU seconds of each process so far."""
        return {name: meter() for name, meter in self.meters.items()}

    def ask(self, query: str) -> float:
        """A number from PostgreSQL."""
        [(answer,)] = self.postgres.execute(query)
        return float(answer)

    def finish(self) -> None:
        """Wait until no job is left; looks rarely, since a look costs PostgreSQL something too."""
        while any(state.queued or state.running for state in self.system.database.jobs.queues().values()):
            time.sleep(1)

    def commits(self) -> float:
        """Transactions so far; nearly every statement is one."""
        time.sleep(1.2)  # backends report when they have been idle for a second
        return self.ask("SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()")

    def wal(self) -> float:
        """Bytes of PostgreSQL's log so far."""
        return self.ask("SELECT pg_current_wal_insert_lsn() - '0/0'")

    def tables(self) -> float:
        """Bytes of the table of jobs and its indexes."""
        return self.ask("SELECT pg_total_relation_size('jobs')")


def sizing(settings: Settings, folder: Path) -> Iterator[Figure]:
    """The figures, in the order of docs/sizing.md."""
    changed = settings.model_copy(update={"generate": NULL, "kinds": (Kind.GENERATE,), "housekeeping_interval": 5.0})
    changed = Settings(**changed.model_dump(exclude_unset=True))
    with ExitStack() as stack:
        system = System(changed, folder)
        stack.callback(system.close)
        connection = stack.enter_context(psycopg.connect(changed.database_url, autocommit=True))
        before = _connections(connection)
        url, api_process = stack.enter_context(api(changed))
        httpx.get(f"{url}/readyz")
        worker = system.worker()
        housekeeper = system.housekeeper()
        system.wait_until(system.queue.housekeepers, "the housekeeper")
        processes = {
            "API": api_process,
            "worker": worker.process,
            "engine": worker.engine,
            "housekeeper": housekeeper.process,
        }
        servers = _servers()
        meters: dict[str, Callable[[], float]] = {
            name: (lambda process=process: own_seconds(process)) for name, process in processes.items()
        }
        meters["PostgreSQL"] = lambda: family_seconds(servers["postgres"])
        meters["Redis"] = lambda: own_seconds(servers["valkey"])
        plant = Plant(changed, system, url, meters, processes, connection)
        yield from _idle(plant)
        yield from _under_load(plant, "one in a request", *SINGLE, "/v1/jobs", BODY, 1)
        yield Figure("connections of API, worker and housekeeper after that", _connections(connection) - before, "")
        each = MANY[1]
        yield from _under_load(
            plant, f"{each} in a request", 1, MANY[0], "/v1/jobs/batch", {"jobs": [BODY] * each}, each
        )
        yield from _looks(plant)
        for name, process in processes.items():
            yield Figure(f"memory, {name}", process.memory_info().rss / 2**20, "MiB")
        worker.terminate()
        yield from _queued(plant)
    for side in (64, 512, 1024):
        yield Figure(f"PNG of {side}×{side}, in the worker", _png(side) * 1000, "ms CPU")


def _servers() -> dict[str, psutil.Process]:
    """The servers that this process has started, by the beginning of their names."""
    children = {child.name(): child for child in psutil.Process().children()}
    return {
        name: next(child for known, child in children.items() if known.startswith(name))
        for name in ("postgres", "valkey")
    }


def _connections(connection: psycopg.Connection[Any]) -> int:
    [(count,)] = connection.execute("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'")
    return int(count)


def _idle(plant: Plant) -> Iterator[Figure]:
    begin = plant.read()
    time.sleep(IDLE)
    for name, end in plant.read().items():
        yield Figure(f"idle, {name}", (end - begin[name]) / IDLE * 1000, "ms CPU/s")


def _under_load(
    plant: Plant, how: str, clients: int, requests: int, path: str, body: dict[str, Any], each: int
) -> Iterator[Figure]:
    jobs = clients * requests * each
    commits, wal, tables = plant.commits(), plant.wal(), plant.tables()
    begin = plant.read()
    load(plant.url, path, body, requests, clients)
    plant.finish()
    for name, end in plant.read().items():
        yield Figure(f"{how}: a job, {name}", (end - begin[name]) / jobs * 1000, "ms CPU")
    yield Figure(f"{how}: a job, transactions", (plant.commits() - commits) / jobs, "")
    yield Figure(f"{how}: a job, PostgreSQL's log", (plant.wal() - wal) / jobs, "bytes")
    yield Figure(f"{how}: a job, table and indexes", (plant.tables() - tables) / jobs, "bytes")


def _looks(plant: Plant) -> Iterator[Figure]:
    """What it costs to ask for a job."""
    count = 1000
    begin = plant.read()
    with httpx.Client(base_url=plant.url, timeout=60) as client:
        id = client.post("/v1/jobs", json=BODY).json()["id"]
        for _ in range(count):
            client.get(f"/v1/jobs/{id}").raise_for_status()
    end = plant.read()
    for name in ("API", "PostgreSQL", "Redis"):
        yield Figure(f"a look at a job, {name}", (end[name] - begin[name]) / count * 1000, "ms CPU")


def _queued(plant: Plant) -> Iterator[Figure]:
    """What a job that waits takes of Redis: its message."""
    with redis.Redis.from_url(plant.settings.redis_url) as client:
        begin = client.info("memory")["used_memory"]
        load(plant.url, "/v1/jobs/batch", {"jobs": [BODY] * 500}, 10, 1)
        time.sleep(3)  # the outbox is another thread
        used = client.info("memory")["used_memory"] - begin
    yield Figure("a job that waits, Redis", used / 5000, "bytes")


def _png(side: int) -> float:
    """CPU seconds to encode a picture that compresses as a photograph does: noise upon a slope."""
    slope = np.linspace(0, 200, side)[:, None, None] + np.random.default_rng(0).normal(0, 8, (side, side, 3))
    pixels = slope.clip(0, 255).astype(np.uint8)
    began = time.process_time()
    for _ in range(5):
        encode_png(pixels)
    return (time.process_time() - began) / 5
