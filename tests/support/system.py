"""Workers and housekeepers as real processes around a test's servers, and ways to kill and freeze them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil

from api.embedded.addresses import as_environment
from api.embedded.servers import Server
from shared.database import Database
from shared.queue import JobQueue
from shared.settings import Settings
from tests.support.waiting import PATIENT, eventually
from tuwen.errors import DatabaseUnavailable, QueueUnavailable
from tuwen.jobs import Job, JobRequest, Status

TENANT = "local"

# Faults are over in seconds, not in the minutes that a production system grants.
QUICK: dict[str, Any] = {
    "generate": "import:tests.support.fakes:NullGenerator",
    "describe": "import:tests.support.fakes:NullDescriber",
    "recognize": "import:tests.support.fakes:NullRecognizer",
    "match": "import:tests.support.fakes:NullMatcher",
    "lease": 3.0,
    "heartbeat": 0.5,
    "housekeeping_interval": 1.0,
    "redispatch_after": 4.0,
    "retry_backoff": 0.2,
    "batch_timeout": 30.0,
    "shutdown_grace": 10.0,
}


class Process:
    """`python -m workers ROLE`, or another module, and its whole family."""

    def __init__(self, settings: Settings, log: Path, *arguments: str, module: str = "workers"):
        self.log = log
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                env=os.environ | as_environment(settings),
                stdout=out,
                stderr=out,
            )

    @property
    def process(self) -> psutil.Process:
        """The process, for what psutil can tell of it."""
        return psutil.Process(self._process.pid)

    @property
    def engine(self) -> psutil.Process:
        """The engine process: the child that is not multiprocessing's resource tracker."""
        children = self.process.children()
        return next(child for child in children if "spawn_main" in " ".join(child.cmdline()))

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process, and not to its children."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """Send SIGKILL, so that nothing is cleaned up."""
        self._process.kill()
        self._process.wait()

    def wait(self, timeout: float = PATIENT) -> int:
        """Wait for the end. Returns the exit status."""
        return self._process.wait(timeout)

    def terminate(self, timeout: float = PATIENT) -> int:
        """SIGTERM; returns the exit status."""
        self._process.terminate()
        return self._process.wait(timeout)


class System:
    """A producer in this process, and any number of workers and housekeepers."""

    def __init__(self, settings: Settings, folder: Path):
        self.settings = settings
        self.folder = folder
        self.database = Database(settings)
        self.queue = JobQueue(settings)
        self._processes: list[Process] = []

    def worker(self, name: str = "w") -> Process:
        """Start a worker and wait until it is warm."""
        known = self._workers()
        process = self.start("worker", "--name", name)
        self.wait_until(lambda: self._workers() - known or not process.alive, "a warm worker")
        if not process.alive:
            raise AssertionError(process.log.read_text())
        return process

    def _workers(self) -> set[tuple[str, datetime]]:
        """The living workers, by name and start: a killed one is remembered for a while."""
        return {(row.name, row.started_at) for row in self.database.workers.alive()}

    def housekeeper(self) -> Process:
        """Start a housekeeper."""
        return self.start("housekeeper")

    def start(self, *arguments: str, module: str = "workers") -> Process:
        """Start `python -m workers` with these arguments; its output goes to a file of its own."""
        log = self.folder / f"{'-'.join(arguments or [module])}-{len(self._processes)}.log"
        process = Process(self.settings, log, *arguments, module=module)
        self._processes.append(process)
        return process

    def submit(self, *prompts: str, **fields: Any) -> list[UUID]:
        """Submit as the API does: commit, then publish; if Redis is away, the housekeeper publishes later."""
        requests = [JobRequest.model_validate({"input": {"kind": "generate", "prompt": p}, **fields}) for p in prompts]
        submission = self.database.jobs.submit(requests, tenant=TENANT)
        try:
            self.queue.publish(submission.dispatches)
        except QueueUnavailable:
            self.database.jobs.dispatch_now(submission.ids)
        return submission.ids

    def has_database(self) -> bool:
        """Whether PostgreSQL answers."""
        try:
            self.database.check()
        except DatabaseUnavailable:
            return False
        return True

    def jobs(self, ids: Iterable[UUID]) -> list[Job]:
        """Return these jobs as the database has them."""
        return self.database.jobs.get_many(list(ids), TENANT)

    def statuses(self, ids: Iterable[UUID]) -> list[Status]:
        """Return the states of these jobs."""
        return [job.status for job in self.jobs(ids)]

    def wait_until_finished(self, ids: Iterable[UUID]) -> list[Job]:
        """Wait until all of these jobs are over, and return them."""
        ids = list(ids)
        self.wait_until(lambda: all(status.terminal for status in self.statuses(ids)), f"the end of {len(ids)} jobs")
        return self.jobs(ids)

    def wait_until_running(self, ids: Iterable[UUID], at_least: int = 1) -> None:
        """Wait until some of these run."""
        ids = list(ids)
        self.wait_until(lambda: self.statuses(ids).count(Status.RUNNING) >= at_least, "running jobs")

    def wait_until(self, condition: Callable[[], Any], what: str, patience: float = PATIENT) -> None:
        """Wait for a condition; when it does not come, fail with `what` and the end of each process's log."""

        eventually(condition, lambda: f"{what}\n{self.last_lines()}", patience)

    def last_lines(self) -> str:
        """The end of each process's log."""
        return "\n".join(f"== {process.log.name}\n{process.log.read_text()[-3000:]}" for process in self._processes)

    def close(self) -> None:
        """Kill all processes that are left, frozen ones too, and close the connections."""
        for process in self._processes:
            if process.alive:
                process.signal(signal.SIGCONT)
                process.kill()
        self.queue.close()
        self.database.close()


@contextmanager
def freeze(pid: int) -> Iterator[None]:
    """Freeze a server and its children within the block: as behind a network that drops every packet."""
    server = psutil.Process(pid)
    server.suspend()  # first, so that it has no more children
    family = [server, *server.children(recursive=True)]
    for process in family:
        with suppress(psutil.NoSuchProcess):  # a child may be about to end by itself
            process.suspend()
    try:
        yield
    finally:
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.resume()


@contextmanager
def gone(settings: Settings) -> Iterator[None]:
    """Take the folder of the object storage away within the block; what is in its place is no folder."""
    folder = Path(settings.storage_url.removeprefix("file://"))
    away = folder.with_name(f"{folder.name} away")
    folder.rename(away)
    folder.touch()
    try:
        yield
    finally:
        folder.unlink()
        away.rename(folder)


def ports_here(server: Server) -> set[int]:
    """Local ports of all connections that this process has to the server."""
    connections = psutil.Process().net_connections()
    return {each.laddr.port for each in connections if each.raddr and each.raddr.port == server.port}


@contextmanager
def running_system(settings: Settings, folder: Path, **changed: Any) -> Iterator[System]:
    """Yield a system with `settings`, quick timeouts, and the settings in `changed`."""
    system = System(Settings(**{**settings.model_dump(exclude_unset=True), **QUICK, **changed}), folder)
    try:
        yield system
    finally:
        system.close()
