"""Publishes what becomes of this worker's jobs, and knows which of them somebody follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from shared.leasing.grouping import GroupQueue
from shared.queue import JobQueue
from tuwen.engine import Partial
from tuwen.jobs import Part, Progress, Status
from workers.jobs.pictures import preview_url

UNREAD = 10_000
"""Most events that wait while Redis is frozen; the oldest are dropped, since watchers look at PostgreSQL as well."""


@dataclass(frozen=True, slots=True)
class _Step:
    number: int
    step: int
    steps: int
    part: Partial | None


class Watchers:
    """Publishes events without blocking the caller: a thread of its own encodes and sends them."""

    def __init__(self, queue: JobQueue):
        self._queue = queue
        # Redis answers each event with its number of subscribers: nothing has to be asked. Only the thread writes it.
        self._followed: set[UUID] = set()
        self._events = GroupQueue(self._announce, "announcer", most=UNREAD)

    def is_followed(self, job_id: UUID) -> bool:
        """Whether somebody followed the job when its last event was published."""
        return job_id in self._followed

    def tell_end(self, job_id: UUID, status: Status | None) -> None:
        """Publish that the job is over or queued again; None: another worker has it."""
        self._events.add((job_id, status))

    def tell_start(self, job_id: UUID) -> None:
        """Publish that the job runs."""
        self._events.add((job_id, Status.RUNNING))

    def tell_progress(self, job_id: UUID, number: int, step: int, steps: int, part: Partial | None) -> None:
        """Publish progress of item `number` of the job's stage; the steps of item 0 stand for all."""
        if number == 0 or part is not None:
            self._events.add((job_id, _Step(number, step, steps, part)))

    def close(self) -> None:
        """Publish what is left, for a few seconds at most."""
        self._events.close()

    def _announce(self, events: Sequence[tuple[UUID, Status | _Step | None]]) -> None:
        heard = self._queue.announce([(job_id, _event(what)) for job_id, what in events if what is not None])
        for job_id, what in events:
            if job_id in heard and (what is Status.RUNNING or isinstance(what, _Step)):
                self._followed.add(job_id)
            else:
                self._followed.discard(job_id)


def _event(what: Status | _Step) -> dict[str, object]:
    if isinstance(what, Status):
        return {"status": what.value}
    progress = Progress(step=what.step, steps=what.steps, parts=_parts(what))
    return {"progress": progress.model_dump()}


def _parts(what: _Step) -> tuple[Part, ...]:
    if what.part is None:
        return ()
    if isinstance(what.part, str):
        return (Part(index=what.number, text=what.part),)
    return (Part(index=what.number, preview=preview_url(what.part)),)
