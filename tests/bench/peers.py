"""The peers that the system is measured against, each in a process of its own: `python -m tests.bench.peers NAME …`.

Each prints one JSON number.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from importlib import import_module
from typing import Any
from uuid import uuid4

from celery import Celery

from api.embedded.addresses import as_environment
from shared.database import Database
from shared.queue import JobQueue, queue_name, task_name
from shared.settings import Settings
from tuwen.jobs import JobRequest, Kind


def measure(settings: Settings, name: str, *arguments: object) -> float:
    """Run a peer in a fresh process and return what it prints."""
    command = [sys.executable, "-m", "tests.bench.peers", name, *map(str, arguments)]
    environment = os.environ | as_environment(settings)
    return float(json.loads(subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout))


def noop_tasks(count: int) -> float:
    """Tasks per second of Celery as it comes, on the same pool with the same events, with tasks that do nothing."""
    settings = Settings()
    app = Celery("peer", broker=settings.redis_url)
    app.conf.update(
        task_ignore_result=True,
        worker_prefetch_multiplier=1,
        task_send_sent_event=True,
        worker_hijack_root_logger=False,
    )
    finished = threading.Semaphore(0)
    started: list[float] = []

    def run(_: str) -> None:
        started.append(time.perf_counter())
        finished.release()

    app.task(run, name=task_name(Kind.GENERATE), ignore_result=True)
    for _ in range(count):
        app.send_task(task_name(Kind.GENERATE), [str(uuid4())], queue=queue_name(Kind.GENERATE))
    worker = app.Worker(
        hostname="noop@localhost",
        pool="threads",
        concurrency=settings.concurrency,
        queues=[queue_name(Kind.GENERATE)],
        task_events=True,
        without_gossip=True,
        without_mingle=True,
        quiet=True,
    )
    threading.Thread(target=worker.start, daemon=True).start()
    for _ in range(count):
        finished.acquire()
    return count / (time.perf_counter() - started[0])


def bare_engine(kind: str, spec: str, device: str, count: int) -> float:
    """Items per second of the engine alone, called with whole batches of its best size."""
    from shared.model_specs import parse_models
    from workers.inference.catalog import engine_path
    from workers.inference.cores import usable_cores

    if spec == "builtin":
        import torch

        torch.set_num_threads(usable_cores())
    module, name = engine_path(Kind(kind), parse_models(spec)[0])
    engine = getattr(import_module(module), name)(device=device)
    item = engine.example()
    limit = engine.batch_limit(item)
    engine.run([item], _Quiet())
    sizes = sorted({size for size in (1, 4, 8, 16, 32, 64, limit) if size <= limit})
    return max(_rate(engine, item, size, max(count // len(sizes), size)) for size in sizes)


def _rate(engine: Any, item: Any, size: int, count: int) -> float:
    batches = max(1, count // size)
    engine.run([item] * size, _Quiet())
    started = time.perf_counter()
    for _ in range(batches):
        engine.run([item] * size, _Quiet())
    return batches * size / (time.perf_counter() - started)


class _Quiet:
    def progress(self, step: int, steps: int) -> None: ...

    def cancelled(self, index: int) -> bool:
        return False


def insert_and_publish(count: int) -> float:
    """Jobs per second of a loop that inserts one row, commits, and publishes one message."""
    settings = Settings()
    database, queue = Database(settings), JobQueue(settings)
    request = JobRequest.model_validate({"input": {"kind": "generate", "prompt": "a black cat"}})

    def once() -> None:
        queue.publish(database.jobs.submit([request], tenant="local").dispatches)

    once()
    started = time.perf_counter()
    for _ in range(count):
        once()
    return count / (time.perf_counter() - started)


def main() -> None:
    name, *arguments = sys.argv[1:]
    out = os.dup(1)
    os.dup2(2, 1)  # whatever chatters on standard output, the number comes alone
    match name:
        case "noop":
            value = noop_tasks(int(arguments[0]))
        case "engine":
            value = bare_engine(arguments[0], arguments[1], arguments[2], int(arguments[3]))
        case "insert":
            value = insert_and_publish(int(arguments[0]))
        case _:
            raise SystemExit(f"no peer {name!r}")
    os.write(out, json.dumps(value).encode())
    os._exit(0)  # Celery's threads need no farewell


if __name__ == "__main__":
    main()
