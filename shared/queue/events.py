"""How an ending is told to Celery's watchers, Flower among them: one table for jobs, shards and data sets alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from celery import states

from tuwen.datasets import ShardStatus
from tuwen.jobs import JobError, Status

ENDINGS: dict[str, tuple[str, str]] = {
    Status.SUCCEEDED.value: ("succeeded", states.SUCCESS),
    Status.FAILED.value: ("failed", states.FAILURE),
    Status.QUARANTINED.value: ("failed", states.FAILURE),
    Status.CANCELLED.value: ("revoked", states.REVOKED),
    Status.EXPIRED.value: ("revoked", states.REVOKED),
    # It is over for the worker that had it, and will be tried again.
    Status.QUEUED.value: ("retried", states.RETRY),
    ShardStatus.DONE.value: ("succeeded", states.SUCCESS),
}
"""State of a row in PostgreSQL → Celery's event without its `task-`, and the state that a task has after it.

Shards end in states that are called like those of jobs, but for `done`.
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a task: the state that its row has now, and why where it is not done."""

    status: Status | ShardStatus
    reason: str = ""

    @classmethod
    def of(cls, status: Status | ShardStatus, error: JobError | None) -> Outcome:
        """Return the outcome of a row's status and the error it ended with, if any."""
        return cls(status, f"{error.code}: {error.detail}" if error else status.value)

    @property
    def event(self) -> str:
        """Type of Celery's event."""
        return f"task-{ENDINGS[self.status.value][0]}"

    @property
    def is_failure(self) -> bool:
        """Whether it ended without what it was for, and nobody had asked for that."""
        return ENDINGS[self.status.value][1] == states.FAILURE

    @property
    def details(self) -> dict[str, Any]:
        """Fields that Celery's event of this type has."""
        match ENDINGS[self.status.value][1]:
            case states.SUCCESS:
                return {"result": "None"}
            case states.REVOKED:
                return {"terminated": False, "signum": None, "expired": self.status.value == Status.EXPIRED.value}
        return {"exception": self.reason, "traceback": ""}


DONE = Outcome(Status.SUCCEEDED)


def failed(reason: str) -> Outcome:
    """Return the outcome of a task that failed for good."""
    return Outcome(Status.FAILED, reason)


def retried(reason: str) -> Outcome:
    """The task will be tried again, or goes on elsewhere."""
    return Outcome(Status.QUEUED, reason)
