"""What history costs: lists and the queue's statements with a hundred finished jobs, and with a million."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from shared.database import Database, Finish
from shared.settings import Settings
from tests.bench.figures import Figure, percentile
from tests.support.history import add_history
from tests.support.plain_sql import Sql, plain_sql
from tuwen.jobs import JobRequest, Kind, MatchResult, Status

FEW, MANY = 100, 1_000_000
LOOKS = 30
JOBS = 8
TENANT = "history"
_REQUEST = JobRequest.model_validate({"input": {"kind": "generate", "prompt": "a cat"}})

LISTS: dict[str, tuple[tuple[Status, ...], tuple[Kind, ...]]] = {
    "all": ((), ()),
    "status=failed": ((Status.FAILED,), ()),
    "kind=match": ((), (Kind.MATCH,)),
    "status=failed, kind=match": ((Status.FAILED,), (Kind.MATCH,)),
}


def growth(settings: Settings, folder: Path) -> list[Figure]:
    """Milliseconds of a page of 50 jobs, and of the statements of 8 jobs. Failed jobs and matches are old."""
    database = Database(settings)
    with plain_sql(settings) as sql:
        few, many = (_measure(database, sql, count) for count in (FEW, MANY))
    database.close()
    return [Figure(f"{name}, {MANY:,} finished", many[name], "ms", f"{FEW} finished", few[name]) for name in few]


def _measure(database: Database, sql: Sql, count: int) -> dict[str, float]:
    sql("TRUNCATE jobs CASCADE")
    add_history(sql, count, tenant=TENANT)
    sql("VACUUM ANALYZE jobs")
    found = {
        f"list {name}": _median(lambda s=statuses, k=kinds: database.jobs.page(TENANT, statuses=s, kinds=k, limit=50))
        for name, (statuses, kinds) in LISTS.items()
    }
    spent: dict[str, list[float]] = {"submit": [], "claim": [], "renew": [], "finish": []}
    for _ in range(LOOKS):
        _work(database, spent)
    return found | {f"{JOBS} jobs, {step}": percentile(times, 50) for step, times in spent.items()}


def _work(database: Database, spent: dict[str, list[float]]) -> None:
    started = time.perf_counter()

    def note(step: str) -> None:
        nonlocal started
        spent[step].append((time.perf_counter() - started) * 1000)
        started = time.perf_counter()

    ids = database.jobs.submit([_REQUEST] * JOBS, tenant=TENANT).ids
    note("submit")
    claims = database.jobs.claim(ids, "bench")
    note("claim")
    database.jobs.renew({id: claim.epoch for id, claim in claims.items()}, "bench")
    note("renew")
    database.jobs.finish([Finish(id, claim.epoch, MatchResult(score=0.5)) for id, claim in claims.items()])
    note("finish")


def _median(look: Callable[[], object]) -> float:
    times = []
    for _ in range(LOOKS):
        started = time.perf_counter()
        look()
        times.append((time.perf_counter() - started) * 1000)
    return percentile(times, 50)
