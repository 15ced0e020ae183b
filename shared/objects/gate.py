"""Outages of object storage, as one process meets them: nothing new begins meanwhile, and what is done is kept.

In come the failures that anybody met; out goes whether storage works. An outage is never the work's fault.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from shared.objects.storage import StorageRefused
from tuwen.errors import StorageUnavailable

log = logging.getLogger(__name__)

T = TypeVar("T")

PAUSES = (0.5, 10.0)
"""Seconds before the first look at a storage that is away, and the most; they double in between."""

REFUSED = 60.0
"""Seconds for which a storage must refuse us without a break before nobody hopes any more."""

STUBBORN = 10
"""Times that one write may fail although storage works before it is given up: something is in its way."""


class StorageGate:
    """Open while storage works, as far as this process knows. Thread-safe.

    Who meets a failure reports it, which closes the gate. A thread then writes an object from time to time, and opens
    the gate when that succeeds.

    Args:
        check: raises StorageUnavailable unless storage can be written and read now.
        on_refused: called, in that thread, when the storage has refused us for `REFUSED` seconds: no patience helps.
    """

    def __init__(self, check: Callable[[], None], on_refused: Callable[[], None] = lambda: None):
        self._check = check
        self._on_refused = on_refused
        self._guard = threading.Lock()
        self._works = threading.Event()
        self._works.set()
        self._closing = threading.Event()
        self._pause = PAUSES[0]
        self._opened = 0.0

    @property
    def is_open(self) -> bool:
        """Whether storage works, as far as is known."""
        return self._works.is_set()

    def wait(self, timeout: float) -> bool:
        """Wait until storage works, for at most `timeout` seconds; returns whether it does."""
        return self._works.wait(timeout)

    def report(self, error: StorageUnavailable) -> None:
        """Note that storage has failed."""
        with self._guard:
            if self._closing.is_set() or not self._works.is_set():
                return
            # One that works for the test and fails soon after is asked less often.
            soon = time.monotonic() - self._opened < 2 * PAUSES[1]
            self._pause = min(2 * self._pause, PAUSES[1]) if soon else PAUSES[0]
            self._works.clear()
        log.warning("storage is away, nothing is begun until it is back: %s", error)
        threading.Thread(target=self._watch, name="storage-gate", daemon=True).start()

    def is_outage(self, error: StorageUnavailable) -> bool:
        """Tell an outage from an object that cannot be read in a storage that works, by a look at it; reports one."""
        if self.is_open:
            try:
                self._check()
            except StorageUnavailable as again:
                error = again
            else:
                return False
            self.report(error)
        return True

    def retry(self, attempt: Callable[[], T], wanted: Callable[[], bool]) -> T:
        """Return what `attempt` returns; while storage is away, try again for as long as `wanted()` holds.

        Raises:
            StorageUnavailable: the result is no longer wanted, or storage works for all but this: the attempt failed
                `STUBBORN` times although storage was looked at, and found to work, before each of them.
        """
        for _ in range(STUBBORN):
            try:
                return attempt()
            except StorageUnavailable as error:
                self.report(error)
                while not self.wait(0.5) and wanted():
                    pass
                if not wanted():
                    raise
        return attempt()

    def close(self) -> None:
        """Look no more; the gate stays as it is."""
        self._closing.set()

    def _watch(self) -> None:
        began = time.monotonic()
        refused_since: float | None = None
        told = False
        while not self._closing.wait(self._pause):
            try:
                self._check()
            except StorageUnavailable as error:
                now = time.monotonic()
                refused_since = (refused_since or now) if isinstance(error, StorageRefused) else None
                if refused_since is not None and now - refused_since > REFUSED and not told:
                    told = True
                    log.critical("storage does not serve us any more: %s", error)
                    self._on_refused()
                log.debug("storage is still away: %s", error)
            except Exception:
                log.exception("the look at storage failed")
            else:
                self._opened = time.monotonic()
                log.warning("storage is back after %.0f s", self._opened - began)
                self._works.set()
                return
            self._pause = min(2 * self._pause, PAUSES[1])
