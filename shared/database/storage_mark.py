"""The database's half of the mark that it shares with the storage; see shared/objects/mark.py."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import func, select, update

from shared.database.connections import Connections
from shared.database.tables import StorageMarkRow

MARK_LOCK = 0x7475_7765_6E03
"""Advisory lock of the process that renews the mark."""


@dataclass(frozen=True, slots=True)
class Mark:
    """What the database has of it."""

    token: UUID | None
    """None until a housekeeper has marked the storage for the first time."""
    pending: UUID | None
    """Token that was being written to the storage, and may have arrived."""
    marked_at: datetime | None


class StorageMarks:
    """The one row of the mark."""

    def __init__(self, connections: Connections):
        self._connections = connections

    @contextmanager
    def turn(self) -> Iterator[bool]:
        """Whether no other process renews the mark during the block."""
        with self._connections.transaction() as connection:
            yield connection.execute(select(func.pg_try_advisory_xact_lock(MARK_LOCK))).scalar_one()

    def read(self) -> Mark:
        """The mark as it is now."""
        columns = (StorageMarkRow.token, StorageMarkRow.pending, StorageMarkRow.marked_at)
        return self._connections.fetch(Mark, select(*columns))[0]

    def announce(self, token: UUID) -> None:
        """Note the token that is about to be written to the storage."""
        self._connections.run(update(StorageMarkRow).values(pending=token))

    def settle(self, token: UUID) -> None:
        """Note that the storage has this token."""
        self._connections.run(update(StorageMarkRow).values(token=token, pending=None, marked_at=func.now()))
