"""Deletion of what is older than it is to become (`shared.retention`), in small steps with pauses between them.

Any number of housekeepers may do so at once: each step skips what another one has locked.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

from shared.database import Database
from shared.database.deletion import Deleted
from shared.objects.removal import Remover
from shared.objects.storage import ObjectStore
from shared.retention import parse_age, parse_job_ages, written
from shared.settings import Settings
from tuwen.errors import StorageUnavailable
from tuwen.jobs import Status

log = logging.getLogger(__name__)

STEP = 500
"""Most rows that one statement deletes."""
PAUSE = 0.05
"""Least seconds between two steps; a step that took longer is followed by a pause twice as long as it."""
ROUND = 50.0
"""Seconds of one round; the next one goes on, a minute after this one began."""
LOOK_BACK = 3600.0
"""Seconds after which jobs that were skipped are looked at again: for some, a webhook was owed."""
TRUSTED = timedelta(hours=1)
"""Difference between PostgreSQL's clock and ours beyond which nobody knows how old anything is."""

_BEGINNING = datetime.min.replace(tzinfo=UTC)
_Step = Callable[[], Deleted]


class Retention:
    """Deletes jobs, uploads and batches for their age, and idempotency keys after a day."""

    def __init__(self, settings: Settings, database: Database, store: ObjectStore):
        self._database = database
        self._remover = Remover(settings, database, store)
        self._jobs = {status: age for status, age in parse_job_ages(settings.keep_jobs).items() if age is not None}
        self._uploads, self._batches = parse_age(settings.keep_uploads), parse_age(settings.keep_batches)
        self._after: dict[Status, datetime] = {}
        """When the last job that was deleted had ended: what is older was deleted too, or is still waited for."""
        self._looked_back = time.monotonic()
        self._stopping = threading.Event()

    def stop(self) -> None:
        """Begin no further step, because this process is about to end; another one continues."""
        self._stopping.set()

    def keep(self) -> None:
        """Delete what is due, for `ROUND` seconds at most.

        Raises:
            DatabaseUnavailable: what was deleted until then stays deleted.
        """
        until = time.monotonic() + ROUND
        self._sweep(until, "idempotency keys", lambda: Deleted(self._database.deletion.old_idempotency_keys(STEP)))
        if not (self._jobs or self._uploads or self._batches) or not self._clocks_agree():
            return
        if time.monotonic() - self._looked_back > LOOK_BACK:
            self._after.clear()
            self._looked_back = time.monotonic()
        for status, age in self._jobs.items():
            self._sweep(until, f"{status} jobs older than {written(age)}", self._job_step(status, age), self._remove)
        if (unused := self._uploads) is not None:
            what = f"uploads that nothing used for {written(unused)}"
            self._sweep(until, what, lambda: self._database.deletion.old_uploads(unused, STEP), self._remove)
        if (old := self._batches) is not None:
            batches, documents = self._database.deletion.old_batches, self._database.deletion.old_documents
            self._sweep(until, f"batches older than {written(old)}", lambda: batches(old, STEP))
            what = f"files of batches older than {written(old)}"
            self._sweep(until, what, lambda: documents(old, STEP), self._remove_own)

    def _clocks_agree(self) -> bool:
        difference = abs(self._database.clock.read().now - datetime.now(UTC))
        if difference > TRUSTED:
            log.error("nothing is deleted for its age: PostgreSQL's clock and this host's differ by %s", difference)
        return difference <= TRUSTED

    def _job_step(self, status: Status, age: timedelta) -> _Step:
        def step() -> Deleted:
            after = self._after.get(status, _BEGINNING)
            gone = self._database.deletion.old_jobs(status, age, STEP, after=after)
            if gone.last is not None:
                self._after[status] = gone.last
            return gone

        return step

    def _sweep(
        self, until: float, what: str, step: _Step, remove: Callable[[Sequence[str]], object] = lambda _: None
    ) -> None:
        """Take steps until nothing is left, the round is over, or this process stops."""
        count = 0
        try:
            while time.monotonic() < until and not self._stopping.is_set():
                begun = time.monotonic()
                gone = step()
                took = time.monotonic() - begun
                count += gone.rows
                remove(gone.keys)
                if gone.rows < STEP:
                    return
                self._stopping.wait(max(PAUSE, 2 * took))
        finally:
            if count:
                log.info("deleted %d %s", count, what)

    def _remove(self, keys: Sequence[str]) -> None:
        self._try_to(self._remover.remove, keys)

    def _remove_own(self, keys: Sequence[str]) -> None:
        self._try_to(self._remover.remove_own, keys)

    @staticmethod
    def _try_to(remove: Callable[[Sequence[str]], object], keys: Sequence[str]) -> None:
        try:
            remove(keys)
        except StorageUnavailable as error:
            log.warning("%d objects whose rows were deleted are left to collection: %s", len(keys), error)
