"""The producer's costs: latency, submissions per second, memory."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

from api.embedded.addresses import as_environment
from shared.settings import Settings
from tests.bench.figures import Figure, percentile
from tests.bench.peers import measure
from tests.bench.worker import NULL
from tests.support.system import System
from tuwen.jobs import Kind

BODY: dict[str, Any] = {"input": {"kind": "generate", "prompt": "一只黑色的猫在草地上跳跃"}}
CLIENTS = 8


@contextmanager
def api(settings: Settings) -> Iterator[tuple[str, psutil.Process]]:
    """Run one API process; yield its base URL and the process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "api.app:create_app", "--factory", "--port", str(port)]
    command += ["--no-access-log", "--log-level", "warning"]
    process = subprocess.Popen(command, env=os.environ | as_environment(settings))
    url = f"http://127.0.0.1:{port}"
    try:
        while not _answers(url):
            if process.poll() is not None:
                raise RuntimeError("the API did not start")
            time.sleep(0.1)
        yield url, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz").is_success
    except httpx.HTTPError:
        return False


def latency(settings: Settings, folder: Path) -> list[Figure]:
    """Submit to result of single jobs on an idle system; the null engine's own time is nothing."""
    settings = settings.model_copy(update={"generate": NULL, "kinds": (Kind.GENERATE,)})
    system = System(Settings(**settings.model_dump(exclude_unset=True)), folder)
    try:
        system.worker()
        with api(settings) as (url, _), httpx.Client(base_url=url) as client:
            times = [_submit_and_wait(client) for _ in range(220)][20:]
    finally:
        system.close()
    return [
        Figure("idle, submit to result, p50", percentile(times, 50) * 1000, "ms", goal="30 ms"),
        Figure("idle, submit to result, p99", percentile(times, 99) * 1000, "ms"),
    ]


def _submit_and_wait(client: httpx.Client) -> float:
    started = time.perf_counter()
    answer = client.post("/v1/jobs", json=BODY, headers={"Prefer": "wait=10"})
    elapsed = time.perf_counter() - started
    if answer.json()["status"] != "succeeded":
        raise RuntimeError(answer.text)
    time.sleep(0.02)
    return elapsed


def submissions(settings: Settings, folder: Path) -> list[Figure]:
    """Jobs per second that one API process takes, against a loop that inserts and publishes."""
    bare = measure(settings, "insert", 1000)
    with api(settings) as (url, _):
        single = load(url, "/v1/jobs", BODY, 200)
        many = load(url, "/v1/jobs/batch", {"jobs": [BODY] * 200}, 3) * 200
    return [
        Figure("submissions, one API process", single, "jobs/s", "insert and publish", bare, "≥ 0.5"),
        Figure("submissions, 200 in one request", many, "jobs/s", "one in one request", single, "≥ 5"),
    ]


def load(url: str, path: str, body: dict[str, Any], each: int, clients: int = CLIENTS) -> float:
    """Requests per second of some clients, each of which keeps one connection busy."""
    content = json.dumps(body).encode()

    def client() -> None:
        with httpx.Client(base_url=url, timeout=60) as http:
            for _ in range(each):
                http.post(path, content=content, headers={"content-type": "application/json"}).raise_for_status()

    threads = [threading.Thread(target=client) for _ in range(clients)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return clients * each / (time.perf_counter() - started)


def memory(settings: Settings, folder: Path) -> list[Figure]:
    """Resident memory of the API and of an idle worker's parent process, against its engine process."""
    system = System(Settings(**settings.model_dump(exclude_unset=True)), folder)
    try:
        worker = system.worker()
        parent, engine = worker.process, worker.engine
        with api(settings) as (_, process):
            resident = [one.memory_info().rss / 2**20 for one in (process, parent, engine)]
    finally:
        system.close()
    return [
        Figure("resident memory, API", resident[0], "MiB", "engine process", resident[2]),
        Figure("resident memory, idle worker", resident[1], "MiB", "engine process", resident[2]),
    ]
