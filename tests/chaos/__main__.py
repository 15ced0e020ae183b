"""`make chaos`: do something at random every few seconds while jobs of all kinds run, then count.

`--goal` follows the schedule of the project's goal instead. Ends with status 1 when a job was lost, ended with
another's result or failed although it could have succeeded, or when a webhook did not arrive.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from api.embedded.servers import Postgres, Valkey
from shared.migrations import migrate
from shared.settings import Settings
from tests.chaos import verdict
from tests.chaos.deeds import Chaos, console
from tests.chaos.goal import Goal, pursue
from tests.chaos.work import Work
from tests.support.clock import FakeClock
from tests.support.disks import small_disk
from tests.support.system import running_system
from tests.support.webhooks import SECRET, Receiver

DISK = 1024
"""Megabytes of the disk that is filled."""

AT_RANDOM: dict[str, Any] = {"max_crashes": 10}
"""Many kills at random hit the same job now and then."""
GOAL: dict[str, Any] = {"lease": 6.0, "heartbeat": 1.0, "redispatch_after": 10.0}
"""As in production, attempts and crashes are those of the defaults."""


@contextmanager
def battlefield(
    dice: random.Random, workers: int, logs: Path | None, changed: dict[str, Any]
) -> Iterator[tuple[Chaos, Work]]:
    """Servers and processes on a disk of their own, with a clock of their own, and two receivers of webhooks."""
    receivers = [Receiver(), Receiver()]
    with tempfile.TemporaryDirectory(prefix="tuwen-chaos-") as name, small_disk(Path(name) / "disk", DISK) as mounted:
        folder = Path(name) / "disk"
        folder.parent.chmod(0o755)  # PostgreSQL runs as nobody where we are root
        if not mounted:
            console.print("No disk is filled: only root may mount one.")
        with Valkey(folder / "valkey") as valkey, Postgres(folder / "postgres") as postgres:
            migrate(postgres.url)
            clock = FakeClock(postgres.url)
            settings = Settings(
                database_url=postgres.url,
                redis_url=valkey.url,
                storage_url=f"file://{folder / 'objects'}",
                webhook_secret=SecretStr(SECRET),
                fetch_allow_networks=("127.0.0.0/8",),
                fetch_timeout=3.0,
            )
            with running_system(settings, folder, **changed) as system:
                work = Work(system, dice, receivers)
                parts = {"clock": clock, "disk": folder if mounted else None, "receiver": receivers[0]}
                try:
                    yield Chaos(system, valkey, postgres, dice, workers=workers, **parts), work
                finally:
                    if logs:
                        _copy_logs(folder, logs)
    for receiver in receivers:
        receiver.close()


def _copy_logs(folder: Path, destination: Path) -> None:
    destination.mkdir(parents=True, exist_ok=True)
    for log in [*folder.glob("*.log"), *folder.glob("*/*.log")]:
        shutil.copy(log, destination / "-".join(log.relative_to(folder).parts))


def at_random(chaos: Chaos, work: Work, minutes: float) -> None:
    """Do something every few seconds for so long, then wait for the end of the jobs."""
    end = time.monotonic() + minutes * 60
    while time.monotonic() < end:
        work.submit(chaos.dice.randrange(1, 40))
        chaos.misdeed()
        work.submit(chaos.dice.randrange(1, 40))
        chaos.repair()
        time.sleep(chaos.dice.uniform(1, 6))
    chaos.await_repairing(lambda: work.unfinished == 0, "the end of all jobs", patience=1200)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5, help="of deeds at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--goal", action="store_true", help="follow the schedule of the goal")
    parser.add_argument("--jobs", type=int, default=Goal.jobs, help="of the goal")
    parser.add_argument("--seconds", type=float, default=Goal.seconds, help="over which the goal's deeds are spread")
    parser.add_argument("--workers", type=int, help="by default 2, and 6 for the goal")
    parser.add_argument("--logs", type=Path, help="folder that the logs of all processes are copied to at the end")
    given = parser.parse_args()
    workers = given.workers or (6 if given.goal else 2)
    began = time.monotonic()
    with battlefield(random.Random(given.seed), workers, given.logs, GOAL if given.goal else AT_RANDOM) as (
        chaos,
        work,
    ):
        if given.goal:
            pursue(Goal(given.jobs, given.seconds), chaos, work)
        else:
            at_random(chaos, work, given.minutes)
        seconds = time.monotonic() - began
        verdict.await_webhooks(chaos, work)
        return 0 if verdict.judge(chaos, work, seconds, lenient=not given.goal) else 1


if __name__ == "__main__":
    sys.exit(main())
