"""Deletion of what is over, in small steps: each is one statement for a few hundred rows, and skips what is locked.

Rows go before the objects that they name, so that no row ever names an object that is gone. Each step returns the keys
of those objects; a process that dies in between leaves objects that no row names, which the housekeeper collects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Row, text

from shared.database.connections import Connections
from shared.database.tables import NAMED_IMAGE
from tuwen.errors import Conflict, NotFound
from tuwen.jobs import Status, Tenant


@dataclass(frozen=True, slots=True)
class Deleted:
    """What one step deleted."""

    rows: int = 0
    keys: Sequence[str] = ()
    """Keys of objects that the rows named; other rows may name them too."""
    webhooks: int = 0
    last: datetime | None = None
    """When the last of the jobs had ended."""
    ids: Sequence[UUID] = field(default_factory=tuple)


@dataclass(frozen=True, slots=True)
class Due:
    """What is older than it is to become."""

    count: int
    """At most `MOST_COUNTED`."""
    oldest: datetime | None
    """When the oldest of what is kept ended, due or not; None when there is nothing."""


MOST_COUNTED = 100_000

# What a job names: its image, and its candidates'.
_KEYS = """
    array_remove(
        array_prepend(result_key, ARRAY(SELECT jsonb_array_elements(
            CASE jsonb_typeof(result -> 'candidates') WHEN 'array' THEN result -> 'candidates' ELSE '[]' END
        ) #>> '{image,key}')), NULL
    ) AS keys
"""

# The foreign key would delete the webhooks too, but not count them.
_DELETE_JOBS = """
    WITH due AS MATERIALIZED (
        {due} LIMIT :most FOR UPDATE OF jobs SKIP LOCKED
    ), told AS (
        DELETE FROM webhooks USING due WHERE job_id = due.id RETURNING webhooks.id
    ), gone AS (
        DELETE FROM jobs USING due WHERE jobs.id = due.id RETURNING jobs.id, finished_at, {keys}
    )
    SELECT id, finished_at, keys, (SELECT count(*) FROM told) AS webhooks FROM gone
"""


def _delete_jobs(due: str) -> Any:
    return text(_DELETE_JOBS.format(due=due, keys=_KEYS))


# Not what somebody still waits for: a webhook that is owed, or the line of a batch whose answer is not written yet.
# Each step goes on where the last one ended (`after`): what was deleted lies in the index until a vacuum.
_OLD_JOBS = _delete_jobs("""
    SELECT id FROM jobs
    WHERE status = :status AND finished_at >= :after AND finished_at < now() - CAST(:age AS interval)
        AND NOT EXISTS (SELECT FROM webhooks WHERE job_id = jobs.id AND due_at IS NOT NULL)
        AND NOT EXISTS (SELECT FROM batch_lines WHERE job_id = jobs.id)
    ORDER BY finished_at
""")
_JOBS_OF_TENANT = _delete_jobs("""
    SELECT id FROM jobs
    WHERE tenant = :tenant AND status NOT IN ('queued', 'running') AND uuid_send(id) > uuid_send(CAST(:after AS uuid))
    ORDER BY uuid_send(id)
""")
_ONE_JOB = _delete_jobs("""
    SELECT id FROM jobs WHERE id = :id AND tenant = :tenant AND status NOT IN ('queued', 'running')
""")

_DUE_JOBS = text("""
    SELECT (SELECT count(*) FROM (
            SELECT FROM jobs WHERE status = :status AND finished_at < now() - CAST(:age AS interval) LIMIT :most
        ) AS due) AS count,
        (SELECT min(finished_at) FROM jobs WHERE status = :status AND finished_at IS NOT NULL) AS oldest
""")

# Not what an unfinished job names. Admission notes the use of an upload before the job exists.
_OLD_UPLOADS = text(f"""
    WITH due AS MATERIALIZED (
        SELECT tenant, sha256 FROM files
        WHERE used_at < now() - CAST(:age AS interval) AND NOT EXISTS (
            SELECT FROM jobs WHERE jobs.tenant = files.tenant AND status IN ('queued', 'running')
                AND {NAMED_IMAGE} = files.sha256 AND {NAMED_IMAGE} IS NOT NULL
        )
        ORDER BY used_at LIMIT :most FOR UPDATE SKIP LOCKED
    )
    DELETE FROM files USING due WHERE files.tenant = due.tenant AND files.sha256 = due.sha256 RETURNING key
""")  # noqa: S608 (constants)

_OLD_BATCHES = text("""
    WITH due AS MATERIALIZED (
        SELECT id FROM batches WHERE finished_at < now() - CAST(:age AS interval)
        ORDER BY finished_at LIMIT :most FOR UPDATE SKIP LOCKED
    )
    DELETE FROM batches USING due WHERE batches.id = due.id RETURNING batches.id
""")

# A batch that is kept keeps its input; its outputs were made when it ended.
_OLD_DOCUMENTS = text("""
    WITH due AS MATERIALIZED (
        SELECT id FROM documents WHERE created_at < now() - CAST(:age AS interval)
            AND NOT EXISTS (SELECT FROM batches WHERE input_id = documents.id)
        ORDER BY created_at LIMIT :most FOR UPDATE SKIP LOCKED
    )
    DELETE FROM documents USING due WHERE documents.id = due.id RETURNING key
""")

_OLD_IDEMPOTENCY_KEYS = text("""
    WITH due AS MATERIALIZED (
        SELECT tenant, key FROM idempotency_keys WHERE created_at < now() - interval '1 day'
        ORDER BY created_at LIMIT :most FOR UPDATE SKIP LOCKED
    )
    DELETE FROM idempotency_keys AS k USING due WHERE k.tenant = due.tenant AND k.key = due.key RETURNING k.key
""")


def _of_tenant(table: str, id: str, returning: str, more: str = "") -> Any:
    return text(f"""
        WITH due AS MATERIALIZED (
            SELECT {id} AS id FROM {table} WHERE tenant = :tenant {more}
            ORDER BY {id} LIMIT :most FOR UPDATE SKIP LOCKED
        )
        DELETE FROM {table} USING due WHERE tenant = :tenant AND {table}.{id} = due.id RETURNING {returning}
    """)  # noqa: S608 (constants)


_UPLOADS_OF_TENANT = _of_tenant("files", "sha256", "files.key")
_DOCUMENTS_OF_TENANT = _of_tenant("documents", "id", "documents.key")
_BATCHES_OF_TENANT = _of_tenant("batches", "id", "batches.id")
_IDEMPOTENCY_OF_TENANT = _of_tenant("idempotency_keys", "key", "idempotency_keys.key")
_DATASETS_OF_TENANT = _of_tenant("datasets", "id", "datasets.id", "AND status IN ('succeeded', 'failed', 'cancelled')")

# A large data set has many rows: they go before it, a few at a time.
_SHARDS_OF_TENANT = text("""
    WITH due AS MATERIALIZED (
        SELECT shards.id FROM shards JOIN datasets AS d ON d.id = dataset_id
        WHERE d.tenant = :tenant AND d.status IN ('succeeded', 'failed', 'cancelled')
        LIMIT :most FOR UPDATE OF shards SKIP LOCKED
    )
    DELETE FROM shards USING due WHERE shards.id = due.id RETURNING shards.id
""")
_REVIEWS_OF_TENANT = text("""
    WITH due AS MATERIALIZED (
        SELECT reviews.id FROM reviews JOIN datasets AS d ON d.id = dataset_id
        WHERE d.tenant = :tenant AND d.status IN ('succeeded', 'failed', 'cancelled')
        LIMIT :most FOR UPDATE OF reviews SKIP LOCKED
    )
    DELETE FROM reviews USING due WHERE reviews.id = due.id RETURNING reviews.id
""")

_UNFINISHED = text("""
    SELECT (SELECT count(*) FROM jobs WHERE tenant = :tenant AND status IN ('queued', 'running')) AS jobs,
        (SELECT count(*) FROM datasets WHERE tenant = :tenant AND status IN ('planning', 'running', 'exporting'))
            AS datasets
""")
_UNFINISHED_JOBS = text("""
    SELECT id FROM jobs
    WHERE tenant = :tenant AND status IN ('queued', 'running') AND cancel_requested_at IS NULL LIMIT :most
""")
_UNFINISHED_DATASETS = text("""
    SELECT id FROM datasets WHERE tenant = :tenant AND status IN ('planning', 'running', 'exporting') LIMIT :most
""")


class Deletion:
    """Steps of deletion. Each deletes at most `most` rows, and fewer only when there are no more."""

    def __init__(self, connections: Connections):
        self._run = connections.run
        self._fetch = connections.fetch

    # ── by age ────────────────────────────────────────────────────────────────────────────────────

    def old_jobs(self, status: Status, age: timedelta, most: int, *, after: datetime) -> Deleted:
        """Jobs that ended in this state, not before `after` and more than `age` ago, the oldest first."""
        values = {"status": status.value, "age": age, "most": most, "after": after}
        return _deleted_jobs(self._run(_OLD_JOBS, values))

    def due_jobs(self, status: Status, age: timedelta) -> Due:
        """Jobs that ended in this state, and are to be deleted for their age."""
        [due] = self._fetch(Due, _DUE_JOBS, {"status": status.value, "age": age, "most": MOST_COUNTED})
        return due

    def old_uploads(self, age: timedelta, most: int) -> Deleted:
        """Uploaded images that nothing has used for `age`."""
        return _deleted_keys(self._run(_OLD_UPLOADS, {"age": age, "most": most}))

    def old_batches(self, age: timedelta, most: int) -> Deleted:
        """Batches that have been over for `age`; their files are older, or as old."""
        return _deleted_ids(self._run(_OLD_BATCHES, {"age": age, "most": most}))

    def old_documents(self, age: timedelta, most: int) -> Deleted:
        """Files of batches that are as old, unless a batch that is kept was made of them."""
        return _deleted_keys(self._run(_OLD_DOCUMENTS, {"age": age, "most": most}))

    def old_idempotency_keys(self, most: int) -> int:
        """Idempotency keys that are older than a day, as clients of other services expect; returns how many."""
        return len(self._run(_OLD_IDEMPOTENCY_KEYS, {"most": most}))

    # ── on demand ─────────────────────────────────────────────────────────────────────────────────

    def job(self, id: UUID, tenant: Tenant) -> Deleted:
        """One job that is over, with a webhook that may still be owed.

        Raises:
            NotFound: the tenant has no such job.
            Conflict: it is not over.
        """
        gone = _deleted_jobs(self._run(_ONE_JOB, {"id": id, "tenant": tenant, "most": 1}))
        if gone.rows:
            return gone
        found = self._run(
            text("SELECT status FROM jobs WHERE id = :id AND tenant = :tenant"), {"id": id, "tenant": tenant}
        )
        if not found:
            raise NotFound(f"There is no job {id}.")
        raise Conflict(f"Job {id} is {found[0].status}; cancel it first, and delete it when it is over.")

    def unfinished(self, tenant: Tenant) -> tuple[int, int]:
        """Jobs, and data sets, of the tenant that are not over."""
        [row] = self._run(_UNFINISHED, {"tenant": tenant})
        return row.jobs, row.datasets

    def jobs_to_cancel(self, tenant: Tenant, most: int) -> list[UUID]:
        """Jobs of the tenant that are not over, and that nobody has cancelled yet."""
        return [row.id for row in self._run(_UNFINISHED_JOBS, {"tenant": tenant, "most": most})]

    def datasets_to_cancel(self, tenant: Tenant, most: int) -> list[UUID]:
        """Data sets of the tenant that are not over."""
        return [row.id for row in self._run(_UNFINISHED_DATASETS, {"tenant": tenant, "most": most})]

    def jobs_of(self, tenant: Tenant, most: int, *, after: UUID) -> Deleted:
        """Jobs of the tenant that are over, with what is still owed for them; in order, beginning behind `after`."""
        return _deleted_jobs(self._run(_JOBS_OF_TENANT, {"tenant": tenant, "most": most, "after": after}))

    def uploads_of(self, tenant: Tenant, most: int) -> Deleted:
        """Uploaded images of the tenant."""
        return _deleted_keys(self._run(_UPLOADS_OF_TENANT, {"tenant": tenant, "most": most}))

    def documents_of(self, tenant: Tenant, most: int) -> Deleted:
        """Files of batches of the tenant."""
        return _deleted_keys(self._run(_DOCUMENTS_OF_TENANT, {"tenant": tenant, "most": most}))

    def batches_of(self, tenant: Tenant, most: int) -> Deleted:
        """Batches of the tenant, in any state: a step that is under way finds its row gone, and changes nothing."""
        return _deleted_ids(self._run(_BATCHES_OF_TENANT, {"tenant": tenant, "most": most}))

    def reviews_of(self, tenant: Tenant, most: int) -> Deleted:
        """Reviews of the tenant's data sets that are over."""
        return _deleted_ids(self._run(_REVIEWS_OF_TENANT, {"tenant": tenant, "most": most}))

    def shards_of(self, tenant: Tenant, most: int) -> Deleted:
        """Shards of the tenant's data sets that are over."""
        return _deleted_ids(self._run(_SHARDS_OF_TENANT, {"tenant": tenant, "most": most}))

    def datasets_of(self, tenant: Tenant, most: int) -> Deleted:
        """Data sets of the tenant that are over."""
        return _deleted_ids(self._run(_DATASETS_OF_TENANT, {"tenant": tenant, "most": most}))

    def idempotency_keys_of(self, tenant: Tenant, most: int) -> Deleted:
        """Idempotency keys of the tenant."""
        return Deleted(len(self._run(_IDEMPOTENCY_OF_TENANT, {"tenant": tenant, "most": most})))


def _deleted_jobs(rows: Sequence[Row[Any]]) -> Deleted:
    return Deleted(
        len(rows),
        [key for row in rows for key in dict.fromkeys(row.keys)],
        rows[0].webhooks if rows else 0,
        max((row.finished_at for row in rows), default=None),
        [row.id for row in rows],
    )


def _deleted_keys(rows: Sequence[Row[Any]]) -> Deleted:
    return Deleted(len(rows), [row.key for row in rows])


def _deleted_ids(rows: Sequence[Row[Any]]) -> Deleted:
    return Deleted(len(rows), ids=[row.id for row in rows])
