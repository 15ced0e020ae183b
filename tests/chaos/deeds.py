"""What is done to a system. Each deed is over when it returns, and leaves nothing that a supervisor cannot repair."""

from __future__ import annotations

import random
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import psutil
from rich.console import Console

from api.embedded.servers import Postgres, Valkey
from tests.support.clock import FakeClock
from tests.support.disks import full
from tests.support.system import Process, System, freeze, gone
from tests.support.webhooks import Receiver
from tuwen.errors import ConfigurationError, DatabaseUnavailable

console = Console()

HOUR = 3600.0


class Chaos:
    """Workers, two housekeepers, one Valkey, one PostgreSQL, and ways to kill, freeze, fill or mislead each of them.

    `clock`, `disk` and `receiver`, where given, are PostgreSQL's clock, the disk that everything lies on, and a
    receiver of webhooks, for deeds of their own.
    """

    def __init__(
        self,
        system: System,
        valkey: Valkey,
        postgres: Postgres,
        dice: random.Random,
        *,
        workers: int = 2,
        clock: FakeClock | None = None,
        disk: Path | None = None,
        receiver: Receiver | None = None,
    ):
        self.system = system
        self.valkey = valkey
        self.postgres = postgres
        self.dice = dice
        self.clock = clock
        self.disk = disk
        self.receiver = receiver
        self.workers = [system.worker(f"w{n}") for n in range(workers)]
        self.housekeepers = [system.housekeeper() for _ in range(2)]
        self.frozen: list[Process] = []
        self.deeds: Counter[str] = Counter()
        self.kills = 0
        """Of workers, whoever ordered them."""
        self.poisons: list[UUID] = []
        """Jobs that kill each worker that runs them."""
        self._ahead = False
        self._repairing = threading.Lock()
        self._starting = threading.RLock()
        """Held while a server is down on purpose, so that nobody starts it from elsewhere."""

    def misdeed(self) -> None:
        """Do something at random."""
        deeds: dict[str, Callable[[], None]] = {
            "killed a worker": self.kill_worker,
            "killed an engine": self._kill_engine,
            "froze a worker past its lease": self._freeze,
            "killed a housekeeper": self.kill_housekeeper,
            "killed Valkey": self.restart_valkey,
            "killed PostgreSQL": self.restart_postgres,
            "froze PostgreSQL": self._freeze_postgres,
            "took the storage away": self._take_storage_away_for_some_time,
            "submitted a job that kills its workers": self._submit_only_poison,
        }
        if self.clock:
            deeds["set PostgreSQL's clock by an hour"] = self.set_clock
        if self.disk:
            deeds["filled the disk"] = self._fill_disk_for_some_time
        if self.receiver:
            deeds["had a receiver of webhooks hang"] = self._hang_for_some_time
        name = self.dice.choice(list(deeds))
        self.do(name, deeds[name])

    def do(self, name: str, deed: Callable[[], None]) -> None:
        """Do `deed`, say so and count it."""
        console.print(f"{time.strftime('%H:%M:%S')} {name}")
        deed()
        self.deeds[name] += 1

    def repair(self) -> None:
        """Do what a supervisor would do: start again what is dead, let frozen processes go on."""
        with self._repairing:
            for process in self.frozen:
                process.signal(signal.SIGCONT)
            self.frozen.clear()
            self.workers = [
                w if w.alive else self.system.start("worker", "--name", f"w{n}") for n, w in enumerate(self.workers)
            ]
            self.housekeepers = [keeper if keeper.alive else self.system.housekeeper() for keeper in self.housekeepers]
        self._repair_servers()

    def await_repairing(self, condition: Callable[[], bool], what: str, patience: float) -> None:
        """Wait until `condition` holds, and repair meanwhile; PostgreSQL may be away when it is asked."""

        def holds() -> bool:
            time.sleep(0.5)
            self.repair()
            try:
                return condition()
            except DatabaseUnavailable:
                return False

        self.system.wait_until(holds, what, patience)

    def _repair_servers(self) -> None:
        with self._starting:
            for server in (self.valkey, self.postgres):
                if not server.running:
                    self.deeds[f"{server.name} had stopped by itself"] += 1
                    try:
                        server.start()
                    except ConfigurationError as error:  # no room to start in, for one; the next repair tries again
                        self.deeds[f"{server.name} did not start"] += 1
                        console.print(str(error).splitlines()[0])

    def kill_worker(self) -> None:
        """Kill one of those that take jobs: killed while they start, on a slow machine none would ever come to that."""
        with self._repairing:
            warm = [worker for worker in self.workers if worker.alive and "is warm" in worker.log.read_text()]
            if warm:
                self.dice.choice(warm).kill()
                self.kills += 1
            else:
                self.deeds["found no worker to kill"] += 1

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

    def kill_housekeeper(self) -> None:
        with self._repairing:
            self.dice.choice(self.housekeepers).kill()

    def restart_valkey(self) -> None:
        with self._starting:
            self.valkey.kill()
            time.sleep(self.dice.uniform(0, 3))
            self.valkey.start()

    def wipe_valkey(self) -> None:
        """Kill it, and start it without any of its data."""
        with self._starting:
            self.valkey.kill()
            shutil.rmtree(self.valkey.folder / "appendonlydir")
            self.valkey.start()

    def restart_postgres(self) -> None:
        with self._starting:
            self.postgres.kill()
            time.sleep(self.dice.uniform(0, 3))
            self.postgres.start()

    def _freeze_postgres(self) -> None:
        with self._starting, freeze(self.postgres.pid):
            time.sleep(self.dice.uniform(0, 3 * self.system.settings.lease))
        self.system.wait_until(self.system.has_database, "PostgreSQL")

    def take_storage_away(self, seconds: float) -> None:
        with gone(self.system.settings):
            time.sleep(seconds)

    def _take_storage_away_for_some_time(self) -> None:
        self.take_storage_away(self.dice.uniform(0, 4 * self.system.settings.lease))

    def set_clock(self) -> None:
        """Set PostgreSQL's clock an hour ahead, and the next time back again."""
        assert self.clock
        self._ahead = not self._ahead
        with self._starting:  # it may be about to be started again
            self.clock.set(HOUR if self._ahead else 0.0)

    def fill_disk(self, seconds: float) -> None:
        """Fill the disk of the storage, of both servers and of every log; they may end of it."""
        assert self.disk
        with self._starting, full(self.disk):
            time.sleep(seconds)
        self._repair_servers()

    def _fill_disk_for_some_time(self) -> None:
        self.fill_disk(self.dice.uniform(1, 4 * self.system.settings.lease))

    def hang_receiver(self, seconds: float) -> None:
        """Have the receiver of webhooks answer nothing."""
        assert self.receiver
        self.receiver.hangs = True
        time.sleep(seconds)
        self.receiver.hangs = False

    def _hang_for_some_time(self) -> None:
        self.hang_receiver(self.dice.uniform(1, 4 * self.system.settings.lease))

    def submit_poison(self) -> None:
        try:
            self.poisons += self.system.submit("murder", max_attempts=20)
        except DatabaseUnavailable:
            self.deeds["found no PostgreSQL for a poison"] += 1

    def _submit_only_poison(self) -> None:
        if not self.poisons:  # one is enough: until it is quarantined, it takes a worker with it every few seconds
            self.submit_poison()
