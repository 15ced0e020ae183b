"""The database as one object: what is known of jobs, data sets, shards, batches, keys, files and webhooks, by name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import func, select

from shared.database.batches import Batches, Documents
from shared.database.clock import Clock
from shared.database.connections import Connections
from shared.database.dataset_places import DatasetPlaces
from shared.database.datasets import Datasets
from shared.database.files import Files
from shared.database.jobs import Jobs
from shared.database.keys import Keys
from shared.database.secrets import Secrets
from shared.database.shards import Shards
from shared.database.tables import JobRow
from shared.database.usage import Usage
from shared.database.webhooks import Webhooks
from shared.database.workers import Workers
from shared.settings import Settings

HOUSEKEEPING_LOCK = 0x7475_7765_6E01
"""Advisory lock of the leading housekeeper."""


class Database:
    """Connections to PostgreSQL and every state transition. Thread-safe; make one per process.

    Raises:
        DatabaseUnavailable: from every method of every part, when PostgreSQL cannot be reached.
    """

    def __init__(self, settings: Settings, *, pool_size: int = 8, longest: float | None = None):
        """`longest`: seconds after which PostgreSQL aborts a statement; None means never."""
        self._connections = Connections(settings, pool_size=pool_size, longest=longest)
        self.workers = Workers(self._connections, settings)
        self.jobs = Jobs(self._connections, self.workers, settings)
        self.datasets = Datasets(self._connections, settings)
        self.dataset_places = DatasetPlaces(self._connections)
        self.shards = Shards(self._connections, settings)
        self.batches = Batches(self._connections)
        self.documents = Documents(self._connections)
        self.files = Files(self._connections)
        self.keys = Keys(self._connections)
        self.usage = Usage(self._connections)
        self.secrets = Secrets(self._connections)
        self.webhooks = Webhooks(self._connections)
        self.clock = Clock(self._connections, settings)

    def close(self) -> None:
        """Close all connections."""
        self._connections.close()

    def check(self) -> None:
        """Check readiness: PostgreSQL answers and the schema exists."""
        self._connections.run(select(JobRow.id).limit(1))

    @contextmanager
    def lead(self) -> Iterator[bool]:
        """Try to become the leading housekeeper until the block ends or the process dies; yields success."""
        with self._connections.transaction() as connection:
            yield connection.execute(select(func.pg_try_advisory_xact_lock(HOUSEKEEPING_LOCK))).scalar_one()
