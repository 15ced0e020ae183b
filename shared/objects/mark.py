"""Whether the database and the storage belong together: a mark in both, renewed each minute.

A database that was restored from a dump does not name the objects that were stored since the dump, and a trial copy
names none of what the real one goes on to store: a collector of orphans would remove them. So the housekeeper writes a
new random token to both each minute, and nothing is collected unless the storage has the token of the database. Older
dumps and older copies of the bucket have older tokens. Between the two writes the database knows both tokens.
"""

from __future__ import annotations

import logging
from uuid import UUID, uuid4

from shared.database import Database
from shared.objects.storage import ObjectStore
from tuwen.errors import NotFound

log = logging.getLogger(__name__)

KEY = "tuwen-mark.txt"
INTERVAL = 60.0
"""Seconds between renewals: as far apart as a dump and a copy of the bucket may be and still pass for one."""

ADVICE = "run `tuwen verify`, and when the right ones are restored, `tuwen verify --accept`"


class StorageMark:
    """The mark of one database and one storage."""

    def __init__(self, database: Database, store: ObjectStore):
        self._marks = database.storage_marks
        self._store = store

    def agrees(self) -> bool:
        """Whether the storage is the one that this database was last used with, and the database no older copy.

        Raises:
            StorageUnavailable, DatabaseUnavailable
        """
        # Asked before and after, since another process may be renewing it just now.
        before = self._marks.read()
        stored = self._stored()
        after = self._marks.read()
        if stored is None:
            return before.token is None
        return stored in (before.token, before.pending, after.token, after.pending)

    def renew(self) -> bool:
        """Write a new token to both where they agree. Returns whether they do."""
        with self._marks.turn() as mine:
            if not self.agrees():
                log.warning("database and storage do not belong together, nothing is collected: %s", ADVICE)
                return False
            if mine:
                self._write()
        return True

    def accept(self) -> None:
        """Declare that they belong together from now on."""
        with self._marks.turn():
            self._write()

    def _write(self) -> None:
        token = uuid4()
        self._marks.announce(token)
        self._store.put(KEY, str(token).encode(), "text/plain")
        self._marks.settle(token)

    def _stored(self) -> UUID | None:
        try:
            return UUID(self._store.get(KEY).decode())
        except NotFound:
            return None
        except ValueError:  # not ours
            return UUID(int=0)
