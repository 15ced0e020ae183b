"""Those who follow the jobs of this worker: told what becomes of a job, and known by the jobs that they follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from shared.leasing.grouping import Grouped
from shared.queue import JobQueue
from tuwen.engine import Partial
from tuwen.jobs import Part, Progress, Status
from workers.jobs.pictures import preview

UNREAD = 10_000
"""Events that wait while Redis is frozen; the oldest are dropped, since watchers look at PostgreSQL as well."""


@dataclass(frozen=True, slots=True)
class _Step:
    number: int
    step: int
    steps: int
    part: Partial | None


class Watchers:
    """Never blocks who tells something: a thread of its own encodes and publishes it."""

    def __init__(self, queue: JobQueue):
        self._queue = queue
        # Redis says with each event how many hear it: nothing has to be asked. Written by the thread alone.
        self._followed: set[UUID] = set()
        self._news = Grouped(self._announce, "announcer", most=UNREAD)

    def follow(self, job_id: UUID) -> bool:
        """Whether somebody followed the job when something was last told of it."""
        return job_id in self._followed

    def ended(self, job_id: UUID, status: Status | None) -> None:
        """The job is over, queued once more, or (None) in other hands."""
        self._news.add((job_id, status))

    def started(self, job_id: UUID) -> None:
        self._news.add((job_id, Status.RUNNING))

    def progressed(self, job_id: UUID, number: int, step: int, steps: int, part: Partial | None) -> None:
        """`number` is which of the things that the job has made at once; the steps of the first stand for all."""
        if number == 0 or part is not None:
            self._news.add((job_id, _Step(number, step, steps, part)))

    def close(self) -> None:
        self._news.close()

    def _announce(self, news: Sequence[tuple[UUID, Status | _Step | None]]) -> None:
        heard = self._queue.announce([(job_id, _event(what)) for job_id, what in news if what is not None])
        for job_id, what in news:
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
    return (Part(index=what.number, preview=preview(what.part)),)
