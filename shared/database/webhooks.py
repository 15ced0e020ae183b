"""Webhooks owed: written by the transitions that end jobs, settled here."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import func, text, update

from shared.database.connections import Connections
from shared.database.tables import WebhookRow
from tuwen.jobs import Status, Tenant

# The wait before attempt n + 1 is 5·4ⁿ seconds, at most an hour.
_TAKE_WEBHOOKS = text("""
    WITH due AS MATERIALIZED (
        SELECT webhooks.id FROM webhooks JOIN jobs ON jobs.id = webhooks.job_id
        -- A job that is retried has no result to deliver until it ends again.
        WHERE due_at <= now() AND jobs.finished_at IS NOT NULL
        ORDER BY due_at LIMIT :most FOR UPDATE OF webhooks SKIP LOCKED
    )
    UPDATE webhooks SET
        attempts = webhooks.attempts + 1,
        due_at = now() + LEAST(3600, 5 * 4 ^ webhooks.attempts) * interval '1 second'
    FROM due, jobs
    WHERE webhooks.id = due.id AND jobs.id = webhooks.job_id
    RETURNING webhooks.id, webhooks.url, webhooks.attempts, webhooks.job_id, jobs.tenant, jobs.status,
        jobs.finished_at
""")


@dataclass(frozen=True, slots=True)
class DueWebhook:
    """A delivery that is due, and what it tells."""

    id: UUID
    url: str
    attempts: int
    """This one included."""
    job_id: UUID
    tenant: Tenant
    status: Status
    finished_at: datetime


class Webhooks:
    """Pending deliveries of webhooks: the transitions that end jobs add them, and they are settled here."""

    def __init__(self, connections: Connections):
        self._run = connections.run
        self._fetch = connections.fetch

    def take(self, most: int) -> list[DueWebhook]:
        """Take due deliveries.

        Taking a delivery postpones it by its backoff, so that it is tried again if the housekeeper dies.
        """
        return self._fetch(DueWebhook, _TAKE_WEBHOOKS, {"most": most})

    def mark_delivered(self, id: UUID) -> None:
        """Note that a webhook was delivered."""
        delivered = update(WebhookRow).where(WebhookRow.id == id)
        self._run(delivered.values(delivered_at=func.now(), due_at=None, error=None))

    def mark_failed(self, id: UUID, error: str, *, give_up: bool) -> None:
        """Note the error of an attempt; the next attempt is already scheduled unless `give_up`."""
        tried = update(WebhookRow).where(WebhookRow.id == id)
        self._run(tried.values(error=error, due_at=None) if give_up else tried.values(error=error))
