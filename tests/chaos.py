"""`make chaos`: kill something at random every few seconds while jobs run, then count.

Ends with status 1 when a job was lost, done twice in effect, or failed for another reason than a poison's own.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import psutil
from rich.console import Console

from api.embedded.servers import Postgres, Valkey
from shared.migrations import migrate
from shared.settings import Settings
from tests.support.system import Process, System, freeze, gone, running_system
from tuwen.errors import DatabaseUnavailable
from tuwen.jobs import GenerateResult, Status

console = Console()


class Chaos:
    """Two workers, two housekeepers, one Valkey, one PostgreSQL, and ways to kill or freeze each of them."""

    def __init__(self, system: System, valkey: Valkey, postgres: Postgres, dice: random.Random):
        self.system = system
        self.valkey = valkey
        self.postgres = postgres
        self.dice = dice
        self.workers = [system.worker(f"w{n}") for n in range(2)]
        self.housekeepers = [system.housekeeper() for _ in range(2)]
        self.frozen: list[Process] = []
        self.deeds: Counter[str] = Counter()
        self.poisons: list[UUID] = []
        """Jobs that kill each worker that runs them."""

    def misdeed(self) -> None:
        deeds: dict[str, Callable[[], None]] = {
            "killed a worker": self._kill_worker,
            "killed an engine": self._kill_engine,
            "froze a worker past its lease": self._freeze,
            "killed a housekeeper": self._kill_housekeeper,
            "killed Valkey": self._restart_valkey,
            "killed PostgreSQL": self._restart_postgres,
            "froze PostgreSQL": self._freeze_postgres,
            "took the storage away": self._take_storage_away,
            "submitted a job that kills its workers": self._submit_poison,
        }
        name = self.dice.choice(list(deeds))
        deeds[name]()
        self.deeds[name] += 1
        console.print(f"{time.strftime('%H:%M:%S')} {name}")

    def repair(self) -> None:
        """Do what a supervisor would do: start again what is dead, let frozen processes go on."""
        for process in self.frozen:
            process.signal(signal.SIGCONT)
        self.frozen.clear()
        self.workers = [
            w if w.alive else self.system.start("worker", "--name", f"w{n}") for n, w in enumerate(self.workers)
        ]
        self.housekeepers = [keeper if keeper.alive else self.system.housekeeper() for keeper in self.housekeepers]

    def _kill_worker(self) -> None:
        self.dice.choice(self.workers).kill()

    def _kill_engine(self) -> None:
        try:
            self.dice.choice(self.workers).engine.kill()
        except (StopIteration, psutil.Error):  # it is only just starting
            self.deeds["found no engine to kill"] += 1

    def _freeze(self) -> None:
        worker = self.dice.choice(self.workers)
        worker.signal(signal.SIGSTOP)
        self.frozen.append(worker)
        time.sleep(self.system.settings.lease * 1.5)

    def _kill_housekeeper(self) -> None:
        self.dice.choice(self.housekeepers).kill()

    def _restart_valkey(self) -> None:
        self.valkey.kill()
        time.sleep(self.dice.uniform(0, 3))
        self.valkey.start()

    def _restart_postgres(self) -> None:
        self.postgres.kill()
        time.sleep(self.dice.uniform(0, 3))
        self.postgres.start()

    def _freeze_postgres(self) -> None:
        with freeze(self.postgres.pid):
            time.sleep(self.dice.uniform(0, 3 * self.system.settings.lease))
        self.system.wait_until(self.system.has_database, "PostgreSQL")

    def _take_storage_away(self) -> None:
        with gone(self.system.settings):
            time.sleep(self.dice.uniform(0, 4 * self.system.settings.lease))

    def _submit_poison(self) -> None:
        if self.poisons:
            return  # one is enough: until it is quarantined, it takes a worker with it every few seconds
        try:
            self.poisons += self.system.submit("murder", max_attempts=20)
        except DatabaseUnavailable:
            self.deeds["found no PostgreSQL for a poison"] += 1


def submit(system: System, dice: random.Random) -> list[UUID]:
    prompts = [dice.choice(["cat", "cat", "cat", "sleep 0.5", "sleep 1"]) for _ in range(dice.randrange(1, 40))]
    try:
        return system.submit(*prompts, max_attempts=20)
    except DatabaseUnavailable:  # the caller knows, and nothing was written
        return []


def verdict(system: System, ids: list[UUID], poisons: list[UUID]) -> bool:
    jobs = [job for start in range(0, len(ids), 500) for job in system.jobs(ids[start : start + 500])]
    console.print(f"{len(jobs)} jobs: {dict(Counter(job.status.value for job in jobs))}")
    console.print(f"attempts: {dict(sorted(Counter(job.attempts for job in jobs).items()))}")
    wrong = [job for job in system.jobs(poisons) if job.status is not Status.QUARANTINED]
    wrong += [
        job
        for job in jobs
        # Enough crashes of its worker under its own batches quarantine an innocent job too: said, not lost.
        if job.status not in (Status.SUCCEEDED, Status.QUARANTINED)
        or (isinstance(job.result, GenerateResult) and job.result.seed != job.id.int % 2**53)
    ]
    for job in wrong[:10]:
        console.print(job)
    return not wrong


def wait_until_finished(chaos: Chaos, ids: list[UUID]) -> None:
    """Wait until all of these jobs are over; some of them still kill workers."""

    def finished() -> bool:
        chaos.repair()
        return all(status.terminal for status in chaos.system.statuses(ids))

    chaos.system.wait_until(finished, f"the end of {len(ids)} jobs", patience=1200)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    dice = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory(prefix="tuwen-chaos-") as name:
        folder = Path(name)
        with Valkey(folder / "valkey") as valkey, Postgres(folder / "postgres") as postgres:
            migrate(postgres.url)
            settings = Settings(
                database_url=postgres.url, redis_url=valkey.url, storage_url=f"file://{folder / 'objects'}"
            )
            with running_system(settings, folder, max_crashes=10) as system:
                chaos = Chaos(system, valkey, postgres, dice)
                ids: list[UUID] = []
                end = time.monotonic() + arguments.minutes * 60
                while time.monotonic() < end:
                    ids += submit(system, dice)
                    chaos.misdeed()
                    ids += submit(system, dice)
                    chaos.repair()
                    time.sleep(dice.uniform(1, 6))
                console.print(f"{sum(chaos.deeds.values())} misdeeds: {dict(chaos.deeds)}")
                wait_until_finished(chaos, ids + chaos.poisons)
                return 0 if verdict(system, ids, chaos.poisons) else 1


if __name__ == "__main__":
    sys.exit(main())
