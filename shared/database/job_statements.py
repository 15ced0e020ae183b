"""The state machine of jobs in SQL: one statement per transition, each with its guard.

    queued ──claim──▶ running ──finish──▶ succeeded | failed
      ▲                  │
      └──give back───────┴──▶ failed | cancelled | expired | quarantined

`shared.database.jobs` gives the statements their values and says what each is for.
"""

from __future__ import annotations

from sqlalchemy import text

# Decides what happens to a running job that was not finished; `v.reason` says why it was not. The backoff
# doubles with each crash or attempt, up to five minutes.
_SETTLE = """
    UPDATE jobs SET
        status = v.next,
        attempts = jobs.attempts - (v.reason IN ('released', 'lost'))::int,
        crashes = jobs.crashes + (v.reason = 'crash')::int,
        losses = jobs.losses + (v.reason = 'lost')::int,
        available_at = CASE WHEN v.next = 'queued' THEN now() + v.backoff ELSE jobs.available_at END,
        dispatch_due_at = CASE WHEN v.next = 'queued' THEN now() + v.backoff END,
        finished_at = CASE WHEN v.next <> 'queued' THEN now() END,
        worker = CASE WHEN v.next <> 'queued' THEN jobs.worker END,
        lease_until = NULL,
        error_code = COALESCE(v.error_code, jobs.error_code),
        error_detail = COALESCE(v.error_detail, jobs.error_detail),
        error_retryable = COALESCE(v.error_retryable, jobs.error_retryable)
    FROM (
        SELECT given.*,
            CASE
                WHEN given.reason = 'cancelled' OR j.cancel_requested_at IS NOT NULL THEN 'cancelled'
                WHEN j.deadline_at <= now() THEN 'expired'
                WHEN given.reason = 'crash' AND j.crashes + 1 >= :max_crashes THEN 'quarantined'
                WHEN given.reason NOT IN ('released', 'lost') AND j.attempts >= j.max_attempts THEN 'failed'
                ELSE 'queued'
            END AS next,
            CASE given.reason
                WHEN 'released' THEN interval '0'
                WHEN 'lost' THEN interval '0'
                WHEN 'crash' THEN LEAST(300, :backoff * 2 ^ j.crashes) * interval '1 second'
                ELSE LEAST(300, :backoff * 2 ^ (j.attempts - 1)) * interval '1 second'
            END AS backoff
        FROM ({given}) AS given JOIN jobs AS j USING (id)
    ) AS v
    WHERE jobs.id = v.id AND jobs.epoch = v.epoch AND jobs.status = 'running'
    RETURNING jobs.id, jobs.status, jobs.webhook
"""

# The statement that ends a job also writes the pending webhook, so that neither exists without the other. A job that
# ends again after a retry gets another delivery with a new id: receivers take a known id for a repetition.
_OWE_WEBHOOKS = """
    owed AS (
        INSERT INTO webhooks (id, job_id, url)
        SELECT gen_random_uuid(), id, webhook FROM done
        WHERE webhook IS NOT NULL AND status NOT IN ('queued', 'running')
        ON CONFLICT (job_id)
        DO UPDATE SET
            id = EXCLUDED.id, due_at = now(), owed_at = now(), attempts = 0, delivered_at = NULL, error = NULL
    )
"""


def _with_webhooks(statement: str, *more: str) -> str:
    """Extend `statement` (returning id, status, webhook) so that it also writes the webhooks that are due, and `more`
    expressions over the rows that are `done`."""
    parts = ", ".join((f"done AS ({statement})", _OWE_WEBHOOKS, *more))
    return f"WITH {parts} SELECT id, status FROM done"  # noqa: S608 (constants)


# The pictures of jobs that end count as stored by their tenants, whose counters are taken in the order of the tenants.
_COUNT_STORED = """
    counted AS (
        INSERT INTO tenant_usage AS u (tenant, stored_bytes)
        SELECT tenant, sum(stored_bytes) FROM done WHERE stored_bytes > 0 GROUP BY tenant ORDER BY tenant
        ON CONFLICT (tenant) DO UPDATE SET stored_bytes = u.stored_bytes + EXCLUDED.stored_bytes
    )
"""

