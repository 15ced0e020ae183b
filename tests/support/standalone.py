"""A whole installation for programs that are no tests: servers, workers and an API, all of their own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

from api.embedded.addresses import as_environment
from api.embedded.servers import Postgres, Valkey
from shared.migrations import migrate
from shared.settings import Settings
from tests.support.system import System, running_system
from tests.support.waiting import eventually


@contextmanager
def standalone_system(folder: Path, **changed: Any) -> Iterator[System]:
    """An open installation in an empty folder, with the settings in `changed`, a warm worker and a housekeeper."""
    with Valkey(folder / "valkey") as valkey, Postgres(folder / "postgres") as postgres:
        migrate(postgres.url)
        settings = Settings(
            database_url=postgres.url,
            redis_url=valkey.url,
            storage_url=f"file://{folder / 'objects'}",
            data_dir=folder,
            auth="open",
        )
        with running_system(settings, folder, **changed) as system:
            system.worker()
            system.housekeeper()
            yield system


@contextmanager
def api_process(settings: Settings, log: Path) -> Iterator[tuple[str, psutil.Process]]:
    """The base URL and the process of an API that runs as in production, on a port of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        settings = settings.model_copy(update={"port": probe.getsockname()[1]})
    url = f"http://127.0.0.1:{settings.port}"
    with log.open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "api"], env=os.environ | as_environment(settings), stdout=out, stderr=out
        )
    try:
        eventually(lambda: process.poll() is not None or answers(url), "the API does not answer")
        if process.poll() is not None:
            raise RuntimeError(f"the API did not start; see {log}:\n{log.read_text()[-3000:]}")
        yield url, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


def answers(url: str) -> bool:
    """Whether the API at this URL is alive."""
    try:
        return httpx.get(f"{url}/healthz", timeout=10).is_success
    except httpx.HTTPError:
        return False
