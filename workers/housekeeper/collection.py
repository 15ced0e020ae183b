"""Removal of stored objects that no row names: their writer died before it wrote the row, or the row was deleted.

The bucket may hold other things: only keys of the forms that this project makes are looked at. A search goes through
the whole storage. Each run looks at `AT_ONCE` objects at most, and the next one continues where it stopped: a bucket of
ten million objects takes a day, a few minutes of each hour.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import chain, islice

from shared.database import Database
from shared.objects.removal import Unreferenced, remove_if_old
from shared.objects.storage import ObjectStore
from shared.queue import JobQueue
from shared.settings import Settings

log = logging.getLogger(__name__)

AT_ONCE = 500_000
"""Most objects that one hourly run looks at: listing them takes a few minutes."""
PAGE = 1000
"""Objects that one statement asks about."""

_UUID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
OURS = {
    "batches": r"batches/[0-9a-f]{32}/(output|errors)-[0-9]+\.jsonl",
    "datasets": rf"datasets/{_UUID}/([0-9]{{8}}/(plan|results)-[0-9]+\.jsonl|previews/[0-9]+\.jpg)",
    "documents": r"documents/[^/]+/[0-9a-f]{32}\.jsonl",
    "files": r"files/[^/]+/[0-9a-f]{2}/[0-9a-f]{64}",
    "results": r"results/[0-9a-f]{2}/[0-9a-f]{64}\.png",
}
"""Folders in the order of the search, each with the pattern of its keys."""


class Collector:
    """Removes orphaned objects from the storage, part by part."""

    def __init__(self, settings: Settings, database: Database, queue: JobQueue, store: ObjectStore):
        self._age = timedelta(seconds=settings.orphan_age)
        self._queue = queue
        self._store = store
        self._unreferenced: dict[str, Unreferenced] = dict.fromkeys(OURS, database.jobs.unreferenced)
        self._unreferenced["datasets"] = database.shards.unreferenced
        self._unreferenced["batches"] = database.batches.unreferenced
        self._stopping = threading.Event()

    def stop(self) -> None:
        """Stop soon, because this process is about to end; another one continues."""
        self._stopping.set()

    def collect(self) -> int:
        """Continue where the last search stopped; after the end of the storage, the next call starts again.

        Returns how many objects were removed.

        Raises:
            QueueUnavailable, StorageUnavailable, DatabaseUnavailable: what was removed until then stays removed.
        """
        before = datetime.now(UTC) - self._age
        last = self._queue.collected()
        folders = [folder for folder in OURS if folder >= last.partition("/")[0]]
        stored = chain.from_iterable(self._store.walk(folder, last) for folder in folders)
        removed = 0
        for _ in range(AT_ONCE // PAGE):
            page = list(islice(stored, PAGE))
            removed += self._remove_orphans([each.key for each in page if each.last_modified < before], before)
            self._queue.note_collected(page[-1].key if page else "")
            if not page or self._stopping.is_set():
                break
        return removed

    def _remove_orphans(self, old: Sequence[str], before: datetime) -> int:
        """Remove those of these old objects that nothing names; returns how many."""
        removed = 0
        for folder, pattern in OURS.items():
            keys = [key for key in old if re.fullmatch(pattern, key)]
            for key in self._unreferenced[folder](keys) if keys else ():
                if remove_if_old(self._store, key, before):
                    log.info("collected %s", key)
                    removed += 1
        return removed