# One statement for any number of jobs.
SUBMIT = text("""
    WITH accepted AS (
        INSERT INTO jobs (
            id, kind, model, priority, request, max_attempts, webhook, tenant, trace, tracestate, key_id,
            dispatch_due_at, deadline_at, deadline
        )
        SELECT new.id, kind, model, priority, request, max_attempts, webhook, :tenant,
            CAST(:trace AS text), CAST(:tracestate AS text), CAST(:key_id AS uuid),
            now() + :redispatch_after * interval '1 second',
            now() + deadline * interval '1 second', deadline
        FROM unnest(
            CAST(:ids AS uuid[]), CAST(:kinds AS text[]), CAST(:models AS text[]), CAST(:priorities AS int[]),
            CAST(:inputs AS jsonb[]), CAST(:max_attempts AS int[]), CAST(:webhooks AS text[]),
            CAST(:deadlines AS float8[])
        ) AS new (id, kind, model, priority, request, max_attempts, webhook, deadline)
        RETURNING created_at
    ) SELECT min(created_at) FROM accepted
""")

CLAIM = text("""
    WITH wanted AS (
        SELECT id FROM jobs
        WHERE id = ANY(:ids) AND status = 'queued' AND available_at <= now() AND deadline_at > now()
        FOR UPDATE SKIP LOCKED
    )
    UPDATE jobs SET
        status = 'running', epoch = epoch + 1, attempts = attempts + 1, worker = :worker,
        lease_until = now() + :lease * interval '1 second', started_at = now(), dispatch_due_at = NULL
    FROM wanted WHERE jobs.id = wanted.id
    RETURNING jobs.id, epoch, tenant, kind, model, priority, request, attempts, crashes, losses, trace,
        tracestate, EXTRACT(EPOCH FROM now() - available_at)::float8 AS waited
""")

RENEW = text("""
    UPDATE jobs SET lease_until = now() + :lease * interval '1 second'
    FROM unnest(CAST(:ids AS uuid[]), CAST(:epochs AS int[])) AS held (id, epoch)
    WHERE jobs.id = held.id AND jobs.epoch = held.epoch AND status = 'running'
    RETURNING jobs.id, cancel_requested_at IS NOT NULL AS cancelled
""")

FINISH = text(
    _with_webhooks(
        """
    UPDATE jobs SET
        status = f.status, result = f.result, result_key = f.result_key, stored_bytes = f.stored, finished_at = now(),
        lease_until = NULL, error_code = f.error_code, error_detail = f.error_detail, error_retryable = f.retryable
    FROM unnest(
        CAST(:ids AS uuid[]), CAST(:epochs AS int[]), CAST(:statuses AS text[]), CAST(:results AS jsonb[]),
        CAST(:result_keys AS text[]), CAST(:stored AS bigint[]), CAST(:codes AS text[]), CAST(:details AS text[]),
        CAST(:retryables AS bool[])
    ) AS f (id, epoch, status, result, result_key, stored, error_code, error_detail, retryable)
    WHERE jobs.id = f.id AND jobs.epoch = f.epoch AND jobs.status = 'running'
    RETURNING jobs.id, jobs.status, jobs.webhook, jobs.tenant, jobs.stored_bytes
""",
        _COUNT_STORED,
    )
)

GIVE_BACK = text(
    _with_webhooks(
        _SETTLE.format(
            given="""
    SELECT * FROM unnest(
        CAST(:ids AS uuid[]), CAST(:epochs AS int[]), CAST(:reasons AS text[]),
        CAST(:codes AS text[]), CAST(:details AS text[]), CAST(:retryables AS bool[])
    ) AS g (id, epoch, reason, error_code, error_detail, error_retryable)
"""
        )
    )
)

# The rows are locked while they are selected, so that each is judged as it is now: its worker may be renewing the
# lease or finishing, and the row is then skipped. Of the jobs of a worker that died, those of its running batch are
# suspects. All are where it told of none, as a worker of an early release does; and so is a job that so many workers
# died of without a batch of it that it must be to blame. `now` is the time that was compared with a monotonic clock (or
# NULL): a clock that is set forward between that look and this statement ends nothing.
RESCUE = text(
    _with_webhooks(
        _SETTLE.format(
            given="""
    SELECT id, epoch, CASE WHEN NOT lost THEN 'late' WHEN suspect THEN 'crash' ELSE 'lost' END AS reason,
        CASE WHEN lost AND suspect THEN 'worker_lost' END AS error_code,
        CASE WHEN lost AND suspect
            THEN 'The worker ' || worker || ' stopped answering while it ran this job.' END AS error_detail,
        CASE WHEN lost AND suspect THEN true END AS error_retryable
    FROM (
        SELECT id, epoch, worker, lease_until < checked.now AS lost,
            losses >= :most_losses
            OR NOT EXISTS (SELECT FROM running_batches AS b WHERE b.worker = jobs.worker)
            OR EXISTS (
                SELECT FROM running_batches AS b, unnest(b.jobs, b.epochs) AS told (id, epoch)
                WHERE b.worker = jobs.worker AND told.id = jobs.id AND told.epoch = jobs.epoch
            ) AS suspect
        FROM jobs, (SELECT LEAST(now(), CAST(:now AS timestamptz)) AS now) AS checked
        WHERE status = 'running' AND (lease_until < checked.now OR deadline_at <= checked.now)
        LIMIT 1000 FOR UPDATE OF jobs SKIP LOCKED
    ) AS overdue
"""
        )
    )
)

