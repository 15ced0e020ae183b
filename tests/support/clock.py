"""PostgreSQL's clock, to be set by a test.

Nobody may set the clock of the machine that runs the tests. So `now()`, by which every statement and every default of
a column takes the time, is a function of the test's in its own database, found before PostgreSQL's own.
"""

from __future__ import annotations

from typing import Any

import psycopg


class FakeClock:
    """The clock of one database; it must be made before anybody connects."""

    def __init__(self, url: str):
        self._url = url
        self._do("CREATE SCHEMA fake")
        self._do("CREATE TABLE fake.hands AS SELECT interval '0' AS ahead")
        self._do("""
            CREATE FUNCTION fake.now() RETURNS timestamptz STABLE LANGUAGE sql
            AS 'SELECT pg_catalog.now() + ahead FROM fake.hands'
        """)
        # Defaults were bound to PostgreSQL's own function when the tables were made.
        for table, column in self._do("""
            SELECT table_name, column_name FROM information_schema.columns
            WHERE table_schema = 'public' AND column_default = 'now()'
        """):
            self._do(f"ALTER TABLE {table} ALTER COLUMN {column} SET DEFAULT fake.now()")
        [(name,)] = self._do("SELECT current_database()")
        self._do(f"ALTER DATABASE {name} SET search_path = fake, pg_catalog, public")

    def set(self, ahead: float) -> None:
        """Set the clock `ahead` seconds ahead of the true time."""
        self._do(f"UPDATE fake.hands SET ahead = interval '{ahead} seconds'")

    def _do(self, statement: str) -> list[Any]:
        # A connection for each: PostgreSQL may be killed and started again in between.
        with psycopg.connect(self._url, autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []
