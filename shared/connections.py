"""Connections to PostgreSQL: two pools, foreign errors translated, one statement a round trip."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import psycopg
from sqlalchemy import ColumnElement, Connection, CursorResult, Engine, create_engine, event, func, make_url
from sqlalchemy import exc as sqlalchemy_errors

from shared.errors import DatabaseUnavailable
from shared.settings import Settings


@contextmanager
def translated() -> Iterator[None]:
    """Foreign errors become ours here and nowhere else; a broken statement stays a bug, if the schema is ours."""
    try:
        yield
    except (sqlalchemy_errors.OperationalError, sqlalchemy_errors.InterfaceError) as error:
        raise DatabaseUnavailable("PostgreSQL does not answer; try again.", retry_after=2) from error
    except sqlalchemy_errors.TimeoutError as error:
        raise DatabaseUnavailable("All connections to PostgreSQL are busy; try again.", retry_after=1) from error
    except sqlalchemy_errors.DBAPIError as error:
        # A server that is going down answers with SQLSTATE class 57P, which psycopg files elsewhere.
        if error.connection_invalidated or isinstance(error.orig, psycopg.OperationalError):
            raise DatabaseUnavailable("PostgreSQL is restarting; try again.", retry_after=2) from error
        if isinstance(error.orig, psycopg.errors.UndefinedTable | psycopg.errors.UndefinedColumn):
            raise DatabaseUnavailable("The database has not the schema of this version; run: tuwen migrate") from error
        raise


def driver_url(url: str) -> str:
    """`postgresql://…` as people write it, with the driver that this project uses."""
    return make_url(url).set(drivername="postgresql+psycopg").render_as_string(hide_password=False)


def seconds(count: float) -> ColumnElement[Any]:
    """An interval."""
    return func.make_interval(0, 0, 0, 0, 0, 0, count)


class Connections:
    """Thread-safe; make one per process.

    Raises:
        DatabaseUnavailable: from every method, when PostgreSQL cannot be reached.
    """

    def __init__(self, settings: Settings, *, pool_size: int = 8):
        self._engine = _engine(settings, pool_size)
        # Losing a heartbeat only shortens a lease, so it need not wait for the disk; and another one follows, so it
        # need not ask first whether the connection still stands.
        self._relaxed = _engine(settings, pool_size=2, ask_first=False)

        @event.listens_for(self._relaxed, "connect")
        def _do_not_wait_for_the_disk(connection: psycopg.Connection[Any], _record: object) -> None:
            connection.autocommit = True
            connection.execute("SET synchronous_commit = off")

    def close(self) -> None:
        self._engine.dispose()
        self._relaxed.dispose()

    @contextmanager
    def connection(self, *, relaxed: bool = False) -> Iterator[Connection]:
        with translated(), (self._relaxed if relaxed else self._engine).connect() as connection:
            yield connection

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        with translated(), self._engine.connect() as connection:
            transactional = connection.execution_options(isolation_level="READ COMMITTED")
            with transactional.begin():
                yield transactional

    def run(self, statement: Any, values: Mapping[str, Any] | None = None, *, relaxed: bool = False) -> list[Any]:
        """Execute one statement and fetch what it returns."""
        with self.connection(relaxed=relaxed) as connection:
            result: CursorResult[Any] = connection.execute(statement, values or {})
            return list(result.all()) if result.returns_rows else []


def _engine(settings: Settings, pool_size: int, *, ask_first: bool = True) -> Engine:
    return create_engine(
        driver_url(settings.database_url),
        # A transition is one statement, so BEGIN and COMMIT would be two idle round trips.
        isolation_level="AUTOCOMMIT",
        pool_size=pool_size,
        max_overflow=pool_size,
        pool_timeout=10,
        pool_pre_ping=ask_first,
        connect_args={"connect_timeout": 3, "application_name": "tuwen", "tcp_user_timeout": 10_000},
    )
