"""The state machine of data sets and their shards in SQL: one statement per transition, each with its guard.

    dataset   planning ──planned──▶ running ──all shards over──▶ exporting ──▶ succeeded | failed
    shard     queued ──claim──▶ running ──finish──▶ done

While a data set is planned or exported, the housekeeper at work holds a lease on it, fenced by its epoch as a claimed
shard or job is. `shared.database.datasets` gives the statements their values and says what each is for.
"""

from __future__ import annotations

from sqlalchemy import text

# ── data sets ─────────────────────────────────────────────────────────────────────────────────────

TAKE = text("""
    UPDATE datasets SET
        epoch = epoch + 1, attempts = attempts + 1, worker = :worker,
        lease_until = now() + :lease * interval '1 second', started_at = COALESCE(started_at, now())
    WHERE id = :id AND status IN ('planning', 'exporting') AND available_at <= now()
        AND (lease_until IS NULL OR lease_until < now())
    RETURNING id, tenant, request, status, epoch, attempts
""")

RENEW_DATASETS = text("""
    UPDATE datasets SET lease_until = now() + :lease * interval '1 second'
    FROM unnest(CAST(:ids AS uuid[]), CAST(:epochs AS int[])) AS held (id, epoch)
    WHERE datasets.id = held.id AND datasets.epoch = held.epoch AND lease_until IS NOT NULL
    RETURNING datasets.id, false AS cancelled
""")

# Fenced by the data set's row: a planner that was presumed dead adds nothing.
ADD_SHARD = text("""
    INSERT INTO shards (id, dataset_id, number, images, plan_key, dispatch_due_at)
    SELECT :shard, id, :number, :images, :plan_key, now() + :due * interval '1 second'
    FROM datasets WHERE id = :id AND epoch = :epoch AND status = 'planning'
    FOR UPDATE
    ON CONFLICT (dataset_id, number) DO NOTHING
    RETURNING id
""")

PLANNED = text("""
    UPDATE datasets SET status = 'running', planned_at = now(), worker = NULL, lease_until = NULL, attempts = 0
    WHERE id = :id AND epoch = :epoch AND status = 'planning'
    RETURNING id
""")

# Each shard that ends runs this after its own commit, so the last of them finds all of them over.
COMPLETE = text("""
    UPDATE datasets SET status = 'exporting', available_at = now()
    WHERE status = 'running' AND (CAST(:id AS uuid) IS NULL OR id = :id) AND NOT EXISTS (
        SELECT FROM shards WHERE dataset_id = datasets.id AND status IN ('queued', 'running')
    )
    RETURNING id
""")

END = text("""
    UPDATE datasets SET
        status = CAST(:status AS text), estimate = CAST(:estimate AS jsonb), error_code = :code, error_detail = :detail,
        planned_at = COALESCE(planned_at, CASE WHEN CAST(:status AS text) = 'succeeded' THEN now() END),
        finished_at = now(), worker = NULL, lease_until = NULL, paused_at = NULL
    WHERE id = :id AND epoch = :epoch AND status IN ('planning', 'exporting')
    RETURNING id
""")

# Not finished, and to be tried again. The backoff doubles up to five minutes; an interruption has no backoff. Neither
# it nor an outage counts as an attempt.
PUT_OFF = text("""
    UPDATE datasets SET
        worker = NULL, lease_until = NULL, error_code = CAST(:code AS text), error_detail = CAST(:detail AS text),
        attempts = attempts - (CAST(:code AS text) IS NULL OR :outage)::int,
        available_at = now() + CASE
            WHEN CAST(:code AS text) IS NULL THEN 0
            WHEN :outage THEN LEAST(60, 6 * :backoff)
            ELSE LEAST(300, :backoff * 2 ^ (attempts - 1)) END * interval '1 second'
    WHERE id = :id AND epoch = :epoch AND status IN ('planning', 'exporting')
    RETURNING id
""")

