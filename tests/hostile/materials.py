"""What requests have to name to be accepted: images, a file of a batch, folders for data sets."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Self

import httpx

from tests.support.api_server import png
from tests.support.waiting import PATIENT

BATCH = b'{"custom_id": "1", "method": "POST", "url": "/v1/images/generations", "body": {"prompt": "a cat"}}\n'
"""The requests of a batch."""
_VARIABLE = "HOSTILE_MATERIALS"


@dataclass(frozen=True)
class Materials:
    """Names of what exists; texts only, so that another process can be told."""

    file_id: str
    image_url: str
    batch_file_id: str
    source: str
    """Folder with two images."""
    destinations: str
    """Folder in which data sets may be exported, each into a folder of its own."""

    def as_environment(self) -> dict[str, str]:
        """Environment variables that tell another process."""
        return {_VARIABLE: json.dumps(asdict(self))}

    @classmethod
    def from_environment(cls) -> Self:
        """What `as_environment` told."""
        return cls(**json.loads(os.environ[_VARIABLE]))


@contextmanager
def materials(url: str, folder: Path, key: str | None = None, host: str = "127.0.0.1") -> Iterator[Materials]:
    """Make them in the installation at `url`, below `folder`; a server on `host` offers an image meanwhile."""
    source, destinations = folder / "pictures", folder / "exports"
    for each in (source, destinations):
        each.mkdir()
    for colour in ("red", "blue"):
        (source / f"{colour}.png").write_bytes(png(colour))
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with httpx.Client(base_url=url, headers=headers, timeout=PATIENT) as client, _web_server(source, host) as web:
        image = client.post("/v1/files", content=png()).raise_for_status().json()["id"]
        sent = {"data": {"purpose": "batch"}, "files": {"file": ("batch.jsonl", BATCH)}}
        batch = client.post("/v1/files", **sent).raise_for_status().json()["id"]  # type: ignore[arg-type]
        yield Materials(image, f"{web}/red.png", batch, str(source), str(destinations))


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def _web_server(folder: Path, host: str) -> Iterator[str]:
    """The URL of a server of the files in `folder`."""
    with ThreadingHTTPServer((host, 0), partial(_Quiet, directory=str(folder))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://{host}:{server.server_address[1]}"
        server.shutdown()
