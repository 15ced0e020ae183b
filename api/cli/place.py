"""The Tuwen that a command talks to: named by the options before the command, the environment, or running here."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import typer

from api.embedded.addresses import Addresses
from api.embedded.processes import forget_libpq_variables
from shared.settings import Settings
from tuwen.client import Client
from tuwen.errors import Unavailable

if TYPE_CHECKING:
    from shared.database import Database

DEFAULT_URL = "http://127.0.0.1:8000"


class Place:
    """The addresses at which a command finds the API, or the servers of the system."""

    def __init__(self, url: str | None, api_key: str | None, data: Path | None):
        self._api_key = api_key
        self.data = data or Settings().data_dir
        self.system = Addresses.read(self.data)
        """The embedded system that runs on this data folder; None when none runs."""
        self.url = url or (self.system.url if self.system else DEFAULT_URL)
        if self.system and "TUWEN_DATABASE_URL" not in os.environ:
            forget_libpq_variables()

    def client(self) -> Client:
        """A client of the API; use it in a `with` block.

        Raises:
            Unavailable: no URL is configured, no system runs here, and nothing answers at the default address.
        """
        if self.url == DEFAULT_URL and not self.system:
            # Checked first, so that a user who has not started Tuwen yet need not wait for the client's retries.
            _probe(self.url)
        return Client(self.url, self._api_key)

    def environment(self) -> dict[str, str]:
        """The environment of this process, with the variables that join the embedded system when it runs."""
        return (self.system.environment if self.system else {}) | dict(os.environ)

    def settings(self) -> Settings:
        """Settings for commands that use the database, Redis or storage directly."""
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
    """The place that the options before the command describe."""
    found: Place = context.obj
    return found


@contextmanager
def open_database(context: typer.Context) -> Iterator[Database]:
    """The database of that place, for administrators who can reach it."""
    # Imported here: SQLAlchemy would slow down the start of commands that only speak HTTP.
    from shared.database import Database

    database = Database(place(context).settings(), pool_size=1)
    try:
        yield database
    finally:
        database.close()