AWAITING = text("""
    SELECT id FROM datasets
    WHERE status IN ('planning', 'exporting') AND available_at <= now()
        AND (lease_until IS NULL OR lease_until < now())
    ORDER BY priority DESC, id LIMIT :most
""")

PAUSE = text("""
    UPDATE datasets SET paused_at = COALESCE(paused_at, now())
    WHERE id = :id AND tenant = :tenant AND status IN ('planning', 'running')
    RETURNING id
""")

RESUME = text("""
    WITH resumed AS (
        UPDATE datasets SET paused_at = NULL
        WHERE id = :id AND tenant = :tenant AND status IN ('planning', 'running') RETURNING id
    ), due AS (
        UPDATE shards SET dispatch_due_at = now()
        FROM resumed WHERE dataset_id = resumed.id AND status = 'queued'
    )
    SELECT id FROM resumed
""")

# Messages in the queue carry the old priority, and a claim refuses them: each shard is published again.
PRIORITIZE = text("""
    WITH changed AS (
        UPDATE datasets SET priority = :priority
        WHERE id = :id AND tenant = :tenant AND status IN ('planning', 'running') RETURNING id
    ), due AS (
        UPDATE shards SET dispatch_due_at = now()
        FROM changed WHERE dataset_id = changed.id AND status = 'queued'
    )
    SELECT id FROM changed
""")

# Workers learn from their next heartbeat that running shards are cancelled.
CANCEL = text("""
    WITH cancelled AS (
        UPDATE datasets SET
            status = 'cancelled', finished_at = now(), worker = NULL, lease_until = NULL, paused_at = NULL
        WHERE id = :id AND tenant = :tenant AND status IN ('planning', 'running', 'exporting') RETURNING id
    ), unqueued AS (
        UPDATE shards SET status = 'cancelled', finished_at = now(), dispatch_due_at = NULL
        FROM cancelled WHERE dataset_id = cancelled.id AND status = 'queued'
    )
    SELECT id FROM cancelled
""")

# As a cancel, but for a reason that the data set's owner has to know.
STOP = text("""
    WITH stopped AS (
        UPDATE datasets SET
            status = 'failed', error_code = :code, error_detail = :detail,
            finished_at = now(), worker = NULL, lease_until = NULL, paused_at = NULL
        WHERE id = :id AND status IN ('planning', 'running', 'exporting') RETURNING id
    ), unqueued AS (
        UPDATE shards SET status = 'cancelled', finished_at = now(), dispatch_due_at = NULL
        FROM stopped WHERE dataset_id = stopped.id AND status = 'queued'
    )
    SELECT id FROM stopped
""")

# Shards with failures run again, but only their failed images: the rest is in the results that they keep. Unless
# `failed_only`, images that a cancel left undone run too, and planning continues if it was not complete.
RETRY = text("""
    WITH again AS (
        UPDATE shards SET
            status = 'queued', again = true, attempts = 0, crashes = 0, available_at = now(), dispatch_due_at = now(),
            finished_at = NULL, worker = NULL, error_code = NULL, error_detail = NULL
        FROM datasets AS d
        WHERE dataset_id = :id AND d.id = :id AND d.tenant = :tenant
            AND d.status IN ('succeeded', 'failed', 'cancelled')
            AND (shards.status = 'failed' OR (shards.status = 'done' AND shards.failed > 0)
                OR (shards.status = 'cancelled' AND NOT :failed_only))
        RETURNING shards.id
    )
    UPDATE datasets SET
        status = CASE
            WHEN planned_at IS NULL AND NOT :failed_only THEN 'planning'
            WHEN EXISTS (SELECT FROM again) THEN 'running'
            ELSE 'exporting'
        END,
        finished_at = NULL, attempts = 0, available_at = now(), error_code = NULL, error_detail = NULL,
        key_id = COALESCE(CAST(:key AS uuid), key_id)
    WHERE id = :id AND tenant = :tenant AND status IN ('succeeded', 'failed', 'cancelled')
        AND ((planned_at IS NULL AND NOT :failed_only) OR status = 'failed' OR EXISTS (SELECT FROM again))
    RETURNING id, status
""")

