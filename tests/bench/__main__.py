"""`python -m tests.bench [throughput saturation … sizing]`: all by default."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table

from api.embedded.servers import Postgres, Valkey
from shared.migrations import migrate
from shared.settings import Settings
from tests.bench import checkpoints, datasets, growth, producer, sizing, worker
from tests.bench.figures import Figure

BENCHMARKS: dict[str, Callable[[Settings, Path], Iterable[Figure]]] = {
    "throughput": worker.throughput,
    "saturation": worker.saturation,
    "latency": producer.latency,
    "submissions": producer.submissions,
    "memory": producer.memory,
    "growth": growth.growth,
    "bulk": datasets.bulk,
    "scale": datasets.scale,
    "interactive": datasets.interactive,
    "checkpoints": checkpoints.checkpoints,
    "sizing": sizing.sizing,
}


@contextmanager
def installation() -> Iterator[tuple[Settings, Path]]:
    """Servers as `tuwen up` starts them, in a folder that goes away."""
    with tempfile.TemporaryDirectory(prefix="tuwen-bench-") as name:
        folder = Path(name)
        with Valkey(folder / "valkey") as valkey, Postgres(folder / "postgres") as postgres:
            migrate(postgres.url)
            yield (
                Settings(
                    database_url=postgres.url,
                    redis_url=valkey.url,
                    storage_url=f"file://{folder / 'objects'}",
                    data_dir=folder,
                    auth="open",
                    # A round of the housekeeper in the middle of a measurement would be measured too.
                    redispatch_after=3600,
                ),
                folder,
            )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME")
    names = parser.parse_args().names or list(BENCHMARKS)
    if unknown := set(names) - set(BENCHMARKS):
        parser.error(f"no benchmark is called {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    table = Table("figure", "measured", "against", "ratio", "goal", title=f"{os.cpu_count()} cores")
    for name in names:
        with installation() as (settings, folder):
            for figure in BENCHMARKS[name](settings, folder):
                ratio = "" if figure.ratio is None else f"{figure.ratio:.2f}"
                base = "" if figure.base is None else f"{figure.base:.1f} {figure.unit} {figure.against}"
                table.add_row(figure.name, f"{figure.value:.1f} {figure.unit}", base, ratio, figure.goal)
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
