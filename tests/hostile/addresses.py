"""Addresses that lead inside (SSRF), as images and as webhooks: a server that listens there is never called."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import StreamRequestHandler, ThreadingTCPServer
from threading import Thread
from typing import Any

import httpx

from tests.hostile.target import Tally, Target
from tests.shared.intake.test_addresses import FORBIDDEN_HOSTS, FORBIDDEN_URLS

_WEBHOOKS = 5.0
"""Seconds within which webhooks are tried for the first time."""
ALLOWED = "127.0.0.9"
"""The only address of this machine that the installation may fetch from: there stands a server that redirects."""


def lead_inside(target: Target, tally: Tally) -> None:
    """Every spelling of a forbidden address, directly and by a redirect."""
    with _watched_server() as (port, called), _redirecting_server() as redirect, target.client() as client:
        forbidden = [f"http://{host}:{port}/" for host in FORBIDDEN_HOSTS]
        # Names are resolved where the image is fetched.
        names = [f"http://{name}:{port}/" for name in (socket.gethostname(), socket.getfqdn(), "ip6-localhost")]
        followed = [*names, *(f"{redirect}?{httpx.QueryParams({'to': url})}" for url in (*forbidden, *names))]
        jobs = {}
        for url in (*forbidden, *FORBIDDEN_URLS, *followed):
            for path, body in _requests(url):
                try:
                    answer = client.post(path, json=body)
                except UnicodeEncodeError:
                    continue  # no JSON can say this
                tally.count(answer.status_code, url)
                if answer.status_code < 300 and url not in followed:
                    tally.find(f"{url!r} was accepted by {path}")
                elif answer.status_code < 300:
                    jobs[answer.json()["id"]] = body
        if not jobs:
            tally.find("no address that leads on was accepted, so none was followed")
        for job, body in jobs.items():
            answer = client.get(f"/v1/jobs/{job}", headers={"Prefer": "wait=30"})
            tally.count(answer.status_code, body)
            ended = answer.json()["status"]
            if ended != ("failed" if "image" in body["input"] else "succeeded"):
                tally.find(f"a job ended as {ended}: {body}")
        time.sleep(_WEBHOOKS)
        for call in called:
            tally.find(f"a server inside was called {call}")


def _requests(url: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Paths and bodies of requests that name the address."""
    yield "/v1/jobs", {"input": {"kind": "recognize", "image": {"url": url}}, "max_attempts": 1}
    yield "/v1/jobs", {"input": {"kind": "generate", "prompt": "a cat"}, "webhook": url}
    if "?" not in url:  # it would wait until its job has failed
        content = [{"type": "image_url", "image_url": {"url": url}}]
        yield "/v1/chat/completions", {"messages": [{"role": "user", "content": content}]}


@contextmanager
def _watched_server() -> Iterator[tuple[int, list[str]]]:
    """The port of a server on all addresses of this machine but one, and what it was asked for."""
    called: list[str] = []

    class Watch(StreamRequestHandler):
        def handle(self) -> None:
            called.append(f"by {self.client_address}: {self.rfile.readline(100)!r}")

    class Dual(ThreadingTCPServer):
        address_family = socket.AF_INET6

    with Dual(("::", 0), Watch) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1], called
        server.shutdown()


@contextmanager
def _redirecting_server() -> Iterator[str]:
    """The URL of a server that redirects to the address in its query."""

    class Redirect(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            to = httpx.URL(self.path).params.get("to", "")
            self.send_response(302)
            self.send_header("Location", to.encode("latin-1", "replace").decode("latin-1"))
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer((ALLOWED, 0), Redirect) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://{ALLOWED}:{server.server_address[1]}/"
        server.shutdown()
