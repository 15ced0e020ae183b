"""`make chaos-datasets`: kill something at random every few seconds while a data set is annotated, then count.

Ends with status 1 when an image is missing in the output, is there twice, or has another's caption.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

from api.embedded.servers import Postgres, Valkey
from shared.migrations import migrate
from shared.settings import Settings
from tests.chaos.deeds import Chaos, console
from tests.support.annotation import annotate, dataset, mistakes, paint
from tests.support.system import System, running_system
from tuwen.datasets import Dataset
from tuwen.errors import DatabaseUnavailable


def endure(
    system: System,
    chaos: Chaos,
    source: Path,
    destination: Path,
    *,
    every: float,
    limit: float,
    unhurried: bool = False,
) -> Dataset:
    """Have `source` annotated while something dies `every` so many seconds; the data set when it is over.

    `unhurried` waits for another shard to end before the next misdeed, so that a slow machine gets anywhere at all.
    """
    # Images that were under way in an engine that was killed have used up an attempt.
    id = annotate(system, source, destination, shard_size=100, max_attempts=20)
    deadline = time.monotonic() + limit
    ended = 0
    while True:
        next_misdeed = time.monotonic() + every
        more = False
        while time.monotonic() < next_misdeed or (unhurried and not more):
            time.sleep(0.2)
            try:
                now = dataset(system, id)
            except DatabaseUnavailable:
                continue
            if now.status.terminal or time.monotonic() > deadline:
                return now
            more = now.progress.shards - now.progress.shards_left > ended
        ended = now.progress.shards - now.progress.shards_left
        chaos.misdeed()
        chaos.repair()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos_datasets", description=__doc__)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two misdeeds")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tuwen-chaos-") as name:
        folder = Path(name)
        source = paint(folder / "source", range(arguments.images))
        with Valkey(folder / "valkey") as valkey, Postgres(folder / "postgres") as postgres:
            migrate(postgres.url)
            settings = Settings(
                database_url=postgres.url,
                redis_url=valkey.url,
                storage_url=f"file://{folder / 'objects'}",
                dataset_roots=(str(folder),),
            )
            with running_system(settings, folder) as system:
                chaos = Chaos(system, valkey, postgres, random.Random(arguments.seed))
                ended = endure(system, chaos, source, folder / "out", every=arguments.every, limit=3600)
                console.print(f"deeds: {dict(chaos.deeds)}")
                console.print(f"{ended.status}: {ended.progress}")
                wrong = mistakes(folder / "out", range(arguments.images)) if ended.status.terminal else ["not over"]
    for line in wrong[:20]:
        console.print(line)
    console.print("[green]every image exactly once[/]" if not wrong else f"[red]{len(wrong)} mistakes[/]")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
