"""Statements of a test's own on the database that the code under test uses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import create_engine, text

from shared.database.connections import driver_url
from shared.settings import Settings

Sql = Callable[..., list[Any]]
"""`sql(statement, **values)`: the rows, none where the statement returns none."""


@contextmanager
def plain_sql(settings: Settings) -> Iterator[Sql]:
    """Each statement is a transaction of its own."""
    engine = create_engine(driver_url(settings.database_url), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:

        def run(statement: str, **values: Any) -> list[Any]:
            result = connection.execute(text(statement), values)
            return list(result) if result.returns_rows else []

        yield run
    engine.dispose()
