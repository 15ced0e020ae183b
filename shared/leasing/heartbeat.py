"""The heartbeat: one thread renews the leases of all jobs that this worker runs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any
from uuid import UUID

from redis.exceptions import RedisError

from shared.database import Claim, Database
from shared.queue import CANCEL_CHANNEL, connect
from shared.settings import Settings
from tuwen.errors import DatabaseUnavailable

log = logging.getLogger(__name__)


class Lease:
    """A claimed job while it runs here."""

    def __init__(self, claim: Claim):
        self.claim = claim
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
        """The job was cancelled, or another worker may have it by now."""
        with self._guard:
            self._stopped = True
            work = self._work
        if work is not None:
            work.cancel()


class Heartbeat:
    """Renews the leases held, and learns which jobs were cancelled or lost.

    A cancel request on Redis's channel makes it beat at once, so that a person who cancels need not
    wait for the next beat; without Redis the next beat sees it.
    """

    def __init__(self, settings: Settings, database: Database, worker: str, *, on_beat: Callable[[], None]):
        """`on_beat` is called after each beat, in the heartbeat's thread."""
        self._settings = settings
        self._database = database
        self._worker = worker
        self._on_beat = on_beat
        self._leases: dict[UUID, Lease] = {}
        self._guard = threading.Lock()
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._threads = [
            threading.Thread(target=self._beat, name="heartbeat", daemon=True),
            threading.Thread(target=self._listen, name="cancel-listener", daemon=True),
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        self._closing.set()
        self._wake.set()
        for thread in self._threads:
            if thread.is_alive():  # never started, where the worker did not come up
                thread.join(timeout=5)

    def hold(self, claim: Claim) -> Lease:
        """Renew the claim's lease until it is released."""
        lease = Lease(claim)
        with self._guard:
            earlier = self._leases.get(claim.id)
            self._leases[claim.id] = lease
        if earlier is not None:
            # Lost and claimed again by this very worker: the earlier run is for nothing.
            earlier.stop()
        return lease

    def release(self, lease: Lease) -> None:
        with self._guard:
            # A job that was lost and claimed again by this very worker is another lease's by now.
            if self._leases.get(lease.claim.id) is lease:
                del self._leases[lease.claim.id]

    def _beat(self) -> None:
        while not self._closing.is_set():
            self._wake.wait(self._settings.heartbeat)
            self._wake.clear()
            try:
                self._renew()
                self._on_beat()
            except DatabaseUnavailable:
                log.warning("PostgreSQL does not answer: %d leases not renewed", len(self._leases))
            except Exception:  # a heartbeat that stops costs every job of this worker its lease
                log.exception("heartbeat failed")

    def _renew(self) -> None:
        with self._guard:
            held = dict(self._leases)
        renewal = self._database.jobs.renew({id: lease.claim.epoch for id, lease in held.items()}, self._worker)
        for id in renewal.cancelled | renewal.lost:
            held[id].stop()
        for id in renewal.lost & self._still_held(held):
            log.warning("job %s is no longer ours", id)

    def _still_held(self, held: dict[UUID, Lease]) -> set[UUID]:
        """Jobs that finished while the beat was under way are not lost."""
        with self._guard:
            return {id for id, lease in held.items() if self._leases.get(id) is lease}

    def _listen(self) -> None:
        with connect(self._settings, decode=False) as client:
            while not self._closing.is_set():
                try:
                    with client.pubsub(ignore_subscribe_messages=True) as channel:
                        channel.subscribe(CANCEL_CHANNEL)
                        while not self._closing.is_set():
                            message = channel.get_message(timeout=1.0)
                            if message and self._holds(message["data"]):
                                self._wake.set()
                except (RedisError, OSError):
                    self._closing.wait(2.0)

    def _holds(self, job_id: bytes) -> bool:
        with self._guard:
            return any(str(id).encode() == job_id for id in self._leases)
