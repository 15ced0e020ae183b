"""Years of finished jobs, written by one statement."""

from __future__ import annotations

from tests.support.plain_sql import Sql

# Ids are UUIDs of version 7, which begin with the time. Of the oldest tenth every second job is a match, and every
# third one failed; of the others none.
_HISTORY = """
    INSERT INTO jobs (
        id, tenant, kind, model, priority, request, status, epoch, attempts, max_attempts, deadline_at, deadline,
        worker, result, error_code, created_at, started_at, finished_at
    )
    SELECT CAST(lpad(to_hex(CAST(extract(epoch FROM at) * 1000 AS bigint)), 12, '0') || '7000' || '8'
            || lpad(to_hex(n), 15, '0') AS uuid),
        :tenant, kind, 'builtin', 5, jsonb_build_object('kind', kind), status, 1, 1, 5, at + interval '1 day', 86400,
        'worker@history', CASE WHEN status = 'succeeded' THEN '{"kind": "match", "score": 0.5}' END ::jsonb,
        CASE WHEN status = 'failed' THEN 'engine_error' END, at, at, at + interval '2 seconds'
    FROM (
        SELECT n, now() - interval '200 days' + n * (interval '199 days' / :count) AS at,
            CASE WHEN n < :count / 10 AND n % 2 = 0 THEN 'match' ELSE
                (ARRAY['generate', 'describe', 'recognize'])[1 + n % 3] END AS kind,
            CASE WHEN n < :count / 10 AND n % 3 = 0 THEN 'failed' WHEN n % 50 = 7 THEN 'cancelled'
                ELSE 'succeeded' END AS status
        FROM generate_series(0, :count - 1) AS n
    ) AS past
"""


def add_history(sql: Sql, count: int, *, tenant: str) -> None:
    """Add so many finished jobs of the last 200 days, the newest of them a day old."""
    sql(_HISTORY.replace("::jsonb", r"\:\:jsonb"), count=count, tenant=tenant)
