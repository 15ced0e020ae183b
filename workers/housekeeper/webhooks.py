"""Delivery of webhooks, signed as Standard Webhooks 1.0 says (https://www.standardwebhooks.com).

Receivers are other people's servers, and some hang. So no delivery waits for another one: each host has places of its
own, and a host that does not answer rests, holding none.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus

from standardwebhooks.webhooks import Webhook

from shared.database import Database
from shared.database.webhooks import DueWebhook
from shared.intake.fetch import Fetcher
from shared.objects.signed_urls import ResultUrls, UrlSigner
from shared.settings import Settings
from tuwen.errors import DatabaseUnavailable, FetchFailed, TuwenError
from tuwen.jobs import Kind, Status

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 8
"""Attempts; with the backoff of `Webhooks.take`, the last comes about four hours after the first."""

MAX_AGE = 86_400.0
"""Seconds after which what is owed to a host that does not answer is given up, however seldom it was tried."""

AT_ONCE = 128
"""Deliveries in flight; most of them wait for receivers, and a receiver may take `fetch_timeout` seconds."""

FIRST_PLACES, MOST_PLACES = 4, 32
"""Deliveries in flight to one host: until it has answered, and at most. Each answer adds a place."""

FIRST_REST, LONGEST_REST = 5.0, 60.0
"""Seconds that a host rests after it did not answer, doubled each time; then one delivery finds out whether it does."""

_FORGET = 3600.0
_BUSY = frozenset((HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE))


@dataclass
class _Host:
    in_flight: int = 0
    places: int = FIRST_PLACES
    failures: int = 0
    """In a row."""
    rests_until: float = 0.0
    """By the monotonic clock."""


class Hosts:
    """How many deliveries each host may have in flight. Thread-safe."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._hosts: dict[str, _Host] = {}

    @property
    def in_flight(self) -> int:
        with self._guard:
            return sum(host.in_flight for host in self._hosts.values())

    def free_places(self) -> dict[str, int]:
        """Deliveries that each known host may get now; an unknown one may get `FIRST_PLACES`."""
        now = time.monotonic()
        with self._guard:
            return {
                name: 0 if now < host.rests_until else max(0, host.places - host.in_flight)
                for name, host in self._hosts.items()
            }

    def begin(self, name: str) -> None:
        """A delivery to this host begins; `answered` or `unanswered` ends it."""
        with self._guard:
            self._hosts.setdefault(name, _Host()).in_flight += 1

    def answered(self, name: str) -> None:
        with self._guard:
            host = self._hosts[name]
            host.in_flight -= 1
            host.failures, host.rests_until = 0, 0.0
            host.places = min(host.places + 1, MOST_PLACES)
            self._forget(name)

    def unanswered(self, name: str) -> int:
        """Let the host rest; returns how many times in a row it has not answered."""
        now = time.monotonic()
        with self._guard:
            host = self._hosts[name]
            host.in_flight -= 1
            if now >= host.rests_until:  # those that were in flight together fail together, and count once
                host.failures += 1
                host.rests_until = now + min(LONGEST_REST, FIRST_REST * 2 ** (host.failures - 1))
            host.places = 1
            return host.failures

    def _forget(self, last: str) -> None:
        """Keep only what matters: hosts with deliveries in flight, and those that did not answer lately."""
        if not self._hosts[last].in_flight:
            del self._hosts[last]
        long_ago = time.monotonic() - _FORGET
        for name in [n for n, h in self._hosts.items() if not h.in_flight and h.rests_until < long_ago]:
            del self._hosts[name]


