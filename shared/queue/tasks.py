"""The Celery tasks, one per kind: a message is taken off its queue here, and handed to the runner.

A job is one task under the job's own id, and the task's events tell Celery, and so Flower, what becomes of it.
Nothing else depends on them: PostgreSQL decides.

Celery would run each message in a thread of its pool, under a tracer of its own. Here its consumer only receives
(the `Strategy` of a task is what it does with a message): the runner does many jobs with one statement and one batch,
which a thread for each would have to wait for together. Measured on two cores, that is worth 2 ms a job.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any
from uuid import UUID

from celery import Celery, Task
from celery.worker import state

from shared.queue import task_name
from shared.queue.envelope import task_id
from shared.queue.events import Outcome
from tuwen.jobs import JobError, Kind, Status

log = logging.getLogger(__name__)


def define(app: Celery, take: Callable[[JobMessage], None]) -> None:
    """Register the task of every kind with `app`; `take` gets each message, in the loop that receives them."""

    def strategy(task: Any, _: Celery, consumer: Any) -> Callable[..., None]:
        def on_message(message: Any, _payload: Any, ack: Any, reject: Any, _callbacks: Any) -> None:
            # Anybody who reaches Redis can put anything there: a message without an id belongs to no job.
            if (id := task_id(message.headers)) is None:
                reject(log, consumer.connection_errors)
                return
            message = JobMessage(id, task.name, consumer, partial(ack, log, consumer.connection_errors))
            message.receive()
            take(message)

        return on_message

    class JobTask(Task):
        Strategy: Any = staticmethod(strategy)

        def run(self, *_: object) -> None:
            raise NotImplementedError("a job's task is run by the worker's runner")

    for kind in Kind:
        app.register_task(type(f"{kind.name.title()}Task", (JobTask,), {"name": task_name(kind)})())


class JobMessage:
    """A received message; it takes one place of the worker's prefetch until it is started or dropped.

    Its methods send Celery's events about the job; any thread may call them.
    """

    def __init__(self, id: UUID, name: str, consumer: Any, ack: Callable[[], None]):
        self.job_id = id
        self.id = str(id)
        self.name = name
        self._consumer = consumer
        self._ack = ack
        self._started = 0.0

    def receive(self) -> None:
        """Reserve a place of the prefetch, and send that the message was received."""
        state.task_reserved(self)
        fields = {"args": repr((self.id,)), "kwargs": "{}", "root_id": self.id, "retries": 0}
        self._send_event("task-received", name=self.name, **fields)

    def start(self) -> None:
        """Acknowledge the message, free its place of the prefetch, and send that the job started."""
        self._started = time.time()
        self._ack()
        state.task_accepted(self)
        self._send_event("task-started")

    def end(self, status: Status, error: JobError | None) -> None:
        """Send that the job is over, or queued again."""
        state.task_ready(self, successful=status is Status.SUCCEEDED)
        outcome = Outcome.of(status, error)
        runtime = {"runtime": time.time() - self._started} if status is Status.SUCCEEDED else {}
        self._send_event(outcome.event, **outcome.details, **runtime)

    def drop(self, status: Status | None) -> None:
        """Acknowledge a job that is not this worker's to run; `status` is the job's where it is known."""
        if not self._started:
            self._ack()
        if status in (Status.CANCELLED, Status.EXPIRED):
            self.end(status, None)
        else:
            state.task_ready(self)

    def info(self, safe: bool = False) -> dict[str, Any]:  # noqa: ARG002 (Celery's signature)
        """Describe the task for `inspect active`, which Flower's page of a worker shows."""
        return {
            "id": self.id,
            "name": self.name,
            "args": [self.id],
            "kwargs": {},
            "type": self.name,
            "hostname": self._consumer.hostname,
            "time_start": self._started or None,
            "acknowledged": bool(self._started),
            "delivery_info": {},
            "worker_pid": os.getpid(),
        }

    def _send_event(self, event: str, **fields: object) -> None:
        dispatcher = self._consumer.event_dispatcher  # another one after each reconnection, None in between
        if dispatcher is not None and dispatcher.enabled:
            dispatcher.send(event, uuid=self.id, **fields)
