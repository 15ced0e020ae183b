"""The tests of the database run on the embedded release of PostgreSQL, and on Debian's, which is older."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shared.migrations import migrate
from tests.support.servers import DebianPostgres, Postgres


@pytest.fixture(scope="session", params=["embedded", pytest.param("debian", marks=pytest.mark.needs("postgresql"))])
def postgres(
    request: pytest.FixtureRequest, postgres: Postgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Postgres]:
    if request.param == "embedded":
        yield postgres
        return
    with DebianPostgres(tmp_path_factory.mktemp("postgresql")) as server:
        yield server


@pytest.fixture(scope="session")
def template(postgres: Postgres) -> str:
    """Name of a migrated database on that server, to be cloned."""
    migrate(postgres.url)
    return "tuwen"
