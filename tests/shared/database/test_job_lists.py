"""Lists of jobs: the right ones, in order, and read without walking through history."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Select
from sqlalchemy.dialects import postgresql

from shared.database import Database, job_lists
from shared.database.batches import NewDocument
from shared.settings import Settings
from tests.support.history import add_history
from tests.support.plain_sql import Sql
from tuwen.jobs import JobRequest, Kind, Status

HISTORY = 12_000
UNFINISHED = 16
PAGE = 51
FILTERS: list[tuple[Sequence[Status], Sequence[Kind]]] = [
    ((), ()),
    ((Status.FAILED,), ()),
    ((), (Kind.MATCH,)),
    ((Status.FAILED,), (Kind.MATCH,)),
    ((Status.SUCCEEDED,), (Kind.DESCRIBE, Kind.GENERATE)),
    ((Status.FAILED, Status.CANCELLED), ()),
    ((Status.QUEUED,), ()),
    ((Status.QUEUED, Status.RUNNING), (Kind.GENERATE,)),
    (tuple(Status), tuple(Kind)),
]


@pytest.fixture
def database(settings: Settings, sql: Sql) -> Iterator[Database]:
    """Failed jobs and matches lie far back: the worst case of a walk through history."""
    add_history(sql, HISTORY, tenant="t")
    database = Database(settings)
    request = JobRequest.model_validate({"input": {"kind": "generate", "prompt": "a cat"}})
    ids = database.jobs.submit([request] * (UNFINISHED // 2), tenant="t").ids
    database.jobs.submit([request] * (UNFINISHED // 2), tenant="another")
    database.jobs.claim(ids[:3], "w")
    sql("ANALYZE jobs")
    yield database
    database.close()


def plan(sql: Sql, query: Select[Any]) -> list[dict[str, Any]]:
    """The nodes of the plan, as it was executed."""
    dialect = postgresql.psycopg.dialect()  # type: ignore[attr-defined]
    statement = str(query.compile(dialect=dialect, compile_kwargs={"literal_binds": True}))
    [[found]] = sql(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement.replace(':', chr(92) + ':')}")
    found = json.loads(found) if isinstance(found, str) else found

    def nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield node
        for below in node.get("Plans", ()):
            yield from nodes(below)

    return list(nodes(found[0]["Plan"]))


def test_lists_are_right_and_flat(database: Database, sql: Sql) -> None:
    every = sql("SELECT id, status, kind FROM jobs WHERE tenant = 't' ORDER BY id DESC")
    middle = every[len(every) // 2].id
    for statuses, kinds in FILTERS:
        for before in (None, middle):
            label = (statuses, kinds, before)
            wanted = [
                row.id
                for row in every
                if (not statuses or row.status in statuses)
                and (not kinds or row.kind in kinds)
                and (before is None or row.id < before)
            ][:PAGE]
            found = database.jobs.page("t", statuses=statuses, kinds=kinds, before=before, limit=PAGE)
            assert [job.id for job in found] == wanted, label
            executed = plan(sql, job_lists.page("t", statuses, kinds, before, PAGE))
            scans = [node for node in executed if "Scan" in node["Node Type"] and "Relation Name" in node]
            assert {node["Node Type"] for node in scans} <= {"Index Scan", "Index Only Scan"}, label
            # Of the few jobs that are not over, PostgreSQL may read all.
            parts = max(1, len(statuses) or len(Status)) * max(1, len(kinds) or len(Kind))
            read = sum(node["Actual Rows"] + node.get("Rows Removed by Filter", 0) for node in once(scans))
            assert read <= PAGE + parts * (1 + UNFINISHED), label


def once(scans: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that look for ids; the other one fetches each row of the page."""
    assert sum(node["Actual Loops"] > 1 for node in scans) <= 1
    return [node for node in scans if node["Actual Loops"] == 1]


def test_files_of_a_purpose(database: Database, sql: Sql) -> None:
    for number in range(6):
        id = _id(number)
        document = NewDocument(id, f"documents/t/{id.hex}.jsonl", "x", "batch" if number % 2 else "batch_output", 1)
        database.documents.add(document, "t")
    newest = database.documents.page("t", purpose="batch", after=None, limit=2, newest_first=True)
    assert [document.id for document in newest] == [_id(5), _id(3)]
    rest = database.documents.page("t", purpose="batch", after=newest[-1].id, limit=2, newest_first=True)
    assert [document.id for document in rest] == [_id(1)]
    oldest = database.documents.page("t", purpose="batch_output", after=_id(0), limit=9, newest_first=False)
    assert [document.id for document in oldest] == [_id(2), _id(4)]


def _id(number: int) -> UUID:
    return UUID(int=number + 1)
