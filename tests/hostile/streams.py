"""Event streams that are opened by the hundred, never read, and dropped."""

from __future__ import annotations

import time
from contextlib import ExitStack

from tests.hostile.target import Tally, Target, is_alive

_STREAMS = 300


def abuse(target: Target, tally: Tally) -> None:
    """Open streams of jobs that nobody reads, drop them, and ask for streams of nothing."""
    with target.client() as client:
        # A deadline, so that it also ends where no worker takes it.
        body = {"input": {"kind": "generate", "prompt": "sleep 20"}, "deadline": 60}
        job = client.post("/v1/jobs", json=body).raise_for_status().json()["id"]
        before = target.process.num_fds()
        with ExitStack() as stack:
            for number in range(_STREAMS):
                connection = stack.enter_context(target.connect())
                head = (
                    f"GET /v1/jobs/{job}/events HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {target.key}\r\n"
                    f"Last-Event-ID: {chr(33 + number % 90) * (number % 50)}\r\n\r\n"
                )
                connection.sendall(head.encode())
                if number % 3:
                    connection.recv(10)
                tally.count(200, "a stream")
            if not is_alive(target):
                tally.find(f"no answer beside {_STREAMS} streams")
        for _ in range(200):
            chat = b'{"prompt": "sleep 5", "stream": true}'
            with target.connect() as connection:
                head = (
                    f"POST /v1/images/generations HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {target.key}\r\n"
                    f"Content-Type: application/json\r\nContent-Length: {len(chat)}\r\n\r\n"
                )
                connection.sendall(head.encode() + chat)
            tally.count(None, "a stream that is dropped at once")
        for path in ("none", "0" * 36, job.upper(), f"{job}%00", f"{job}/events"):
            with client.stream("GET", f"/v1/jobs/{path}/events") as answer:
                tally.count(answer.status_code, path)
        _await_closed(target, tally, before)
        left = [each for each in client.get("/v1/jobs?limit=200").json()["jobs"] if each["status"] == "running"]
        for each in left:
            client.post(f"/v1/jobs/{each['id']}/cancel")


def _await_closed(target: Target, tally: Tally, before: int) -> None:
    """Dropped streams are noticed: their connections do not stay."""
    deadline = time.monotonic() + 60
    while (now := target.process.num_fds()) > before + 20:
        if time.monotonic() > deadline:
            tally.find(f"{now - before} more files are open 60 s after all streams were dropped")
            return
        time.sleep(0.5)
