"""Brings Flower up to date from PostgreSQL, where it has missed events.

Celery's events travel through Redis's publish/subscribe: what happens while Flower or Redis is down reaches
nobody. Without this, such a job or shard would be missing from Flower, or seem to run forever.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast
from uuid import UUID

from celery import states
from celery.events.state import Task
from flower.app import Flower
from flower.events import EventsState
from tornado.ioloop import PeriodicCallback

from shared.database import Database
from shared.database.jobs import JobOutline
from shared.database.shards import ShardOutline
from shared.queue import SHARD_TASK, task_name
from shared.queue.events import ENDINGS
from tuwen.errors import DatabaseUnavailable
from tuwen.jobs import Kind, Status

log = logging.getLogger(__name__)

NEWEST = 1000
"""Youngest jobs, and last shards to end, looked for in Flower each time; what was missed must be among them."""


@dataclass(frozen=True, slots=True)
class Outline:
    """A job or a shard: its task's name and arguments, and its row in PostgreSQL."""

    name: str
    args: tuple[Any, ...]
    row: JobOutline | ShardOutline


class MissedEvents:
    """Compares Flower's tasks with PostgreSQL every few seconds, on Flower's own event loop."""

    def __init__(self, flower: Flower, database: Database, interval: float):
        self._flower = flower
        self._database = database
        self._timer = PeriodicCallback(self.tell, interval * 1000)
        self._stopped = False

    def start(self) -> None:
        """Compare now, and then at each interval."""
        self._flower.io_loop.add_callback(self.tell)
        self._timer.start()

    def stop(self) -> None:
        """Compare no more, and break off a comparison that is under way."""
        self._stopped = True
        self._timer.stop()

    async def tell(self) -> None:
        """Bring Flower's state up to date, as far as PostgreSQL answers."""
        known = {id: task.state for id, task in self._tasks.items()}
        jobs: list[UUID] = []
        shards: list[UUID] = []
        for id, state in known.items():
            if state not in states.READY_STATES and _is_uuid(id):
                (shards if self._tasks[id].name == SHARD_TASK else jobs).append(UUID(id))
        try:
            outlines = await self._flower.io_loop.run_in_executor(None, self._read_outlines, jobs, shards)
        except DatabaseUnavailable as error:
            log.warning("Flower was not compared with PostgreSQL: %s", error)
            return
        for outline in outlines:
            if self._stopped:
                return
            task = self._tasks.get(str(outline.row.id))
            # What Flower heard after PostgreSQL was asked is newer than the answer.
            if task is None or task.state == known.get(task.uuid):
                self._update(outline)

    def _read_outlines(self, jobs: list[UUID], shards: list[UUID]) -> list[Outline]:
        return [
            *(
                Outline(task_name(Kind(row.kind)), (str(row.id),), row)
                for row in self._database.jobs.outlines(jobs, newest=NEWEST)
            ),
            *(
                Outline(SHARD_TASK, (str(row.id), row.priority), row)
                for row in self._database.shards.outlines(shards, newest=NEWEST)
            ),
        ]

    @property
    def _tasks(self) -> dict[str, Task]:
        """Tasks by id, read without the look-ups of Celery's cache, which make a task count as used."""
        tasks: dict[str, Task] = self._state.tasks.data
        return tasks

    @property
    def _state(self) -> EventsState:
        return cast("EventsState", self._flower.events.state)  # untyped there, first None

    def _update(self, outline: Outline) -> None:
        row, id = outline.row, str(outline.row.id)
        if id not in self._tasks or self._tasks[id].name is None:
            self._feed_event("sent", id, row.created_at, "postgresql", name=outline.name, args=repr(outline.args))
        task = self._tasks[id]
        event, end = (None, None) if row.finished_at is None else ENDINGS[row.status.value]
        if task.state in states.READY_STATES and task.state != end:
            # Its owner had it tried again, which Celery takes for an event that comes late.
            task.event("retried", row.created_at.timestamp())
            self._state.search_engine.upsert(task)
        unheard = row.status.value == Status.RUNNING.value and task.state != states.STARTED
        if row.started_at and row.worker and (unheard or (event is not None and task.worker is None)):
            self._feed_event("started", id, row.started_at, row.worker)
        if row.finished_at is not None and task.state != end:
            # Not as a worker's event: some jobs end without a worker.
            task.event(event, row.finished_at.timestamp(), fields=_details(row, row.finished_at))
            self._state.search_engine.upsert(task)

    def _feed_event(self, what: str, id: str, when: datetime, hostname: str, **fields: str) -> None:
        """Feed an event to Flower's state as if it came through Redis, but not as a sign of life of its worker."""
        event = {"type": f"task-{what}", "uuid": id, "hostname": hostname, "timestamp": when.timestamp()}
        self._state.event({**event, "local_received": None, "clock": 0, **fields})


def _is_uuid(task_id: str) -> bool:
    """Whether it may be a job's or a shard's: anybody who reaches Redis can send events about anything."""
    try:
        UUID(task_id)
    except ValueError:
        return False
    return True


def _details(row: JobOutline | ShardOutline, finished_at: datetime) -> dict[str, Any]:
    details: dict[str, Any] = {}
    if row.started_at:
        details["started"] = row.started_at.timestamp()
        details["runtime"] = (finished_at - row.started_at).total_seconds()
    if row.error_code and ENDINGS[row.status.value][1] != states.SUCCESS:
        details["exception"] = f"{row.error_code}: {row.error_detail}"
    return details
