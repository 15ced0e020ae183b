"""Connections to PostgreSQL: two pools, translated errors, one round trip per statement, and timeouts everywhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import psycopg
from pydantic import TypeAdapter
from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Executable,
    Row,
    SQLColumnExpression,
    create_engine,
    event,
    func,
    make_url,
)
from sqlalchemy import exc as sqlalchemy_errors

from shared.database.watchdog import PATIENCE, Silent, Watchdog, WatchedConnection, unavailable
from shared.settings import Settings
from tuwen.errors import ConfigurationError, DatabaseUnavailable

# Our own end of a connection: one that breaks silently is noticed in seconds.
_CONNECT: dict[str, Any] = {
    "connect_timeout": PATIENCE,
    "application_name": "tuwen",
    "tcp_user_timeout": 10_000,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 2,
}
# The server's end: otherwise it would hold the locks of a client whose host is gone for hours. A pooler sees to this
# by itself.
_SESSION = {"tcp_keepalives_idle": "10", "tcp_keepalives_interval": "5", "tcp_keepalives_count": "2"}


OLDEST_RELEASE = 15
"""Of PostgreSQL, that the tests run on; nothing here may need a newer one."""

Kept = TypeVar("Kept")
"""A dataclass whose fields are columns."""


@contextmanager
def translate_errors() -> Iterator[None]:
    """Translate errors of PostgreSQL to ours. An invalid statement stays a bug if the schema is current."""
    try:
        yield
    except (sqlalchemy_errors.OperationalError, sqlalchemy_errors.InterfaceError) as error:
        if isinstance(error.orig, Silent):
            raise unavailable() from error
        if isinstance(error.orig, psycopg.errors.DiskFull):
            raise DatabaseUnavailable(
                "The disk with PostgreSQL's data is full, so nothing was written: make room there.", retry_after=30
            ) from error
        if isinstance(error.orig, psycopg.errors.QueryCanceled):
            raise DatabaseUnavailable("PostgreSQL took too long to answer; try again.", retry_after=10) from error
        if complaint := complaint_of_access(error.orig):
            raise DatabaseUnavailable(complaint, retry_after=10) from error
        raise DatabaseUnavailable("PostgreSQL does not answer; try again.", retry_after=2) from error
    except sqlalchemy_errors.TimeoutError as error:
        raise DatabaseUnavailable("All connections to PostgreSQL are busy; try again.", retry_after=1) from error
    except sqlalchemy_errors.DBAPIError as error:
        # A server that is shutting down answers with SQLSTATE class 57P, which may arrive as another class.
        if error.connection_invalidated or isinstance(error.orig, psycopg.OperationalError):
            raise DatabaseUnavailable("PostgreSQL is restarting; try again.", retry_after=2) from error
        if isinstance(error.orig, psycopg.errors.UndefinedTable | psycopg.errors.UndefinedColumn):
            raise DatabaseUnavailable("The database lacks the schema of this version; run: tuwen migrate") from error
        raise


def complaint_of_age(server_version: int) -> str | None:
    """What to say of a server that is too old, by its version as libpq gives it (150004); None for any other."""
    release = server_version // 10_000
    if release >= OLDEST_RELEASE:
        return None
    return f"This is PostgreSQL {release}, and Tuwen needs {OLDEST_RELEASE} or newer: upgrade it, or use another."


_REFUSALS = (
    "authentication failed",
    "certificate",
    "does not exist",
    "no such database",
    "no such user",
    "no password supplied",
    "pg_hba.conf",
    "private key",
    "root.crt",
    "SSL",
    "unsupported startup parameter",
)
"""Words in the complaints of libpq, PostgreSQL and PgBouncer about who connects, and how: no later try succeeds."""


def complaint_of_access(error: BaseException | None) -> str | None:
    """What to say of a connection that was refused for its password, certificate, name or parameters.

    None for any other error: libpq gives such refusals no code, only words.
    """
    if not isinstance(error, psycopg.OperationalError) or error.sqlstate or isinstance(error, Silent):
        return None
    said = " ".join(str(error).removeprefix("connection failed: ").split())
    return f"The connection to PostgreSQL was refused: {said}" if any(word in said for word in _REFUSALS) else None


def require_supported(url: str) -> None:
    """Refuse a server that is too old, or that refuses us, before anything is accepted that could not run.

    One that is away passes: it may come.

    Raises:
        ConfigurationError: it is too old, or the URL's password, certificates or names are wrong.
    """
    try:
        with psycopg.connect(url, connect_timeout=PATIENCE) as connection:
            complaint = complaint_of_age(connection.info.server_version)
    except psycopg.Error as error:
        complaint = complaint_of_access(error)
    if complaint:
        raise ConfigurationError(f"TUWEN_DATABASE_URL: {complaint}")


def is_pooled(connection: psycopg.Connection[Any]) -> bool:
    """Whether a pooler such as PgBouncer stands before PostgreSQL.

    It hands each transaction to any of its own connections. The process that it names at the login is none of
    PostgreSQL's, so it is not the one that answers.
    """
    [[answering]] = connection.execute("SELECT pg_backend_pid()").fetchall()
    return bool(answering != connection.info.backend_pid)


def driver_url(url: str) -> str:
    """The URL `postgresql://…` as people write it, with the driver that this project uses."""
    return make_url(url).set(drivername="postgresql+psycopg").render_as_string(hide_password=False)


def seconds(count: float | SQLColumnExpression[float]) -> ColumnElement[timedelta]:
    """An interval."""
    return func.make_interval(0, 0, 0, 0, 0, 0, count)


class Connections:
    """The connection pools of a process. Thread-safe; make one per process.

    Raises:
        DatabaseUnavailable: from every method, when PostgreSQL cannot be reached.
    """

    def __init__(self, settings: Settings, *, pool_size: int = 8, longest: float | None = None):
        """`longest`: seconds after which PostgreSQL aborts a statement; None means never."""
        self._watchdog = Watchdog(settings.database_url)
        self._engine = self._pool(settings, pool_size, longest=longest)
        # Losing a heartbeat only shortens a lease, so it need not wait for the disk; and another one follows, so it
        # need not check first whether the connection still works.
        self._relaxed = self._pool(settings, pool_size=2, longest=longest, relaxed=True)

    def _pool(self, settings: Settings, pool_size: int, *, longest: float | None, relaxed: bool = False) -> Engine:
        engine = create_engine(
            driver_url(settings.database_url),
            # A transition is one statement, so BEGIN and COMMIT would be two idle round trips.
            isolation_level="AUTOCOMMIT",
            pool_size=pool_size,
            max_overflow=pool_size,
            pool_timeout=10,
            pool_pre_ping=not relaxed,
            connect_args=_CONNECT,
        )
        session = dict(_SESSION)
        if longest is not None:
            session["statement_timeout"] = f"{longest:g}s"
        if relaxed:
            session["synchronous_commit"] = "off"
        settings_of_session = "; ".join(f"SET {name} = '{value}'" for name, value in session.items())

        @event.listens_for(engine, "do_connect")
        def _connect(
            _dialect: object, _record: object, arguments: Sequence[str], options: Mapping[str, Any]
        ) -> WatchedConnection:
            self._watchdog.require_voice()  # it may have fallen silent while this thread waited for the pool
            return self._watchdog.connect(*arguments, **options)

        @event.listens_for(engine, "connect")
        def _set_up(connection: WatchedConnection, _record: object) -> None:
            if complaint := complaint_of_age(connection.info.server_version):
                connection.close()
                raise DatabaseUnavailable(complaint)
            connection.autocommit = True
            if is_pooled(connection):
                # What a session keeps, other clients of the pooler would get: a commit that does not wait for the
                # disk would be theirs. So heartbeats wait too, and this end cancels what takes too long.
                connection.prepare_threshold = None
                connection.longest = longest
            else:
                connection.execute(settings_of_session)

        return engine

    def close(self) -> None:
        self._engine.dispose()
        self._relaxed.dispose()

    @contextmanager
    def connection(self, *, relaxed: bool = False) -> Iterator[Connection]:
        """Check out a connection in autocommit mode; `relaxed` commits do not wait for the disk."""
        self._watchdog.require_voice()
        with translate_errors(), (self._relaxed if relaxed else self._engine).connect() as connection:
            yield connection

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Check out a connection and run the block in one transaction."""
        self._watchdog.require_voice()
        with translate_errors(), self._engine.connect() as connection:
            transactional = connection.execution_options(isolation_level="READ COMMITTED")
            with transactional.begin():
                yield transactional

    def run(
        self, statement: Executable, values: Mapping[str, object] | None = None, *, relaxed: bool = False
    ) -> list[Row[Any]]:
        """Execute one statement and fetch what it returns."""
        with self.connection(relaxed=relaxed) as connection:
            result = connection.execute(statement, values or {})
            return list(result.all()) if result.returns_rows else []

    def fetch(self, kind: type[Kept], statement: Executable, values: Mapping[str, object] | None = None) -> list[Kept]:
        """Execute one statement; the rows it returns as instances of the dataclass `kind`, by the names of its fields.

        Columns that `kind` has no field for are left out.
        """
        return rows_as(kind, self.run(statement, values))


@cache
def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def rows_as(kind: type[Kept], rows: Iterable[Row[Any]]) -> list[Kept]:
    """Rows as instances of the dataclass `kind`, states and other enumerations made of their values."""
    adapter: TypeAdapter[Kept] = _adapter(kind)  # type: ignore[arg-type]  # classes are hashable
    return [adapter.validate_python(dict(row._mapping)) for row in rows]
