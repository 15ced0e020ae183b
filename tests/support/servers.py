"""The embedded servers as tests need them: quick, and with a corner for each test."""

from __future__ import annotations

from pathlib import Path

import psycopg
from psycopg import sql

from api.embedded import servers
from tests.support import programs

DATABASES = 64
"""Numbered databases of a Valkey."""


class Valkey(servers.Valkey):
    """Also starts another server that is compatible, when its `executable` is given."""

    def __init__(self, folder: Path, port: int = 0, *, log: Path | None = None, executable: Path | None = None):
        super().__init__(folder, port, log=log)
        self._executable = executable

    @property
    def executable(self) -> Path:
        return self._executable or super().executable

    def _options(self) -> dict[str, object]:
        return super()._options() | {"databases": DATABASES, "appendfsync": "no"}


class Postgres(servers.Postgres):
    """Survives the kills of a test, since the operating system has what was written; not those of the machine."""

    def _options(self) -> dict[str, object]:
        return super()._options() | {"fsync": "off", "full_page_writes": "off"}

    def create_database(self, name: str, *, template: str) -> str:
        """Clone `template`, to which nobody may be connected; returns the URL."""
        statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template))
        with psycopg.connect(self.database_url("postgres"), autocommit=True) as connection:
            connection.execute(statement)
        return self.database_url(name)

    def drop_database(self, name: str) -> None:
        """Drop it although somebody may still be connected."""
        with psycopg.connect(self.database_url("postgres"), autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


class DebianPostgres(Postgres):
    """Of an older release, from Debian's package."""

    def _binary(self, name: str) -> Path:
        return Path(programs.path("postgresql")).with_name(name)

    def _locale_options(self) -> list[str]:
        return ["--locale=C.UTF-8"]

    def _options(self) -> dict[str, object]:
        return {name: value for name, value in super()._options().items() if name != "io_method"}