# Only the destination changes; the existing annotations are written there.
EXPORT = text("""
    UPDATE datasets SET
        status = 'exporting', finished_at = NULL, attempts = 0, available_at = now(), error_code = NULL,
        error_detail = NULL, destination = :destination, request = request || CAST(:changed AS jsonb),
        key_id = COALESCE(CAST(:key AS uuid), key_id)
    WHERE id = :id AND tenant = :tenant AND status IN ('succeeded', 'failed', 'cancelled')
    RETURNING id
""")

# Shards and reviews are deleted with it. A worker that still runs a shard learns of it from its heartbeat.
DELETE = text("""
    DELETE FROM datasets
    WHERE id = :id AND tenant = :tenant AND status IN ('succeeded', 'failed', 'cancelled')
    RETURNING id
""")

# ── shards ────────────────────────────────────────────────────────────────────────────────────────

CLAIM = text("""
    WITH wanted AS (
        SELECT shards.id, d.tenant, d.request FROM shards JOIN datasets AS d ON d.id = dataset_id
        WHERE shards.id = :id AND shards.status = 'queued' AND shards.available_at <= now()
            AND d.status IN ('planning', 'running') AND d.paused_at IS NULL AND d.priority = :priority
        FOR UPDATE OF shards SKIP LOCKED
    )
    UPDATE shards SET
        status = 'running', epoch = epoch + 1, attempts = attempts + 1, worker = :worker,
        lease_until = now() + :lease * interval '1 second', started_at = now(), dispatch_due_at = NULL
    FROM wanted WHERE shards.id = wanted.id
    RETURNING shards.id, epoch, dataset_id, number, images, plan_key, results_key, again, attempts, crashes,
        wanted.tenant, wanted.request
""")

LOCATE = text("""
    SELECT * FROM (
        SELECT *, sum(images) OVER (ORDER BY number) - images AS first FROM shards WHERE dataset_id = :dataset_id
    ) AS counted
    WHERE first <= :image AND :image < first + images
""")

# The heartbeat carries the progress, so that reporting it needs no separate statement.
RENEW_SHARDS = text("""
    UPDATE shards SET
        lease_until = now() + :lease * interval '1 second',
        done = held.done, dropped = held.dropped, failed = held.failed, final = held.final,
        kept = held.kept, tokens = held.tokens
    FROM unnest(
        CAST(:ids AS uuid[]), CAST(:epochs AS int[]), CAST(:done AS int[]), CAST(:dropped AS int[]),
        CAST(:failed AS int[]), CAST(:final AS int[]), CAST(:kept AS int[]), CAST(:tokens AS bigint[])
    ) AS held (id, epoch, done, dropped, failed, final, kept, tokens), datasets AS d
    WHERE shards.id = held.id AND shards.epoch = held.epoch AND shards.status = 'running' AND d.id = dataset_id
    RETURNING shards.id, d.paused_at IS NOT NULL OR d.status NOT IN ('planning', 'running') AS cancelled
""")

CHECKPOINT = text("""
    UPDATE shards SET results_key = :results_key, again = false
    WHERE id = :id AND epoch = :epoch AND status = 'running'
    RETURNING id
""")

FINISH = text("""
    UPDATE shards SET
        status = 'done', results_key = :results_key, again = false, finished_at = now(), lease_until = NULL,
        done = :done, dropped = :dropped, failed = :failed, final = :final, kept = :kept, tokens = :tokens,
        error_code = NULL, error_detail = NULL
    WHERE id = :id AND epoch = :epoch AND status = 'running'
    RETURNING id
""")

