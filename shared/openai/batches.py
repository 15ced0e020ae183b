"""What a batch is: a file of requests, worked off in the background. Pure types, no I/O."""

from __future__ import annotations

from enum import StrEnum


class BatchStatus(StrEnum):
    """As OpenAI names them."""

    VALIDATING = "validating"
    FAILED = "failed"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"
