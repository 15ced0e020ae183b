"""The count after the chaos."""

from __future__ import annotations

import time

from tests.chaos.deeds import Chaos, console
from tests.chaos.work import Work
from tests.support.plain_sql import plain_sql
from tuwen.jobs import Status


def await_webhooks(chaos: Chaos, work: Work) -> None:
    """Wait until none is owed any more, now that every receiver answers."""
    webhooks = chaos.system.database.webhooks
    if work.hooked:
        chaos.await_repairing(lambda: webhooks.figures().waiting == 0, "the webhooks", patience=1800)


def judge(chaos: Chaos, work: Work, seconds: float, *, lenient: bool) -> bool:
    """Say what came of everything; returns whether all of it is as it should be.

    `lenient` lets an innocent job be quarantined: enough deaths of its worker under its own batches do that, and it is
    said, not lost.
    """
    jobs = list(work.jobs())
    wrong = [line for line in work.mistakes(jobs) if not (lenient and f" is {Status.QUARANTINED}," in line)]
    wrong += [
        f"{job.id}, which kills its workers, is {job.status}"
        for job in chaos.system.jobs(chaos.poisons)
        if job.status is not Status.QUARANTINED
    ]
    wrong += work.undelivered(jobs)
    figures = chaos.system.database.webhooks.figures()
    wrong += [f"{figures.given_up} webhooks were given up"] if figures.given_up else []
    _report(chaos, work, seconds)
    for line in wrong[:20]:
        console.print(line, markup=False)
    console.print("[green]everything is right[/]" if not wrong else f"[red]{len(wrong)} mistakes[/]")
    return not wrong


def _report(chaos: Chaos, work: Work, seconds: float) -> None:
    console.print(f"{chaos.kills:6} workers killed, one every {seconds / max(1, chaos.kills):.1f} s")
    for deed, count in sorted(chaos.deeds.items()):
        console.print(f"{count:6} × {deed}")
    with plain_sql(chaos.system.settings) as sql:
        for kind, status, count in sql("SELECT kind, status, count(*) FROM jobs GROUP BY 1, 2 ORDER BY 1, 2"):
            console.print(f"{count:6} {kind} {status}")
        for what in ("attempts", "crashes", "losses"):
            counts = dict(map(tuple, sql(f"SELECT {what}, count(*) FROM jobs GROUP BY 1 ORDER BY 1")))
            console.print(f"{what} (jobs with each number): {counts}")
    deliveries = [headers["webhook-id"] for receiver in set(work.hooked.values()) for headers, _ in receiver.deliveries]
    console.print(f"webhooks: {len(work.hooked)} owed, {len(set(deliveries))} came, in {len(deliveries)} requests")
    console.print(f"{len(work.ordered)} jobs in {seconds:.0f} s; {time.strftime('%H:%M:%S')}")
