"""What Flower did not hear, told to it out of PostgreSQL.

Celery's events travel through Redis's publish/subscribe: what happens while Flower or Redis is down is said
to nobody. Without this, such a job would be missing from Flower, or seem to run for ever.
"""

from __future__ import annotations

import logging
from datetime import datetime
from typing import Any
from uuid import UUID

from celery import states
from celery.events.state import Task
from flower.app import Flower
from tornado.ioloop import PeriodicCallback

from shared.database import Database
from shared.errors import DatabaseUnavailable
from shared.jobs import Kind, Status
from shared.queue import task_name

log = logging.getLogger(__name__)

NEWEST = 1000
"""Youngest jobs looked for in Flower each time; what was missed must be among them."""

_EVENTS = {
    Status.SUCCEEDED: "succeeded",
    Status.FAILED: "failed",
    Status.QUARANTINED: "failed",
    Status.CANCELLED: "revoked",
    Status.EXPIRED: "revoked",
}


class MissedEvents:
    """Compares Flower's tasks with the jobs in PostgreSQL every few seconds, on Flower's own event loop."""

    def __init__(self, flower: Flower, database: Database, interval: float):
        self._flower = flower
        self._database = database
        self._timer = PeriodicCallback(self.tell, interval * 1000)

    def start(self) -> None:
        self._flower.io_loop.add_callback(self.tell)
        self._timer.start()

    def stop(self) -> None:
        self._timer.stop()

    async def tell(self) -> None:
        """Bring Flower's state up to date, as far as PostgreSQL answers."""
        moving = [id for id, task in self._tasks.items() if task.state not in states.READY_STATES]
        unfinished = [UUID(id) for id in moving if _is_uuid(id)]
        try:
            rows = await self._flower.io_loop.run_in_executor(None, self._outlines, unfinished)
        except DatabaseUnavailable as error:
            log.warning("not compared with PostgreSQL: %s", error)
            return
        for row in rows:
            self._tell_of(row)

    def _outlines(self, ids: list[UUID]) -> list[Any]:
        return self._database.outlines(ids, newest=NEWEST)

    @property
    def _tasks(self) -> dict[str, Task]:
        """Without the look-ups of Celery's cache, which make a task count as used."""
        tasks: dict[str, Task] = self._state.tasks.data
        return tasks

    @property
    def _state(self) -> Any:
        return self._flower.events.state

    def _tell_of(self, row: Any) -> None:
        id = str(row.id)
        if id not in self._tasks or self._tasks[id].name is None:
            self._event("sent", id, row.created_at, "postgresql", name=task_name(Kind(row.kind)), args=repr((id,)))
        task = self._tasks[id]
        status, over = Status(row.status), task.state in states.READY_STATES
        if status.terminal and not over:
            # Not an event of a worker's: PostgreSQL no longer knows whose it was.
            task.event(_EVENTS[status], row.finished_at.timestamp(), fields=_details(row))
            self._state.search_engine.upsert(task)
        elif not status.terminal and task.state in (states.FAILURE, states.REVOKED):
            # Its owner had it tried again, which Celery takes for an event that comes late.
            task.event("retried", row.created_at.timestamp())
            self._state.search_engine.upsert(task)
        elif status is Status.RUNNING and not over and task.state != states.STARTED:
            self._event("started", id, row.started_at, row.worker)

    def _event(self, what: str, id: str, when: datetime, hostname: str, **fields: str) -> None:
        """As if it came by Redis, but not as a sign of life from that worker."""
        event = {"type": f"task-{what}", "uuid": id, "hostname": hostname, "timestamp": when.timestamp()}
        self._state.event({**event, "local_received": None, "clock": 0, **fields})


def _is_uuid(task_id: str) -> bool:
    """Whether it may be a job's: anybody who reaches Redis can send events about anything."""
    try:
        UUID(task_id)
    except ValueError:
        return False
    return True


def _details(row: Any) -> dict[str, Any]:
    details: dict[str, Any] = {}
    if row.started_at:
        details["started"] = row.started_at.timestamp()
        details["runtime"] = (row.finished_at - row.started_at).total_seconds()
    if row.error_code and row.status != Status.SUCCEEDED:
        details["exception"] = f"{row.error_code}: {row.error_detail}"
    return details
