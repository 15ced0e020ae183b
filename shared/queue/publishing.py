"""What is put into Redis: ids of jobs, shards and data sets for workers and housekeepers, and events for watchers."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import UUID, uuid4

from kombu.exceptions import KombuError
from redis.exceptions import RedisError

from shared.database import Dispatch
from shared.database.shards import ShardDispatch
from shared.queue.access import complaint_of_access
from shared.queue.app import celery_app, connect
from shared.queue.names import (
    BATCHES_LIST,
    CANCEL_CHANNEL,
    COLLECTED_KEY,
    DATASET_TASK,
    DATASETS_QUEUE,
    GENERATION_KEY,
    HOUSEKEEPER_PREFIX,
    PREVIEWS_LIST,
    SHARD_TASK,
    event_channel,
    progress_key,
    queue_name,
    shard_kinds,
    shards_queue,
    task_name,
)
from shared.settings import Settings
from tuwen.errors import QueueUnavailable
from tuwen.jobs import Kind, Progress
from tuwen.version import __version__

log = logging.getLogger(__name__)

Announcement = tuple[UUID, Mapping[str, Any]]
"""A job id with its event: `{"status": …}`, or `{"progress": …}` with the fields of `tuwen.jobs.Progress`."""


@contextmanager
def _translate_errors() -> Iterator[None]:
    try:
        yield
    except (KombuError, RedisError, OSError) as error:
        if "MISCONF" in str(error):  # what it answers to every write once its own writes fail
            raise QueueUnavailable("Redis cannot write to its disk: make room there.", retry_after=30) from error
        if complaint := complaint_of_access(error):
            raise QueueUnavailable(complaint, retry_after=30) from error
        raise QueueUnavailable("Redis does not answer; try again.", retry_after=2) from error


class JobQueue:
    """Publishes messages and events. Thread-safe; make one per process.

    Raises:
        QueueUnavailable: from every method but `announce`, when Redis does not answer.
    """

    def __init__(self, settings: Settings):
        self._app = celery_app(settings)
        self.redis = connect(settings)

    def publish(self, jobs: Iterable[Dispatch]) -> None:
        """Publish jobs to the workers, the most urgent first, then the older; the task id is the job id.

        When this raises, some messages may have been published: a duplicate is harmless.
        """
        with _translate_errors(), self._app.producer_pool.acquire(block=True, timeout=5) as producer, producer.batch():
            for job in sorted(jobs, key=lambda job: (-job.priority, job.id)):  # ids grow with time
                self._app.send_task(
                    task_name(job.kind),
                    args=[str(job.id)],
                    task_id=str(job.id),
                    queue=queue_name(job.kind),
                    # kombu's Redis transport serves the smallest number first.
                    priority=9 - job.priority,
                    producer=producer,
                    retry=False,
                )

    def announce(self, events: Iterable[Announcement]) -> set[UUID]:
        """Send events to the watchers of these jobs; returns the jobs that have watchers.

        Best effort: watchers also poll PostgreSQL, so a lost event is only late.
        """
        pipeline = self.redis.pipeline(transaction=False)
        published: dict[int, UUID] = {}
        for job_id, event in events:
            if progress := event.get("progress"):
                # Stored for later watchers, without the parts: newer parts arrive as soon as somebody watches.
                brief = {"step": progress["step"], "steps": progress["steps"]}
                pipeline.set(progress_key(job_id), json.dumps(brief), ex=60)
            published[len(pipeline)] = job_id
            pipeline.publish(event_channel(job_id), json.dumps(event))
        try:
            answers = pipeline.execute()
        except (RedisError, OSError):
            log.warning("Redis does not answer: events of %d jobs are late", len(set(published.values())))
            return set()
        return {job_id for place, job_id in published.items() if answers[place]}

    def progress(self, job_id: UUID) -> Progress | None:
        """The latest progress of a job, if one was announced in the last minute."""
        with _translate_errors():
            message = self.redis.get(progress_key(job_id))
        return Progress.model_validate_json(message) if message else None

    def request_cancel(self, job_id: UUID) -> None:
        """Notify the worker that runs this job of a cancel; the request itself is in PostgreSQL."""
        with _translate_errors():
            self.redis.publish(CANCEL_CHANNEL, str(job_id))

    def depth(self) -> dict[Kind, int]:
        """Number of messages per kind that wait in Redis."""
        with _translate_errors(), self._app.connection_for_read() as connection:
            channel = connection.default_channel
            return {kind: channel._size(queue_name(kind)) for kind in Kind}

    def publish_shards(self, shards: Iterable[ShardDispatch]) -> None:
        """Publish shards to the workers that have the models they need; the task id is the shard's id.

        The message contains the priority at which it was sent; it is void if the priority has changed since.
        """
        with _translate_errors(), self._app.producer_pool.acquire(block=True, timeout=5) as producer, producer.batch():
            for shard in shards:
                self._app.send_task(
                    SHARD_TASK,
                    args=[str(shard.id), shard.priority],
                    task_id=str(shard.id),
                    queue=shards_queue(shard.kinds),
                    priority=9 - shard.priority,
                    producer=producer,
                    retry=False,
                )

    def publish_datasets(self, ids: Iterable[UUID]) -> None:
        """Publish data sets that some housekeeper is to plan or export."""
        with _translate_errors(), self._app.producer_pool.acquire(block=True, timeout=5) as producer:
            for id in ids:
                # The task id is not that of the data set, which is published at least twice: to be planned and to be
                # exported.
                self._app.send_task(DATASET_TASK, args=[str(id)], queue=DATASETS_QUEUE, producer=producer, retry=False)

    def ask_for_previews(self, dataset_id: UUID, images: Sequence[int]) -> None:
        """Ask a housekeeper, which can read the source, to make previews of these images."""
        with _translate_errors():
            self.redis.lpush(PREVIEWS_LIST, json.dumps([str(dataset_id), list(images)]))
            self.redis.ltrim(PREVIEWS_LIST, 0, 9999)

    def call_for_batches(self) -> None:
        """Make a housekeeper look for due batches at once; without a call it does so a second later."""
        with _translate_errors():
            # One call is enough: who answers it goes on until no batch is due.
            self.redis.lpush(BATCHES_LIST, "due")
            self.redis.ltrim(BATCHES_LIST, 0, 0)

    def dataset_depth(self) -> int:
        """Number of messages for data sets that no housekeeper has taken."""
        with _translate_errors(), self._app.connection_for_read() as connection:
            depth: int = connection.default_channel._size(DATASETS_QUEUE)
            return depth

    def shard_depth(self) -> dict[str, int]:
        """Number of messages for shards that no worker has taken, by the models that they need."""
        with _translate_errors(), self._app.connection_for_read() as connection:
            channel = connection.default_channel
            return {kinds: channel._size(shards_queue(kinds)) for kinds in shard_kinds(Kind)}

    def generation(self) -> str:
        """Identifier of the data in Redis: it changes when Redis restarts and when its data is wiped."""
        with _translate_errors():
            self.redis.set(GENERATION_KEY, str(uuid4()), nx=True)
            return f"{self.redis.get(GENERATION_KEY)!s}@{self.redis.info('server')['run_id']}"

    def collected(self) -> str:
        """Storage key up to which the search for orphans has come; empty at the beginning."""
        with _translate_errors():
            return str(self.redis.get(COLLECTED_KEY) or "")

    def note_collected(self, key: str) -> None:
        """Note the storage key up to which the search for orphans has come."""
        with _translate_errors():
            self.redis.set(COLLECTED_KEY, key)

    def sign_housekeeper(self, host: str, lifetime: float) -> None:
        """Note that the housekeeper on `host` runs; the note holds for `lifetime` seconds."""
        with _translate_errors():
            self.redis.set(f"{HOUSEKEEPER_PREFIX}{host}", __version__, px=int(lifetime * 1000))

    def housekeeper_seen(self, host: str) -> bool:
        """Whether a housekeeper on `host` has signed in and its note has not expired."""
        with _translate_errors():
            return bool(self.redis.exists(f"{HOUSEKEEPER_PREFIX}{host}"))

    def housekeepers(self) -> list[str]:
        """Hosts on which a housekeeper runs."""
        with _translate_errors():
            keys = self.redis.scan_iter(f"{HOUSEKEEPER_PREFIX}*", count=1000)
            return sorted(str(key).removeprefix(HOUSEKEEPER_PREFIX) for key in keys)

    def housekeeper_releases(self) -> dict[str, str]:
        """Host → release of the housekeeper that signed in last there; early releases told `works`."""
        with _translate_errors():
            return {host: str(self.redis.get(f"{HOUSEKEEPER_PREFIX}{host}") or "") for host in self.housekeepers()}

    def check(self) -> None:
        """Check readiness: Redis answers."""
        with _translate_errors():
            self.redis.ping()

    def close(self) -> None:
        """Close the connections to Redis."""
        self.redis.close()
        self._app.close()