# Decides what happens to a running shard that was not finished; `v.reason` says why it was not.
_SETTLE = """
    UPDATE shards SET
        status = v.next,
        attempts = shards.attempts - (v.reason IN ('released', 'outage'))::int,
        crashes = shards.crashes + (v.reason = 'crash')::int,
        available_at = CASE WHEN v.next = 'queued' THEN now() + v.backoff ELSE shards.available_at END,
        dispatch_due_at = CASE WHEN v.next = 'queued' THEN now() + v.backoff END,
        finished_at = CASE WHEN v.next <> 'queued' THEN now() END,
        worker = CASE WHEN v.next <> 'queued' THEN shards.worker END,
        lease_until = NULL,
        error_code = COALESCE(v.error_code, shards.error_code),
        error_detail = COALESCE(v.error_detail, shards.error_detail)
    FROM (
        SELECT given.*,
            CASE
                WHEN d.status NOT IN ('planning', 'running') THEN 'cancelled'
                WHEN given.reason NOT IN ('released', 'outage') AND s.attempts >= :max_attempts THEN 'failed'
                ELSE 'queued'
            END AS next,
            CASE given.reason
                WHEN 'released' THEN interval '0'
                WHEN 'outage' THEN LEAST(60, 2 * :backoff) * interval '1 second'
                ELSE LEAST(60, :backoff * 2 ^ (s.attempts - 1)) * interval '1 second'
            END AS backoff
        FROM ({given}) AS given JOIN shards AS s USING (id) JOIN datasets AS d ON d.id = s.dataset_id
    ) AS v
    WHERE shards.id = v.id AND shards.epoch = v.epoch AND shards.status = 'running'
    RETURNING shards.id, shards.dataset_id, shards.status
"""

GIVE_BACK = text(
    _SETTLE.format(
        given="""
    SELECT CAST(:id AS uuid) AS id, CAST(:epoch AS int) AS epoch, CAST(:reason AS text) AS reason,
        CAST(:code AS text) AS error_code, CAST(:detail AS text) AS error_detail
"""
    )
)

# The rows are locked while they are selected, so that each is judged as it is now: its worker may be renewing the
# lease. `now` as in `shared.database.job_statements.RESCUE`.
RESCUE = text(
    _SETTLE.format(
        given="""
    SELECT id, epoch, 'crash' AS reason, 'worker_lost' AS error_code,
        'The worker ' || worker || ' stopped answering while it ran this shard.' AS error_detail
    FROM (
        SELECT id, epoch, worker FROM shards
        WHERE status = 'running' AND lease_until < LEAST(now(), CAST(:now AS timestamptz))
        LIMIT 1000 FOR UPDATE SKIP LOCKED
    ) AS overdue
"""
    )
)

# Ordered as the shards are to run. Materialised for the reason given at `shared.database.job_statements.TAKE_DUE`.
TAKE_DUE = text("""
    WITH due AS MATERIALIZED (
        SELECT s.id, d.kinds, d.priority FROM shards AS s JOIN datasets AS d ON d.id = s.dataset_id
        WHERE s.status = 'queued' AND s.dispatch_due_at <= now() AND d.kinds = :kinds
            AND d.status IN ('planning', 'running') AND d.paused_at IS NULL
        ORDER BY d.priority DESC, s.dataset_id, s.number LIMIT :most
        FOR UPDATE OF s SKIP LOCKED
    )
    UPDATE shards SET dispatch_due_at = now() + :again * interval '1 second'
    FROM due WHERE shards.id = due.id AND status = 'queued'
    RETURNING shards.id, due.kinds, due.priority
""")

READY = text("""
    SELECT d.kinds, count(*) FILTER (WHERE s.available_at <= now()) AS ready
    FROM shards AS s JOIN datasets AS d ON d.id = s.dataset_id
    WHERE s.status = 'queued' AND d.status IN ('planning', 'running') AND d.paused_at IS NULL
    GROUP BY d.kinds
""")