EXPIRE_QUEUED = text(
    _with_webhooks("""
    UPDATE jobs SET status = 'expired', finished_at = now(), dispatch_due_at = NULL
    WHERE status = 'queued' AND deadline_at <= LEAST(now(), CAST(:now AS timestamptz))
    RETURNING id, status, webhook
""")
)

# Locked in the order of their ids, as by every statement for many jobs.
_CANCEL = """
    UPDATE jobs SET
        cancel_requested_at = COALESCE(cancel_requested_at, now()),
        status = CASE status WHEN 'queued' THEN 'cancelled' ELSE status END,
        finished_at = CASE status WHEN 'queued' THEN now() END,
        dispatch_due_at = NULL
    FROM (
        SELECT id FROM jobs
        WHERE id = ANY(:ids) AND {whose} AND status IN ('queued', 'running') ORDER BY id FOR UPDATE
    ) AS wanted
    WHERE jobs.id = wanted.id AND status IN ('queued', 'running')
    RETURNING jobs.id, jobs.status, jobs.webhook
"""

CANCEL = text(_with_webhooks(_CANCEL.format(whose="tenant = :tenant")))

# The operator's cancel, of anybody's job.
REVOKE = text(_with_webhooks(_CANCEL.format(whose="true")))

# The most urgent come first, and a share is for those that are due for longest, whatever their priority: since the
# queue is served in order, a row that is due while younger ones already run is one whose message was lost, and under
# a long queue of urgent jobs, which are due too, it would never come first. The selection is a CTE, because PostgreSQL
# may run a subselect in a WHERE more than once, and with SKIP LOCKED each run would lock other rows.
TAKE_DUE = text("""
    WITH overdue AS (
        SELECT id, priority, dispatch_due_at FROM jobs
        WHERE status = 'queued' AND dispatch_due_at <= now() AND kind = :kind
    ), longest AS (
        SELECT id FROM overdue ORDER BY dispatch_due_at, priority DESC, id LIMIT :longest
    ), chosen AS (
        SELECT id FROM longest UNION ALL (
            SELECT id FROM overdue WHERE id NOT IN (SELECT id FROM longest)
            ORDER BY priority DESC, dispatch_due_at, id LIMIT :urgent
        )
    ), due AS MATERIALIZED (
        SELECT id FROM jobs
        WHERE id IN (SELECT id FROM chosen) AND status = 'queued' AND dispatch_due_at <= now()
        FOR UPDATE SKIP LOCKED
    )
    UPDATE jobs SET dispatch_due_at = now() + :again * interval '1 second'
    FROM due WHERE jobs.id = due.id AND status = 'queued'
    RETURNING jobs.id, kind, priority
""")

QUEUES = text("""
    SELECT kind,
        count(*) FILTER (WHERE status = 'queued') AS queued,
        count(*) FILTER (WHERE status = 'queued' AND available_at <= now()) AS ready,
        count(*) FILTER (WHERE status = 'running') AS running,
        GREATEST(0, COALESCE(EXTRACT(EPOCH FROM now() - min(available_at) FILTER (
            WHERE status = 'queued' AND available_at <= now())), 0))::float8 AS oldest_age
    FROM jobs WHERE status IN ('queued', 'running') GROUP BY kind
""")

WAITING = text("""
    SELECT kind, priority, count(*) AS jobs, EXTRACT(EPOCH FROM now() - min(available_at))::float8 AS oldest_age
    FROM jobs WHERE status = 'queued' AND available_at <= now() GROUP BY kind, priority ORDER BY oldest_age DESC
""")

# For monitoring, which learns of most changes from events: those of younger changes may still be on their way.
OUTLINES = text("""
    WITH wanted AS (
        SELECT unnest(CAST(:ids AS uuid[])) AS id
        UNION (SELECT id FROM jobs ORDER BY id DESC LIMIT :newest)
    )
    SELECT id, kind, status, worker, created_at, started_at, finished_at, error_code, error_detail
    FROM jobs JOIN wanted USING (id)
    WHERE GREATEST(created_at, started_at, finished_at) < now() - interval '5 seconds'
""")
