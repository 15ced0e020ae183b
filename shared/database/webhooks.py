"""Webhooks owed: written by the transitions that end jobs, settled here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal
from uuid import UUID

from sqlalchemy import func, text, update

from shared.database.connections import Connections
from shared.database.tables import WEBHOOK_HOST, WebhookRow
from tuwen.errors import Conflict, NotFound
from tuwen.jobs import Kind, Status, Tenant

LATE = 60.0
"""Seconds after which a delivery that is still owed is late."""

WebhookState = Literal["waiting", "late", "given up"]

# The index leads from host to host, so a receiver with 100,000 deliveries that wait costs the others nothing. The
# wait before attempt n + 1 is 5·4ⁿ seconds, at most an hour.
_TAKE_WEBHOOKS = text(f"""
    WITH RECURSIVE hosts (host) AS (
        (SELECT {WEBHOOK_HOST} FROM webhooks WHERE due_at IS NOT NULL ORDER BY 1 LIMIT 1)
        UNION ALL
        SELECT (
            SELECT {WEBHOOK_HOST} FROM webhooks
            WHERE due_at IS NOT NULL AND {WEBHOOK_HOST} > hosts.host ORDER BY 1 LIMIT 1
        ) FROM hosts WHERE hosts.host IS NOT NULL
    ), due AS MATERIALIZED (
        SELECT picked.id, hosts.host
        FROM hosts LEFT JOIN unnest(CAST(:hosts AS text[]), CAST(:places AS int[])) AS known (host, places) USING (host)
        CROSS JOIN LATERAL (
            SELECT webhooks.id, due_at FROM webhooks JOIN jobs ON jobs.id = webhooks.job_id
            -- A job that is retried has no result to deliver until it ends again.
            WHERE {WEBHOOK_HOST} = hosts.host AND due_at <= now() AND jobs.finished_at IS NOT NULL
                -- Nothing is sent unsigned: without a secret of the installation, only keys with their own sign.
                AND (
                    CAST(:shared AS bool)
                    OR EXISTS (SELECT FROM api_keys AS k WHERE k.id = jobs.key_id AND k.webhook_secret IS NOT NULL)
                )
            ORDER BY due_at LIMIT COALESCE(known.places, :places_else) FOR UPDATE OF webhooks SKIP LOCKED
        ) AS picked
        ORDER BY picked.due_at LIMIT :most
    )
    UPDATE webhooks SET
        attempts = webhooks.attempts + 1,
        due_at = now() + LEAST(3600, 5 * 4 ^ webhooks.attempts) * interval '1 second'
    FROM due, jobs LEFT JOIN api_keys AS signer ON signer.id = jobs.key_id
    WHERE webhooks.id = due.id AND jobs.id = webhooks.job_id
    RETURNING webhooks.id, webhooks.url, due.host, webhooks.attempts, webhooks.job_id, jobs.tenant, jobs.kind,
        jobs.status, jobs.finished_at, signer.webhook_secret AS secret, signer.old_webhook_secret AS old_secret,
        COALESCE(signer.old_webhook_secret_until > now(), false) AS overlaps
""")  # noqa: S608 (a constant)

_GIVE_UP_OLD = text(f"""
    UPDATE webhooks SET due_at = NULL, error = :error
    WHERE due_at IS NOT NULL AND {WEBHOOK_HOST} = :host AND owed_at < now() - :age * interval '1 second'
""")  # noqa: S608 (a constant)

_FIGURES = text("""
    SELECT count(*) FILTER (WHERE due_at IS NOT NULL) AS waiting,
        count(*) FILTER (WHERE due_at IS NOT NULL AND owed_at < now() - :late * interval '1 second') AS late,
        count(*) FILTER (WHERE due_at IS NULL) AS given_up,
        GREATEST(0, COALESCE(EXTRACT(EPOCH FROM now() - min(owed_at) FILTER (WHERE due_at IS NOT NULL)), 0))::float8
            AS oldest_age,
        count(*) FILTER (
            WHERE due_at IS NOT NULL
            AND NOT EXISTS (SELECT FROM api_keys AS k WHERE k.id = jobs.key_id AND k.webhook_secret IS NOT NULL)
        ) AS shared
    FROM webhooks JOIN jobs ON jobs.id = job_id WHERE delivered_at IS NULL AND jobs.finished_at IS NOT NULL
""")

_UNDELIVERED = text("""
    SELECT * FROM (
        SELECT webhooks.id, job_id, jobs.tenant, url, webhooks.attempts, owed_at, due_at, error,
            CASE
                WHEN due_at IS NULL THEN 'given up'
                WHEN owed_at < now() - :late * interval '1 second' THEN 'late'
                ELSE 'waiting'
            END AS state
        FROM webhooks JOIN jobs ON jobs.id = job_id WHERE delivered_at IS NULL AND jobs.finished_at IS NOT NULL
    ) AS undelivered
    WHERE CAST(:state AS text) IS NULL OR state = :state
    ORDER BY owed_at, id LIMIT :most