class WebhookSender:
    """Delivers what is due. Each is delivered at least once: receivers tell duplicates by `webhook-id`.

    Many processes may deliver at a time; each counts the places of hosts for itself.
    """

    def __init__(self, settings: Settings, database: Database, fetcher: Fetcher):
        self._database = database
        self._fetcher = fetcher
        self._round = settings.housekeeping_interval
        shared = settings.webhook_secret.get_secret_value().split(",") if settings.webhook_secret else []
        self._shared_secrets = [secret.strip() for secret in shared]
        self._hosts = Hosts()
        # Nobody's request says here under which name the API is reached.
        public = (settings.public_url or "").rstrip("/")
        self._urls = ResultUrls(UrlSigner(settings, database), public) if public else None
        self._ended = threading.Event()
        """Set by each delivery that ends, since another one may take its place."""
        self._closing = False

    def deliver(self) -> int:
        """Begin deliveries as they are due and places are free, for one housekeeping interval at most.

        Returns how many were begun. Those that are in flight at the end go on, and the next round counts them.
        """
        begun = 0
        until = time.monotonic() + self._round
        while not self._closing and (left := until - time.monotonic()) > 0:
            self._ended.clear()
            in_flight = self._hosts.in_flight
            if due := self._take(AT_ONCE - in_flight):
                for owed in due:
                    self._hosts.begin(owed.host)
                    threading.Thread(target=self._deliver_one, args=(owed,), name="webhook", daemon=True).start()
                begun += len(due)
            elif in_flight == 0:
                break
            else:
                self._ended.wait(min(left, 1.0))  # not longer: other jobs end meanwhile
                time.sleep(0.02)  # many end together, and are worth one statement
        return begun

    def close(self, grace: float) -> None:
        """Begin no more, and wait `grace` seconds for those in flight; what is cut off is tried again later."""
        self._closing = True
        deadline = time.monotonic() + grace
        while self._hosts.in_flight and time.monotonic() < deadline:
            time.sleep(0.05)

    def stop(self) -> None:
        """Begin no more deliveries."""
        self._closing = True

    def _take(self, most: int) -> list[DueWebhook]:
        if not most:
            return []
        return self._database.webhooks.take(
            most, self._hosts.free_places(), places_else=FIRST_PLACES, shared=bool(self._shared_secrets)
        )

    def _deliver_one(self, owed: DueWebhook) -> None:
        answered, gone = True, False
        try:
            status = self._post(owed)
            problem = None if 200 <= status < 300 else f"answered {status}"
            gone = status == HTTPStatus.GONE  # the receiver's way to say: never again
            answered = status not in _BUSY
        except TuwenError as error:
            problem, answered = str(error), not isinstance(error, FetchFailed)
        except Exception:
            log.exception("webhook %s failed unexpectedly", owed.id)
            problem = "internal error"
        try:
            self._settle(owed, problem, give_up=gone or owed.attempts >= MAX_ATTEMPTS)
        except DatabaseUnavailable as error:
            log.warning("webhook %s: %s; it will be delivered again", owed.id, error)
        finally:
            self._end(owed, problem, answered=answered)

    def _post(self, owed: DueWebhook) -> int:
        now = datetime.now(UTC)
        body = json.dumps(
            {
                "type": f"job.{owed.status}",
                "timestamp": owed.finished_at.isoformat(),
                "data": {"id": str(owed.job_id), "status": owed.status, **self._result(owed)},
            }
        )
        headers = {
            "content-type": "application/json",
            "webhook-id": str(owed.id),
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": " ".join(signer.sign(str(owed.id), now, body) for signer in self._signers(owed)),
        }
        return self._fetcher.post(owed.url, body.encode(), headers)

    def _signers(self, owed: DueWebhook) -> list[Webhook]:
        """Who signs: the key that submitted the job, or the installation for keys without a secret of their own.

        While secrets are changed, each signs: a receiver takes the signature of whichever it knows.
        """
        if owed.secret is None:
            secrets = self._shared_secrets
        elif not owed.overlaps:
            secrets = [owed.secret]
        else:
            secrets = [owed.secret, *([owed.old_secret] if owed.old_secret else self._shared_secrets)]
        return [Webhook(secret) for secret in secrets]

    def _result(self, owed: DueWebhook) -> dict[str, str]:
        """Where the receiver may fetch the image, without an API key: nowhere unless `public_url` is set."""
        has_image = owed.kind is Kind.GENERATE and owed.status is Status.SUCCEEDED
        return {"result_url": self._urls.image(owed.job_id)} if self._urls and has_image else {}

    def _settle(self, owed: DueWebhook, problem: str | None, *, give_up: bool) -> None:
        if problem is None:
            self._database.webhooks.mark_delivered(owed.id)
        else:
            self._database.webhooks.mark_failed(owed.id, problem, give_up=give_up)

    def _end(self, owed: DueWebhook, problem: str | None, *, answered: bool) -> None:
        """Free the place, only now: what is in flight is neither taken again nor forgotten at the end."""
        if answered:
            self._hosts.answered(owed.host)
        elif self._hosts.unanswered(owed.host) > 1:
            # A host that rests is tried with one delivery at a time, so most of the others are never tried.
            try:
                self._database.webhooks.give_up_old(owed.host, MAX_AGE, problem or "")
            except DatabaseUnavailable as error:
                log.warning("old webhooks of %s: %s", owed.host, error)
        self._ended.set()
