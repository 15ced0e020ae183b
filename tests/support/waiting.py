"""How long tests wait for what other threads and processes are about to do."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENT = 300.0
"""Seconds after which something that ought to happen is held not to happen: many, for only a test that fails waits for
so long, and a busy machine may need them."""


def eventually(
    condition: Callable[[], object], what: str | Callable[[], str] = "it never came true", patience: float = PATIENT
) -> None:
    """Wait until `condition` holds; `what` is said when it does not, and may be a function of what is then known."""
    deadline = time.monotonic() + patience
    pause = 0.001  # short at first, for what takes milliseconds; longer later, for what costs a query or a request
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {patience:.0f} s: {what if isinstance(what, str) else what()}")
        time.sleep(pause)
        pause = min(2 * pause, 0.1)
