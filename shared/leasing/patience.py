"""Waiting out a PostgreSQL that restarts."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from tuwen.errors import DatabaseUnavailable

T = TypeVar("T")

PAUSE = 0.5
"""Seconds between two attempts."""


def patiently(attempt: Callable[[], T], patience: float) -> T:
    """What `attempt` answers, tried again for `patience` seconds while PostgreSQL is gone.

    A lease is a good measure: beyond it, somebody else is to do the work.

    Raises:
        DatabaseUnavailable: it was gone for longer.
    """
    give_up = time.monotonic() + patience
    while True:
        try:
            return attempt()
        except DatabaseUnavailable:
            if time.monotonic() > give_up:
                raise
            time.sleep(PAUSE)
