"""Webhooks, delivered to a real HTTP server and verified as a receiver would."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import UUID

import httpx
import pytest
from pydantic import SecretStr
from sqlalchemy import create_engine, text
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from shared.database import Database
from shared.database.connections import driver_url
from shared.intake.fetch import Fetcher
from shared.settings import Settings
from tests.support.api_server import serving
from tuwen.jobs import JobRequest
from workers.housekeeper import webhooks

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


class Receiver:
    """Keeps what it is sent; answers with `status`."""

    def __init__(self) -> None:
        self.status = 204
        self.deliveries: list[tuple[dict[str, str], bytes]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.deliveries.append(({k.lower(): v for k, v in self.headers.items()}, body))
                self.send_response(receiver.status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None: ...

        class Server(ThreadingHTTPServer):
            request_queue_size = 128  # of socketserver's 5, many deliveries at once lose some

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


class Sender:
    def __init__(self, settings: Settings, **changed: Any):
        allowed = {"webhook_secret": SecretStr(SECRET), "fetch_allow_networks": ("127.0.0.0/8",), **changed}
        self.settings = settings.model_copy(update=allowed)
        self.database = Database(self.settings)
        self.fetcher = Fetcher(self.settings)
        self._engine = create_engine(driver_url(settings.database_url), isolation_level="AUTOCOMMIT")

    def cancelled_job(self, url: str) -> UUID:
        request = JobRequest.model_validate({"input": {"kind": "generate", "prompt": "猫"}, "webhook": url})
        [id] = self.database.jobs.submit([request], tenant="t").ids
        self.database.jobs.cancel(id, "t")
        return id

    def deliver(self) -> int:
        return webhooks.deliver(self.settings, self.database, self.fetcher)

    def rows(self) -> list[Any]:
        with self._engine.connect() as connection:
            return list(connection.execute(text("SELECT * FROM webhooks")))

    def wait_out_the_backoff(self) -> None:
        with self._engine.connect() as connection:
            connection.execute(text("UPDATE webhooks SET due_at = now() WHERE due_at IS NOT NULL"))


def test_signed_and_delivered_once(settings: Settings, receiver: Receiver) -> None:
    sender = Sender(settings)
    id = sender.cancelled_job(receiver.url)
    assert sender.deliver() == 1
    assert sender.deliver() == 0
    [(headers, body)] = receiver.deliveries
    event = Webhook(SECRET).verify(body, headers)
    assert event["type"] == "job.cancelled"
    assert event["data"] == {"id": str(id), "status": "cancelled"}
    [row] = sender.rows()
    assert (row.delivered_at is not None, row.due_at, headers["webhook-id"]) == (True, None, str(row.id))


def test_receivers_may_change_secrets_one_by_one(settings: Settings, receiver: Receiver) -> None:
    """Standard Webhooks: while secrets are rotated, a message bears a signature by each."""
    new = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
    sender = Sender(settings, webhook_secret=SecretStr(f"{new}, {SECRET}"))
    sender.cancelled_job(receiver.url)
    sender.deliver()
    [(headers, body)] = receiver.deliveries
    for secret in (new, SECRET):
        assert Webhook(secret).verify(body, headers)["type"] == "job.cancelled"
    with pytest.raises(WebhookVerificationError):
        Webhook("whsec_" + "A" * 32).verify(body, headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(body + b" ", headers)


def test_a_receiver_that_is_gone_is_left_alone(settings: Settings, receiver: Receiver) -> None:
    sender = Sender(settings)
    sender.cancelled_job(receiver.url)
    receiver.status = 410
    sender.deliver()
    [row] = sender.rows()
    assert (row.due_at, row.error) == (None, "answered 410")


def test_many_in_one_round(settings: Settings, receiver: Receiver) -> None:
    sender = Sender(settings)
    count = webhooks.AT_ONCE + 1
    for _ in range(count):
        sender.cancelled_job(receiver.url)
    assert sender.deliver() == count
    assert len({headers["webhook-id"] for headers, _ in receiver.deliveries}) == count


def test_a_receiver_in_trouble_is_tried_again_under_the_same_id(settings: Settings, receiver: Receiver) -> None:
    sender = Sender(settings)
    sender.cancelled_job(receiver.url)
    receiver.status = 500
    sender.deliver()
    assert sender.deliver() == 0, "not before the backoff is over"
    sender.wait_out_the_backoff()
    receiver.status = 200
    sender.deliver()
    first, second = receiver.deliveries
    assert first[0]["webhook-id"] == second[0]["webhook-id"]
    assert json.loads(first[1]) == json.loads(second[1])


def test_given_up_after_the_last_attempt(settings: Settings, receiver: Receiver) -> None:
    sender = Sender(settings)
    sender.cancelled_job(receiver.url)
    receiver.status = 500
    for _ in range(webhooks.MAX_ATTEMPTS + 3):
        sender.wait_out_the_backoff()
        sender.deliver()
    assert len(receiver.deliveries) == webhooks.MAX_ATTEMPTS
    [row] = sender.rows()
    assert (row.due_at, row.delivered_at, row.error) == (None, None, "answered 500")


def test_a_private_address_is_never_dialled(settings: Settings, receiver: Receiver) -> None:
    sender = Sender(settings, fetch_allow_networks=())
    sender.cancelled_job(receiver.url)
    sender.deliver()
    assert receiver.deliveries == []
    [row] = sender.rows()
    assert row.error


def test_nothing_is_sent_unsigned(settings: Settings, receiver: Receiver) -> None:
    sender = Sender(settings, webhook_secret=None)
    sender.cancelled_job(receiver.url)
    assert sender.deliver() == 0
    assert receiver.deliveries == []


def test_an_api_with_a_secret_takes_them(settings: Settings) -> None:
    signing = Settings(**{**settings.model_dump(exclude_unset=True), "webhook_secret": SECRET})
    body = {"input": {"kind": "generate", "prompt": "猫"}, "webhook": "https://example.com/hook"}
    with serving(signing) as url:
        assert httpx.post(f"{url}/v1/jobs", json=body).status_code == 202
    with serving(settings) as url:
        refused = httpx.post(f"{url}/v1/jobs", json=body)
    assert refused.status_code == 422
    assert "TUWEN_WEBHOOK_SECRET" in refused.text
