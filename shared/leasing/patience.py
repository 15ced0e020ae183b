"""Retrying while PostgreSQL restarts."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from tuwen.errors import DatabaseUnavailable

T = TypeVar("T")

PAUSE = 0.5
"""Seconds between two attempts."""


def retry_outages(attempt: Callable[[], T], patience: float) -> T:
    """Return what `attempt` returns; try again for `patience` seconds while PostgreSQL is away.

    A lease is a good measure: after it, another process may take the work.

    Raises:
        DatabaseUnavailable: it was away for longer.
    """
    give_up = time.monotonic() + patience
    while True:
        try:
            return attempt()
        except DatabaseUnavailable:
            if time.monotonic() > give_up:
                raise
            time.sleep(PAUSE)
