"""What is attacked, and how attacks are counted."""

from __future__ import annotations

import random
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil

from shared.settings import Settings
from tests.support.system import System
from tests.support.waiting import PATIENT

CLOSED = "closed"
"""A connection that ended without an answer."""


@dataclass
class Target:
    """A running API with keys of two tenants, and the system behind it."""

    url: str
    process: psutil.Process
    system: System
    settings: Settings
    key: str
    other_key: str
    folder: Path
    dice: random.Random
    seconds: float
    """How long a kind may go on that could go on forever."""

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        parts = urlsplit(self.url)
        return parts.hostname or "", parts.port or 0

    def client(self, key: str | None = None, **options: Any) -> httpx.Client:
        """A client of the first tenant, or with another key."""
        headers = {"Authorization": f"Bearer {key or self.key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=PATIENT, **options)

    def connect(self, timeout: float = 20) -> socket.socket:
        """A new connection, without TLS or anything else."""
        return socket.create_connection(self.address, timeout=timeout)

    def memory(self) -> int:
        """Bytes that the process holds."""
        return int(self.process.memory_info().rss)

    def document(self) -> dict[str, Any]:
        """The OpenAPI document."""
        found: dict[str, Any] = self.client().get("/openapi.json").raise_for_status().json()
        return found


@dataclass
class Tally:
    """What became of the requests of one kind."""

    requests: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    """Number of answers by their class (`4xx`), and of connections that were closed instead."""
    findings: list[str] = field(default_factory=list)

    def count(self, status: int | None, request: object, allowed: Iterable[int] = ()) -> None:
        """Count an answer, or None for a closed connection; an answer 5xx is a finding."""
        self.requests += 1
        self.answers[CLOSED if status is None else f"{status // 100}xx"] += 1
        if status is not None and status >= 500 and status not in allowed:
            self.find(f"answered {status}: {request!r:.300}")

    def find(self, what: str) -> None:
        """Note a finding."""
        self.findings.append(what)


Attack = Callable[[Target, Tally], None]


def statuses(received: bytes) -> list[int]:
    """The status of each answer in what a connection received."""
    lines = [line for line in received.split(b"\n") if line.startswith(b"HTTP/1.1 ")]
    return [int(line.split()[1]) for line in lines]


def exchange(target: Target, sent: bytes, patience: float = 3.0) -> bytes:
    """Send bytes over a connection of their own, and return what comes back until it ends or is quiet for `patience`
    seconds."""
    received = b""
    with target.connect(patience) as connection, suppress(OSError):
        with suppress(ConnectionError):  # refused while it was being sent; the answer may be there
            connection.sendall(sent)
        while data := connection.recv(65536):
            received += data
    return received


def is_alive(target: Target, patience: float = 30.0) -> bool:
    """Whether the API answers within `patience` seconds, and can do what it is for: accept a job."""
    deadline = time.monotonic() + patience
    body = {"input": {"kind": "generate", "prompt": "a cat"}}
    while time.monotonic() < deadline:
        with suppress(httpx.HTTPError), target.client() as client:
            if client.get("/readyz").is_success and client.post("/v1/jobs", json=body).status_code == 202:
                return True
        time.sleep(0.5)
    return False
