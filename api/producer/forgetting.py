"""Forgetting a tenant: everything that it ever stored is deleted, in small steps.

Each step is complete in itself. Whoever is killed in the middle, or gives up because jobs still run, has forgotten a
part; doing it again goes on from there.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from uuid import UUID

from shared.database import Database
from shared.database.deletion import Deleted
from shared.objects import datasets
from shared.objects.removal import Removal, Remover
from shared.objects.storage import ObjectStore
from shared.settings import Settings
from tuwen.errors import Conflict, StorageUnavailable
from tuwen.jobs import Tenant

log = logging.getLogger(__name__)

STEP = 500
"""Most rows that one statement deletes."""
PAUSE = 0.02
"""Seconds between two steps, in which others have the disk."""
_LOOK = 0.5
_FIRST = UUID(int=0)


@dataclass(slots=True)
class Forgotten:
    """What was deleted."""

    counts: Counter[str] = field(default_factory=Counter)
    """What it was → how many."""
    young_objects: int = 0
    """Objects that nothing names any more, and that the housekeeper collects within a day and an hour."""
    unanswered: int = 0
    """Rows whose objects are left to the housekeeper too, because the storage did not answer."""


class Forgetting:
    """Deletes everything of a tenant, but for its API keys."""

    def __init__(self, settings: Settings, database: Database, store: ObjectStore):
        self._database = database
        self._store = store
        self._remover = Remover(settings, database, store)

    def forget(self, tenant: Tenant, *, patience: float) -> Forgotten:
        """Delete everything of the tenant, and say how much that was.

        What is not over is cancelled first. Running jobs end when their workers notice.

        Raises:
            Conflict: after `patience` seconds, something still runs.
            DatabaseUnavailable
        """
        gone, steps = Forgotten(), self._database.deletion
        # First, because a batch goes on making jobs.
        self._repeat(gone, "batches", lambda: steps.batches_of(tenant, STEP), self._remove_parts)
        self._end_work(tenant, patience)
        self._repeat(gone, "reviews of images", lambda: steps.reviews_of(tenant, STEP))
        self._repeat(gone, "shards of data sets", lambda: steps.shards_of(tenant, STEP))
        self._repeat(gone, "data sets", lambda: steps.datasets_of(tenant, STEP), self._remove_annotations)
        self._repeat(gone, "jobs", self._job_step(tenant), self._remove_shared)
        self._repeat(gone, "uploaded images", lambda: steps.uploads_of(tenant, STEP), self._remove_shared)
        self._repeat(gone, "files of batches", lambda: steps.documents_of(tenant, STEP), self._remove_own)
        self._repeat(gone, "idempotency keys", lambda: steps.idempotency_keys_of(tenant, STEP))
        return gone

    def _end_work(self, tenant: Tenant, patience: float) -> None:
        deadline = time.monotonic() + patience
        steps = self._database.deletion
        while any(steps.unfinished(tenant)):
            for id in steps.datasets_to_cancel(tenant, STEP):
                with suppress(Conflict):  # over meanwhile
                    self._database.datasets.cancel(id, tenant)
            while ids := steps.jobs_to_cancel(tenant, STEP):
                self._database.jobs.cancel_many(ids, tenant)
                time.sleep(PAUSE)
            jobs, runs = steps.unfinished(tenant)
            if not jobs + runs:
                return
            if time.monotonic() > deadline:
                raise Conflict(
                    f"{jobs} jobs and {runs} data sets of {tenant} are not over yet; they were asked to stop. "
                    "Give the same command again when they have; if no worker runs, a housekeeper ends them."
                )
            time.sleep(_LOOK)

    def _job_step(self, tenant: Tenant) -> Callable[[], Deleted]:
        """Each step goes on where the last one ended: what was deleted lies in the index until a vacuum."""
        last = _FIRST

        def step() -> Deleted:
            nonlocal last
            gone = self._database.deletion.jobs_of(tenant, STEP, after=last)
            if not gone.rows and last != _FIRST:
                gone = self._database.deletion.jobs_of(tenant, STEP, after=_FIRST)  # what was locked
            last = max(gone.ids, default=last)
            return gone

        return step

    def _repeat(
        self,
        gone: Forgotten,
        what: str,
        step: Callable[[], Deleted],
        remove: Callable[[Deleted], Removal] = lambda _: Removal(),
    ) -> None:
        while (deleted := step()).rows:
            gone.counts[what] += deleted.rows
            gone.counts["webhooks"] += deleted.webhooks
            try:
                removal = remove(deleted)
                gone.counts["stored objects"] += removal.removed
                gone.young_objects += removal.left
            except StorageUnavailable as error:
                log.warning("%s; objects that nothing names any more are left to the housekeeper", error)
                gone.unanswered += deleted.rows
            time.sleep(PAUSE)

    def _remove_shared(self, deleted: Deleted) -> Removal:
        return self._remover.remove(deleted.keys)

    def _remove_own(self, deleted: Deleted) -> Removal:
        return self._remover.remove_own(deleted.keys)

    def _remove_parts(self, deleted: Deleted) -> Removal:
        return self._remove_folders([f"batches/{id.hex}" for id in deleted.ids])

    def _remove_annotations(self, deleted: Deleted) -> Removal:
        return self._remove_folders([datasets.folder(id) for id in deleted.ids])

    def _remove_folders(self, folders: Sequence[str]) -> Removal:
        count = 0
        for folder in folders:
            count += sum(1 for _ in self._store.list(folder))
            self._store.delete_folder(folder)
        return Removal(count)


def still_working_keys(database: Database, tenant: Tenant) -> list[UUID]:
    """API keys of the tenant that are not revoked."""
    return [key.id for key in database.keys.all() if key.tenant == tenant and key.revoked_at is None]
