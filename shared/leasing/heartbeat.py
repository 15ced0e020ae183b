"""The heartbeat: one thread renews all leases of one kind of work that this process holds, and learns what to stop."""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar
from uuid import UUID

from shared.database.shards import Renewal
from tuwen.errors import DatabaseUnavailable

log = logging.getLogger(__name__)


class Claim(Protocol):
    """The right to do something until the lease ends; its epoch tells it from earlier and later ones."""

    @property
    def id(self) -> UUID:
        """Id of the row that was taken."""

    @property
    def epoch(self) -> int:
        """Number of the claim: each claim of the same row has a larger one."""


AnyClaim = TypeVar("AnyClaim", bound=Claim, covariant=True)


class Held(ABC, Generic[AnyClaim]):
    """Work under a lease: a job, a shard, a data set or a batch, as long as this process has it."""

    def __init__(self, claim: AnyClaim):
        self.claim = claim

    @property
    def id(self) -> UUID:
        """Id of the row that is held."""
        return self.claim.id

    @property
    def epoch(self) -> int:
        """Epoch of the claim under which it is held."""
        return self.claim.epoch

    @abstractmethod
    def stop(self) -> None:
        """The work was paused or cancelled, or another process may have it by now.

        Called from any thread, and possibly more than once.
        """


Work = TypeVar("Work", bound=Held[Claim])


class Heartbeat(Generic[Work]):
    """Renews the leases of what is held, and stops what was cancelled or lost."""

    def __init__(
        self,
        renew: Callable[[Mapping[UUID, Work]], Renewal],
        interval: float,
        name: str,
        *,
        beats_idle: bool = False,
        on_beat: Callable[[], None] = lambda: None,
    ):
        """Prepare a heartbeat that renews every `interval` seconds, in a thread called `name`.

        Args:
            renew: the one statement that renews these leases, each guarded by its epoch.
            beats_idle: whether it beats although nothing is held, since a beat also says that this process lives.
            on_beat: called after each beat, in the heartbeat's thread.
        """
        self._renew = renew
        self._interval = interval
        self._beats_idle = beats_idle
        self._on_beat = on_beat
        self._held: dict[UUID, Work] = {}
        self._guard = threading.Lock()
        self._wake = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start to beat, in a thread."""
        self._thread.start()

    def close(self) -> None:
        """Beat no more; leases that are still held run out."""
        self._closing = True
        self._wake.set()
        if self._thread.ident is not None:  # it never started where the process did not come up
            self._thread.join(timeout=5)

    def hold(self, work: Work) -> None:
        """Renew the lease of `work` until it is released."""
        with self._guard:
            earlier = self._held.get(work.id)
            self._held[work.id] = work
        if earlier is not None:
            # It was lost and claimed again by this very process: the earlier run is for nothing.
            earlier.stop()

    def release(self, work: Work) -> None:
        """Renew the lease of `work` no longer."""
        with self._guard:
            # What was lost and claimed again by this very process is held under another lease by now.
            if self._held.get(work.id) is work:
                del self._held[work.id]

    @contextmanager
    def holding(self, work: Work) -> Iterator[None]:
        """Hold `work` until the block ends."""
        self.hold(work)
        try:
            yield
        finally:
            self.release(work)

    def stop_all(self) -> None:
        """Stop everything that is held: this process is about to end."""
        for work in self._now_held().values():
            work.stop()

    def beat_for(self, id: UUID) -> None:
        """Beat at once if this is held, to find out whether it was cancelled."""
        with self._guard:
            held = id in self._held
        if held:
            self._wake.set()

    def _now_held(self) -> dict[UUID, Work]:
        with self._guard:
            return dict(self._held)

    def _run(self) -> None:
        while not self._closing:
            self._wake.wait(self._interval)
            self._wake.clear()
            held = self._now_held()
            if not held and not self._beats_idle:
                continue
            try:
                self._beat(held)
                self._on_beat()
            except DatabaseUnavailable:
                log.warning("PostgreSQL does not answer: %d leases not renewed", len(held))
            except Exception:  # a heartbeat that stops costs everything that is held its lease
                log.exception("heartbeat failed")

    def _beat(self, held: Mapping[UUID, Work]) -> None:
        renewal = self._renew(held)
        for id in renewal.cancelled | renewal.lost:
            held[id].stop()
        for id in renewal.lost:
            # What ended while the beat was under way is not lost.
            if self._now_held().get(id) is held[id]:
                log.warning("%s is no longer ours", id)
