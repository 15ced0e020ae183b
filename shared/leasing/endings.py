"""How work that is held under a lease ends when nobody planned it so."""

from __future__ import annotations

from tuwen.jobs import JobError

INTERNAL = JobError(
    code="internal_error", detail="Something unforeseen failed; the worker's log says what.", retryable=True
)


class Stopped(Exception):  # not an error: somebody asked for it
    """The work in hand is to be given back."""
