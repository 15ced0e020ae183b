"""A real API on a real port, and a worker that does one thing at a time."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from shared.database import Database
from shared.settings import Settings
from tests.integration.api_server import FakeWorker, serving
from tests.plain_sql import Sql, plain_sql


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    """As the API and workers use it."""
    database = Database(settings)
    yield database
    database.close()


@pytest.fixture
def api(settings: Settings) -> Iterator[httpx.Client]:
    """An HTTP client of an open API."""
    with serving(settings) as url, httpx.Client(base_url=url, timeout=30) as client:
        yield client


@pytest.fixture
def hand(settings: Settings) -> Iterator[FakeWorker]:
    """The worker's side of jobs, told step by step."""
    worker = FakeWorker(settings)
    yield worker
    worker.close()


@pytest.fixture
def sql(settings: Settings) -> Iterator[Sql]:
    """Plain SQL, to turn clocks and to look behind the curtain."""
    with plain_sql(settings) as run:
        yield run
