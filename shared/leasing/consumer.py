"""Threads that take long work from a queue, one message at a time, beside Celery's own pool.

Celery's threads are for jobs, which last for moments: a shard lasts for minutes, and a worker that took one for each of
its threads would have none left for a person's job. The messages are Celery's, and so are the events: Flower shows each
shard as a task under its own id, in its true state.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic

from celery import Celery
from kombu.exceptions import KombuError
from redis.exceptions import RedisError

from shared.leasing.heartbeat import Heartbeat, Work
from shared.queue import connect, priority_keys, queue_of
from shared.queue.envelope import parse_envelope
from shared.queue.events import Outcome, failed, retried
from shared.settings import Settings
from shared.telemetry import tracing
from tuwen.errors import Unavailable

log = logging.getLogger(__name__)

POLL = 1.0
"""Seconds for which a thread waits for a message before it looks whether to end."""


class TaskConsumer:
    """`threads` threads that each take a message of `queues`, do it, and take the next.

    Args:
        do: called with a function to call when the work begins, and the message's arguments, which anybody may
            have sent. Returns Celery's event for the end, or None where the message meant nothing: a duplicate must
            not look like the end of work that continues elsewhere. What it raises is logged and sent as an event.
    """

    def __init__(
        self,
        settings: Settings,
        app: Celery,
        hostname: str,
        task: str,
        queues: Sequence[str],
        do: Callable[..., Outcome | None],
        *,
        threads: int,
    ):
        self._settings = settings
        self._app = app
        self._hostname = hostname
        self._task = task
        self._keys = priority_keys(queues)
        self._do = do
        self._closing = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, name=f"{task}-{number}", daemon=True) for number in range(threads)
        ]

    def start(self) -> None:
        """Start the threads that take messages."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Take no more messages; what is under way goes on."""
        self._closing.set()

    def join(self, timeout: float) -> None:
        """Wait until what is under way has ended, for at most `timeout` seconds."""
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))

    def _run(self) -> None:
        with connect(self._settings, decode=False) as client:
            while not self._closing.is_set():
                try:
                    # One message at a time: what is prefetched here, another worker could be doing.
                    found = client.brpop(self._keys, timeout=POLL)
                except (RedisError, OSError) as error:
                    log.debug("no messages: %s", error)
                    self._closing.wait(POLL)
                    continue
                if found:
                    self._handle(found[1], queue_of(found[0]))

    def _handle(self, message: bytes, queue: str) -> None:
        envelope = parse_envelope(message)
        if envelope is None:
            log.warning("dropped something that is not a task message")  # anybody who reaches Redis can publish
            return
        id, arguments = str(envelope.id), envelope.arguments
        started = time.monotonic()
        began = time.time_ns()
        at_work = False

        def begin() -> None:
            nonlocal at_work
            at_work = True
            self._send_event(id, "task-received", name=self._task, args=repr(tuple(arguments)), kwargs="{}", retries=0)
            self._send_event(id, "task-started")

        try:
            outcome = self._do(begin, *arguments)
        except Unavailable as error:
            # Its lease runs out, and the housekeeper sees to it.
            log.warning("%s%r was interrupted: %s", self._task, tuple(arguments), error)
            outcome = retried(str(error))
        except Exception as error:
            log.exception("%s%r failed unexpectedly", self._task, tuple(arguments))
            outcome = failed(f"{type(error).__name__}: {error}")
        if outcome is not None:
            self._send_event(id, outcome.event, runtime=time.monotonic() - started, **outcome.details)
            if at_work:
                self._trace(queue, id, arguments, began, outcome)

    def _trace(self, queue: str, id: str, arguments: Sequence[object], began: int, outcome: Outcome) -> None:
        about = {
            **tracing.messaging("process", queue, id),
            "messaging.client.id": self._hostname,
            "tuwen.subject": str(arguments[0]) if arguments else "",
            "tuwen.status": outcome.status.value,
        }
        error = outcome.reason or outcome.status.value if outcome.is_failure else None
        tracing.record(f"process {queue}", began, about, error=error, consumer=True)

    def _send_event(self, id: str, event: str, **details: object) -> None:
        try:
            with self._app.events.default_dispatcher(hostname=self._hostname) as dispatcher:
                dispatcher.send(event, uuid=id, **details)
        except (KombuError, RedisError, OSError) as error:
            log.debug("an event for Flower could not be sent: %s", error)


class LeasedConsumer(Generic[Work]):
    """A `TaskConsumer` whose work is held under leases.

    What a message names is claimed, renewed while it is done, and stopped when somebody cancels it, when another
    process has it, or when this process ends.
    """

    def __init__(
        self,
        consumer: Callable[[Callable[..., Outcome | None]], TaskConsumer],
        heartbeat: Heartbeat[Work],
        *,
        claim: Callable[..., Work | Outcome | None],
        do: Callable[[Work], Outcome | None],
    ):
        """Take work from the queues of `consumer`, which is given what to do with a message.

        Args:
            claim: is given the arguments of a message; returns the work that is now this process's, the outcome when
                nothing is left to do, or None when the message meant nothing.
            do: does the work and returns its outcome, whatever happens.
        """
        self._consumer = consumer(self.run)
        self._heartbeat = heartbeat
        self._claim = claim
        self._do = do
        self._stopping = threading.Event()

    def start(self) -> None:
        """Start the heartbeat, then take messages."""
        self._heartbeat.start()
        self._consumer.start()

    def stop(self, timeout: float) -> None:
        """Give back what is under way, within `timeout` seconds."""
        self._stopping.set()
        self._consumer.stop()
        self._heartbeat.stop_all()
        self._consumer.join(timeout)
        self._heartbeat.close()

    def run(self, begin: Callable[[], None], *arguments: object) -> Outcome | None:
        """Do what a message asks for, if it is to be done; `begin` is called when that is known."""
        work = self._claim(*arguments)
        if work is None or isinstance(work, Outcome):
            return work
        begin()
        with self._heartbeat.holding(work):
            if self._stopping.is_set():
                work.stop()
            return self._do(work)
