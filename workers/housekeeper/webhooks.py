"""Delivery of webhooks, signed as Standard Webhooks 1.0 says (https://www.standardwebhooks.com)."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from datetime import UTC, datetime
from http import HTTPStatus

from standardwebhooks.webhooks import Webhook

from shared.database import Database
from shared.database.webhooks import DueWebhook
from shared.intake.fetch import Fetcher
from shared.settings import Settings
from tuwen.errors import TuwenError

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 8
"""Attempts; with the backoff of `Webhooks.take`, the last comes about four hours after the first."""

AT_ONCE = 32
"""Deliveries at a time; most of them wait for receivers, and a receiver may take `fetch_timeout` seconds."""


def deliver(settings: Settings, database: Database, fetcher: Fetcher) -> int:
    """Deliver what is due, for about `fetch_timeout` seconds at most; returns how many were tried.

    Each is delivered at least once: receivers tell duplicates by `webhook-id`. Many processes may deliver at a time.
    """
    if settings.webhook_secret is None:
        return 0
    # While secrets are changed, each signs: a receiver takes the signature of whichever it knows.
    signers = [Webhook(secret.strip()) for secret in settings.webhook_secret.get_secret_value().split(",")]
    tried = 0
    until = time.monotonic() + settings.fetch_timeout
    with ThreadPoolExecutor(AT_ONCE, "webhooks") as pool:
        # Takes no more than it can try at once: taking one starts the clock of its next attempt.
        while time.monotonic() < until and (due := database.webhooks.take(most=AT_ONCE)):
            wait([pool.submit(_deliver_one, signers, database, fetcher, owed) for owed in due])
            tried += len(due)
    return tried


def _deliver_one(signers: Sequence[Webhook], database: Database, fetcher: Fetcher, owed: DueWebhook) -> None:
    now = datetime.now(UTC)
    body = json.dumps(
        {
            "type": f"job.{owed.status}",
            "timestamp": owed.finished_at.isoformat(),
            "data": {"id": str(owed.job_id), "status": owed.status},
        }
    )
    headers = {
        "content-type": "application/json",
        "webhook-id": str(owed.id),
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": " ".join(signer.sign(str(owed.id), now, body) for signer in signers),
    }
    gone = False
    try:
        status = fetcher.post(owed.url, body.encode(), headers)
        problem = None if 200 <= status < 300 else f"answered {status}"
        gone = status == HTTPStatus.GONE  # the receiver's way to say: never again
    except TuwenError as error:
        problem = str(error)
    except Exception:
        log.exception("webhook %s failed unexpectedly", owed.id)
        problem = "internal error"
    try:
        if problem is None:
            database.webhooks.mark_delivered(owed.id)
        else:
            database.webhooks.mark_failed(owed.id, problem, give_up=gone or owed.attempts >= MAX_ATTEMPTS)
    except TuwenError as error:
        log.warning("webhook %s: %s; it will be delivered again", owed.id, error)
