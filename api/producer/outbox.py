"""Publishes messages to Redis from a separate thread, so that no request waits for a Redis that is slow or down.

The rows behind the messages are already committed. When Redis does not accept a message, the housekeeper is asked to
publish it; when this process dies first, the housekeeper notices by itself, a little later.
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
"""Most messages that wait here; the housekeeper publishes any beyond that."""
_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class _Message:
    dispatches: Sequence[Dispatch] = ()
    event: tuple[UUID, Status] | None = None
    cancel: UUID | None = None
    dataset: UUID | None = None
    preview: tuple[UUID, int] | None = None
    batches: bool = False


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
        """Publish the messages of jobs that may run."""
        if not self._put(_Message(dispatches=dispatches)):
            self._leave_to_housekeeper(dispatches)

    def announce_cancel(self, job_id: UUID, kind: Kind, status: Status) -> None:
        """Tell workers and watchers of a requested cancel: the job is already over, or its worker has yet to stop."""
        if status is Status.CANCELLED:
            self._recorder.count(JOBS_FINISHED, kind, status)
            self._put(_Message(event=(job_id, status)))
        else:
            self._put(_Message(cancel=job_id))

    def publish_dataset(self, id: UUID) -> None:
        """Have a data set planned or exported now; a housekeeper would notice it by itself a few seconds later."""
        self._put(_Message(dataset=id))

    def ask_for_preview(self, dataset_id: UUID, image: int) -> None:
        """Ask a housekeeper for a preview of an image that a client is waiting for."""
        self._put(_Message(preview=(dataset_id, image)))

    def call_for_batches(self) -> None:
        """A batch was made or cancelled; a housekeeper finds out by itself, a second later."""
        self._put(_Message(batches=True))

    def close(self, patience: float = 3.0) -> None:
        """Send the remaining messages; the housekeeper publishes those that are not sent within `patience` seconds."""
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
        """All waiting messages, so that a Redis that does not answer costs its timeout only once."""
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
                # Celery tries for seconds to connect to a Redis that is down; this check fails at once.
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
            if any(message.batches for message in messages):
                self._queue.call_for_batches()
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
