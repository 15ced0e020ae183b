"""The way to Redis, from a thread of its own: no request waits for a Redis that is slow, frozen or gone.

What is put here is committed already. When Redis does not take it, the housekeeper is asked to; when this process dies
first, the housekeeper notices by itself, a little later.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from queue import Empty, Full, Queue
from threading import Thread
from uuid import UUID

from shared.database import Database, Dispatch
from shared.queue import JobQueue
from shared.telemetry.metrics import JOBS_FINISHED, Recorder
from tuwen.errors import DatabaseUnavailable, QueueUnavailable
from tuwen.jobs import Kind, Status

log = logging.getLogger(__name__)

_MOST = 10_000
"""Messages that may wait here; more than that the housekeeper publishes."""
_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class _Message:
    dispatches: Sequence[Dispatch] = ()
    event: tuple[UUID, Status] | None = None
    cancel: UUID | None = None
    dataset: UUID | None = None
    preview: tuple[UUID, int] | None = None


class Outbox:
    """Thread-safe."""

    def __init__(self, database: Database, queue: JobQueue):
        self._database = database
        self._queue = queue
        self._recorder = Recorder()
        self._deadline = math.inf
        self._away = False
        self._messages: Queue[_Message | None] = Queue(_MOST)
        self._thread = Thread(target=self._run, name="outbox", daemon=True)
        self._thread.start()

    def publish(self, dispatches: Sequence[Dispatch]) -> None:
        """These jobs may run."""
        if not self._put(_Message(dispatches=dispatches)):
            self._leave_to_housekeeper(dispatches)

    def cancelled(self, job_id: UUID, kind: Kind, status: Status) -> None:
        """A cancel was requested: the job is over already, or its worker has yet to stop."""
        if status is Status.CANCELLED:
            self._recorder.count(JOBS_FINISHED, kind, status)
            self._put(_Message(event=(job_id, status)))
        else:
            self._put(_Message(cancel=job_id))

    def dataset(self, id: UUID) -> None:
        """It is to be planned or exported; a housekeeper finds out by itself, a few seconds later."""
        self._put(_Message(dataset=id))

    def preview(self, dataset_id: UUID, image: int) -> None:
        """Somebody waits for a small picture of it."""
        self._put(_Message(preview=(dataset_id, image)))

    def close(self, patience: float = 3.0) -> None:
        """Send what is left; what does not get away within `patience` seconds, the housekeeper publishes."""
        self._deadline = time.monotonic() + patience
        self._messages.put(None)
        self._thread.join()

    def _put(self, message: _Message) -> bool:
        try:
            self._messages.put_nowait(message)
        except Full:
            return False
        return True

    def _run(self) -> None:
        while True:
            gathered = self._gather()
            messages = [message for message in gathered if message is not None]
            try:
                self._send(messages)
            except Exception:
                log.exception("%d messages were not sent", len(messages))
            if len(messages) < len(gathered):
                return

    def _gather(self) -> list[_Message | None]:
        """All that wait, so that a Redis that answers nothing costs its timeout once and not for each."""
        gathered = [self._messages.get()]
        try:
            while len(gathered) < _AT_ONCE:
                gathered.append(self._messages.get_nowait())
        except Empty:
            pass
        return gathered

    def _send(self, messages: Sequence[_Message]) -> None:
        dispatches = [dispatch for message in messages for dispatch in message.dispatches]
        if time.monotonic() > self._deadline:
            self._leave_to_housekeeper(dispatches)
            return
        try:
            if self._away:
                # Celery tries for seconds to connect to a Redis that is gone; this says so at once.
                self._queue.check()
            if dispatches:
                self._queue.publish(dispatches)
            self._away = False
        except QueueUnavailable as error:
            self._away = True
            log.warning("%d jobs are left to the housekeeper: %s", len(dispatches), error)
            self._leave_to_housekeeper(dispatches)
            return
        self._queue.announce((id, {"status": status.value}) for id, status in _events(messages))
        self._recorder.flush(self._queue.redis)
        try:
            for message in messages:
                if message.cancel is not None:
                    self._queue.request_cancel(message.cancel)
                if message.preview is not None:
                    self._queue.ask_for_previews(message.preview[0], [message.preview[1]])
            self._queue.publish_datasets([message.dataset for message in messages if message.dataset is not None])
        except QueueUnavailable as error:
            log.warning("cancels wait for a heartbeat, and data sets for a round of the housekeeper: %s", error)

    def _leave_to_housekeeper(self, dispatches: Sequence[Dispatch]) -> None:
        if not dispatches:
            return
        try:
            self._database.jobs.dispatch_now([dispatch.id for dispatch in dispatches])
        except DatabaseUnavailable as error:
            log.warning("%d jobs are late by the time until they are due: %s", len(dispatches), error)


def _events(messages: Sequence[_Message]) -> list[tuple[UUID, Status]]:
    return [message.event for message in messages if message.event is not None]
