"""`make hostile`: thousands of hostile requests to a system of its own, and a table of what became of them.

Ends with status 1 on a finding: an answer 5xx, something of another tenant, a forbidden address that was reached, a
request that was taken from within another, an answer that the OpenAPI document does not allow, memory that grew
without end, or an API that no longer answers. The same seed sends the same requests again.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table

from api.http.auth import new_key
from tests.hostile import addresses, bodies, contract, framing, isolation, pictures, streams
from tests.hostile.target import CLOSED, Attack, Tally, Target, is_alive
from tests.support.standalone import api_process, standalone_system
from tests.support.system import System

ATTACKS: dict[str, Attack] = {
    "another tenant's ids": isolation.trespass,
    "malformed bodies": bodies.malform,
    "path traversal": bodies.traverse,
    "request smuggling": framing.smuggle,
    "oversize": framing.oversize,
    "dropped requests": framing.storm,
    "bombs and broken images": pictures.upload,
    "addresses inside": addresses.lead_inside,
    "event streams": streams.abuse,
    "silent and slow": framing.linger,
}
GROWTH = 256 * 2**20
"""Bytes by which one kind of request may let the API grow for good: allocators keep some of what a burst needed."""
console = Console(width=None if sys.stdout.isatty() else 140)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.hostile", description=__doc__)
    parser.add_argument("--minutes", type=float, default=4, help="time for Schemathesis, which could go on forever")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--only", choices=[*ATTACKS, "contract"], action="append")
    arguments = parser.parse_args()
    console.print(f"seed {arguments.seed}")
    with tempfile.TemporaryDirectory(prefix="tuwen-hostile-") as name, prepared(Path(name)) as system:
        return attack_all(system, Path(name), arguments)


@contextmanager
def prepared(folder: Path) -> Iterator[System]:
    """A system whose limits are those that the images of the tests are made for."""
    with standalone_system(
        folder,
        dataset_roots=[str(folder)],
        fetch_allow_networks=[f"{addresses.ALLOWED}/32"],
        fetch_timeout=5,
        max_image_pixels=1_000_000,
        max_image_frames=20,
        webhook_secret="whsec_" + "A" * 44,
    ) as system:
        yield system


def attack_all(system: System, folder: Path, arguments: argparse.Namespace) -> int:
    keys = []
    for tenant in ("a", "b"):
        key, digest = new_key()
        system.database.keys.add(
            name=tenant, tenant=tenant, sha256=digest, quota=1_000_000, dataset_roots=[str(folder)]
        )
        keys.append(key)
    wanted = arguments.only or [*ATTACKS, "contract"]
    rows: list[Row] = []
    for auth in ("keys", "open"):
        settings = system.settings.model_copy(update={"auth": auth, "dataset_roots": (str(folder),)})
        with api_process(settings, folder / f"api-{auth}.log") as (url, process):
            dice = random.Random(arguments.seed)
            target = Target(url, process, system, settings, keys[0], keys[1], folder, dice, arguments.minutes * 30)
            if auth == "keys":
                rows += [attack(name, ATTACKS[name], target) for name in ATTACKS if name in wanted]
            if "contract" in wanted:
                rows.append(attack(f"the OpenAPI document, {auth}", contracted(auth, arguments.seed), target))
    show(rows)
    return 1 if any(row.tally.findings for row in rows) else 0


def contracted(auth: str, seed: int) -> Attack:
    """The attack that holds every answer against the OpenAPI document, links between operations included."""

    def attack(target: Target, tally: Tally) -> None:
        folder = target.folder / f"contract-{auth}"
        folder.mkdir()
        phases = ("examples", "coverage", "fuzzing", "stateful")
        key = target.key if auth == "keys" else None
        report = contract.check(
            target.url, folder, seed=seed, examples=50, phases=phases, key=key, seconds=int(target.seconds)
        )
        tally.requests = report.cases
        if not report.passed:
            tally.find(report.text)

    return attack


class Row:
    """What one kind of request did."""

    def __init__(self, name: str, tally: Tally, growth: int, seconds: float, *, alive: bool):
        self.name = name
        self.tally = tally
        self.growth = growth
        self.seconds = seconds
        self.alive = alive


def attack(name: str, attack: Attack, target: Target) -> Row:
    """Let one kind of request loose, and look at the API afterwards."""
    tally = Tally()
    before, began = target.memory(), time.monotonic()
    try:
        attack(target, tally)
    except Exception as error:  # noqa: BLE001 (whatever it is, the other kinds go on, and it is told)
        console.print_exception()
        tally.find(f"the attack itself failed: {error!r}")
    seconds = time.monotonic() - began
    alive = is_alive(target)
    if not alive:
        tally.find("the API does not answer afterwards")
    growth = target.memory() - before
    if growth > GROWTH:
        tally.find(f"the API holds {growth / 2**20:.0f} MiB more than before")
    console.print(f"{seconds:6.1f} s  {name}: {tally.requests} requests, {len(tally.findings)} findings")
    for finding in tally.findings:
        console.print(f"  [red]{name}[/red]:", finding, markup=True, highlight=False, soft_wrap=True)
    return Row(name, tally, growth, seconds, alive=alive)


def show(rows: list[Row]) -> None:
    """Print the table."""
    table = Table("kind", *(("requests", "2xx", "3xx", "4xx", "5xx", CLOSED, "memory", "afterwards", "findings")))
    for row in rows:
        answers = row.tally.answers
        table.add_row(
            row.name,
            f"{row.tally.requests:,}",
            *(f"{answers[kind]:,}" if answers else "" for kind in ("2xx", "3xx", "4xx", "5xx", CLOSED)),
            f"{row.growth / 2**20:+.0f} MiB",
            "healthy" if row.alive else "dead",
            str(len(row.tally.findings)),
        )
    console.print(table)
    console.print(f"{sum(row.tally.requests for row in rows):,} requests")


if __name__ == "__main__":
    sys.exit(main())
