"""Where a command finds Tuwen: the options before the command, the environment, or the system running here."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from urllib.parse import urlsplit

import typer

from api.embedded.addresses import Addresses
from shared.settings import Settings
from tuwen.client import Client
from tuwen.errors import Unavailable

DEFAULT_URL = "http://127.0.0.1:8000"


class Place:
    def __init__(self, url: str | None, api_key: str | None, data: Path | None):
        self._api_key = api_key
        self.data = data or Settings().data_dir
        self.system = Addresses.of(self.data)
        """The embedded system on this data folder, when it runs."""
        self.url = url or (self.system.url if self.system else DEFAULT_URL)

    def client(self) -> Client:
        """One that speaks to the API; keep it in a `with` block.

        Raises:
            Unavailable: nothing is known to run, and nothing answers where it would by default.
        """
        if self.url == DEFAULT_URL and not self.system:
            # Told at once: somebody who has not started it yet need not wait for the client's attempts.
            _probe(self.url)
        return Client(self.url, self._api_key)

    def environment(self) -> dict[str, str]:
        """That of this process, completed by what joins the embedded system, when it runs."""
        return (self.system.environment if self.system else {}) | dict(os.environ)

    def settings(self) -> Settings:
        """For commands that go to the database, Redis or storage themselves."""
        os.environ.update(self.environment())
        return Settings(data_dir=self.data)


def _probe(url: str) -> None:
    address = urlsplit(url)
    try:
        socket.create_connection((address.hostname, address.port), timeout=2).close()
    except OSError as error:
        raise Unavailable(
            f"nothing answers at {url}: start Tuwen with `tuwen up`, or say where it is with --url or TUWEN_URL"
        ) from error


def place(context: typer.Context) -> Place:
    found: Place = context.obj
    return found
