"""Removing stored objects that no row names: whoever stored them died before the row was written.

A search goes through the whole storage, but looks at `AT_ONCE` objects at most in one go, and the next one goes on
where it stopped: a bucket of ten million objects takes a day, and no hour of that does it keep anybody busy.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import chain, islice

from shared.database import Database
from shared.errors import NotFound
from shared.queue import JobQueue
from shared.settings import Settings
from shared.storage import ObjectStore, StoredObject

log = logging.getLogger(__name__)

AT_ONCE = 500_000
"""Objects: a few minutes of listing, of which there is one go an hour."""
PAGE = 1000
"""Objects asked about with one statement."""

Unreferenced = Callable[[Sequence[str]], list[str]]
"""Those of some keys that no row names."""


class Collector:
    def __init__(self, settings: Settings, database: Database, queue: JobQueue, store: ObjectStore):
        self._age = timedelta(seconds=settings.orphan_age)
        self._queue = queue
        self._store = store
        self._folders: dict[str, Unreferenced] = {
            "datasets": database.shards.unreferenced,
            "documents": database.unreferenced,
            "files": database.unreferenced,
            "results": database.unreferenced,
        }
        """In the order in which they are gone through."""

    def collect(self) -> None:
        """Look on from where the last search stopped; after the end of the storage, the next begins anew.

        Raises:
            QueueUnavailable, StorageUnavailable, DatabaseUnavailable: what was done until then is done.
        """
        before = datetime.now(UTC) - self._age
        last = self._queue.collected()
        stored = chain.from_iterable(self._store.walk(folder, last) for folder in self._folders_from(last))
        for _ in range(AT_ONCE // PAGE):
            page = list(islice(stored, PAGE))
            self._remove_orphans([each for each in page if each.last_modified < before], before)
            self._queue.note_collected(page[-1].key if page else "")
            if not page:
                return

    def _folders_from(self, last: str) -> list[str]:
        return [folder for folder in self._folders if folder >= last.partition("/")[0]]

    def _remove_orphans(self, old: Sequence[StoredObject], before: datetime) -> None:
        for folder, unreferenced in self._folders.items():
            keys = [each.key for each in old if each.key.startswith(f"{folder}/")]
            for key in unreferenced(keys) if keys else ():
                # Looked at once more: the same picture may have been stored again since it was listed.
                with suppress(NotFound):
                    if self._store.head(key).last_modified < before:
                        log.info("collecting %s", key)
                        self._store.delete(key)
