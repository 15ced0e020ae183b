"""The Celery tasks: one per kind, each job one task under the job's own id.

A task's fate is told to Celery, and so to Flower, as the job's: success, failure with its error, retry,
revoked for a job that was cancelled or expired. Nothing else hangs on it: PostgreSQL has decided already.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from celery import Celery, Task
from celery.exceptions import Ignore, Retry

from shared.jobs import JobError, Kind, Status
from shared.queue import task_name
from workers.runner import Runner


class JobFailed(Exception):
    """The error of a failed job, as Flower shows it."""


def define(app: Celery, runner: Runner) -> None:
    """Register the task of every kind with `app`, run by `runner`."""

    def run(task: Task, job_id: str) -> None:
        # Anybody who reaches Redis can put anything there: what is no id is nobody's job.
        try:
            id = UUID(job_id)
        except (ValueError, AttributeError, TypeError):
            raise Ignore from None
        status, error = runner.run(id)
        _tell(task, status, error)

    for kind in Kind:
        app.task(run, name=task_name(kind), bind=True, throws=(JobFailed,), ignore_result=True)


def _tell(task: Task, status: Status | None, error: JobError | None) -> None:
    """Leave the task in the state that shows the job's."""
    match status:
        case Status.SUCCEEDED:
            return
        case Status.FAILED | Status.QUARANTINED:
            raise JobFailed(_text(error, status))
        case Status.QUEUED:
            # Not `task.retry`: the housekeeper publishes the job when `available_at` has come.
            raise Retry(_text(error, status))
        case Status.CANCELLED | Status.EXPIRED:
            _revoked(task, expired=status is Status.EXPIRED)
    raise Ignore


def _revoked(task: Task, **details: Any) -> None:
    """Celery's own event for a task that was called off."""
    task.send_event("task-revoked", terminated=False, signum=None, **details)


def _text(error: JobError | None, status: Status) -> str:
    return f"{error.code}: {error.detail}" if error else status.value
