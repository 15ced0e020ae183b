"""Types of batches, files of requests that are processed in the background. Pure types, no I/O."""

from __future__ import annotations

from enum import StrEnum


class BatchStatus(StrEnum):
    """States of a batch, with OpenAI's names."""

    VALIDATING = "validating"
    FAILED = "failed"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"