""")

_RETRY_GIVEN_UP = text(f"""
    UPDATE webhooks SET due_at = now(), owed_at = now(), attempts = 0
    WHERE delivered_at IS NULL AND due_at IS NULL AND (CAST(:host AS text) IS NULL OR {WEBHOOK_HOST} = :host)
    RETURNING id
""")  # noqa: S608 (a constant)


@dataclass(frozen=True, slots=True)
class DueWebhook:
    """A delivery that is due, and what it tells."""

    id: UUID
    url: str
    host: str
    """Host of the URL, with the port where it names one."""
    attempts: int
    """This one included."""
    job_id: UUID
    tenant: Tenant
    kind: Kind
    status: Status
    finished_at: datetime
    secret: str | None = field(repr=False)
    """Webhook secret of the key that submitted the job; None where the installation's signs."""
    old_secret: str | None = field(repr=False)
    """The one before it; None where that was the installation's."""
    overlaps: bool
    """Whether the one before still signs too."""


@dataclass(frozen=True, slots=True)
class UndeliveredWebhook:
    """A delivery that no receiver has taken yet."""

    id: UUID
    job_id: UUID
    tenant: Tenant
    url: str
    attempts: int
    owed_at: datetime
    """When its job ended, or when its delivery was ordered again."""
    due_at: datetime | None
    """When it is tried again; None once it was given up."""
    error: str | None
    """What came of the last attempt."""
    state: WebhookState


@dataclass(frozen=True, slots=True)
class WebhookFigures:
    """Counts of deliveries that no receiver has taken yet."""

    waiting: int
    """Those that are still tried, the late ones included."""
    late: int
    """Those that have been owed for longer than `LATE`."""
    given_up: int
    oldest_age: float
    """Seconds that the oldest of the waiting ones has been owed; 0 when none waits."""
    shared: int
    """Those of the waiting ones that only a secret of the installation can sign."""


class Webhooks:
    """Pending deliveries of webhooks: the transitions that end jobs add them, and they are settled here."""

    def __init__(self, connections: Connections):
        self._run = connections.run
        self._fetch = connections.fetch

    def take(
        self, most: int, places: Mapping[str, int] | None = None, *, places_else: int = 1000, shared: bool = True
    ) -> list[DueWebhook]:
        """Take due deliveries, the oldest first; of each host at most its `places`, `places_else` for the others.

        `shared`: whether the installation has a secret; without one, only jobs of keys with their own are taken.

        Taking a delivery postpones it by its backoff, so that it is tried again if the housekeeper dies.
        """
        places = places or {}
        known = {"hosts": list(places), "places": list(places.values()), "places_else": places_else}
        return self._fetch(DueWebhook, _TAKE_WEBHOOKS, {**known, "most": most, "shared": shared})

    def mark_delivered(self, id: UUID) -> None:
        """Note that a webhook was delivered."""
        delivered = update(WebhookRow).where(WebhookRow.id == id)
        self._run(delivered.values(delivered_at=func.now(), due_at=None, error=None))

    def mark_failed(self, id: UUID, error: str, *, give_up: bool) -> None:
        """Note the error of an attempt; the next attempt is already scheduled unless `give_up`."""
        tried = update(WebhookRow).where(WebhookRow.id == id)
        self._run(tried.values(error=error, due_at=None) if give_up else tried.values(error=error))

    def give_up_old(self, host: str, age: float, error: str) -> None:
        """Give up what has been owed to a host for more than `age` seconds."""
        self._run(_GIVE_UP_OLD, {"host": host, "age": age, "error": error})

    def figures(self) -> WebhookFigures:
        """Counts of what is undelivered."""
        [figures] = self._fetch(WebhookFigures, _FIGURES, {"late": LATE})
        return figures

    def undelivered(self, *, state: WebhookState | None = None, most: int) -> list[UndeliveredWebhook]:
        """What is undelivered, of every tenant, the oldest first; only what is in `state`, if one is given."""
        return self._fetch(UndeliveredWebhook, _UNDELIVERED, {"late": LATE, "state": state, "most": most})

    def retry(self, ids: Sequence[UUID]) -> None:
        """Have undelivered webhooks tried now, with new attempts and under the same id.

        Raises:
            NotFound: there is no such webhook.
            Conflict: one was delivered.
        """
        again = update(WebhookRow).where(WebhookRow.delivered_at.is_(None))
        for id in ids:
            values = {"due_at": func.now(), "owed_at": func.now(), "attempts": 0}
            if self._run(again.where(WebhookRow.id == id).values(**values).returning(WebhookRow.id)):
                continue
            if self._run(text("SELECT FROM webhooks WHERE id = :id"), {"id": id}):
                raise Conflict(f"Webhook {id} has been delivered.")
            raise NotFound(f"There is no webhook {id}.")

    def retry_given_up(self, host: str | None = None) -> list[UUID]:
        """Have everything that was given up tried now, or what was given up for one host; returns the ids."""
        return [row.id for row in self._run(_RETRY_GIVEN_UP, {"host": host and host.lower()})]
