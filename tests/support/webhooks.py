"""A receiver of webhooks, and a housekeeper's sender of them, for tests."""

from __future__ import annotations

import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import UUID

from pydantic import SecretStr
from sqlalchemy import create_engine, text
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from shared.database import Database
from shared.database.connections import driver_url
from shared.intake.fetch import Fetcher
from shared.settings import Settings
from tests.support.waiting import eventually
from tuwen.jobs import JobRequest
from workers.housekeeper.webhooks import WebhookSender

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


class Receiver:
    """Keeps what it is sent; answers with `status`, or not at all as long as it `hangs`."""

    def __init__(self) -> None:
        self.status = 204
        self.hangs = False
        self.deliveries: list[tuple[dict[str, str], bytes]] = []
        self._released = threading.Event()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.deliveries.append(({k.lower(): v for k, v in self.headers.items()}, body))
                if receiver.hangs:
                    receiver._released.wait()
                    return
                self.send_response(receiver.status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None: ...

        class Server(ThreadingHTTPServer):
            request_queue_size = 128  # of socketserver's 5, many deliveries at once lose some

        self._server = Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.host = f"127.0.0.1:{self._server.server_port}"
        self.url = f"http://{self.host}/hook"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._released.set()
        self._server.shutdown()
        self._server.server_close()


class Sender:
    def __init__(self, settings: Settings, **changed: Any):
        allowed = {"webhook_secret": SecretStr(SECRET), "fetch_allow_networks": ("127.0.0.0/8",), **changed}
        self.settings = settings.model_copy(update=allowed)
        self.database = Database(self.settings)
        self.webhooks = WebhookSender(self.settings, self.database, Fetcher(self.settings))
        self._engine = create_engine(driver_url(settings.database_url), isolation_level="AUTOCOMMIT")

    def cancelled_job(self, url: str) -> UUID:
        return self.cancelled_jobs(url, 1)[0]

    def cancelled_jobs(self, url: str, count: int) -> list[UUID]:
        request = JobRequest.model_validate({"input": {"kind": "generate", "prompt": "猫"}, "webhook": url})
        ids = self.database.jobs.submit([request] * count, tenant="t").ids
        for id in ids:
            self.database.jobs.cancel(id, "t")
        return ids

    def deliver(self) -> int:
        """Deliver what is due, to the end."""
        count = 0
        while more := self.webhooks.deliver():
            count += more
        eventually(lambda: not self.webhooks._hosts.in_flight)
        return count

    def rows(self) -> list[Any]:
        with self._engine.connect() as connection:
            return list(connection.execute(text("SELECT * FROM webhooks")))

    def age_everything(self, seconds: float) -> None:
        with self._engine.connect() as connection:
            older = text("UPDATE webhooks SET owed_at = owed_at - :by * interval '1 second'")
            connection.execute(older, {"by": seconds})

    def wait_out_the_backoff(self) -> None:
        with self._engine.connect() as connection:
            connection.execute(text("UPDATE webhooks SET due_at = now() WHERE due_at IS NOT NULL"))


class KeyedSender(Sender):
    """With keys that have secrets of their own, whose jobs have ended."""

    def key(self, name: str, secret: str | None) -> UUID:
        given = SecretStr(secret) if secret else None
        return self.database.keys.add(name=name, tenant="t", sha256=name * 8, quota=5, webhook_secret=given)

    def cancelled_job_of(self, key: UUID, url: str) -> UUID:
        request = JobRequest.model_validate({"input": {"kind": "generate", "prompt": "猫"}, "webhook": url})
        [id] = self.database.jobs.submit([request], tenant="t", key_id=key).ids
        self.database.jobs.cancel(id, "t")
        return id


def signers(receiver: Receiver, *secrets: str) -> dict[str, set[str]]:
    """Job → those of these secrets that a receiver can verify its delivery with."""
    found: dict[str, set[str]] = {}
    for headers, body in receiver.deliveries:
        for secret in secrets:
            with suppress(WebhookVerificationError):
                found.setdefault(Webhook(secret).verify(body, headers)["data"]["id"], set()).add(secret)
    return found
