"""Flower's state on disk, in one file that is replaced at once: a process that is killed leaves the last one whole.

Flower's own files are up to three, renamed one after the other.
"""

from __future__ import annotations

import logging
import os
import pickle
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)


class StateFile:
    """The file of one data folder, which only its owner can write."""

    def __init__(self, path: Path):
        self._path = path

    def load(self) -> Any | None:
        """The `flower.events.EventsState` that was saved last; None when there is none that can be read."""
        try:
            with self._path.open("rb") as file:
                saved = pickle.load(file)  # noqa: S301 (our own, in a folder of mode 0700)
            state = saved["events"]
            state.counter.update(saved["counter"])
        except FileNotFoundError:
            return None
        except Exception as error:  # noqa: BLE001 (whatever a broken or foreign pickle raises)
            log.warning("Flower starts without its state, which %s cannot give: %s", self._path, error)
            return None
        return state

    def save(self, state: Any) -> None:
        """Replace what was saved; where that fails, it stays."""
        unfinished = self._path.with_suffix(".new")
        try:
            with unfinished.open("wb") as file:
                pickle.dump({"events": state, "counter": dict(state.counter)}, file, pickle.HIGHEST_PROTOCOL)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(self._path)
        except OSError as error:
            log.warning("Flower's state was not saved in %s: %s", self._path, error.strerror)
