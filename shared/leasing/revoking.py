"""Jobs that an operator cancels with Celery's `revoke`, on whatever worker hears of it and whoever submitted them."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from uuid import UUID

from shared.database import Database
from shared.queue import JobQueue
from shared.telemetry.metrics import JOBS_FINISHED, Recorder
from tuwen.errors import QueueUnavailable, TuwenError
from tuwen.jobs import Status

log = logging.getLogger(__name__)


class Revoker:
    """Cancels jobs as the API does; every worker and housekeeper may be asked to, at the same time."""

    def __init__(self, database: Database, queue: JobQueue):
        self._database = database
        self._queue = queue
        self._recorder = Recorder()

    def revoke(self, ids: Iterable[str]) -> dict[str, str]:
        """Cancel these jobs; returns Celery's answer, which says what became of each: `{"ok": …}` or `{"error": …}`."""
        try:
            answers = [self._revoke(id) for id in dict.fromkeys(ids)]
        except TuwenError as error:  # PostgreSQL is away
            log.warning("jobs could not be revoked: %s", error)
            return {"error": str(error)}
        if not answers:
            return {"error": "name the jobs to revoke by their ids"}
        said = "; ".join(said for _, said in answers)
        return {"ok": said} if all(known for known, _ in answers) else {"error": said}

    def _revoke(self, text: str) -> tuple[bool, str]:
        """Whether there is such a job, and what became of it."""
        try:
            id = UUID(text)
        except ValueError:
            return False, f"{text[:80]!r} is no job id"
        revoked = self._database.jobs.revoke(id)
        if revoked is None:
            status = self._database.jobs.statuses([id]).get(id)
            if status is None:
                return False, f"there is no job {id}; data sets are cancelled with `tuwen datasets cancel`"
            return True, f"job {id} is already {status}"
        kind, status = revoked
        log.info("revoked the %s job %s, which is %s now", kind, id, status)
        if status is Status.CANCELLED:
            self._queue.announce([(id, {"status": status.value})])
            self._recorder.count(JOBS_FINISHED, kind, status)
            self._recorder.flush(self._queue.redis)
            return True, f"job {id} is cancelled"
        try:
            self._queue.request_cancel(id)
        except QueueUnavailable as error:
            log.warning("the cancel of job %s waits for a heartbeat: %s", id, error)
        return True, f"job {id} is running and stops at its next step"
