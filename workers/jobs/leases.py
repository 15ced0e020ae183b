"""A claimed job while it runs in this worker."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import Any

from shared.database import JobClaim
from shared.leasing.heartbeat import Held


class Lease(Held[JobClaim]):
    """The claim of a job, and the work that ends with it."""

    def __init__(self, claim: JobClaim):
        super().__init__(claim)
        self._guard = threading.Lock()
        self._stopped = False
        self._work: Future[Any] | None = None

    def watch(self, work: Future[Any]) -> None:
        """Have `work` cancelled when the lease stops, or now if it has."""
        with self._guard:
            self._work = work
            stopped = self._stopped
        if stopped:
            work.cancel()

    def stop(self) -> None:
        """Cancel the work: the job was cancelled, or another worker may have it by now."""
        with self._guard:
            self._stopped = True
            work = self._work
        if work is not None:
            work.cancel()
