"""The heartbeat of shards and of data sets: renews the leases held, tells how far they are, and learns what to stop."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol
from uuid import UUID

from shared.database.shards import Progress, Renewal
from shared.settings import Settings
from tuwen.errors import DatabaseUnavailable

log = logging.getLogger(__name__)

SHORTEST = 2.0
"""Seconds between two beats at most: they carry the progress that people watch."""

Renew = Callable[[Mapping[UUID, tuple[int, Progress]]], Renewal]


class Held(Protocol):
    """What is worked on under a lease."""

    @property
    def id(self) -> UUID: ...

    @property
    def epoch(self) -> int: ...

    @property
    def progress(self) -> Progress: ...

    def stop(self) -> None:
        """It was paused or cancelled, or somebody else may have it by now. From any thread, more than once."""


class Heartbeat:
    """One thread for all that this process holds. `renew` is `Shards.renew` or `Datasets.renew`."""

    def __init__(self, settings: Settings, renew: Renew, name: str):
        self._interval = min(settings.heartbeat, SHORTEST)
        self._renew = renew
        self._held: dict[UUID, Held] = {}
        self._guard = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        if self._thread.ident is not None:
            self._thread.join(timeout=5)

    def stop_all(self) -> None:
        """This process is about to end."""
        for held in self._now_held().values():
            held.stop()

    @contextmanager
    def holding(self, held: Held) -> Iterator[None]:
        with self._guard:
            if before := self._held.get(held.id):
                before.stop()  # lost, and claimed again by this very process: the earlier work is for nothing
            self._held[held.id] = held
        try:
            yield
        finally:
            with self._guard:
                if self._held.get(held.id) is held:
                    del self._held[held.id]

    def _now_held(self) -> dict[UUID, Held]:
        with self._guard:
            return dict(self._held)

    def _beat(self) -> None:
        while not self._closing.wait(self._interval):
            held = self._now_held()
            if not held:
                continue
            try:
                renewal = self._renew({id: (each.epoch, each.progress) for id, each in held.items()})
            except DatabaseUnavailable:
                log.warning("PostgreSQL does not answer: %d leases not renewed", len(held))
                continue
            except Exception:  # a heartbeat that stops costs all of them their leases
                log.exception("heartbeat failed")
                continue
            for id in renewal.cancelled | renewal.lost:
                held[id].stop()