# For monitoring, like `shared.database.job_statements.OUTLINES`. A waiting shard is reported when it starts; a missing
# one was deleted with its data set.
OUTLINES = text("""
    WITH wanted AS (
        SELECT unnest(CAST(:ids AS uuid[])) AS id
        UNION SELECT id FROM shards WHERE status = 'running'
        UNION (SELECT id FROM shards WHERE finished_at IS NOT NULL ORDER BY finished_at DESC LIMIT :newest)
    )
    SELECT wanted.id, d.priority, COALESCE(s.status, 'cancelled') AS status, s.worker,
        COALESCE(s.available_at, now()) AS created_at, s.started_at, COALESCE(s.finished_at, now()) AS finished_at,
        s.error_code, s.error_detail
    FROM wanted LEFT JOIN shards AS s ON s.id = wanted.id LEFT JOIN datasets AS d ON d.id = s.dataset_id
    WHERE s.id IS NULL OR GREATEST(s.available_at, s.started_at, s.finished_at) < now() - interval '5 seconds'
""")

# The key contains the data set and the shard (`shared.objects.datasets`), so that no index of keys is needed.
UNREFERENCED = text("""
    SELECT key FROM (
        SELECT key, regexp_match(key, '^datasets/([0-9a-f-]{36})/([0-9]{1,9})/') AS parts
        FROM unnest(CAST(:keys AS text[])) AS given (key)
    ) AS named
    WHERE NOT EXISTS (
        SELECT FROM shards
        WHERE dataset_id = CAST(parts[1] AS uuid) AND number = CAST(parts[2] AS int)
            AND key IN (plan_key, results_key)
    )
""")

# ── progress ──────────────────────────────────────────────────────────────────────────────────────

TOTALS = text("""
    SELECT count(*) AS shards, count(*) FILTER (WHERE status IN ('queued', 'running')) AS shards_left,
        COALESCE(sum(images), 0) AS images, COALESCE(sum(done), 0) AS done, COALESCE(sum(dropped), 0) AS dropped,
        COALESCE(sum(final), 0) AS final,
        COALESCE(sum(CASE WHEN status = 'failed' THEN images - done ELSE failed END), 0) AS failed
    FROM shards WHERE dataset_id = :id
""")

FIGURES = text("""
    SELECT d.status AS dataset_status, s.status AS shard_status, count(*) AS shards,
        sum(s.done) AS done, sum(s.failed) AS failed,
        COALESCE(sum(s.images - s.done - s.failed) FILTER (WHERE d.paused_at IS NULL), 0) AS images_left,
        COALESCE(sum(s.images - s.done - s.failed) FILTER (WHERE d.paused_at IS NOT NULL), 0) AS images_paused
    FROM shards AS s JOIN datasets AS d ON d.id = s.dataset_id
    WHERE d.status IN ('planning', 'running', 'exporting')
    GROUP BY d.status, s.status
""")

# Each shard is assumed to have worked evenly from its start to its end, or to now; the share of that time that falls
# into the last `window` seconds is counted.
RATES = text("""
    SELECT worker, sum(running) AS shards,
        (sum(images * share) / GREATEST(1, LEAST(:window, max(age))))::float8 AS images,
        (sum(tokens * share) / GREATEST(1, LEAST(:window, max(age))))::float8 AS tokens
    FROM (
        SELECT COALESCE(s.worker, '') AS worker, (s.status = 'running')::int AS running,
            s.done + s.failed - s.kept AS images, s.tokens AS tokens,
            EXTRACT(EPOCH FROM now() - d.started_at) AS age,
            GREATEST(0, EXTRACT(EPOCH FROM
                COALESCE(s.finished_at, now()) - GREATEST(s.started_at, now() - :window * interval '1 second')
            )) / GREATEST(0.001, EXTRACT(EPOCH FROM COALESCE(s.finished_at, now()) - s.started_at)) AS share
        FROM shards AS s JOIN datasets AS d ON d.id = s.dataset_id
        WHERE s.dataset_id = :id AND s.started_at IS NOT NULL
            AND (s.status = 'running' OR s.finished_at > now() - :window * interval '1 second')
    ) AS recent
    GROUP BY worker ORDER BY worker
""")
